"""Running a recipe of llmcompressor: quietly, on our own rows, with and without an accelerator.

Covered: dense causal language models in a folder; one layer at a time on the accelerator where there is one,
so that a model need not fit into its memory; saving what came out as a dense folder. Not covered: experts,
models that are quantised already, several devices.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError
from cogumi.store import disk_error
from cogumi.subjects import read_json_object
from pipeline.training.model_folder import BESIDE

if TYPE_CHECKING:
    import torch

    from evals.backends.loading import DType, LoadedModel

Tell = Callable[[int, int], None]
"""Told how many parts of the model are done, of how many."""

# Tokens that go through a layer at once: bounds the scores of eager attention, which tracing needs.
BATCH_TOKENS = 2048

SHARD_BYTES = "2GB"

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_PART = re.compile(r"\((\d+)/(\d+)\): Calibrating")


# Models --------------------------------------------------------------------------------------------------


def load_dense(model: Path) -> LoadedModel:
    """Load a dense model's folder on the CPU, half precision as bf16; in float32 where a CPU must compute.

    ``save_dense`` writes the stored precision again. Raises ``RunError`` for a model that is quantised
    already, broken, of another kind (experts, GPT-2), or whose weights are not finite.
    """
    import torch

    from evals.backends.loading import load_model, prefill_dtype

    config = read_json_object(model / "config.json")
    if "quantization_config" in config:
        raise RunError(f"{model / 'config.json'}: the model is quantised already; name the dense one")
    # llmcompressor computes on an accelerator of any kind, and moves the layers there itself.
    computes_on = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    half: DType = "fp32" if stored_dtype(model) == torch.float32 else "bf16"
    loaded = load_model(model, dtype=prefill_dtype(computes_on, half=half))
    if not linear_layers(loaded.model) or any(each.ndim > 2 for each in loaded.model.parameters()):
        kind = config.get("model_type")
        raise RunError(f"{model}: {kind} is no dense decoder with linear layers under model.layers")
    check_finite(loaded.model, model)
    return loaded


def stored_dtype(model: Path) -> torch.dtype:
    """Return the precision in which a folder's weights are kept: bfloat16 for any half one, else float32."""
    import torch

    config = read_json_object(model / "config.json")
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return torch.bfloat16 if stored in ("bfloat16", "float16") else torch.float32


def linear_layers(model: Any) -> dict[str, torch.nn.Linear]:
    """Return the linear layers of the decoder by name; embeddings and head are none of them."""
    import torch

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and _LAYER.match(name)
    }


def other_linear_layers(model: Any) -> list[str]:
    """Return the names of the linear layers that are never compressed: the head."""
    import torch

    inside = linear_layers(model)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in inside
    ]


def layer_number(name: str) -> int:
    """Return the number of the decoder layer that a linear layer of ``linear_layers`` belongs to."""
    found = _LAYER.match(name)
    assert found is not None
    return int(found[1])


def check_finite(model: Any, told: Path | str) -> None:
    """Raise ``RunError`` naming the first weight that has a value which is not finite."""
    import torch

    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise RunError(f"{told}: {name} has values that are not finite; the model is broken")


def check_tokens(rows: Sequence[Sequence[int]], columns: int) -> None:
    """Raise ``RunError`` where there are fewer tokens than a layer has columns.

    Its second moments have no inverse then, and SparseGPT and GPTQ correct weights by noise.
    """
    tokens = sum(map(len, rows))
    if tokens < columns:
        raise RunError(
            f"calibration data too short: {tokens} tokens in {len(rows)} rows, and a layer has {columns} "
            "columns; ask for more samples"
        )


# Running -------------------------------------------------------------------------------------------------


def import_llmcompressor() -> None:
    """Import llmcompressor without its log: it writes one to the screen from its first line on."""
    with _kept_environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["LLM_COMPRESSOR_LOG_DISABLED"] = "true"
        import llmcompressor
        from loguru import logger

        assert llmcompressor
    with contextlib.suppress(ValueError):
        # Its own level, which it does not make where its log is off and yet writes to; there already else.
        logger.level("METRIC", no=38)
    logger.disable("llmcompressor")
    logger.disable("compressed_tensors")


def run_recipe(
    loaded: LoadedModel, rows: Sequence[Sequence[int]], recipe: Any, told: Path, tell: Tell
) -> None:
    """Apply llmcompressor's modifiers to the model in place, layer after layer, on ``rows`` of token ids.

    Rows of one length share a batch, so nothing is padded. Raises ``RunError`` in one line, naming ``told``,
    when the library fails or the model computes nothing finite afterwards.
    """
    rows = [row for row in rows if row]
    _check_answers(loaded.model, rows, f"{told}: the model's")
    import_llmcompressor()
    import torch
    from compressed_tensors.offload.dispatch import remove_dispatch
    from llmcompressor import oneshot
    from llmcompressor.core import reset_session
    from torch.utils.data import DataLoader

    from evals.backends.loading import quiet_transformers
    from evals.backends.tokenization import first_line

    batches = [{"input_ids": torch.tensor(batch)} for batch in equal_batches(rows)]
    dataset: Any = batches
    try:
        with quiet_transformers(), undisturbed(tell):
            oneshot(
                model=loaded.model,
                processor=loaded.tokenizer,
                recipe=recipe,
                dataset=DataLoader(dataset, batch_size=None),
                pipeline="sequential",
            )
    except Exception as error:
        # The libraries below raise a dozen unrelated classes.
        raise RunError(f"{told}: llmcompressor failed ({first_line(error)})") from error
    finally:
        # It keeps the model in a global session.
        reset_session()
    # What it moves to the accelerator and back tears tied weights apart.
    remove_dispatch(loaded.model)
    loaded.model.tie_weights()
    _check_answers(loaded.model, rows, f"{told}: compressed, the model's")


def _check_answers(model: Any, rows: Sequence[Sequence[int]], whose: str) -> None:
    """Raise ``RunError`` unless a row gives finite logits.

    Activations that overflow need not show in the weights: the library chooses by other means then.
    """
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([min(rows, key=len)]), use_cache=False).logits
    if not bool(torch.isfinite(logits).all()):
        raise RunError(f"{whose} logits are not finite")


def equal_batches(rows: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Return the rows, the shortest first, in batches of one length: one row, or up to ``BATCH_TOKENS``."""
    found: list[list[Sequence[int]]] = []
    for length, same in groupby(sorted(rows, key=len), key=len):
        group, size = list(same), max(1, BATCH_TOKENS // max(1, length))
        found.extend(group[start : start + size] for start in range(0, len(group), size))
    return found


@contextlib.contextmanager
def undisturbed(tell: Tell = lambda done, total: None) -> Iterator[None]:
    """Within it llmcompressor draws no bars, warns of nothing, and runs without an accelerator."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache
    from tqdm import tqdm  # type: ignore[import-untyped]

    def bar(self: Any, *args: Any, desc: str | None = None, **kwargs: Any) -> None:
        if part := _PART.match(desc or ""):
            tell(int(part[1]) - 1, int(part[2]))
        made(self, *args, **{**kwargs, "disable": True})

    made = tqdm.__init__
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(tqdm, "__init__", bar))
        if not torch.accelerator.is_available():
            # AWQ pins its cache, which torch refuses without an accelerator.
            stack.enter_context(replaced(IntermediatesCache, "pin_memory", lambda *_, **__: None))
        # Oneshot sets TOKENIZERS_PARALLELISM for good.
        stack.enter_context(_kept_environment())
        # Tracing asks torch whether it traces, which torch warns of.
        stack.enter_context(_silent("torch.fx._symbolic_trace"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    with replaced(logger, "disabled", True):
        yield


@contextlib.contextmanager
def _kept_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within it ``owner`` has another attribute ``name``; for what a library offers no setting for."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# Saving --------------------------------------------------------------------------------------------------


def save_dense(loaded: LoadedModel, source: Path, out: Path) -> None:
    """Save the weights as a dense folder; configuration and tokenizer are those of the folder ``source``.

    Scales and zero points that llmcompressor left in the model are not saved. Raises ``RunError`` for weights
    that are not finite and on a full disk.
    """
    import torch

    from evals.backends.loading import quiet_transformers

    check_finite(loaded.model, f"{source.name}, compressed")
    with torch.device("meta"), quiet_transformers():
        plain = type(loaded.model)(loaded.model.config)
    held = loaded.model.state_dict()
    plain.load_state_dict({name: held[name] for name in plain.state_dict()}, assign=True)
    plain.tie_weights()
    plain.to(dtype=stored_dtype(source))
    plain.generation_config = loaded.model.generation_config
    with writing(out), quiet_transformers():
        plain.save_pretrained(out, max_shard_size=SHARD_BYTES)
    take_along(source, out)


def take_along(source: Path, out: Path) -> None:
    """Copy what lies beside the weights: tokenizer, chat template, licence."""
    with writing(out):
        for pattern in BESIDE:
            for file in sorted(source.glob(pattern)):
                shutil.copyfile(file, out / file.name)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn a failed write into one clear line."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        raise disk_error(error, out) from error
    except SafetensorError as error:
        # The writer of safetensors has the error of the system in its text alone.
        raise RunError(f"cannot write {out}: {error}") from error


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def bytes_beside(model: Any, layers: Mapping[str, torch.nn.Linear], width: int = 2) -> int:
    """Return the bytes of what is no weight of ``layers``: embeddings, head, norms, biases; tied ones once.

    ``width`` is the bytes of a value.
    """
    # A quantised layer has its scales and zero points among its parameters.
    inside = {id(each) for layer in layers.values() for each in layer.parameters() if each is not layer.bias}
    return width * sum(int(each.numel()) for each in model.parameters() if id(each) not in inside)
