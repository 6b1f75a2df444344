"""The processes that train one model together: how they share gradients, and join and spread tensors.

``ALONE`` is one process. More are started by pipeline.training.launch; each holds the whole step in mind and
takes every n-th bin of it, so that nothing but gradients and two numbers need to travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch

Part = TypeVar("Part")


class World:
    """One process that has everything: the base of those that share."""

    rank = 0
    size = 1

    @property
    def first(self) -> bool:
        """Tell whether this process writes the files and tells the progress."""
        return self.rank == 0

    def mine(self, parts: Sequence[Part]) -> list[Part]:
        """Return those of the parts of a step that this process takes."""
        return list(parts[self.rank :: self.size])

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes, in place."""

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums of some numbers over all processes."""
        return list(values)

    def clip(self, parameters: Iterable[torch.nn.Parameter], most: float) -> float:
        """Scale the gradients down to a norm of at most ``most``; return the norm that they had."""
        return float(torch.nn.utils.clip_grad_norm_(parameters, most))

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor with the parts that other processes hold."""
        return tensor

    def fill(self, place: torch.Tensor, values: torch.Tensor) -> None:
        """Write a whole tensor into its place, of which this process may hold a part."""
        place.copy_(values)


ALONE = World()
