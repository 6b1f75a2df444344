"""A LoRA adapter of peft as a GGUF file that llama.cpp adds to its base while it runs.

Covered: LoRA on the linear layers of a Llama and on an untied head; rank-stabilised scaling, ranks and alphas
that differ by layer. Not covered: trained embeddings, biases, DoRA and whole layers (``modules_to_save``):
merge those into the model and export it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cogumi.errors import RunError
from cogumi.store import disk_error
from evals.backends.adapter_base import BASE_KEY, weights_sample
from pipeline.compression.gguf_write import (
    check_disk,
    gguf_name,
    permute_rows,
    read_json,
    tensor_shapes,
)

if TYPE_CHECKING:
    import torch

AdapterType = Literal["f16", "f32", "q8_0"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """What an adapter file holds; ``rank`` is the largest of all layers."""

    bytes: int
    parameters: int
    rank: int
    layers: int


def export_adapter(
    folder: Path,
    config: Mapping[str, Any],
    out: Path,
    *,
    dtype: AdapterType = "f16",
    beside: Path | None = None,
) -> AdapterSummary:
    """Write the peft adapter in ``folder`` as a GGUF adapter for the base that ``config`` describes.

    ``config`` is the content of the base's ``config.json``. With ``q8_0``, factors whose rows are no multiple
    of 32 (B at such a rank) stay float16. ``beside`` is the one GGUF file that the adapter was made for, told
    in its metadata and checked wherever it is loaded; None for any file of its base. Raises ``RunError``
    naming the file when the adapter is broken, of another kind, or does not fit the base; ``out`` appears
    only when it is complete. Source of the format: convert_lora_to_gguf.py and llama-adapter.cpp of
    llama.cpp.
    """
    settings = read_json(folder / CONFIG)
    _check_kind(settings, folder / CONFIG)
    pairs = _pairs(folder / WEIGHTS)
    shapes = tensor_shapes(config)
    first, pair = next(iter(sorted(pairs.items())))
    # llama.cpp scales every layer by alpha / rank, with one alpha: what differs goes into B.
    alpha = _scale(settings, first, _rank(pair)) * _rank(pair) or 1.0
    tensors: dict[str, torch.Tensor] = {}
    for module, (down, up) in sorted(pairs.items()):
        name = gguf_name(module)
        if name is None or name not in shapes or len(shapes[name]) != 2:
            raise RunError(
                f"{folder / WEIGHTS}: {module} has no place in a GGUF adapter; merge it and export"
            )
        rank = _rank((down, up))
        found = (up.shape[0], down.shape[1])
        if up.shape[1] != rank or found != shapes[name]:
            raise RunError(
                f"{folder / WEIGHTS}: {module} is for a layer of {found}, the base has {shapes[name]}; "
                "name its own base"
            )
        factor = _scale(settings, module, rank) * rank / alpha
        tensors[f"{name}.lora_a"] = down
        tensors[f"{name}.lora_b"] = permute_rows(name, config)(up) * factor
    return _write(out, tensors, alpha, dtype, beside)


def _check_kind(settings: Mapping[str, Any], path: Path) -> None:
    if settings.get("peft_type") != "LORA":
        raise RunError(f"{path}: a {settings.get('peft_type')} adapter; only LoRA becomes GGUF")
    for key in ("use_dora", "fan_in_fan_out", "modules_to_save", "lora_bias"):
        if settings.get(key):
            raise RunError(f"{path}: '{key}' has no counterpart in a GGUF adapter; merge it and export")
    if settings.get("bias", "none") != "none":
        raise RunError(f"{path}: trained biases have no counterpart in a GGUF adapter; merge it and export")


def _pairs(path: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return ``{module: (A, B)}`` in float32."""
    import torch
    from safetensors import SafetensorError, safe_open

    found: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                # peft copies the frozen head beside an adapter of it.
                if key.endswith(".base_layer.weight"):
                    continue
                part = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", key)
                if part is None:
                    raise RunError(f"{path}: {key} has no counterpart in a GGUF adapter; merge it and export")
                values = tensors.get_tensor(key).to(torch.float32)
                if not bool(torch.isfinite(values).all()):
                    raise RunError(f"{path}: {key} is not finite; train the adapter again")
                found.setdefault(part[1], {})[part[2]] = values
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: missing, cut short or not safetensors ({error})") from error
    broken = [module for module, halves in found.items() if len(halves) != 2]
    if broken or not found:
        raise RunError(f"{path}: {broken[0] if broken else 'every layer'} lacks lora_A or lora_B")
    return {module: (halves["A"], halves["B"]) for module, halves in found.items()}


def _rank(pair: tuple[torch.Tensor, torch.Tensor]) -> int:
    return int(pair[0].shape[0])


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what peft multiplies B·A by: alpha / rank, or alpha / √rank (rsLoRA, arXiv 2312.03732)."""
    alpha = float(settings.get("lora_alpha", rank))
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        # As peft matches them (peft.utils.other.get_pattern_key).
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _write(
    out: Path, tensors: Mapping[str, torch.Tensor], alpha: float, dtype: AdapterType, beside: Path | None
) -> AdapterSummary:
    import gguf
    import numpy as np

    check_disk(out, sum(values.numel() * 4 for values in tensors.values()))
    partial = out.with_name(f".{out.name}.partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    if beside is not None:
        writer.add_string(BASE_KEY, weights_sample([beside]))
    for name, values in tensors.items():
        array = values.contiguous().numpy()
        if dtype == "q8_0" and array.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array if dtype == "f32" else array.astype(np.float16))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(out)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        partial.unlink(missing_ok=True)
    return AdapterSummary(
        bytes=out.stat().st_size,
        parameters=sum(values.numel() for values in tensors.values()),
        rank=max(values.shape[0] for name, values in tensors.items() if name.endswith("lora_a")),
        layers=len(tensors) // 2,
    )
