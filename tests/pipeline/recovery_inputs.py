"""A small random Llama, its pruned copy and its data: what the tests of recovery run on."""

from __future__ import annotations

from pathlib import Path

from micro_stages import artifact, micro_data, run_stage

from cogumi.store import Artifact
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings

SHAPE = MicroModelSettings(
    hidden_size=64,
    layers=2,
    heads=2,
    kv_heads=1,
    intermediate_size=96,
    vocab_size=400,
    initializer_range=0.2,
)


def make_model(folder: Path, data: Artifact, **changes: float) -> Artifact:
    """Make the uncompressed model; wide first weights make its answers differ without any training."""
    return run_stage(MICRO_MODEL, SHAPE.model_copy(update=changes), folder, {"data": data})[1]


def make_data(folder: Path) -> Artifact:
    return micro_data(folder, per_cell=5)


def prune(model: Artifact, folder: Path, share: float = 0.6) -> Artifact:
    """Copy a model with the smallest weights of its linear layers set to zero."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model.path, folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "proj" in name:
            bound = weight.abs().flatten().kthvalue(int(share * weight.numel())).values
            weights[name] = torch.where(weight.abs() <= bound, 0.0, weight)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return artifact(folder, "model")
