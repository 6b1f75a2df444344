"""What a study of people can decide, before anybody is asked: standard error and power by tasks and raters.

In closed form: the variance of the mean is sd_rater^2 / U + sd_task^2 / T + sd_rest^2 / (ratings), and power
is that of the verdict's t test (``gates.crossed``) under normal effects. Ratings end at 10: the verdict's
widening for skewness costs some of the power that is told here, and the smaller spread near the end gives it
back. ``benchmarks/human_coverage.py`` has both side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gates.crossed import components
from gates.people_rows import Rows, counted, grid

POOLS = (20, 100, 200)
"""Tasks to compare: a complete design of 20, and two pools from which 20 are dealt."""
MEANS = (8.1, 8.2, 8.3, 8.4, 8.5, 8.6)
ENOUGH = 0.8
"""Power from which a study is called able to decide."""


@dataclass(frozen=True, slots=True)
class Sds:
    """Standard deviations of raters, tasks and the rest, in points as they are rated (after rounding)."""

    name: str
    rater: float
    task: float
    residual: float


SDS = (
    Sds("low", 0.75, 0.46, 0.99),
    Sds("mid", 1.00, 0.67, 1.18),
    Sds("high", 1.17, 0.85, 1.29),
)
"""Assumed cases. Latent SDs of 0.8/0.5/1.0, 1.2/0.8/1.3 and 1.5/1.1/1.5 (research note on people, section 5)
become these once ratings are rounded and cut at 1 and 10 around a mean of 8 (``benchmarks/human_coverage``).
A pilot of ten raters gives better ones: ``sds_of``."""


@dataclass(frozen=True, slots=True)
class PowerRow:
    """One design under one case. ``power``: chance of PASS by true mean; ``decides_from``: the smallest of
    these means that passes with chance ``ENOUGH``, None where none does.
    """

    case: str
    tasks: int
    raters: int
    ratings: int
    ratings_per_task: float
    se: float
    power: dict[float, float]
    decides_from: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON object, means as text."""
        return {**asdict(self), "power": {f"{mean:g}": round(one, 4) for mean, one in self.power.items()}}


@dataclass(frozen=True, slots=True)
class Claim:
    """What a study is to show: a mean above ``bar`` at error rate ``alpha``, at these true means."""

    bar: float = 8.0
    alpha: float = 0.05
    means: Sequence[float] = MEANS


def power_table(
    tasks: Sequence[int] = POOLS,
    raters: int = 100,
    sds: Sequence[Sds] = SDS,
    *,
    items: int = 20,
    claim: Claim | None = None,
) -> list[PowerRow]:
    """Return a row for every case and number of tasks, each rater rating ``items`` of them (at most all)."""
    asked = claim or Claim()
    return [_row(case, pool, raters, min(items, pool), asked) for case in sds for pool in tasks]


def standard_error(sds: Sds, tasks: int, raters: int, items: int) -> float:
    """Return the standard error of the mean when every rater rates ``items`` of the tasks, dealt evenly."""
    variance = sds.rater**2 / raters + sds.task**2 / tasks + sds.residual**2 / (raters * items)
    return math.sqrt(variance)


def degrees_of_freedom(sds: Sds, tasks: int, raters: int, items: int) -> float:
    """Return those of the verdict's interval: Satterthwaite's where all rate all, else min(U, T) - 1."""
    if items < tasks:
        return min(raters, tasks) - 1.0
    ms_e = sds.residual**2
    ms_u, ms_t = ms_e + tasks * sds.rater**2, ms_e + raters * sds.task**2
    spread = ms_u**2 / (raters - 1) + ms_t**2 / (tasks - 1) + ms_e**2 / ((raters - 1) * (tasks - 1))
    return float((ms_u + ms_t - ms_e) ** 2 / spread)


def sds_of(rows: Rows, subject: str) -> Sds:
    """Return the standard deviations of a pilot's scored ratings; NaN where it is too small to tell."""
    scored = counted(rows, subject)
    found = components(grid(scored, scored.score)[0])
    return Sds("pilot", found.rater, found.task, found.residual)


def recommendation(tasks: int, raters: int = 100, *, items: int = 20) -> str:
    """Say what more tasks, or as many, do for a study of these tasks and raters, in the middle case."""
    case = SDS[1]
    here = standard_error(case, tasks, raters, min(items, tasks))
    told = f"{tasks} tasks and {raters} raters: standard error about {here:.2f}"
    if tasks >= POOLS[1]:
        dealt = f", {items} dealt to each" if tasks > items else ""
        return f"{told}{dealt}; more tasks would bring little more"
    pool = standard_error(case, POOLS[1], raters, items)
    doubled = standard_error(case, tasks, 2 * raters, min(items, tasks))
    return (
        f"{told}. Deal {items} to each rater from a pool of {POOLS[1]} to {POOLS[2]} tasks: about {pool:.2f} "
        f"for the same {raters * items:,} ratings, where twice the raters on these tasks give {doubled:.2f}"
    )


def _row(case: Sds, tasks: int, raters: int, items: int, claim: Claim) -> PowerRow:
    se = standard_error(case, tasks, raters, items)
    df = degrees_of_freedom(case, tasks, raters, items)
    power = {mean: _power((mean - claim.bar) / se, df, claim.alpha) for mean in claim.means}
    enough = [mean for mean, one in power.items() if one >= ENOUGH]
    ratings = raters * items
    return PowerRow(case.name, tasks, raters, ratings, ratings / tasks, se, power, min(enough, default=None))


def _power(shift: float, df: float, alpha: float) -> float:
    """Return the chance that a noncentral t, ``shift`` standard errors up, lies above its quantile."""
    from scipy.special import nctdtr, stdtrit

    return float(np.clip(1 - nctdtr(df, shift, stdtrit(df, 1 - alpha)), 0.0, 1.0))
