"""Checkpoints of a training run: atomic, without pickle, enough to continue to the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cogumi.errors import RunError
from cogumi.store import disk_error, sync_folder

_STATE = "state.json"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that the next step depends on."""

    state: dict[str, Any]
    """Counters and looks, as JSON."""
    weights: Tensors
    """Trainable parameters by name."""
    best: Tensors
    """Weights of the best look; empty when they are not asked for."""
    moments: Tensors
    """AdamW's moments: ``exp_avg/<name>``, ``exp_avg_sq/<name>``."""
    rng: Tensors


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``folder/step-N`` in one rename and remove the older ones.

    Raises ``RunError`` on a full disk; the older checkpoint then still stands.
    """
    target = folder / f"step-{checkpoint.state['step']:08d}"
    partial = folder / "partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in ("weights", "best", "moments", "rng"):
            tensors = {key: value.contiguous() for key, value in getattr(checkpoint, name).items()}
            save_file(tensors, partial / f"{name}.safetensors")
        (partial / _STATE).write_text(json.dumps(checkpoint.state))
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        sync_folder(folder)
    except OSError as error:
        raise disk_error(error, partial) from error
    except SafetensorError as error:
        raise RunError(f"cannot write {partial}: {error}") from error
    for old in folder.glob("step-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the latest checkpoint, or None when there is none.

    Raises ``RunError`` naming the folder when it is unreadable: silence would train from the start again.
    """
    found = sorted(folder.glob("step-*"))
    if not found:
        return None
    latest = found[-1]
    try:
        parts = {
            name: load_file(latest / f"{name}.safetensors") for name in ("weights", "best", "moments", "rng")
        }
        return Checkpoint(state=json.loads((latest / _STATE).read_text()), **parts)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{latest}: checkpoint unreadable ({error}); delete it and run again") from error


def optimizer_moments(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, torch.nn.Parameter],
    whole: Callable[[torch.Tensor], torch.Tensor],
) -> Tensors:
    """Copy AdamW's state out under the parameters' names; ``whole`` joins what is spread over processes."""
    tensors: Tensors = {}
    for name, parameter in named.items():
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key}/{name}"] = whole(optimizer.state[parameter][key])
    return tensors


def restore_moments(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, torch.nn.Parameter],
    moments: Tensors,
    *,
    step: int,
    fill: Callable[[torch.Tensor, torch.Tensor], None],
) -> None:
    """Put AdamW's state back as after ``step`` steps; ``fill`` writes a whole tensor into its place."""
    for name, parameter in named.items():
        entry = {"step": torch.tensor(float(step), device=parameter.device)}
        for key in ("exp_avg", "exp_avg_sq"):
            entry[key] = torch.zeros_like(parameter)
            fill(entry[key], moments[f"{key}/{name}"])
        optimizer.state[parameter] = entry
