"""Stage ``models.width_cut``: a narrower Llama out of a wider one, all its layers kept.

Fewer MLP channels, fewer attention heads in whole KV groups, fewer hidden channels, each chosen on
calibration rows (``pipeline.compression.width_scores``). What comes out is an ordinary LlamaForCausalLM with
the tokenizer of its source, to be healed by distillation from it. Tensors are written one after the other.
Covered: LlamaForCausalLM, tied or not, in one file or in shards. Not covered: other architectures, biases,
experts, quantised weights, query heads cut within a group.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cogumi.devices import compute_device
from cogumi.errors import RunError, UsageError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import disk_error
from pipeline.compression.width_scores import WidthChoice, Widths, choose_widths
from pipeline.training.model_folder import (
    Change,
    check_whole,
    copy_beside,
    dense_config,
    drop_tied_head,
    tensor_files,
    write_tensors,
)

if TYPE_CHECKING:
    import torch

_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj\.weight")
_NORM = re.compile(r"(model\.(?:layers\.\d+\.(?:input|post_attention)_layernorm|norm))\.weight")


class WidthCutSettings(Settings):
    """The sizes that the model is cut to; what is not named keeps its size."""

    intermediate_size: int | None = Field(default=None, gt=0)
    """Channels of each MLP."""
    kv_heads: int | None = Field(default=None, gt=0)
    """Key and value heads that stay, each with all query heads that read it."""
    hidden_size: int | None = Field(default=None, gt=0)
    """Channels between the layers."""
    round_to: Literal[1, 32, 64, 256] = 32
    """``intermediate_size`` and ``hidden_size`` are rounded down to a multiple of it, as the blocks of GGUF
    types want (32: Q4_0 and Q8_0; 256: K- and I-quants); a size that the source has already is kept."""
    samples: int = Field(default=128, gt=0)
    """Rows of ``data`` on which channels and heads are judged."""
    max_length: int = Field(default=1024, gt=1)
    """Tokens of such a row that are looked at; the rest is cut off."""

    @model_validator(mode="after")
    def _some_size(self) -> WidthCutSettings:
        if self.intermediate_size is None and self.kv_heads is None and self.hidden_size is None:
            raise ValueError("name what is cut: intermediate_size, kv_heads or hidden_size")
        return self


def run(settings: WidthCutSettings, ctx: StageContext) -> StageResult:
    """Write the model of input ``model`` in the wanted widths, chosen on rows of input ``data``."""
    from evals.backends.loading import model_tokenizer_digest

    source, out = ctx.inputs["model"].path, ctx.out
    config = llama_config(source)
    before = _widths(config)
    after = target_widths(settings, before)
    choice, facts = _judged(settings, ctx, before, after)
    places = tensor_files(source)
    renamed = {name: name for name in sorted(places)}
    drop_tied_head(config, places, renamed)
    try:
        written = config if after == before else {**config, **_config_of(after)}
        if after.hidden_size != before.hidden_size:
            # The norm adds it to a mean square, which the gains bring to the measure of the old width.
            written["rms_norm_eps"] = (
                config.get("rms_norm_eps", 1e-6) * before.hidden_size / after.hidden_size
            )
        (out / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
        copy_beside(source, out)
        shapes = write_tensors(out, places, renamed, ctx.progress.update, narrowing(choice, before))
    except OSError as error:
        raise disk_error(error, out) from error
    check_whole(out, shapes)
    return StageResult(
        "model",
        {
            "parameters": sum(prod(shape) for shape in shapes.values()),
            "layers": config["num_hidden_layers"],
            **asdict(after),
            "source_widths": asdict(before),
            "row_multiple": after.row_multiple,
            "kept_importance": {name: round(share, 6) for name, share in choice.kept.items()},
            "kept_kv_heads": [kept.tolist() for kept in choice.kv_heads],
            **facts,
            "vocab_size": config.get("vocab_size"),
            "context": config.get("max_position_embeddings"),
            "tokenizer_digest": model_tokenizer_digest(out),
            "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        },
    )


def llama_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a dense Llama's folder; raises ``RunError`` naming it for any other."""
    path = folder / "config.json"
    config = dense_config(folder)
    (architecture, *_) = config.get("architectures") or ["none"]
    if architecture != "LlamaForCausalLM":
        raise RunError(f"{path}: only LlamaForCausalLM is cut in width, not {architecture}")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise RunError(f"{path}: biases in attention or MLP are not cut in width")
    for key in ("hidden_size", "intermediate_size", "num_attention_heads"):
        if not isinstance(config.get(key), int):
            raise RunError(f"{path}: {key} is missing or no number; download the model again")
    return config


def _widths(config: dict[str, Any]) -> Widths:
    heads = config["num_attention_heads"]
    return Widths(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
    )


def _config_of(widths: Widths) -> dict[str, Any]:
    return {
        "hidden_size": widths.hidden_size,
        "intermediate_size": widths.intermediate_size,
        "num_attention_heads": widths.heads,
        "num_key_value_heads": widths.kv_heads,
        # Without it a reader would take hidden_size / num_attention_heads.
        "head_dim": widths.head_dim,
    }


def target_widths(settings: WidthCutSettings, before: Widths) -> Widths:
    """Return the sizes that ``settings`` ask for; raises ``UsageError`` for sizes that cannot be."""
    for key in ("intermediate_size", "kv_heads", "hidden_size"):
        asked, there = getattr(settings, key), getattr(before, key)
        if asked is not None and asked > there:
            raise UsageError(f"{key}: {asked} is more than the model's {there}")
    kv_heads = settings.kv_heads or before.kv_heads
    after = replace(
        before,
        intermediate_size=_rounded(settings, "intermediate_size", before.intermediate_size),
        hidden_size=_rounded(settings, "hidden_size", before.hidden_size),
        kv_heads=kv_heads,
        heads=kv_heads * (before.heads // before.kv_heads),
    )
    if after.hidden_size % after.heads:
        raise UsageError(_indivisible(settings, before, after))
    return after


def _rounded(settings: WidthCutSettings, key: str, there: int) -> int:
    asked: int | None = getattr(settings, key)
    if asked is None or asked == there:
        return there
    size = asked // settings.round_to * settings.round_to
    if not size:
        raise UsageError(f"{key}: {asked} is less than round_to {settings.round_to}")
    return size


def _indivisible(settings: WidthCutSettings, before: Widths, after: Widths) -> str:
    """Say which sizes would do: transformers' LlamaConfig wants hidden_size to be a multiple of the heads."""
    step = math.lcm(after.heads, settings.round_to)
    sizes = range(step, before.hidden_size, step)
    near = sorted(sorted(sizes, key=lambda size: abs(size - after.hidden_size))[:2])
    group = before.heads // before.kv_heads
    heads = [count for count in range(1, before.kv_heads + 1) if after.hidden_size % (count * group) == 0]
    mends = [f"hidden_size {' or '.join(map(str, near))}"] if near else []
    mends += [f"kv_heads {' or '.join(map(str, heads))}"] if heads else []
    return (
        f"hidden_size: {after.hidden_size} is no multiple of the {after.heads} query heads that stay, as a "
        f"Llama's configuration must have it; take {', or '.join(mends or ['a smaller round_to'])}"
    )


def _judged(
    settings: WidthCutSettings, ctx: StageContext, before: Widths, after: Widths
) -> tuple[WidthChoice, dict[str, int]]:
    """Load the model, run the calibration rows through it, choose; the model is gone when this returns."""
    import torch

    from evals.backends.loading import load_model, prefill_dtype
    from pipeline.compression.activations import column_moments
    from pipeline.compression.calibration_rows import calibration_rows

    source = ctx.inputs["model"].path
    rows = calibration_rows(
        ctx.inputs["data"], source, samples=settings.samples, max_length=settings.max_length, seed=ctx.seed
    )
    device = compute_device()
    try:
        model = load_model(source, dtype=prefill_dtype(device), device=device).model
        choice = choose_widths(model, column_moments(model, rows, device=device), before, after)
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"{source}: out of memory on {device} while its channels are judged; lower max_length"
        ) from error
    return choice, {"calibration_rows": len(rows), "calibration_tokens": sum(map(len, rows))}


def narrowing(choice: WidthChoice, before: Widths) -> Change:
    """Return what becomes of each tensor of a Llama with the widths ``before``, by its name."""
    group = before.heads // before.kv_heads

    def side_by_side(kept: torch.Tensor, size: int) -> torch.Tensor:
        """Return the rows of the units ``kept``, each of ``size`` rows."""
        import torch

        return (kept.unsqueeze(1) * size + torch.arange(size)).flatten()

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if norm := _NORM.fullmatch(name):
            kept = tensor.index_select(0, choice.hidden)
            return (kept.double() * choice.gains[norm[1]]).to(kept.dtype)
        found = _IN_LAYER.fullmatch(name)
        if found is None:
            # Embeddings and head, one row for each token; what is neither, the check of the folder refuses.
            return tensor.index_select(1, choice.hidden) if tensor.ndim == 2 else tensor
        layer, kind = int(found[1]), found[2]
        if kind in ("gate", "up", "down"):
            inner = choice.mlp[layer]
        else:
            heads = group if kind in ("q", "o") else 1
            inner = side_by_side(choice.kv_heads[layer], heads * before.head_dim)
        rows, columns = (choice.hidden, inner) if kind in ("o", "down") else (inner, choice.hidden)
        return tensor.index_select(0, rows).index_select(1, columns)

    return change


WIDTH_CUT = Stage(
    name="models.width_cut",
    version=1,
    title="Make a model narrower",
    settings=WidthCutSettings,
    run=run,
    inputs=("model", "data"),
)
