"""Whether a model's confidence is the chance that it is right: scaling it, and how far off it is.

Confidence is a number in (0, 1) for each answer, correctness is 0 or 1. Two scalings of its logit x:

- temperature: sigma(x / T), T by maximum likelihood (Guo et al. 2017, arXiv 1706.04599, for two classes);
- Platt: sigma(a x + b) by maximum likelihood on Platt's smoothed targets (Platt 1999), by Newton's method
  with backtracking (Lin, Lin and Weng 2007).

The error is that of bins, sum_b |mean over all items of (correct - confidence) in b|: expected calibration
error. Its plain estimate is never 0 for a perfect confidence, so the value has the bias of every bin taken
off (Kumar, Liang and Ma 2019, arXiv 1909.10155, section 4, for the absolute error as in their library), and
the bounds are made for it, from whole clusters weighted at random (``ece_interval``).

Not covered: error within a bin, which no finite sample bounds without assumptions (Kumar et al., section 3);
confidence in each of many classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from gates.intervals import clopper_pearson

FloatArray = npt.NDArray[np.float64]
Scaling = Literal["none", "temperature", "platt"]

TEMPERATURES = (0.01, 100.0)
"""Within these a temperature is looked for: beyond the first every answer is certain, beyond the second none
says anything."""

# A confidence of exactly 0 or 1 has no logit: this is float32's resolution near 1.
_EDGE = 2.0**-24
# Draws of the bootstrap: the 95 % quantile of 1,000 is itself within 1.4 points of 95 % (two errors).
_DRAWS = 1000
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Scaled:
    """A calibration of confidence: sigma(slope * logit + intercept)."""

    slope: float
    intercept: float

    def __call__(self, confidence: FloatArray) -> FloatArray:
        """Return the calibrated confidence."""
        return _sigmoid(self.slope * logit(confidence) + self.intercept)


@dataclass(frozen=True, slots=True)
class Interval:
    """An expected calibration error; each bound is wrong with a chance of at most the level asked for."""

    value: float
    """Without the bias of its bins."""
    lower: float
    upper: float
    plain: float
    """The usual estimate, which is above the truth on average."""
    bins: int


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Items of like confidence: what they claim on average and how many of them are right."""

    n: int
    confidence: float
    accuracy: float
    lower: float
    upper: float
    """Bounds of the accuracy (Clopper and Pearson), each at the level asked for."""


def logit(confidence: FloatArray) -> FloatArray:
    """Return log(p / (1 - p)); what is nearer to 0 or 1 than float32 tells is taken as that near."""
    p = np.clip(np.asarray(confidence, dtype=np.float64), _EDGE, 1 - _EDGE)
    return np.asarray(np.log(p) - np.log1p(-p), dtype=np.float64)


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)), dtype=np.float64)


# Scaling ------------------------------------------------------------------------------------------


def fit_temperature(confidence: FloatArray, correct: FloatArray) -> Scaled:
    """Return the scaling by one temperature that makes the correctness most likely.

    The slope is 1 / T. Raises ``ValueError`` without items.
    """
    x, y = logit(confidence), np.asarray(correct, dtype=np.float64)
    if len(x) == 0:
        raise ValueError("no items to fit a temperature on")
    # The derivative of the log-likelihood by the slope falls in it: the likelihood is concave.
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    while high - low > 1e-12 * high:
        middle = math.sqrt(low * high)
        rises = float((x * (y - _sigmoid(middle * x))).sum()) > 0
        low, high = (middle, high) if rises else (low, middle)
    return Scaled(math.sqrt(low * high), 0.0)


def fit_platt(confidence: FloatArray, correct: FloatArray) -> Scaled:
    """Return Platt's scaling; its targets are (N+ + 1) / (N+ + 2) for right answers, 1 / (N- + 2) for wrong.

    So it stays finite where all answers are right. Raises ``ValueError`` without items.
    """
    x, y = logit(confidence), np.asarray(correct, dtype=np.float64)
    if len(x) == 0:
        raise ValueError("no items to fit Platt's scaling on")
    right, wrong = float(y.sum()), float((1 - y).sum())
    target = np.where(y > 0.5, (right + 1) / (right + 2), 1 / (wrong + 2))
    design = np.stack([x, np.ones_like(x)], axis=1)
    # The start of Lin, Lin and Weng: no slope, the rate of right answers.
    found = np.array([0.0, math.log((right + 1) / (wrong + 1))])

    def loss(at: FloatArray) -> float:
        z = design @ at
        return float((np.logaddexp(0.0, z) - target * z).sum())

    for _ in range(100):
        p = _sigmoid(design @ found)
        gradient = design.T @ (p - target)
        if float(np.abs(gradient).max()) < 1e-9 * len(x):
            break
        # The ridge keeps the step finite where all confidences are equal.
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + 1e-10 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        size, before = 1.0, loss(found)
        while size > 1e-10 and loss(found - size * step) > before - 1e-4 * size * float(gradient @ step):
            size /= 2
        found = found - size * step
    return Scaled(float(found[0]), float(found[1]))


def cross_fitted(
    confidence: FloatArray,
    correct: FloatArray,
    fold: npt.NDArray[np.int64],
    fit: Callable[[FloatArray, FloatArray], Scaled],
) -> FloatArray:
    """Return each item's calibrated confidence by a scaling that was fitted on the items of other folds.

    So all items judge, and none judges what it was fitted on. Raises ``ValueError`` with fewer than two
    folds.
    """
    names = np.unique(fold)
    if len(names) < 2:
        raise ValueError("two folds at least are needed: one to fit on, one to judge on")
    found = np.empty(len(confidence), dtype=np.float64)
    for name in names:
        judged = fold == name
        found[judged] = fit(confidence[~judged], correct[~judged])(confidence[judged])
    return found


# Errors -------------------------------------------------------------------------------------------


def bin_of(confidence: FloatArray, bins: int, equal: Literal["mass", "width"]) -> npt.NDArray[np.int64]:
    """Return the bin of each item, 0 first, without empty ones.

    Equal confidences share a bin, so those of equal mass may be fewer and not quite equal.
    """
    if equal == "width":
        inner = np.linspace(0, 1, bins + 1)[1:-1]
    else:
        inner = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1]))
    _, found = np.unique(np.searchsorted(inner, confidence, side="right"), return_inverse=True)
    return np.asarray(found, dtype=np.int64)


def ece_interval(
    confidence: FloatArray,
    correct: FloatArray,
    bin_index: npt.NDArray[np.int64],
    *,
    alpha: float,
    seed: int,
    clusters: Sequence[str] | None = None,
) -> Interval:
    """Return the expected calibration error over bins with a lower and an upper bound, each at ``alpha``.

    With d the vector of the bins' errors, d^ its estimate and e* how far random weights move that (the
    Bayesian bootstrap, Rubin 1981): the upper bound is a quantile of |d^ + e*|, the lower one |d^| less a
    quantile of |e*|, sums of absolute values. Such a sum is convex: |d^ + e*| is at least
    |d| + s(d^ - d) + s e* with the signs s of d, so its quantile is below |d| with chance alpha at most; and
    |d| is at least |d^| - |d^ - d|. So both hold where errors of means are near normal, also for a perfect
    confidence, at which the usual bootstrap interval excludes 0. e* has at least the spread that the
    confidences themselves claim: a bin without a wrong answer shows none. ``clusters``: items of one name
    share their weight.
    Raises ``ValueError`` with fewer than two items or clusters.
    """
    claimed = np.sqrt(np.bincount(bin_index, confidence * (1 - confidence))) / len(confidence)
    sums = _cluster_sums(confidence, correct, bin_index, clusters)
    if len(sums) < 2:
        raise ValueError("two items (or clusters) at least are needed for an interval")
    # The mean is over items: clusters of several weigh more.
    errors, sizes = sums[:, :-1], sums[:, -1]
    n = float(sizes.sum())
    means = errors.sum(axis=0) / n
    spread = np.sqrt(((errors - sizes[:, None] * means) ** 2).sum(axis=0)) / n
    plain = float(np.abs(means).sum())
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(0, _DRAWS, _AT_ONCE):
        weights = rng.standard_exponential((_AT_ONCE, len(sums)))
        drawn.append((weights @ errors) / (weights @ sizes)[:, None])
    # Where a bin shows less spread than it claims, normal errors make up for the rest.
    missing = np.sqrt(np.maximum(0.0, claimed**2 - spread**2))
    moved = np.concatenate(drawn) - means + missing * rng.standard_normal((_DRAWS, len(means)))
    upper = float(np.quantile(np.abs(means + moved).sum(axis=1), 1 - alpha))
    lower = plain - float(np.quantile(np.abs(moved).sum(axis=1), 1 - alpha))
    spread = np.maximum(spread, claimed)
    value = max(0.0, plain - sum(map(_bias, means.tolist(), spread.tolist())))
    return Interval(value, min(max(0.0, lower), value), max(upper, value), plain, len(means))


def _cluster_sums(
    confidence: FloatArray,
    correct: FloatArray,
    bin_index: npt.NDArray[np.int64],
    clusters: Sequence[str] | None,
) -> FloatArray:
    """Return (clusters, bins + 1): the sum of correct - confidence in each bin, and the number of items."""
    n, bins = len(confidence), int(bin_index.max(initial=-1)) + 1
    _, rows = np.unique(np.arange(n) if clusters is None else np.asarray(clusters), return_inverse=True)
    found = np.zeros((int(rows.max(initial=-1)) + 1, bins + 1))
    np.add.at(found, (rows, bin_index), np.asarray(correct, dtype=np.float64) - confidence)
    found[:, bins] = np.bincount(rows)
    return found


def _bias(mean: float, spread: float) -> float:
    """Return how far E|N(mean, spread^2)|, the mean of a folded normal law, is above |mean|."""
    if spread == 0:
        return 0.0
    size = abs(mean)
    folded = spread * math.sqrt(2 / math.pi) * math.exp(-(size**2) / (2 * spread**2))
    return folded + size * math.erf(size / (spread * math.sqrt(2))) - size


def reliability(
    confidence: FloatArray, correct: FloatArray, bin_index: npt.NDArray[np.int64], alpha: float
) -> list[ReliabilityBin]:
    """Return the bins in order of confidence, what a reliability plot shows."""
    found = []
    for name in np.unique(bin_index):
        inside = bin_index == name
        n, accuracy = int(inside.sum()), float(np.asarray(correct, dtype=np.float64)[inside].mean())
        lower, upper = clopper_pearson(accuracy, n, alpha)
        found.append(ReliabilityBin(n, float(confidence[inside].mean()), accuracy, lower, upper))
    return found


def brier(confidence: FloatArray, correct: FloatArray) -> float:
    """Return the mean squared difference of confidence and correctness (Brier 1950)."""
    return float(((np.asarray(correct, dtype=np.float64) - confidence) ** 2).mean())


def log_loss(confidence: FloatArray, correct: FloatArray) -> float:
    """Return the mean negative log-likelihood in nats of the correctness under the confidence."""
    x = logit(confidence)
    return float((np.logaddexp(0.0, x) - np.asarray(correct, dtype=np.float64) * x).mean())


def auroc(confidence: FloatArray, correct: FloatArray) -> float | None:
    """Return the chance that a right answer has the higher confidence of a right and a wrong one, ties half.

    None where all answers are right, or all wrong (Hanley and McNeil 1982: the Mann-Whitney statistic).
    """
    y = np.asarray(correct, dtype=np.float64) > 0.5
    right, wrong = int(y.sum()), int((~y).sum())
    if not right or not wrong:
        return None
    _, place, count = np.unique(confidence, return_inverse=True, return_counts=True)
    # The mean rank of equal values.
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((ranks[y].sum() - right * (right + 1) / 2) / (right * wrong))
