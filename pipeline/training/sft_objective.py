"""Supervised fine-tuning as an objective: the mean loss of a step's answer tokens, over packed bins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from pipeline.training.data import Encoded
from pipeline.training.objective import StepCounts
from pipeline.training.packing import Bin, PackedBatch, Step, StepSizes, endless_steps, filled, pack
from pipeline.training.world import ALONE, World


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """A step, and what this process puts through the model for it, packed, each with its weight."""

    bins: Step
    turns: list[tuple[PackedBatch, float]]


class SftObjective:
    """Plain fine-tuning, or distillation: ``loss`` says which.

    ``loss`` maps a packed batch to its summed loss, and so does ``look``, by which held-out rows are judged
    (default: the same). ``pad_to``: every bin gets this length, where kernels want one shape.
    """

    def __init__(
        self,
        loss: torch.nn.Module,
        rows: Sequence[Encoded],
        held_out: Sequence[Encoded],
        sizes: StepSizes,
        *,
        seed: int,
        device: torch.device,
        pad_to: int = 0,
        world: World = ALONE,
        look: torch.nn.Module | None = None,
    ) -> None:
        self._loss = loss
        self._look = look or loss
        self._rows = rows
        self._sizes = sizes
        self._seed = seed
        self._device = device
        self._pad_to = pad_to
        self._world = world
        capacity = pad_to or sizes.bins(max((len(row.ids) for row in held_out), default=1))[1]
        self._held_out = filled(sorted(held_out, key=lambda row: len(row.ids)), capacity)

    def steps(self, *, skip: int) -> Iterator[ReadyStep]:
        """Yield the steps from number ``skip`` on, on an accelerator packed while the one before runs."""
        coming = endless_steps(self._rows, self._sizes, seed=self._seed, skip=skip)
        if self._device.type == "cpu":
            yield from map(self.ready, coming)
        with ThreadPoolExecutor(1) as packer:
            following = packer.submit(lambda: self.ready(next(coming)))
            while True:
                step = following.result()
                following = packer.submit(lambda: self.ready(next(coming)))
                yield step

    def ready(self, step: Step) -> ReadyStep:
        """Pack this process's part of a step."""
        turns = [(self._packed(entry, weight), weight) for entry, weight in self._world.turns(step)]
        return ReadyStep(step, turns)

    def gradient(self, step: ReadyStep) -> StepCounts:
        """Leave the gradient of the mean loss over the step's answer tokens in ``.grad``."""
        self._loss.train()
        bins = step.bins
        supervised = _answer_tokens(bins)
        value = torch.zeros((), device=self._device)
        for batch, weight in step.turns:
            # Divided by the answer tokens of the whole step, so that bins add up to one batch exactly.
            loss = weight * self._loss(batch) / supervised
            torch.autograd.backward(loss)
            value += loss.detach()
        tokens = sum(len(row.ids) for entry in bins for row in entry)
        padding = sum(max(0, self._pad_to - sum(len(row.ids) for row in entry)) for entry in bins)
        if self._world.size > 1:
            value.fill_(self._world.total([float(value)])[0])
        return StepCounts(value, tokens, supervised, padding)

    def _packed(self, entry: Bin, weight: float) -> PackedBatch:
        # What only keeps step with other processes is as short as can be.
        return pack(entry if weight else entry[:1], self._device, pad_to=self._pad_to)

    def held_out_loss(self) -> float | None:
        """Return the mean loss of the held-out answer tokens, or None without held-out rows."""
        if not self._held_out:
            return None
        self._look.eval()
        total = torch.zeros((), device=self._device)
        with torch.no_grad():
            for entry, weight in self._world.turns(self._held_out):
                total += weight * self._look(self._packed(entry, weight))
        return self._world.total([float(total)])[0] / _answer_tokens(self._held_out)


def _answer_tokens(bins: Sequence[Bin]) -> int:
    return sum(len(row.ids) - row.answer_start for entry in bins for row in entry)
