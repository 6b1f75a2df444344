"""A model's folder read and written tensor by tensor: what the cuts of a model share.

Covered: one safetensors file or shards, read one tensor at a time and written a shard at a time, so that the
model is never built; what lies beside the weights; a check of the written shapes. Not covered: other formats.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError
from cogumi.subjects import read_json_object

if TYPE_CHECKING:
    import torch

_INDEX = "model.safetensors.index.json"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

BESIDE = (
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
"""What lies beside configuration and weights, and what a licence wants to travel along."""

# Keys under which the configurations of transformers count experts.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")

SHARD_BYTES = 2 << 30
"""Tensors of a file that is written, and so what is in memory at once."""

Change = Callable[[str, "torch.Tensor"], "torch.Tensor"]
"""What becomes of a tensor, by the name that it has in the source."""


def dense_config(folder: Path) -> dict[str, Any]:
    """Return a folder's ``config.json``; raises ``RunError`` unless it is that of a dense decoder."""
    config = read_json_object(folder / "config.json")
    depth = config.get("num_hidden_layers")
    if not isinstance(depth, int) or "quantization_config" in config:
        raise RunError(f"{folder / 'config.json'}: only dense decoders with num_hidden_layers can be cut")
    experts = next((key for key in _EXPERTS if config.get(key)), None)
    if experts is not None:
        raise RunError(f"{folder / 'config.json'}: {experts} is set; a mixture of experts cannot be cut")
    return config


def tensor_files(folder: Path) -> dict[str, Path]:
    """Return ``{tensor: file}`` of a model's folder; raises ``RunError`` naming a file that is not whole."""
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


def drop_tied_head(config: Mapping[str, Any], places: Mapping[str, Path], renamed: dict[str, str]) -> None:
    """Leave out the head of a tied model that repeats the embeddings: transformers would not save it."""
    if not (config.get("tie_word_embeddings") and {_HEAD, _EMBEDDING} <= places.keys()):
        return
    import torch

    head, embedding = (read_tensor(places[name], name) for name in (_HEAD, _EMBEDDING))
    if torch.equal(head, embedding):
        del renamed[_HEAD]


def read_tensor(file: Path, name: str) -> torch.Tensor:
    """Return one tensor of a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        tensor: torch.Tensor = tensors.get_tensor(name)
    return tensor


def copy_beside(source: Path, out: Path) -> None:
    """Copy the tokenizer, the chat template, the generation settings and the licence of a model's folder."""
    for pattern in BESIDE:
        for file in sorted(source.glob(pattern)):
            shutil.copyfile(file, out / file.name)


def write_tensors(
    out: Path,
    places: Mapping[str, Path],
    renamed: Mapping[str, str],
    tell: Callable[[int, int], None],
    change: Change | None = None,
) -> dict[str, tuple[int, ...]]:
    """Copy the tensors of ``places`` that ``renamed`` names, in shards where they are large.

    Returns ``{new name: shape}`` of what was written; each tensor goes through ``change`` first.
    """
    from safetensors.torch import save_file

    shapes: dict[str, tuple[int, ...]] = {}
    shards: list[list[str]] = []
    total = 0
    for shard in _shards(places, renamed, change):
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


def _shards(
    places: Mapping[str, Path], renamed: Mapping[str, str], change: Change | None
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield tensors under their new names, about ``SHARD_BYTES`` at a time; one file open at once."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name in sorted(renamed, key=lambda old: (places[old], old)):
        tensor = read_tensor(places[name], name)
        if change is not None:
            tensor = change(name, tensor)
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[renamed[name]] = tensor
        size += tensor.nbytes
    if shard:
        yield shard


def check_whole(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
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
