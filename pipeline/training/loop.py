"""The training loop: AdamW, warm-up and cosine, answer-only loss, held-out looks, exact resume.

Covered: one process, one device, bit-equal re-runs and resumes on a CPU. Not covered: several devices.
"""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections.abc import Iterator, Sequence
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
from pipeline.training.data import Encoded, Step, StepSizes, endless_steps, length_batches

# Fixed, because the order of float additions follows the number of threads: with it the digest would.
CPU_THREADS = 2


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """What the loop needs to know; rates are per optimizer step."""

    steps: int
    sizes: StepSizes
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip: float
    seed: int
    eval_every: int
    early_stop: int | None
    """Looks without a better held-out loss before training stops; the best look's weights are kept."""
    autocast: bool
    """Compute in bf16 where the weights are float32."""


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
    looks: list[dict[str, float]] = field(default_factory=list)
    """One entry per look: step, train_loss since the look before, held_out_loss."""
    stopped_early: bool = False

    def best_look(self) -> int:
        """Return the index of the look with the lowest held-out loss."""
        return min(range(len(self.looks)), key=lambda index: self.looks[index]["held_out_loss"])


@dataclass(frozen=True, slots=True)
class LoopResult:
    """How a run ended; ``seconds`` and ``tokens_here`` cover this process alone, not what it resumed."""

    state: LoopState
    seconds: float
    tokens_here: int
    peak_bytes: int


class Trainer:
    """Trains the parameters of ``model`` that require gradients; the model is changed in place."""

    def __init__(self, model: Any, config: LoopConfig, *, scratch: Path, pad_id: int) -> None:
        self._model = model
        self._config = config
        self._scratch = scratch
        self._pad_id = pad_id
        self._device = next(model.parameters()).device
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
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

    def run(self, train: Sequence[Encoded], held_out: Sequence[Encoded], progress: Progress) -> LoopResult:
        """Train to the end, from the latest checkpoint in ``scratch`` if there is one.

        Raises ``RunError`` when the loss is no longer a number.
        """
        looks = length_batches(held_out, batch_tokens=2 * self._config.sizes.micro_batch_tokens)
        with deterministic(self._device, self._config.seed):
            state = self._resume() or LoopState()
            if not state.looks:
                self._look(state, looks)
            started, tokens_before = time.perf_counter(), state.tokens
            steps = endless_steps(train, self._config.sizes, seed=self._config.seed, skip=state.step)
            while state.step < self._config.steps and not state.stopped_early:
                self._step(state, next(steps))
                if state.step % self._config.eval_every == 0 or state.step == self._config.steps:
                    self._look(state, looks)
                    self._save(state)
                if state.step % 10 == 0 or state.step == self._config.steps:
                    rate = (state.tokens - tokens_before) / (time.perf_counter() - started)
                    loss = round(state.looks[-1].get("train_loss", state.first_loss), 4)
                    progress.update(state.step, self._config.steps, loss=loss, tok_s=round(rate))
            seconds = time.perf_counter() - started
        if self._best:
            self._write_weights(self._best)
        return LoopResult(state, seconds, state.tokens - tokens_before, _peak_bytes(self._device))

    def _step(self, state: LoopState, step: Step) -> None:
        self._model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(state.step)
        supervised = sum(len(row.ids) - row.answer_start for batch in step for row in batch)
        value = 0.0
        for batch in step:
            loss_sum, size = self._loss(batch)
            # Divided by the step's answer tokens, so that micro-batches add up to one batch exactly.
            loss = loss_sum / supervised
            torch.autograd.backward(loss)
            value += float(loss.detach())
            tokens = sum(len(row.ids) for row in batch)
            state.tokens += tokens
            state.padding += size - tokens
        if not math.isfinite(value):
            raise RunError(
                f"training diverged: loss is {value} at step {state.step + 1}; lower learning_rate or clip"
            )
        torch.nn.utils.clip_grad_norm_(self._named.values(), self._config.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.supervised += supervised
        state.loss_sum += value
        if state.step == 1:
            state.first_loss = value

    def _rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        config = self._config
        if step < config.warmup_steps:
            return config.learning_rate * (step + 1) / config.warmup_steps
        done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _loss(self, batch: Sequence[Encoded]) -> tuple[torch.Tensor, int]:
        """Return the summed answer-only loss and the batch's size in tokens with padding.

        Rows are padded on the right and attention is causal, so no token sees padding or another row.
        """
        width = max(len(row.ids) for row in batch)
        ids = torch.full((len(batch), width), self._pad_id)
        labels = torch.full((len(batch), width), -100)
        for index, row in enumerate(batch):
            tokens = torch.tensor(row.ids)
            ids[index, : len(tokens)] = tokens
            labels[index, row.answer_start : len(tokens)] = tokens[row.answer_start :]
        ids, labels = ids.to(self._device), labels.to(self._device)
        target = labels[:, 1:]
        wanted = target != -100
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.autocast):
            logits = self._model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits[wanted].float(), target[wanted], reduction="sum")
        return loss, ids.numel()

    def _look(self, state: LoopState, batches: Sequence[Sequence[Encoded]]) -> None:
        """Record the held-out loss per answer token, and keep the weights when they are the best so far."""
        entry: dict[str, float] = {"step": state.step}
        if state.looks:
            steps = state.step - state.looks[-1]["step"]
            entry["train_loss"] = round(state.loss_sum / steps, 6)
            state.loss_sum = 0.0
        if batches:
            self._model.eval()
            total, count = 0.0, 0
            with torch.inference_mode():
                for batch in batches:
                    total += float(self._loss(batch)[0])
                    count += sum(len(row.ids) - row.answer_start for row in batch)
            entry["held_out_loss"] = round(total / count, 6)
        state.looks.append(entry)
        patience = self._config.early_stop
        if patience is None or not batches:
            return
        best = state.best_look()
        if best == len(state.looks) - 1:
            self._best = self._copy_weights()
        state.stopped_early = len(state.looks) - 1 - best >= patience

    def _copy_weights(self) -> Tensors:
        return {name: parameter.detach().cpu().clone() for name, parameter in self._named.items()}

    def _write_weights(self, weights: Tensors) -> None:
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(weights[name])

    def _save(self, state: LoopState) -> None:
        rng = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self._device)
        moments = optimizer_moments(self._optimizer, self._named)
        save_checkpoint(
            self._scratch, Checkpoint(asdict(state), self._copy_weights(), self._best, moments, rng)
        )

    def _resume(self) -> LoopState | None:
        found = load_checkpoint(self._scratch)
        if found is None:
            return None
        if found.weights.keys() != self._named.keys():
            raise RunError(f"{self._scratch}: checkpoint of another model; delete it and run again")
        state = LoopState(**found.state)
        self._write_weights(found.weights)
        restore_moments(self._optimizer, self._named, found.moments, step=state.step)
        torch.set_rng_state(found.rng["cpu"])
        if "cuda" in found.rng:
            torch.cuda.set_rng_state(found.rng["cuda"], self._device)
        self._best = found.best
        return state


@contextlib.contextmanager
def deterministic(device: torch.device, seed: int) -> Iterator[None]:
    """Fix seed, threads and algorithms inside the block; restore the process's settings afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        torch.set_num_threads(CPU_THREADS)
        # On a GPU some kernels have no deterministic form: warn there, hold on a CPU.
        torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
