"""Supervised fine-tuning as an objective: the mean loss of a step's answer tokens, over packed bins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pipeline.training.data import Encoded
from pipeline.training.objective import StepCounts
from pipeline.training.packing import Bin, Step, StepSizes, endless_steps, filled, pack
from pipeline.training.world import ALONE, World


class SftObjective:
    """Plain fine-tuning, or distillation: ``loss`` says which.

    ``loss`` maps a packed batch to its summed loss. ``pad_to``: every bin gets this length, where the kernels
    of an accelerator want one shape.
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
    ) -> None:
        self._loss = loss
        self._rows = rows
        self._sizes = sizes
        self._seed = seed
        self._device = device
        self._pad_to = pad_to
        self._world = world
        capacity = pad_to or sizes.bins(max((len(row.ids) for row in held_out), default=1))[1]
        self._held_out = filled(sorted(held_out, key=lambda row: len(row.ids)), capacity)

    def steps(self, *, skip: int) -> Iterator[Step]:
        """Yield the steps from number ``skip`` on."""
        return endless_steps(self._rows, self._sizes, seed=self._seed, skip=skip)

    def gradient(self, step: Step) -> StepCounts:
        """Leave the gradient of the mean loss over the step's answer tokens in ``.grad``."""
        self._loss.train()
        supervised = _answer_tokens(step)
        value = torch.zeros((), device=self._device)
        for entry in self._world.mine(step):
            # Divided by the answer tokens of the whole step, so that bins add up to one batch exactly.
            loss = self._loss(pack(entry, self._device, pad_to=self._pad_to)) / supervised
            torch.autograd.backward(loss)
            value += loss.detach()
        tokens = sum(len(row.ids) for entry in step for row in entry)
        padding = sum(max(0, self._pad_to - sum(len(row.ids) for row in entry)) for entry in step)
        return StepCounts(self._world.total([float(value)])[0], tokens, supervised, padding)

    def held_out_loss(self) -> float | None:
        """Return the mean loss of the held-out answer tokens, or None without held-out rows."""
        if not self._held_out:
            return None
        self._loss.eval()
        total = torch.zeros((), device=self._device)
        with torch.no_grad():
            for entry in self._world.mine(self._held_out):
                total += self._loss(pack(entry, self._device, pad_to=self._pad_to))
        return self._world.total([float(total)])[0] / _answer_tokens(self._held_out)


def _answer_tokens(bins: Sequence[Bin]) -> int:
    return sum(len(row.ids) - row.answer_start for entry in bins for row in entry)
