"""Intervals of a score for tables and plots: the same test that gates use, inverted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cogumi.verdict import Verdict
from gates.betting import RatioSample, confidence_bounds


def mean_bounds(scores: npt.NDArray[np.float64], n_total: int, alpha: float = 0.05) -> tuple[float, float]:
    """Return a two-sided interval of the mean over all ``n_total`` items from the first ``len(scores)`` of
    them.

    Valid at level ``1 - alpha`` whenever one stops measuring; a point when all items are known. Scores lie in
    [0, 1] and stand in their committed order. Without scores the interval is [0, 1].
    """
    if len(scores) == 0:
        return 0.0, 1.0
    mean = float(scores.mean())
    if len(scores) == n_total:
        return mean, mean
    lower = _lower_bound(scores, mean, n_total, alpha / 2)
    upper = 1 - _lower_bound(1 - scores, 1 - mean, n_total, alpha / 2)
    return min(lower, mean), max(upper, mean)


def _lower_bound(scores: npt.NDArray[np.float64], mean: float, n_total: int, alpha: float) -> float:
    if mean == 0:
        return 0.0
    # Against a reference that always scores 1, the ratio is the mean itself.
    sample = RatioSample(scores, 1.0, 1.0, n_total)
    return confidence_bounds(sample, mean, (alpha, alpha), Verdict.UNDECIDED)[0]
