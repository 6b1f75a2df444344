"""Loading a model folder or a GGUF file into transformers: quiet, checked, one clear line when broken."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cogumi.errors import RunError
from evals.backends.tokenization import (
    END_OF_TURN,
    described_digest,
    first_line,
    tokenizer_digest,
    tokenizer_from_gguf,
)

if TYPE_CHECKING:
    import torch

DType = Literal["auto", "bf16", "fp32"]

# Under this size float32 is the faster arithmetic on a CPU and costs no memory worth saving; above it,
# bf16 halves the bytes that every token reads (SmolLM2-135M: half the time per token on 2 AVX-512 cores).
SMALL_MODEL = 50_000_000


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model in evaluation mode with everything that generation needs."""

    model: Any
    tokenizer: Any
    stop_ids: frozenset[int]
    """Ids of the end-of-text and end-of-turn tokens."""
    context: int
    """Longest sequence in tokens."""
    parameters: int


def load_model(path: Path, *, dtype: DType = "auto", device: str = "cpu") -> LoadedModel:
    """Load a safetensors folder or a GGUF file (dequantised) into transformers.

    Raises ``RunError`` naming the file when it is missing, cut short or incomplete: transformers alone
    would fill missing weights with random numbers.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise RunError(f"transformers backend: {error.name} is missing; pip install 'cogumi[all]'") from error

    gguf = path.suffix == ".gguf"
    parameters = _inspect_gguf(path) if gguf else _inspect_folder(path)
    # A quantised file was made from a half-precision model: bf16 holds all that it still knows. On a GPU bf16
    # is the arithmetic that models are served in.
    halved = gguf or device.startswith("cuda")
    precision = _precision(dtype, parameters, stored="bf16" if halved else "auto")
    folder, extra = (path.parent, {"gguf_file": path.name}) if gguf else (path, _dequantising(path))
    try:
        with quiet_transformers(), _no_bar(), warnings.catch_warnings():
            # That a packed folder is read as a dense one is meant.
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")
            tokenizer = gguf_tokenizer(path) if gguf else transformers.AutoTokenizer.from_pretrained(folder)
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=precision,
                output_loading_info=True,
                local_files_only=True,
                **extra,
            )
    except RunError:
        raise
    except Exception as error:
        # The libraries below raise a dozen unrelated classes for a broken file.
        raise RunError(f"{path}: not a readable model ({first_line(error)})") from error
    if info["missing_keys"]:
        raise RunError(
            f"{path}: weights missing from the file: {', '.join(sorted(info['missing_keys'])[:3])}"
        )
    model = model.to(torch.device(device)).eval()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        stop_ids=stop_ids(tokenizer, model.generation_config, model.config),
        context=int(model.config.max_position_embeddings),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def prefill_dtype(device: str | torch.device, *, half: DType = "auto") -> DType:
    """Return the precision to read whole rows in: float32 on a CPU, ``half`` on anything else.

    Half precision is an accelerator's arithmetic; a CPU without units for bf16 takes 20 times as long in it
    for whole rows, where answers token by token gain from the fewer bytes (``load_model``'s "auto").
    """
    return "fp32" if str(device).startswith("cpu") else half


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and notices inside the block, then restore its settings."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _no_bar() -> contextlib.AbstractContextManager[Any]:
    """Hide the bars of transformers' GGUF reader and of compressed-tensors, which have no switch."""
    return contextlib.redirect_stderr(io.StringIO())


def _inspect_folder(path: Path) -> int:
    """Count parameters from the safetensors headers alone, which also finds files that are cut short."""
    if not path.is_dir():
        raise RunError(f"{path}: no such model folder")
    if not (path / "config.json").is_file():
        raise RunError(f"{path}: not a model folder (no config.json)")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise RunError(f"{path}: no .safetensors file in the model folder")
    return sum(prod(shape) for file in files for shape in tensor_shapes(file).values())


def _dequantising(folder: Path) -> dict[str, Any]:
    """Return what makes transformers read a compressed-tensors folder as the dense model that it stands for.

    Else that happens in the first answer, and until then parameters are packed numbers.
    """
    # A broken configuration is told by whoever reads it next.
    if '"compressed-tensors"' not in (folder / "config.json").read_text(errors="replace"):
        return {}
    from transformers import CompressedTensorsConfig

    return {"quantization_config": CompressedTensorsConfig(dequantize=True)}


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return ``{tensor: shape}`` of a safetensors file; raises ``RunError`` when it is cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(f"{file}: cut short or not safetensors ({first_line(error)})") from error


def model_tokenizer_digest(path: Path) -> str:
    """Return the tokenizer digest of a model folder or GGUF file without loading the model.

    Raises ``RunError`` when there is no tokenizer that can be read.
    """
    if (path / "tokenizer.json").is_file():
        return tokenizer_digest(path / "tokenizer.json")
    import transformers

    try:
        # Without tokenizer.json: a GGUF file, or an older folder whose vocabulary transformers converts.
        with quiet_transformers():
            gguf = path.suffix == ".gguf"
            tokenizer = gguf_tokenizer(path) if gguf else transformers.AutoTokenizer.from_pretrained(path)
        return described_digest(json.loads(tokenizer.backend_tokenizer.to_str()))
    except RunError:
        raise
    except Exception as error:
        # The libraries below raise a dozen unrelated classes for a broken file.
        raise RunError(f"{path}: its tokenizer cannot be read ({first_line(error)})") from error


def _inspect_gguf(path: Path) -> int:
    """Return the parameters of a 4-bit file of this size: near enough to tell small from large."""
    if not path.is_file():
        raise RunError(f"{path}: no such file")
    return path.stat().st_size * 2


def _precision(dtype: DType, parameters: int, *, stored: DType) -> Any:
    import torch

    if dtype == "auto":
        dtype = "fp32" if parameters < SMALL_MODEL else stored
    return {"bf16": torch.bfloat16, "fp32": torch.float32, "auto": "auto"}[dtype]


def gguf_tokenizer(path: Path) -> Any:
    """Return the transformers tokenizer of a GGUF file; raises ``RunError`` when it is no byte-level BPE."""
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(path), ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"))
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise RunError(f"{path}: vocabulary '{kind}'; only byte-level BPE (gpt2) is read from GGUF")
    return tokenizer_from_gguf(metadata)


def stop_ids(tokenizer: Any, *configs: Any) -> frozenset[int]:
    """Return the ids of the end-of-text and end-of-turn tokens that a model's configurations declare."""
    declared = [*(config.eos_token_id for config in configs), tokenizer.eos_token_id]
    found: set[int] = set()
    for entry in declared:
        found.update(entry if isinstance(entry, list) else [] if entry is None else [int(entry)])
    vocabulary = tokenizer.get_vocab()
    found.update(vocabulary[token] for token in END_OF_TURN if token in vocabulary)
    return frozenset(found)
