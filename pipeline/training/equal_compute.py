"""How long a plain training must be to see as many tokens as another one: the control of meta-learning."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.training.data import Encoded
from pipeline.training.packing import StepSizes, endless_steps


def steps_for(tokens: int, rows: Sequence[Encoded], sizes: StepSizes, *, seed: int) -> int:
    """Return the number of steps, at least one, whose rows together come nearest to ``tokens``.

    The steps are those that ``SftObjective`` takes with the same rows, sizes and seed.
    """
    seen = count = 0
    for step in endless_steps(rows, sizes, seed=seed, skip=0):
        size = sum(len(row.ids) for entry in step for row in entry)
        if count and seen + size / 2 > tokens:
            break
        seen += size
        count += 1
    return count
