"""The training loop: AdamW, warm-up and cosine, clipping, held-out looks, early stopping, exact resume.

What is learnt stands in the objective (pipeline.training.objective), over how many processes in the world
(pipeline.training.world). Re-runs and resumes in one process on a CPU are bit-equal.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from cogumi.errors import RunError
from cogumi.stage import Progress
from pipeline.training.checkpoint import (
    Checkpoint,
    Tensors,
    load_checkpoint,
    optimizer_moments,
    restore_moments,
    save_checkpoint,
)
from pipeline.training.meters import Meter
from pipeline.training.objective import Objective
from pipeline.training.world import ALONE, World

# Fixed, because the order of float additions follows the number of threads: with it the digest would.
CPU_THREADS = 2
_TOLD_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """What the loop needs to know; rates are per optimizer step."""

    steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip: float
    seed: int
    eval_every: int
    early_stop: int | None
    """Looks without a better held-out loss before training stops; the best look's weights are kept."""


@dataclass(slots=True)
class LoopState:
    """Counters of a run so far; JSON-serialisable."""

    step: int = 0
    tokens: int = 0
    supervised: int = 0
    padding: int = 0
    loss_sum: float = 0.0
    """Sum of the steps' losses since the last look."""
    first_loss: float = 0.0
    last_loss: float = 0.0
    looks: list[dict[str, float]] = field(default_factory=list)
    """One entry per look: step, train_loss since the look before, held_out_loss."""
    stopped_early: bool = False

    def best_look(self) -> int:
        """Return the index of the look with the lowest held-out loss."""
        return min(range(len(self.looks)), key=lambda index: self.looks[index]["held_out_loss"])


class Trainer:
    """Trains ``parameters``, by name, in place; ``on_step`` is called after each change of them."""

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        objective: Objective,
        config: LoopConfig,
        *,
        scratch: Path,
        world: World = ALONE,
        meter: Meter | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._objective = objective
        self._config = config
        self._scratch = scratch
        self._world = world
        self._on_step = on_step
        self._named = dict(parameters)
        self._device = next(iter(self._named.values())).device
        self._meter = meter or Meter(self._device)
        # Norms and biases are not decayed, as usual since GPT-2.
        groups = [
            {"params": [p for p in self._named.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in self._named.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self._best: Tensors = {}

    def run(self, progress: Progress) -> LoopState:
        """Train to the end, from the latest checkpoint in ``scratch`` if there is one.

        Raises ``RunError`` when the loss is no longer a number.
        """
        with deterministic(self._device, self._config.seed, self._world.threads):
            return self._run(progress)

    def _run(self, progress: Progress) -> LoopState:
        config = self._config
        state = self._resume() or LoopState()
        self._on_step()
        if not state.looks:
            self._look(state)
        steps = self._objective.steps(skip=state.step)
        self._meter.start()
        told_at = 0.0
        while state.step < config.steps and not state.stopped_early:
            self._step(state, next(steps))
            looking = state.step % config.eval_every == 0 or state.step == config.steps
            if looking:
                with self._meter.aside():
                    self._look(state)
                    self._save(state)
            if looking or time.monotonic() > told_at + _TOLD_EVERY_S:
                told_at = time.monotonic()
                progress.update(state.step, config.steps, **self._told(state))
        self._meter.stop()
        if self._best:
            self._write_weights(self._best)
            self._on_step()
        return state

    def _told(self, state: LoopState) -> dict[str, float | int | str]:
        look = state.looks[-1]
        told = {"loss": state.last_loss, "lr": self._rate(state.step - 1)}
        if "held_out_loss" in look:
            told["held_out_loss"] = look["held_out_loss"]
        rounded = {name: float(f"{value:.4g}") for name, value in told.items()}
        return {"unit": "steps", **rounded, **self._meter.facts()}

    def _step(self, state: LoopState, step: Any) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(state.step)
        counts = self._objective.gradient(step)
        self._world.sum_gradients(self._named.values())
        norm = self._world.clip(self._named.values(), self._config.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._on_step()
        # Looked at only now, when everything is queued: a device would idle while it is waited for.
        loss = float(counts.loss)
        for name, value in (("loss", loss), ("gradient norm", float(norm))):
            if not math.isfinite(value):
                raise RunError(
                    f"training diverged: {name} is {value} at step {state.step + 1}; "
                    "lower learning_rate or clip; the last checkpoint stands"
                )
        state.step += 1
        self._meter.count(counts.tokens, supervised=counts.supervised, padding=counts.padding)
        state.tokens += counts.tokens
        state.supervised += counts.supervised
        state.padding += counts.padding
        state.last_loss = loss
        state.loss_sum += loss
        if state.step == 1:
            state.first_loss = loss

    def _rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        config = self._config
        if step < config.warmup_steps:
            return config.learning_rate * (step + 1) / config.warmup_steps
        done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _look(self, state: LoopState) -> None:
        """Record the held-out loss, and keep the weights when they are the best so far."""
        entry: dict[str, float] = {"step": state.step}
        if state.looks:
            steps = state.step - state.looks[-1]["step"]
            entry["train_loss"] = round(state.loss_sum / steps, 6)
            state.loss_sum = 0.0
        held_out = self._objective.held_out_loss()
        if held_out is not None:
            entry["held_out_loss"] = round(held_out, 6)
        state.looks.append(entry)
        patience = self._config.early_stop
        if patience is None or held_out is None:
            return
        best = state.best_look()
        if best == len(state.looks) - 1:
            self._best = self._copy_weights()
        state.stopped_early = len(state.looks) - 1 - best >= patience

    def _copy_weights(self) -> Tensors:
        return {name: self._world.whole(p.detach()).cpu().clone() for name, p in self._named.items()}

    def _write_weights(self, weights: Tensors) -> None:
        with torch.no_grad():
            for name, parameter in self._named.items():
                self._world.fill(parameter, weights[name])

    def _save(self, state: LoopState) -> None:
        weights = self._copy_weights()
        moments = optimizer_moments(self._optimizer, self._named, self._world.whole)
        if not self._world.first:
            return
        rng = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self._device)
        save_checkpoint(self._scratch, Checkpoint(asdict(state), weights, self._best, moments, rng))

    def _resume(self) -> LoopState | None:
        found = load_checkpoint(self._scratch)
        if found is None:
            return None
        if found.weights.keys() != self._named.keys():
            raise RunError(f"{self._scratch}: checkpoint of another model; delete it and run again")
        state = LoopState(**found.state)
        self._write_weights(found.weights)
        restore_moments(self._optimizer, self._named, found.moments, step=state.step, fill=self._world.fill)
        torch.set_rng_state(found.rng["cpu"])
        if "cuda" in found.rng and self._device.type == "cuda":
            torch.cuda.set_rng_state(found.rng["cuda"], self._device)
        self._best = found.best
        return state


@contextlib.contextmanager
def deterministic(device: torch.device, seed: int, cpu_threads: int | None = None) -> Iterator[None]:
    """Fix seed, threads and algorithms inside the block; restore the process's settings afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        torch.set_num_threads(cpu_threads or CPU_THREADS)
        # Bit-equality is promised on a CPU. On a GPU some kernels have no deterministic form, and the setting
        # would write over all memory before its use.
        torch.use_deterministic_algorithms(device.type == "cpu")
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict)
