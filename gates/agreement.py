"""How far raters agree: intraclass correlations and Krippendorff's alpha, reported and never gated.

One system that is good throughout leaves little to agree on: with honest raters alpha is then about 0.14, by
restriction of range. So a bar on alpha would punish a good model (research note on people, section 5).
``ICC(2,k)`` says whether the tasks' means are reliable; alpha describes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gates.crossed import FloatArray, drawn_components, drawn_weights, mean_squares

_VALUES = np.arange(1, 11)
"""The scale: 1 to 10."""

Level = Literal["ordinal", "interval"]


@dataclass(frozen=True, slots=True)
class Coefficient:
    """One coefficient of agreement with its bounds, each at ``alpha``; None where it cannot be computed."""

    name: str
    value: float | None
    lower: float | None
    upper: float | None
    alpha: float
    method: str

    def to_json(self) -> dict[str, Any]:
        """Return the coefficient as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


def agreement(y: FloatArray, alpha: float, *, draws: int = 2000, seed: int = 0) -> tuple[Coefficient, ...]:
    """Return ICC(2,1), ICC(2,k) and both alphas of ratings (U, T), 1 to 10, NaN where nobody rated."""
    return (
        *intraclass(y, alpha, draws=draws, seed=seed),
        *(krippendorff_alpha(y, alpha, level, draws=draws, seed=seed) for level in ("ordinal", "interval")),
    )


# Intraclass correlations ---------------------------------------------------------------------------


def intraclass(
    y: FloatArray, alpha: float, *, draws: int = 2000, seed: int = 0
) -> tuple[Coefficient, Coefficient]:
    """Return ICC(2,1) of one rating and ICC(2,k) of the tasks' means, raters and tasks both at random.

    Complete designs: mean squares and F bounds (Shrout and Fleiss 1979; McGraw and Wong 1996). With gaps:
    variance components by moments, k the mean number of ratings a task, bounds by a bootstrap over raters and
    tasks.
    """
    if min(y.shape) < 2:
        return _pair((None, None, None), 0, alpha, "fewer than two raters or tasks")
    if np.isnan(y).any():
        k = float((~np.isnan(y)).sum() / y.shape[1])
        method = f"moments; bootstrap of raters and tasks, {draws:,} draws"
        return _pair(_from_components(y, alpha, draws, seed), k, alpha, method)
    return _pair(_from_mean_squares(y, alpha), y.shape[0], alpha, "mean squares; F bounds")


_Bounded = tuple[float | None, float | None, float | None]


def _pair(one: _Bounded, k: float, alpha: float, method: str) -> tuple[Coefficient, Coefficient]:
    """Return ICC(2,1) and, by the Spearman-Brown formula on value and bounds, ICC(2,k)."""
    name = f"ICC(2,{k:.0f})" if k else "ICC(2,k)"
    value, lower, upper = (_stepped_up(v, k) for v in one)
    many = Coefficient(name, value, lower, upper, alpha, method)
    return Coefficient("ICC(2,1)", one[0], one[1], one[2], alpha, method), many


def _stepped_up(value: float | None, k: float) -> float | None:
    below = None if value is None else 1 + (k - 1) * value
    return None if value is None or below is None or below <= 0 else k * value / below


def _from_mean_squares(y: FloatArray, alpha: float) -> _Bounded:
    from scipy.special import fdtri

    _, ms_u, ms_t, ms_e = (float(one) for one in mean_squares(y))
    k, n = y.shape
    below = ms_t + (k - 1) * ms_e + k * (ms_u - ms_e) / n
    if below <= 0 or ms_e <= 0:
        return None, None, None
    value = (ms_t - ms_e) / below
    if value > 1 - 1e-9:
        # All raters say the same: F has nothing below its line.
        return value, None, None
    a = k * value / (n * (1 - value))
    b = 1 + k * value * (n - 1) / (n * (1 - value))
    df = (a * ms_u + b * ms_e) ** 2 / ((a * ms_u) ** 2 / (k - 1) + (b * ms_e) ** 2 / ((n - 1) * (k - 1)))
    low, high = float(fdtri(n - 1, df, 1 - alpha)), float(fdtri(df, n - 1, 1 - alpha))
    shared = k * ms_u + (k * n - k - n) * ms_e
    lower = n * (ms_t - low * ms_e) / (low * shared + n * ms_t)
    upper = n * (high * ms_t - ms_e) / (shared + n * high * ms_t)
    return (value, lower, upper) if math.isfinite(lower) and math.isfinite(upper) else (value, None, None)


def _from_components(y: FloatArray, alpha: float, draws: int, seed: int) -> _Bounded:
    raters, tasks = y.shape
    value = _share_of_tasks(drawn_components(y, np.ones((1, raters)), np.ones((1, tasks))))[0]
    if math.isnan(value):
        return None, None, None
    w_u, w_t = drawn_weights(raters, draws, seed), drawn_weights(tasks, draws, seed + 1)
    found = _share_of_tasks(drawn_components(y, w_u, w_t))
    known = found[np.isfinite(found)]
    if not len(known):
        return float(value), None, None
    lower, upper = np.quantile(known, [alpha, 1 - alpha])
    return float(value), float(lower), float(upper)


def _share_of_tasks(variances: FloatArray) -> FloatArray:
    """Return the share of the tasks' variance in the sum of all three, (B,)."""
    kept = np.maximum(variances, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(kept[:, 1] / kept.sum(axis=1))


# Krippendorff's alpha ------------------------------------------------------------------------------


def krippendorff_alpha(
    y: FloatArray, alpha: float, level: Level, *, draws: int = 2000, seed: int = 0
) -> Coefficient:
    """Return Krippendorff's alpha with percentile bounds over draws of raters and of tasks.

    Value: package ``krippendorff`` (Krippendorff 2011). In a draw the copies of one rater are not compared
    with each other: they agree by construction. Without two values in the data there is no alpha.
    """
    import krippendorff

    method = f"bootstrap of raters and tasks, {draws:,} draws"
    name = f"Krippendorff's alpha, {level}"
    counts = _counted(y)
    several = counts[counts.sum(axis=1) > 1]
    if not len(several) or (several.sum(axis=0) > 0).sum() < 2:
        return Coefficient(name, None, None, None, alpha, "no two ratings that differ")
    value = float(krippendorff.alpha(value_counts=counts, value_domain=_VALUES, level_of_measurement=level))
    found = _bootstrapped(y, level, draws, seed)
    known = found[np.isfinite(found)]
    if not len(known):
        return Coefficient(name, value, None, None, alpha, method)
    lower, upper = np.quantile(known, [alpha, 1 - alpha])
    return Coefficient(name, value, float(lower), float(upper), alpha, method)


def _counted(y: FloatArray) -> npt.NDArray[np.int64]:
    """Return how many gave each value, (T, 10)."""
    return np.asarray((y[:, :, None] == _VALUES).sum(axis=0), dtype=np.int64)


def _bootstrapped(y: FloatArray, level: Level, draws: int, seed: int) -> FloatArray:
    """Return alpha of every draw, (draws,): coincidences weighted by how often rater and task were drawn."""
    raters, tasks = y.shape
    w_u, w_t = drawn_weights(raters, draws, seed), drawn_weights(tasks, draws, seed + 1)
    hot = (y[:, :, None] == _VALUES).astype(np.float64).reshape(raters, -1)
    parts = []
    for start in range(0, draws, 250):  # 250 draws x 200 tasks x 10 values: 4 MB an array
        weights = w_u[start : start + 250]
        counts = (weights @ hot).reshape(len(weights), tasks, -1)
        own = (weights**2 @ hot).reshape(len(weights), tasks, -1)
        total = counts.sum(axis=2)
        pairs = total**2 - own.sum(axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.where(pairs > 0, w_t[start : start + 250] * total / pairs, 0.0)
        together = np.einsum("bt,btv,btw->bvw", scale, counts, counts, optimize=True)
        same = np.einsum("bt,btv->bv", scale, own)
        together[:, range(len(_VALUES)), range(len(_VALUES))] -= same
        parts.append(_alpha_of(together, level))
    return np.concatenate(parts)


def _alpha_of(coincidences: FloatArray, level: Level) -> FloatArray:
    """Return alpha of coincidence matrices (B, V, V)."""
    marginal = coincidences.sum(axis=2)
    if level == "interval":
        distance = (_VALUES[:, None] - _VALUES[None, :]).astype(np.float64)[None] ** 2
    else:
        # Ratings between the two, with half of those at either end (Krippendorff 2011, ordinal metric).
        middle = np.cumsum(marginal, axis=1) - marginal / 2
        distance = (middle[:, :, None] - middle[:, None, :]) ** 2
    n = marginal.sum(axis=1)
    observed = (coincidences * distance).sum(axis=(1, 2))
    expected = (marginal[:, :, None] * marginal[:, None, :] * distance).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - (n - 1) * observed / expected)
