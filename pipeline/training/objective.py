"""What a training loop asks of an objective: steps in order, a gradient for each, a look at held-out data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What one optimizer step saw."""

    loss: torch.Tensor
    """Mean over the step's answer tokens, or over its tasks; a tensor, so that nobody waits for it yet."""
    tokens: int
    """Tokens that went through the model, padding not counted."""
    supervised: int
    """Those of them that the loss was taken on."""
    padding: int


class Objective(Protocol):
    """One way to learn: plain fine-tuning, distillation or meta-learning."""

    def steps(self, *, skip: int) -> Iterator[Any]:
        """Yield the steps from number ``skip`` on, endlessly: a function of the seed alone."""
        ...

    def gradient(self, step: Any) -> StepCounts:
        """Leave the step's gradient in ``.grad`` of the trainable parameters, which is None before."""
        ...

    def held_out_loss(self) -> float | None:
        """Return the loss on held-out data, or None where there is none; changes no parameter."""
        ...
