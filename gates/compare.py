"""Two models on the same items: how far apart they are, and how sure that is.

The difference B - A of an item's scores lies in [-1, 1]. Its mean gets the interval that a score's mean gets
(``gates.intervals``), so it may be looked at whenever one likes, and is a point once all items are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from gates.intervals import mean_bounds
from gates.paired_tests import exact_mcnemar, holm, sign_flip

FloatArray = npt.NDArray[np.float64]
Test = Literal["exact McNemar", "sign-flip permutation"]

ALPHA = 0.05
"""Error rate of an interval: of a task's by itself, and of the suite's."""


@dataclass(frozen=True, slots=True)
class PairedTask:
    """Scores of both on the first items of a task, (n,) each in [0, 1], in its committed order.

    ``n_total``: items that the task has. ``seed`` draws the sign flips where scores are not just 0 and 1.
    """

    task: str
    a: FloatArray
    b: FloatArray
    n_total: int
    seed: int = 0

    @property
    def binary(self) -> bool:
        """Tell whether every score is 0 or 1."""
        return bool(np.isin(self.a, (0.0, 1.0)).all() and np.isin(self.b, (0.0, 1.0)).all())


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """One task. ``difference`` is B - A over the ``n`` items, ``lower`` to ``upper`` bounds it over all.

    ``a_only`` and ``b_only`` count the items on which A, B scored higher (for scores of 0 and 1: was right
    alone), ``both`` and ``neither`` those that both, none answered rightly (None for other scores).
    ``p_holm`` is ``p_value`` corrected for the number of tasks.
    """

    task: str
    n: int
    n_total: int
    score_a: float
    score_b: float
    difference: float
    lower: float
    upper: float
    alpha: float
    test: Test
    p_value: float
    p_holm: float
    a_only: int
    b_only: int
    both: int | None
    neither: int | None

    @property
    def flips(self) -> int:
        """Items on which the two differ."""
        return self.a_only + self.b_only


@dataclass(frozen=True, slots=True)
class SuiteComparison:
    """A suite: macro means with equal weights over its tasks, and the difference B - A of these."""

    score_a: float
    score_b: float
    difference: float
    lower: float
    upper: float
    alpha: float
    tasks: tuple[TaskComparison, ...]


@dataclass(frozen=True, slots=True)
class MacroScore:
    """A model's score with bounds: of every task, and their mean with equal weights."""

    score: float
    lower: float
    upper: float
    tasks: tuple[tuple[float, float, float], ...]
    """(score, lower, upper) of each task, as in a report: at ``alpha / K``, so that all hold at once."""


def macro_score(scores: Sequence[tuple[FloatArray, int]], alpha: float = ALPHA) -> MacroScore:
    """Return the macro mean of K tasks from (scores of the first items, items in all) of each.

    Bounds as a report has them (``reports.quality``): the mean of the tasks' bounds at ``alpha / K``.
    """
    tasks = tuple(
        (float(of_task.mean()), *mean_bounds(of_task, n_total, alpha / len(scores)))
        for of_task, n_total in scores
    )
    score, lower, upper = (float(np.mean([task[at] for task in tasks])) for at in range(3))
    return MacroScore(score, lower, upper, tasks)


def difference_bounds(
    a: FloatArray, b: FloatArray, n_total: int, alpha: float = ALPHA
) -> tuple[float, float]:
    """Return a two-sided interval of mean(B - A) over all ``n_total`` items from the first ``len(a)``.

    Valid at level ``1 - alpha`` whenever one stops; a point when all items are known; [-1, 1] without items.
    """
    if len(a) == n_total:
        exact = float(b.mean()) - float(a.mean())
        return exact, exact
    lower, upper = mean_bounds((b - a + 1) / 2, n_total, alpha)
    return 2 * lower - 1, 2 * upper - 1


def compare_tasks(pairs: Sequence[PairedTask], alpha: float = ALPHA) -> SuiteComparison:
    """Compare A and B on the tasks of a suite, at least one item each.

    The suite's bounds are the means of the tasks' bounds at ``alpha / K``: all K hold together with chance
    ``1 - alpha`` (Bonferroni), so their mean does, at any look.
    """
    corrected = holm([_p_value(pair) for pair in pairs])
    tasks = tuple(_compare(pair, alpha, p_holm) for pair, p_holm in zip(pairs, corrected, strict=True))
    bounds = [difference_bounds(pair.a, pair.b, pair.n_total, alpha / len(pairs)) for pair in pairs]
    score_a, score_b = (
        float(np.mean([getattr(task, name) for task in tasks])) for name in ("score_a", "score_b")
    )
    difference = float(np.mean([task.difference for task in tasks]))
    return SuiteComparison(
        score_a=score_a,
        score_b=score_b,
        difference=difference,
        lower=min(difference, float(np.mean([lower for lower, _ in bounds]))),
        upper=max(difference, float(np.mean([upper for _, upper in bounds]))),
        alpha=alpha,
        tasks=tasks,
    )


def _p_value(pair: PairedTask) -> float:
    if pair.binary:
        return exact_mcnemar(int((pair.a > pair.b).sum()), int((pair.b > pair.a).sum()))
    return sign_flip(pair.b - pair.a, pair.seed)


def _compare(pair: PairedTask, alpha: float, p_holm: float) -> TaskComparison:
    a, b = pair.a, pair.b
    difference = float(b.mean()) - float(a.mean())
    lower, upper = difference_bounds(a, b, pair.n_total, alpha)
    return TaskComparison(
        task=pair.task,
        n=len(a),
        n_total=pair.n_total,
        score_a=float(a.mean()),
        score_b=float(b.mean()),
        difference=difference,
        # Rounding may put the mean of the differences beside the difference of the means.
        lower=min(lower, difference),
        upper=max(upper, difference),
        alpha=alpha,
        test="exact McNemar" if pair.binary else "sign-flip permutation",
        p_value=_p_value(pair),
        p_holm=p_holm,
        a_only=int((a > b).sum()),
        b_only=int((b > a).sum()),
        both=int(((a == 1) & (b == 1)).sum()) if pair.binary else None,
        neither=int(((a == 0) & (b == 0)).sum()) if pair.binary else None,
    )
