"""A whole model on ggml's grids, decoder block by decoder block, resumed at the block where it was killed.

Each block is rounded as its inputs are once all blocks before it are rounded. What is finished lies in a
folder, one safetensors file for each block, so that a walk that begins again only reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError
from cogumi.store import disk_error, write_atomic
from pipeline.compression.allocation import Choice
from pipeline.compression.dense import gguf_name, hf_name, row_order, to_gguf_rows
from pipeline.compression.ggml import dequantize, fits, row_bytes
from pipeline.compression.hessians import Fisher, Layer, fisher, walk
from pipeline.compression.rounding import rounded

if TYPE_CHECKING:
    import torch

    from pipeline.compression.ggml import Bytes

FISHER, COSTS = "fisher.safetensors", "costs.json"
"""What a folder keeps that no size of the file changes: a run of another size may be given them."""
_SAMPLED_ROWS = 64
"""Rows of a tensor whose error at a type stands for all of them: their mean is known to about a tenth."""


Share = tuple[int, int]
"""(i, n): every n-th block, from the i-th on."""


@dataclass(frozen=True, slots=True)
class Work:
    """One model under work: ``rows`` are token ids, ``folder`` keeps what is finished."""

    model: Any
    rows: Sequence[Sequence[int]]
    folder: Path
    device: Any
    damping: float
    passes: int
    tell: Callable[[str], None]
    """Called with what has just been finished."""

    @property
    def tied(self) -> bool:
        """Whether the embedding is the head as well."""
        head: Any = self.model.get_output_embeddings().weight
        return head.data_ptr() == self.model.get_input_embeddings().weight.data_ptr()  # type: ignore[no-any-return]


def measured_fisher(work: Work, seed: int) -> Fisher:
    """Return what every output counts, from the folder where it was measured before."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    file = work.folder / FISHER
    if not file.is_file():
        found = fisher(work.model, work.rows, device=work.device, seed=seed)
        held = {f"outputs/{name}": value for name, value in found.outputs.items()}
        held |= {f"tokens/{name}": value for name, value in found.tokens.items()}
        _save(lambda partial: save_file({**held, "embedding": found.embedding}, partial), file)
        work.tell("fisher")
        return found
    with safe_open(file, framework="pt") as saved:
        tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 - not a mapping
    return Fisher(
        {
            name.removeprefix("outputs/"): value
            for name, value in tensors.items()
            if name.startswith("outputs/")
        },
        {
            name.removeprefix("tokens/"): value
            for name, value in tensors.items()
            if name.startswith("tokens/")
        },
        tensors["embedding"],
    )


def measured_costs(
    work: Work, found: Fisher, kinds: Sequence[str], share: Share = (0, 1)
) -> dict[str, list[Choice]]:
    """Return size and expected cost (KL, nats per token) of each tensor at each type that its rows take.

    From a part of each tensor's rows, rounded with compensation in the dense model. By GGUF name. What a
    block costs is kept as soon as it is known. A ``share`` other than (0, 1) measures its blocks alone and
    returns those: processes with all shares of one folder leave nothing but the head to measure.
    """
    file = work.folder / COSTS
    if file.is_file():
        return _read_costs(file)
    costs: dict[str, list[Choice]] = {}

    def cost(layer: Layer) -> list[Choice]:
        count, columns = layer.weight.shape
        step = max(1, count // _SAMPLED_ROWS)
        # So few rows are bound by the number of operations, which a GPU is no quicker at.
        part, hessian = layer.weight[::step].float().cpu(), layer.hessian.cpu()
        matters = _matters(found, layer.name, count)[::step].cpu()
        choices = []
        for kind in kinds:
            if fits(kind, columns):
                errors = rounded(part, hessian, kind, damping=work.damping, passes=1).errors
                expected = float((errors * matters).mean()) * count / 2
                choices.append(Choice(kind, count * row_bytes(kind, columns), expected))
        if not choices:
            raise RunError(f"{layer.name}: its rows of {columns} weights take none of {', '.join(kinds)}")
        return choices

    def visit(number: int, layers: list[Layer]) -> bool:
        kept = work.folder / f"costs-{number:04}.json"
        if kept.is_file():
            costs.update(_read_costs(kept))
        elif number % share[1] == share[0]:
            block = {_gguf(layer.name): cost(layer) for layer in layers}
            _write_costs(block, kept)
            costs.update(block)
            work.tell(f"cost {number}")
        return False

    head = walk(work.model, work.rows, visit, device=work.device, weights=found.tokens)
    if share == (0, 1):
        costs.update({_gguf(layer.name): cost(layer) for layer in _outer(work, found, head)})
        _write_costs(costs, file)
        for kept in work.folder.glob("costs-*.json"):
            kept.unlink()
        work.tell("cost head")
    return costs


def _read_costs(file: Path) -> dict[str, list[Choice]]:
    saved = json.loads(file.read_text())
    return {name: [Choice(*entry) for entry in entries] for name, entries in saved.items()}


def _write_costs(costs: Mapping[str, list[Choice]], file: Path) -> None:
    saved = {name: [[c.kind, c.bytes, c.cost] for c in choices] for name, choices in costs.items()}
    write_atomic(file, json.dumps(saved, sort_keys=True).encode())


def round_model(work: Work, found: Fisher, kinds: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Round every matrix of the model to its type in ``kinds`` (by GGUF name); nothing finished is redone.

    Returns by GGUF name the expected KL in nats per token: ``plain``, as ggml alone would round with the same
    importance, and ``compensated``. The model holds the rounded weights afterwards.
    """
    told: dict[str, dict[str, float]] = {}

    def visit(number: int, layers: list[Layer]) -> bool:
        told.update(_rounded_group(work, found, kinds, layers, f"block-{number:04}"))
        work.tell(f"block {number}")
        return True

    head = walk(work.model, work.rows, visit, device=work.device, weights=found.tokens)
    told.update(_rounded_group(work, found, kinds, _outer(work, found, head), "outer"))
    work.tell("head")
    return told


def rounded_bytes(work: Work, tensor: str, config: dict[str, Any]) -> Bytes:
    """Return the finished bytes of a GGUF tensor, uint8 (rows, row bytes), rows in llama.cpp's order."""
    from safetensors import safe_open

    module = hf_name(tensor) or ""
    group = f"block-{int(module.split('.')[2]):04}" if module.startswith("model.layers.") else "outer"
    with safe_open(work.folder / f"{group}.safetensors", framework="pt") as saved:
        data = to_gguf_rows(saved.get_tensor(module), row_order(module, config))
    found: Bytes = data.contiguous().numpy()
    return found


def _rounded_group(
    work: Work, found: Fisher, kinds: Mapping[str, str], layers: list[Layer], group: str
) -> dict[str, dict[str, float]]:
    """Round some layers in place and keep their bytes in one file, or take them from there."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    file, notes = work.folder / f"{group}.safetensors", work.folder / f"{group}.json"
    if file.is_file() and notes.is_file():
        with safe_open(file, framework="pt") as saved:
            for layer in layers:
                kind = kinds[_gguf(layer.name)]
                values = dequantize(saved.get_tensor(layer.name).numpy(), kind, layer.weight.shape[1])
                layer.weight.copy_(torch.from_numpy(values))
        known: dict[str, dict[str, float]] = json.loads(notes.read_text())
        return known
    data, told = {}, {}
    for layer in layers:
        kind = kinds[_gguf(layer.name)]
        done = rounded(layer.weight.float(), layer.hessian, kind, damping=work.damping, passes=work.passes)
        layer.weight.copy_(done.values)
        data[layer.name] = torch.from_numpy(done.data)
        matters = _matters(found, layer.name, len(done.errors)).to(done.errors.device)
        told[_gguf(layer.name)] = {
            "plain": float((done.plain_errors * matters).sum()) / 2,
            "compensated": float((done.errors * matters).sum()) / 2,
        }
    _save(lambda partial: save_file(data, partial), file)
    write_atomic(notes, json.dumps(told, sort_keys=True).encode())
    return told


def _outer(work: Work, found: Fisher, head: Layer) -> list[Layer]:
    """Return embedding and head as layers to round: one where they are tied, whose H is that of both uses.

    H of an embedding is the Fisher information of what is looked up; that of a head, of what it reads, by how
    much an average token's logit counts. Both are spread evenly over the vocabulary.
    """
    vocabulary = len(head.weight)
    embedding = work.model.get_input_embeddings().weight.detach()
    looked_up = found.embedding.to(head.hessian.device) / vocabulary
    read = head.hessian * float(found.outputs["lm_head"].mean())
    if work.tied:
        return [Layer("model.embed_tokens", embedding, looked_up + read)]
    return [
        Layer("model.embed_tokens", embedding, looked_up),
        Layer("lm_head", work.model.get_output_embeddings().weight.detach(), head.hessian),
    ]


def _matters(found: Fisher, module: str, rows: int) -> torch.Tensor:
    """Return the weight of each row's error; that of an embedding is in its H already."""
    import torch

    return torch.ones(rows) if module == "model.embed_tokens" else found.outputs[module]


def _gguf(module: str) -> str:
    name = gguf_name(module)
    if name is None:
        raise RunError(f"{module}: has no place in a Llama GGUF")
    return name


def _save(write: Callable[[Path], None], file: Path) -> None:
    """Let ``write`` fill a file beside ``file``, then rename it; raises ``RunError`` on a full disk."""
    from safetensors import SafetensorError

    partial = file.with_name(f".{file.name}.partial")
    try:
        write(partial)
        partial.replace(file)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError):
            raise disk_error(error, file) from error
        raise RunError(f"{file}: cannot be written ({error})") from error
    finally:
        partial.unlink(missing_ok=True)
