"""Compressed models as transformers answers with them, and answers in legs: many rows at once, on a GPU.

A GGUF file becomes a dense folder of its values, with the adapter beside it merged in float32. llama.cpp
keeps it apart and rounds activations to 8 bits: answers are those of the file's weights, not of its
arithmetic. A folder is loaded as it is, an adapter in it stays beside its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cogumi.digest import digest_of, file_sha256, tree_files
from cogumi.errors import RunError, UsageError
from cogumi.subjects import GGUF_MODEL, adapter_beside, gguf_adapter, read_json_object
from evals.backends.continuations import cut_at, stops_of
from evals.types import Generation, Prompt

if TYPE_CHECKING:
    from evals.backends.hf import HFBackend
    from evals.backends.loading import DType


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that answers; ``path``: a dense, compressed-tensors or pruned folder, or a GGUF file."""

    name: str
    path: Path

    def digest(self) -> str:
        """Return the digest of its files; raises ``UsageError`` when there are none."""
        if self.path.is_file():
            adapter = gguf_adapter(self.path)
            return digest_of([file_sha256(each) for each in (self.path, adapter) if each is not None])
        if not self.path.is_dir():
            raise UsageError(f"candidate {self.name}: no such file or folder: {self.path}")
        return digest_of(tree_files(self.path))


def candidate(text: str) -> Candidate:
    """Read ``NAME=PATH``; a folder that holds a ``model.gguf`` stands for that file.

    Raises ``UsageError`` for another form.
    """
    name, equals, path = text.partition("=")
    if not (name.strip() and equals and path):
        raise UsageError(f"--candidate: NAME=PATH is expected, not {text!r}")
    inner = Path(path) / GGUF_MODEL
    return Candidate(name.strip(), inner if inner.is_file() else Path(path))


@contextmanager
def opened(found: Candidate, like: Path, dtype: DType) -> Iterator[HFBackend]:
    """Load a candidate; ``like`` gives configuration and tokenizer to a GGUF file's weights.

    Raises ``RunError`` naming the file when it cannot be read, is not of a model shaped as ``like``, or has
    the adapter of another file beside it.
    """
    from evals.backends.adapter_base import check_gguf_base
    from evals.backends.hf import HFBackend
    from pipeline.compression.dense import dense_from_gguf

    with TemporaryDirectory(prefix="cogumi-dense-") as name:
        folder, adapter = found.path, None
        if found.path.suffix == ".gguf":
            folder = Path(name) / "dense"
            dense_from_gguf(found.path, like, folder)
            beside = gguf_adapter(found.path)
            if beside is not None:
                check_gguf_base(found.path, beside)
                merge_gguf_adapter(beside, folder)
        else:
            adapter = adapter_beside(found.path)
        backend = HFBackend(folder, adapter=adapter, dtype=dtype)
    try:
        yield backend
    finally:
        backend.close()


def merge_gguf_adapter(adapter: Path, folder: Path) -> None:
    """Add a GGUF adapter to the weights of a dense folder: W + alpha / rank · B A, in float32.

    Raises ``RunError`` naming the file when it is no adapter of this model. Source of the format and the
    scale: llama-adapter.cpp of llama.cpp.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from pipeline.compression.dense import hf_name, row_order, to_hf_rows
    from pipeline.compression.gguf_tensors import GGUFFile

    source, config = GGUFFile(adapter), read_json_object(folder / "config.json")
    alpha = source.metadata.get("adapter.lora.alpha")
    if alpha is None:
        raise RunError(f"{adapter}: not a LoRA adapter in GGUF (no adapter.lora.alpha)")
    changes = {}
    for name in source.tensors:
        base, dot, half = name.rpartition(".lora_")
        if not dot or half != "a":
            continue
        module = hf_name(base)
        if module is None or f"{base}.lora_b" not in source.tensors:
            raise RunError(f"{adapter}: {name} is for no layer of a Llama, or lacks its other half")
        down, up = (torch.from_numpy(source.values(f"{base}.lora_{each}").copy()) for each in "ab")
        up = to_hf_rows(up, row_order(module, config))
        changes[f"{module}.weight"] = float(alpha) / down.shape[0] * (up @ down)
    for file in sorted(folder.glob("*.safetensors")):
        weights = load_file(file)
        mine = {name: changes.pop(name) for name in weights.keys() & changes.keys()}
        for name, change in mine.items():
            if weights[name].shape != change.shape:
                raise RunError(f"{adapter}: {name} is {tuple(change.shape)} there; name its own base")
        save_file(
            weights | {name: weights[name].float() + change for name, change in mine.items()},
            file,
            metadata={"format": "pt"},
        )
    if changes:
        raise RunError(f"{adapter}: {sorted(changes)[0]} is no weight of its base {folder}")


# Answers ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Row:
    """A prompt on its way: its ids, what was said so far, and how long that may become."""

    prompt: list[int]
    stops: tuple[str, ...]
    limit: int
    said: list[int] = field(default_factory=list)
    finished: bool = False


def answer(
    backend: HFBackend, prompts: Sequence[Prompt], *, max_tokens: int, leg: int = 192
) -> list[Generation]:
    """Answer greedily what ``HFBackend.generate`` would, all prompts in one batch, in the order given.

    Every ``leg`` tokens the rows that have ended leave, and the others are read again without the padding
    that these needed: one answer that runs to the limit does not keep the whole batch waiting. A batch that
    finds no memory is halved. ``seconds`` are left at 0. Raises ``RunError`` when one row finds no memory.
    """
    rows = []
    for prompt in prompts:
        ids = backend.encode(prompt)
        rows.append(_Row(ids, stops_of(prompt), min(max_tokens, backend.context - len(ids))))
    while active := [row for row in rows if not row.finished and len(row.said) < row.limit]:
        _go_on(backend, active, min(leg, *(row.limit - len(row.said) for row in active)))
    return [_generation(backend, row) for row in rows]


def _go_on(backend: HFBackend, rows: Sequence[_Row], tokens: int) -> None:
    """Say up to ``tokens`` more in every row, in as many batches as the memory wants."""
    import torch

    waiting = [list(rows)]
    while waiting:
        batch = waiting.pop()
        try:
            _say(backend, batch, tokens)
            continue
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                length = len(batch[0].prompt) + len(batch[0].said)
                raise RunError(f"out of memory on one row of {length} tokens") from error
        torch.cuda.empty_cache()
        half = len(batch) // 2
        waiting += [batch[half:], batch[:half]]


def _say(backend: HFBackend, rows: Sequence[_Row], tokens: int) -> None:
    import torch
    from transformers import GenerationConfig

    from evals.backends.hf_stopping import StopTexts
    from evals.backends.loading import quiet_transformers

    loaded = backend._loaded
    read = [row.prompt + row.said for row in rows]
    pad, width = min(loaded.stop_ids, default=0), max(map(len, read))
    device = loaded.model.device
    ids = torch.tensor([[pad] * (width - len(each)) + each for each in read], device=device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in read], device=device)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=tokens,
        eos_token_id=sorted(loaded.stop_ids) or None,
        pad_token_id=pad,
    )
    watch = StopTexts(loaded.tokenizer, [row.stops for row in rows], loaded.stop_ids)
    with torch.inference_mode(), quiet_transformers():
        output = loaded.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            stopping_criteria=[watch] if any(row.stops for row in rows) else None,
        )
    for at, (row, found) in enumerate(zip(rows, output[:, width:].tolist(), strict=True)):
        # Past a stop there is only padding, or what other rows still had to say.
        found = found[: watch.ended.get(at)]
        ends = loaded.stop_ids | watch.ids[at]
        end = next((place for place, token in enumerate(found) if token in ends), None)
        row.said += found if end is None else found[: end + 1]
        row.finished = end is not None or _ended(backend, row)


def _ended(backend: HFBackend, row: _Row) -> bool:
    """Tell whether a stop text was said; one that two legs share is seen here alone, and cut at its end."""
    from evals.backends.hf_stopping import decode

    def holds(said: list[int]) -> bool:
        return cut_at(decode(backend._loaded.tokenizer, said), row.stops) is not None

    if not row.stops or not holds(row.said):
        return False
    while holds(row.said[:-1]):
        row.said.pop()
    return True


def _generation(backend: HFBackend, row: _Row) -> Generation:
    from evals.backends.hf_stopping import decode, special_ids

    if row.limit <= 0:
        return Generation("", "error", len(row.prompt), 0, 0.0)
    loaded = backend._loaded
    ends = loaded.stop_ids
    if row.stops:
        special = special_ids(loaded.tokenizer)
        ends = ends | {special[text] for text in row.stops if text in special}
    said = row.said[:-1] if row.said[-1] in ends else row.said
    text = decode(loaded.tokenizer, said)
    before = cut_at(text, row.stops)
    return Generation(
        text if before is None else before,
        "stop" if row.finished else "length",
        len(row.prompt),
        len(row.said),
        0.0,
    )
