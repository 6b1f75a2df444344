"""Tiny models and rows for the tests of pruning and quantisation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from micro_stages import run_stage

from cogumi.store import Artifact
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings

SAMPLES, LENGTH = 24, 16
"""Calibration rows of the tests, and the tokens of each."""


def tiny(folder: Path, data: Artifact, **shape: Any) -> Artifact:
    """Two layers with a fresh head of width 64, weights large enough that logits are not flat."""
    wanted = {
        "hidden_size": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "intermediate_size": 128,
        "initializer_range": 0.12,
    }
    settings = MicroModelSettings.model_validate({**wanted, **shape})
    return run_stage(MICRO_MODEL, settings, folder, {"data": data})[1]


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def changed(model: Path, out: Path, *, config: dict[str, Any] | None = None, **weights: Any) -> Path:
    """Copy a folder; ``weights`` replace tensors by name (dots as two underscores), ``config`` its keys."""
    from safetensors.torch import save_file

    shutil.copytree(model, out)
    held = tensors(model) | {name.replace("__", "."): value for name, value in weights.items()}
    save_file(held, out / "model.safetensors", metadata={"format": "pt"})
    found = json.loads((out / "config.json").read_text()) | (config or {})
    (out / "config.json").write_text(json.dumps(found))
    return out


def untied_in_bf16(model: Path, out: Path) -> Path:
    """The same model with a head of its own, stored in half the bytes."""
    import torch

    held = tensors(model)
    held["lm_head.weight"] = held["model.embed_tokens.weight"].flip(0).clone()
    weights = {name.replace(".", "__"): each.to(torch.bfloat16) for name, each in held.items()}
    return changed(model, out, config={"tie_word_embeddings": False, "dtype": "bfloat16"}, **weights)


def linear_names(held: dict[str, Any]) -> list[str]:
    return [name for name in held if name.endswith("_proj.weight")]


def logits(folder: Path, rows: list[list[int]]) -> Any:
    import torch

    from evals.backends.loading import load_model

    model = load_model(folder, dtype="fp32").model
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([row])).logits[0].float() for row in rows])


def inputs_of(folder: Path, layer: str, rows: list[list[int]]) -> Any:
    """What a linear layer reads on these rows: float32 (tokens, columns)."""
    import torch

    from evals.backends.loading import load_model

    model, seen = load_model(folder, dtype="fp32").model, []
    model.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.inference_mode():
        for row in rows:
            model(torch.tensor([row]))
    return torch.cat(seen)
