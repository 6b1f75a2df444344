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
    # Against a reference that always scores 1, the ratio is the mean itself.
    sample = RatioSample(scores, 1.0, 1.0, n_total)
    # The search starts where nothing is proven yet; with a mean of 0 that is a tenth of one right answer.
    start = max(mean, 0.1 / n_total)
    lower, upper = confidence_bounds(sample, start, (alpha / 2, alpha / 2), Verdict.UNDECIDED)
    return max(0.0, min(lower, mean)), min(1.0, max(upper, mean))
