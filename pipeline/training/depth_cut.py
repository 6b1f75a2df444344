"""Stage ``models.depth_cut``: a shallower model out of a deeper one, by leaving out whole layers.

What is left has the tokenizer, the embeddings and the head of its source, so it can draft for it and be
healed by distillation. Covered: dense decoders whose layers lie under ``model.layers`` (Llama, Mistral,
Qwen2, Qwen3, SmolLM), in one safetensors file or in shards. Tensors are copied one after the other and the
model is never built: 8B parameters are cut in a few GB of memory. Not covered: experts, quantised weights,
layers chosen by their influence.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from cogumi.errors import RunError, UsageError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import disk_error
from cogumi.subjects import read_json_object

if TYPE_CHECKING:
    import torch

_LAYER = re.compile(r"(model\.layers\.)(\d+)(\..+)")
_INDEX = "model.safetensors.index.json"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

# Lists of a configuration that have one entry for each layer.
_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")

# What a model's folder holds beside configuration and weights, and what its licence wants to travel with it.
_BESIDE = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)

SHARD_BYTES = 2 << 30
"""Tensors of a file that is written, and so what is in memory at once."""


class DepthCutSettings(Settings):
    """Which layers stay: ``layers`` of them, chosen by ``choice``, or those that ``keep`` names."""

    layers: int | None = Field(default=None, gt=0)
    choice: Literal["evenly", "last"] = "evenly"
    """evenly: the first, the last, and the others at even distances; last: the last layers are left out, the
    simple baseline of arXiv 2411.15558, which leaves out the last quarter."""
    keep: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Numbers of the layers that stay, from 0, in rising order."""

    @model_validator(mode="after")
    def _consistent(self) -> DepthCutSettings:
        if (self.layers is None) == (self.keep is None):
            raise ValueError("set exactly one of layers and keep")
        if self.keep is not None:
            if not self.keep or list(self.keep) != sorted(set(self.keep)):
                raise ValueError("keep: name at least one layer, each once, in rising order")
            if "choice" in self.model_fields_set:
                raise ValueError("choice goes with layers; keep names the layers itself")
        return self


def kept_layers(settings: DepthCutSettings, depth: int) -> list[int]:
    """Return which layers of ``depth`` stay, by number; raises ``UsageError`` for an impossible cut."""
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

    source = ctx.inputs["model"].path
    facts = cut_depth(source, ctx.out, settings, ctx.progress.update)
    facts["tokenizer_digest"] = model_tokenizer_digest(ctx.out)
    facts["bytes"] = sum(file.stat().st_size for file in ctx.out.rglob("*") if file.is_file())
    return StageResult("model", facts)


def cut_depth(
    source: Path, out: Path, settings: DepthCutSettings, tell: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write the shallower model of the folder ``source`` into ``out`` and return what it is.

    Raises ``UsageError`` for an impossible cut, ``RunError`` naming the file for a folder that is broken or
    of another kind, or on a full disk.
    """
    config = read_json_object(source / "config.json")
    depth = config.get("num_hidden_layers")
    if not isinstance(depth, int) or "quantization_config" in config:
        raise RunError(f"{source / 'config.json'}: only dense decoders with num_hidden_layers can be cut")
    kept = kept_layers(settings, depth)
    places = _tensor_files(source)
    found = {int(match[2]) for name in places if (match := _LAYER.fullmatch(name))}
    if found != set(range(depth)):
        raise RunError(
            f"{source}: {len(found)} layers under model.layers, config.json says {depth}; not a model to cut"
        )
    renamed = {name: new for name in sorted(places) if (new := _new_name(name, kept)) is not None}
    if config.get("tie_word_embeddings") and {_HEAD, _EMBEDDING} <= places.keys():
        _drop_tied_head(places, renamed)
    try:
        _write_config(source, out, config, kept)
        for pattern in _BESIDE:
            for file in sorted(source.glob(pattern)):
                shutil.copyfile(file, out / file.name)
        shapes = _write_tensors(out, places, renamed, tell)
    except OSError as error:
        raise disk_error(error, out) from error
    _check_whole(out, shapes)
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


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Return ``{tensor: file}`` of a model's folder, complete files only."""
    from evals.backends.loading import tensor_shapes

    if (folder / _INDEX).is_file():
        # A folder may hold the weights a second time under other names (Mistral's consolidated.safetensors).
        listed = read_json_object(folder / _INDEX).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise RunError(f"{folder / _INDEX}: no weight_map; download the model again")
        files = sorted({folder / str(name) for name in listed.values()})
    else:
        files = [folder / "model.safetensors"]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise RunError(f"{missing}: no such file; a folder of safetensors weights is wanted")
    return {name: file for file in files for name in tensor_shapes(file)}


def _drop_tied_head(places: Mapping[str, Path], renamed: dict[str, str]) -> None:
    """Leave out a head that repeats the embeddings, as transformers itself would not save it."""
    import torch

    head, embedding = (_read(places[name], name) for name in (_HEAD, _EMBEDDING))
    if torch.equal(head, embedding):
        del renamed[_HEAD]


def _read(file: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        tensor: torch.Tensor = tensors.get_tensor(name)
    return tensor


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


def _write_tensors(
    out: Path, places: Mapping[str, Path], renamed: Mapping[str, str], tell: Callable[[int, int], None]
) -> dict[str, tuple[int, ...]]:
    """Copy the tensors, in shards where they are large; return ``{name: shape}`` of what was written."""
    from safetensors.torch import save_file

    shapes: dict[str, tuple[int, ...]] = {}
    shards: list[list[str]] = []
    total = 0
    for shard in _shards(places, renamed):
        save_file(shard, out / f"{len(shards)}.partial", metadata={"format": "pt"})
        shards.append(sorted(shard))
        shapes.update({name: tuple(tensor.shape) for name, tensor in shard.items()})
        total += sum(tensor.nbytes for tensor in shard.values())
        tell(len(shapes), len(renamed))
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(names) == 1:
        names = ["model.safetensors"]
    for number, name in enumerate(names):
        (out / f"{number}.partial").rename(out / name)
    if len(names) > 1:
        weights = {tensor: file for file, held in zip(names, shards, strict=True) for tensor in held}
        index = {"metadata": {"total_size": total}, "weight_map": weights}
        (out / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return shapes


def _shards(places: Mapping[str, Path], renamed: Mapping[str, str]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield tensors under their new names, about ``SHARD_BYTES`` at a time; one file open at once."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name in sorted(renamed, key=lambda old: (places[old], old)):
        tensor = _read(places[name], name)
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[renamed[name]] = tensor
        size += tensor.nbytes
    if shard:
        yield shard


def _check_whole(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ``RunError`` unless the tensors are just those that the written configuration asks for."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from evals.backends.loading import quiet_transformers

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"), quiet_transformers():
        model = AutoModelForCausalLM.from_config(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings and _HEAD not in shapes:
        wanted.pop(_HEAD, None)
    if wanted != shapes:
        odd = sorted({*wanted.items()} ^ {*shapes.items()})[0][0]
        raise RunError(f"{folder}: {odd} is not what {config.model_type} wants; this kind cannot be cut")


DEPTH_CUT = Stage(
    name="models.depth_cut",
    version=1,
    title="Leave out layers of a model",
    settings=DepthCutSettings,
    run=run,
    inputs=("model",),
)
