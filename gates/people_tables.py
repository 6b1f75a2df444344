"""What a study's report shows beside the mean: tasks, domains, histogram, order, time, pairs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gates.crossed import Estimand, FloatArray, MeanInterval, crossed_mean
from gates.people_rows import Rows, counted, grid

SCALE = range(1, 11)


@dataclass(frozen=True, slots=True)
class GroupMean:
    """The mean of one task or domain; bounds None where they cannot be computed."""

    name: str
    domain: str
    mean: float
    lower: float | None
    upper: float | None
    n: int
    tasks: int


@dataclass(frozen=True, slots=True)
class Slope:
    """Points by which ratings change from one item to the next, with bounds; by raters, tasks taken out."""

    value: float
    lower: float | None
    upper: float | None
    raters: int


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds an item over all items with a known time, and minutes a rater on scored items."""

    known: int
    p10: float
    median: float
    p90: float
    minutes_per_rater: float


@dataclass(frozen=True, slots=True)
class Tables:
    """Descriptions of the ratings that the mean is a mean of."""

    tasks: tuple[GroupMean, ...]
    domains: tuple[GroupMean, ...]
    histogram: tuple[int, ...]
    """How many ratings gave 1, 2, ... 10."""
    ceiling_share: float | None
    """Share of 10s."""
    order: Slope | None
    times: Times | None
    preference: MeanInterval | None
    """Share of pairs that the judged system wins, ties as halves; None without pairs."""
    missing: int
    """Scored ratings that finished raters do not have."""
    comments: int
    flags: int

    def to_json(self) -> dict[str, Any]:
        """Return the tables as a JSON object."""
        found = {name: getattr(self, name) for name in self.__slots__}
        for name in ("tasks", "domains"):
            found[name] = [asdict(one) for one in found[name]]
        for name in ("order", "times"):
            found[name] = None if found[name] is None else asdict(found[name])
        return {**found, "preference": None if self.preference is None else self.preference.to_json()}


def tables(rows: Rows, plan: Any, alpha: float) -> Tables:
    """Describe the scored ratings of raters who finished, and their pairs; each bound at level ``alpha``."""
    scored = counted(rows, plan.subject)
    histogram = tuple(int((scored.score == value).sum()) for value in SCALE)
    raters = len(set(scored.rater.tolist()))
    finished = rows.where(rows.finished)
    return Tables(
        tasks=_tasks(scored, alpha),
        domains=_domains(scored, alpha, plan.estimand),
        histogram=histogram,
        ceiling_share=histogram[-1] / len(scored) if len(scored) else None,
        order=_order(scored, alpha),
        times=_times(scored),
        preference=preference(finished, alpha, plan.estimand),
        missing=max(0, raters * plan.items - len(scored)),
        comments=int(finished.comments.sum()),
        flags=int(finished.flags.sum()),
    )


def preference(rows: Rows, alpha: float, estimand: Estimand) -> MeanInterval | None:
    """Return the share of pairs that the subject wins, ties as halves, by the interval of the design."""
    pairs = rows.of_kind("pair")
    known = pairs.where(~np.isnan(pairs.preference))
    return crossed_mean(grid(known, known.preference)[0], alpha, estimand) if len(known) else None


def _tasks(scored: Rows, alpha: float) -> tuple[GroupMean, ...]:
    """Raters are independent of each other, so within one task Student's t is right."""
    found = []
    for name in sorted(set(scored.task.tolist())):
        mine = scored.where(np.asarray(scored.task == name, dtype=bool))
        lower, upper = _student(mine.score, alpha)
        found.append(
            GroupMean(name, str(mine.domain[0]), float(mine.score.mean()), lower, upper, len(mine), 1)
        )
    return tuple(found)


def _domains(scored: Rows, alpha: float, estimand: Estimand) -> tuple[GroupMean, ...]:
    found = []
    for name in sorted(set(scored.domain.tolist())):
        mine = scored.where(np.asarray(scored.domain == name, dtype=bool))
        y, _, tasks = grid(mine, mine.score)
        one = crossed_mean(y, alpha, estimand)
        found.append(GroupMean(name, name, one.mean, one.lower, one.upper, one.n, len(tasks)))
    return tuple(found)


def _order(scored: Rows, alpha: float) -> Slope | None:
    """Fit a line to each rater's ratings over the position, less the tasks' means; take the mean slope."""
    means = {one.name: one.mean for one in _tasks(scored, alpha)}
    slopes = []
    for name in sorted(set(scored.rater.tolist())):
        mine = scored.where(np.asarray(scored.rater == name, dtype=bool))
        x = mine.position - mine.position.mean()
        if len(mine) < 3 or not (x**2).sum() > 0:
            continue
        y = mine.score - np.array([means[task] for task in mine.task.tolist()])
        slopes.append(float((x * y).sum() / (x**2).sum()))
    if not slopes:
        return None
    lower, upper = _student(np.array(slopes), alpha)
    return Slope(float(np.mean(slopes)), lower, upper, len(slopes))


def _times(scored: Rows) -> Times | None:
    known = scored.where(~np.isnan(scored.seconds))
    if not len(known):
        return None
    low, middle, high = (float(one) for one in np.quantile(known.seconds, [0.1, 0.5, 0.9]))
    totals = [float(known.seconds[known.rater == name].sum()) / 60 for name in set(known.rater.tolist())]
    return Times(len(known), low, middle, high, float(np.median(totals)))


def _student(values: FloatArray, alpha: float) -> tuple[float | None, float | None]:
    """Return one-sided bounds of a mean of independent values; None for fewer than two, or without spread."""
    from scipy.special import stdtrit

    if len(values) < 2 or not values.std() > 0:
        return None, None
    reach = float(stdtrit(len(values) - 1, 1 - alpha)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - reach, float(values.mean()) + reach
