"""Stage ``models.depth_cut``: a shallower model out of a deeper one, by leaving out whole layers.

What is left has the tokenizer, the embeddings and the head of its source, so it can draft for it and be
healed by distillation. Covered: dense decoders whose layers lie under ``model.layers`` (Llama, Mistral,
Qwen2, Qwen3, SmolLM), in one safetensors file or in shards. Tensors are copied one after the other: 8B
parameters are cut in a few GB of memory. Only a choice that measures the layers on calibration data (see
``pipeline.compression.influence``) loads the model. Not covered: experts, quantised weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cogumi.errors import RunError, UsageError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import disk_error
from pipeline.training.model_folder import (
    check_whole,
    copy_beside,
    dense_config,
    drop_tied_head,
    tensor_files,
    write_tensors,
)

_LAYER = re.compile(r"(model\.layers\.)(\d+)(\..+)")

# Lists of a configuration that have one entry for each layer.
_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")

MEASURED = ("influence", "span", "greedy")
"""Choices that look at the model: they need the input ``data``."""


class DepthCutSettings(Settings):
    """Which layers stay: ``layers`` of them, chosen by ``choice``, or those that ``keep`` names."""

    layers: int | None = Field(default=None, gt=0)
    choice: Literal["evenly", "last", "influence", "span", "greedy"] = "evenly"
    """evenly: the first, the last, and the others at even distances; last: the last layers are left out, the
    simple baseline of arXiv 2411.15558, which leaves out the last quarter. With the input ``data``, measured:
    influence leaves out the layers that turn the hidden states least (arXiv 2403.03853); span, the layers in
    a row that do together (arXiv 2403.17887); greedy, one after the other, the layer without which the loss
    of answers is lowest."""
    keep: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Numbers of the layers that stay, from 0, in rising order."""
    samples: int = Field(default=128, gt=0)
    """Rows of ``data`` that a measured choice looks at."""
    max_length: int = Field(default=1024, gt=1)
    """Tokens of such a row that are looked at; the rest is cut off."""

    @model_validator(mode="after")
    def _consistent(self) -> DepthCutSettings:
        if (self.layers is None) == (self.keep is None):
            raise ValueError("set exactly one of layers and keep")
        if self.keep is not None:
            if not self.keep or list(self.keep) != sorted(set(self.keep)):
                raise ValueError("keep: name at least one layer, each once, in rising order")
            if "choice" in self.model_fields_set:
                raise ValueError("choice goes with layers; keep names the layers itself")
        if self.choice not in MEASURED and {"samples", "max_length"} & self.model_fields_set:
            raise ValueError(f"samples and max_length go with a choice that measures: {', '.join(MEASURED)}")
        return self


def kept_layers(settings: DepthCutSettings, depth: int) -> list[int]:
    """Return which layers of ``depth`` stay, by number; raises ``UsageError`` for an impossible cut.

    For a choice that measures they are the first ones, as many as will stay.
    """
    if settings.keep is not None:
        if settings.keep[-1] >= depth:
            raise UsageError(f"keep: no layer {settings.keep[-1]}; the model has 0 to {depth - 1}")
        count, kept = len(settings.keep), list(settings.keep)
    else:
        count = settings.layers or 0
        kept = list(range(count))
        if settings.choice == "evenly" and 1 < count < depth:
            kept = [round(place * (depth - 1) / (count - 1)) for place in range(count)]
    if count >= depth:
        setting = "layers" if settings.keep is None else "keep"
        raise UsageError(f"{setting}: {count} of {depth} layers are no cut; keep at most {depth - 1}")
    return kept


def run(settings: DepthCutSettings, ctx: StageContext) -> StageResult:
    """Write the model of input ``model`` without the layers that do not stay."""
    from evals.backends.loading import model_tokenizer_digest

    measured = settings.choice in MEASURED
    if measured != ("data" in ctx.inputs):
        raise UsageError(
            f"models.depth_cut: the input 'data' goes with a choice that measures ({', '.join(MEASURED)}), "
            "and only with it"
        )
    found: dict[str, Any] = {}
    if measured:
        settings, found = _measured(settings, ctx)
    source = ctx.inputs["model"].path
    facts = cut_depth(source, ctx.out, settings, ctx.progress.update) | found
    facts["tokenizer_digest"] = model_tokenizer_digest(ctx.out)
    facts["bytes"] = sum(file.stat().st_size for file in ctx.out.rglob("*") if file.is_file())
    return StageResult("model", facts)


def _measured(settings: DepthCutSettings, ctx: StageContext) -> tuple[DepthCutSettings, dict[str, Any]]:
    """Look at the layers; return settings that name those that stay, and the facts of the look."""
    from pipeline.compression.influence import Look, chosen_layers

    source = ctx.inputs["model"].path
    config = dense_config(source)
    count = len(kept_layers(settings, config["num_hidden_layers"]))
    look = Look(
        data=ctx.inputs["data"],
        model=source,
        samples=settings.samples,
        max_length=settings.max_length,
        seed=ctx.seed,
        journal=ctx.scratch / "left_out.json",
    )
    kept, facts = chosen_layers(look, settings.choice, count, ctx.progress)
    return DepthCutSettings(keep=tuple(kept)), {"choice": settings.choice, **facts}


def cut_depth(
    source: Path, out: Path, settings: DepthCutSettings, tell: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write the shallower model of the folder ``source`` into ``out`` and return what it is.

    Raises ``UsageError`` for an impossible cut, ``RunError`` naming the file for a folder that is broken or
    of another kind, or on a full disk.
    """
    config = dense_config(source)
    depth = config["num_hidden_layers"]
    kept = kept_layers(settings, depth)
    places = tensor_files(source)
    found = {int(match[2]) for name in places if (match := _LAYER.fullmatch(name))}
    if found != set(range(depth)):
        raise RunError(
            f"{source}: {len(found)} layers under model.layers, config.json says {depth}; not a model to cut"
        )
    renamed = {name: new for name in sorted(places) if (new := _new_name(name, kept)) is not None}
    drop_tied_head(config, places, renamed)
    try:
        _write_config(source, out, config, kept)
        copy_beside(source, out)
        shapes = write_tensors(out, places, renamed, tell)
    except OSError as error:
        raise disk_error(error, out) from error
    check_whole(out, shapes)
    return {
        "parameters": sum(prod(shape) for shape in shapes.values()),
        "layers": len(kept),
        "source_layers": depth,
        "kept": kept,
        "vocab_size": config.get("vocab_size"),
        "context": config.get("max_position_embeddings"),
    }


def _new_name(name: str, kept: Sequence[int]) -> str | None:
    """Return a tensor's name in the shallower model, None for one that is left out."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    layer = int(match[2])
    return f"{match[1]}{kept.index(layer)}{match[3]}" if layer in kept else None


def _write_config(source: Path, out: Path, config: dict[str, Any], kept: Sequence[int]) -> None:
    from transformers import AutoConfig

    from evals.backends.tokenization import first_line

    try:
        # With what the file leaves to the architecture's defaults, which depend on a layer's number.
        resolved = AutoConfig.from_pretrained(source)
    except Exception as error:
        # transformers raises a dozen unrelated classes for a broken configuration.
        raise RunError(f"{source / 'config.json'}: not readable ({first_line(error)})") from error
    cut = dict(config, num_hidden_layers=len(kept))
    for key in _PER_LAYER:
        entries = getattr(resolved, key, None)
        if isinstance(entries, list) and len(entries) == config["num_hidden_layers"]:
            cut[key] = [entries[layer] for layer in kept]
    (out / "config.json").write_text(json.dumps(cut, indent=2, sort_keys=True) + "\n")


DEPTH_CUT = Stage(
    name="models.depth_cut",
    version=1,
    title="Leave out layers of a model",
    settings=DepthCutSettings,
    run=run,
    inputs=("model",),
    optional_inputs=("data",),
)
