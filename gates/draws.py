"""In which order the items of a suite are revealed when it has several tasks.

Every sequence is fixed by the committed orders of the tasks before the first answer: its seed is their
digest. The items of a task are only ever taken in that task's committed order, so evidence is always a
prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

# Drawn with replacement, twice as many draws as items reveal 86 % of them; after that it is cheaper to
# measure the rest and compare exactly.
DRAWS_PER_ITEM = 2


@dataclass(frozen=True, slots=True)
class Draws:
    """A committed sequence of items.

    ``task`` and ``position``, (m,) each: draw i reveals the item at ``position[i]`` of the committed order of
    task ``task[i]``. ``n_total`` is m where the sequence goes through a population without replacement, else
    None.
    """

    task: IntArray
    position: IntArray
    n_total: int | None

    def usable(self, measured: Sequence[int]) -> int:
        """Return how many draws can be taken when ``measured[k]`` items of each task are known."""
        missing = self.position >= np.asarray(measured, dtype=np.int64)[self.task]
        return int(missing.argmax()) if missing.any() else len(self.task)

    def items_behind(self, draws: int, n_tasks: int) -> list[int]:
        """Return how many items of each task must be known to take the first ``draws`` draws."""
        needed = np.zeros(n_tasks, dtype=np.int64)
        np.maximum.at(needed, self.task[:draws], self.position[:draws] + 1)
        return [int(n) for n in needed]


def single(size: int, *, population: bool) -> Draws:
    """Return one task's items in their committed order; ``population``: as a sample of a larger family."""
    task = np.zeros(size, dtype=np.int64)
    return Draws(task, np.arange(size, dtype=np.int64), None if population else size)


def pooled(sizes: Sequence[int], seed: int) -> Draws:
    """Return the items of all tasks as one population, randomly interleaved, without replacement."""
    labels = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    task = np.random.default_rng(seed).permutation(labels)
    return Draws(task, _running_count(task, len(sizes)), len(task))


def weighted(sizes: Sequence[int], weights: Sequence[float], seed: int, *, population: bool) -> Draws:
    """Return draws of a task by its weight and then of one of its items, so that every draw has the same
    mean.

    The item is drawn with replacement: it is either one seen before or the next of the committed order, with
    the chances that a uniform draw from the whole task has, because that order is itself a random
    permutation. In scope ``population`` each draw takes a new item, a fresh draw from the family; the
    sequence ends with the first task that has no more.
    """
    rng = np.random.default_rng(seed)
    shares = np.asarray(weights, dtype=np.float64)
    task = rng.choice(len(sizes), size=DRAWS_PER_ITEM * sum(sizes), p=shares / shares.sum()).astype(np.int64)
    if population:
        position = _running_count(task, len(sizes))
        draws = Draws(task, position, None)
        end = draws.usable(sizes)
        return Draws(task[:end], position[:end], None)
    position = np.zeros_like(task)
    for k, size in enumerate(sizes):
        mine = task == k
        position[mine] = _order_of_appearance(rng.integers(size, size=int(mine.sum())))
    return Draws(task, position, None)


def seed_of(order_digests: Sequence[str]) -> int:
    """Return the seed that the committed orders of a suite's tasks fix."""
    return int.from_bytes(hashlib.sha256("\n".join(order_digests).encode()).digest()[:8], "big")


def _running_count(task: IntArray, n_tasks: int) -> IntArray:
    """Return for each draw how many earlier draws took the same task."""
    position = np.zeros_like(task)
    for k in range(n_tasks):
        mine = task == k
        position[mine] = np.arange(int(mine.sum()))
    return position


def _order_of_appearance(labels: IntArray) -> IntArray:
    """Number labels by when they first appear: [7, 2, 7, 9] becomes [0, 1, 0, 2]."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
