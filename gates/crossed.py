"""The mean of ratings that raters gave to tasks: every rater and every task shifts several of them.

Model: y_ij = mu + u_i + t_j + e_ij, rater i and task j both drawn at random. Rows that are taken as
independent ignore that and pass a mean of exactly 8.0 as "above 8" in a third of all studies, in place of
one in twenty (``benchmarks/human_coverage.py``). Three intervals, by design:

- every rater rated every task: moments, Var(mean) = (MS_u + MS_t - MS_e) / (U T), with Satterthwaite's
  degrees of freedom (Satterthwaite 1946);
- else: variances robust to clusters in two ways (Cameron, Gelbach and Miller 2011), Student's t on
  min(U, T) - 1 degrees of freedom;
- a claim about these very tasks: clusters of raters alone, t on U - 1.

Ratings crowd below the end of the scale, so means are skewed, and where a mean is high by chance its standard
error is small: t alone then passes 6.3 % of the studies that it should pass 5 % of. So each bound is moved
outwards by the skewness of the mean, as Johnson 1978 ("Modified t tests and confidence intervals for
asymmetrical populations") reckons it, and never inwards.

Not covered: weights, several ratings of one task by one rater, and ordinal models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Estimand = Literal["population", "these tasks"]

MOMENTS = "crossed moments, Satterthwaite, widened for skewness"
TWO_WAY = "two-way clusters, t on min(U, T) - 1, widened for skewness"
RATERS_ONLY = "clusters of raters, t on U - 1, widened for skewness"
ROW_WISE = "rows taken as independent"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Means and their one-sided bounds, arrays over the leading axes of what was given.

    ``set_to_zero``: where an estimated variance of raters or tasks was negative, or the sum of the three
    terms fell below one of them, so that the larger variance stands in its place.
    """

    mean: FloatArray
    se: FloatArray
    df: FloatArray
    lower: FloatArray
    upper: FloatArray
    set_to_zero: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """A mean of ratings with bounds, each of them wrong with chance ``alpha``; None where there is none."""

    mean: float
    se: float | None
    df: float | None
    lower: float | None
    upper: float | None
    alpha: float
    method: str
    n: int
    raters: int
    tasks: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the interval as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


# Many studies at once ------------------------------------------------------------------------------


def moment_bounds(y: FloatArray, alpha: float) -> Bounds:
    """Bound the means of complete designs, ``y`` (..., U, T), by moments.

    A negative estimate of a variance is set to zero (Searle, Casella and McCulloch, Variance Components,
    1992, section 3.5): its mean square and the residual one then say the same, and the other one's mean
    square alone is the larger variance, with its own degrees of freedom.
    """
    mean, ms_u, ms_t, ms_e = mean_squares(y)
    raters, tasks = y.shape[-2:]
    df_u, df_t, df_e = raters - 1, tasks - 1, (raters - 1) * (tasks - 1)
    no_raters, no_tasks = ms_u < ms_e, ms_t < ms_e
    whole = ms_u + ms_t - ms_e
    spread = ms_u**2 / df_u + ms_t**2 / df_t + ms_e**2 / df_e
    with np.errstate(invalid="ignore", divide="ignore"):
        satterthwaite = whole**2 / spread
    cases = [no_raters & no_tasks, no_tasks, no_raters]
    square = np.select(cases, [ms_e, ms_u, ms_t], whole)
    df = np.select(cases, [df_e, df_u, df_t], satterthwaite)
    centred = y - mean[..., None, None]
    third = _third(centred.sum(axis=-1), raters) + _third(centred.sum(axis=-2), tasks)
    found = _bounded(mean, square / (raters * tasks), df, alpha, third / (raters * tasks) ** 3)
    return replace(found, set_to_zero=no_raters | no_tasks)


def mean_squares(y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return mean, MS of raters, of tasks and of the residual of complete designs (..., U, T)."""
    raters, tasks = y.shape[-2:]
    mean = y.mean(axis=(-2, -1))
    centred = y - mean[..., None, None]
    by_rater, by_task = centred.mean(axis=-1), centred.mean(axis=-2)
    rest = centred - by_rater[..., :, None] - by_task[..., None, :]
    ms_u = tasks * (by_rater**2).sum(axis=-1) / (raters - 1)
    ms_t = raters * (by_task**2).sum(axis=-1) / (tasks - 1)
    ms_e = (rest**2).sum(axis=(-2, -1)) / ((raters - 1) * (tasks - 1))
    return mean, ms_u, ms_t, ms_e


def two_way_bounds(y: FloatArray, alpha: float) -> Bounds:
    """Bound the means of designs with gaps, ``y`` (..., U, T) with NaN where nobody rated.

    The variance is that of raters plus that of tasks less that of cells; where that falls below the larger
    of the first two (it may even be negative), the larger one is taken: on the careful side.
    """
    mean, residual, n = _residuals(y)
    seen = ~np.isnan(y)
    by_rater, by_task = residual.sum(axis=-1), residual.sum(axis=-2)
    raters, tasks = seen.any(axis=-1).sum(axis=-1), seen.any(axis=-2).sum(axis=-1)
    of_raters, of_tasks = _one_way(by_rater, raters, n), _one_way(by_task, tasks, n)
    of_cells = (residual**2).sum(axis=(-2, -1)) / (n * (n - 1))
    larger = np.maximum(of_raters, of_tasks)
    whole = of_raters + of_tasks - of_cells
    third = (_third(by_rater, raters) + _third(by_task, tasks)) / n**3
    found = _bounded(mean, np.maximum(whole, larger), np.minimum(raters, tasks) - 1.0, alpha, third)
    return replace(found, set_to_zero=whole < larger)


def rater_bounds(y: FloatArray, alpha: float) -> Bounds:
    """Bound the means on these very tasks: raters are drawn at random, tasks are not."""
    mean, residual, n = _residuals(y)
    raters = (~np.isnan(y)).any(axis=-1).sum(axis=-1)
    by_rater = residual.sum(axis=-1)
    third = _third(by_rater, raters) / n**3
    return _bounded(mean, _one_way(by_rater, raters, n), raters - 1.0, alpha, third)


def row_wise_bounds(y: FloatArray, alpha: float) -> Bounds:
    """Bound the means as if no rater and no task came twice: what not to use, shown beside the others."""
    mean, residual, n = _residuals(y)
    variance = (residual**2).sum(axis=(-2, -1)) / (n * (n - 1))
    return _bounded(mean, variance, n - 1.0, alpha, np.zeros(mean.shape))


def _residuals(y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return means (...), what is above them (..., U, T) with 0 in gaps, and counts (...)."""
    n = (~np.isnan(y)).sum(axis=(-2, -1)).astype(np.float64)
    mean = np.nansum(y, axis=(-2, -1)) / n
    return mean, np.nan_to_num(y - mean[..., None, None], nan=0.0), n


def _one_way(sums: FloatArray, clusters: FloatArray, n: FloatArray) -> FloatArray:
    """Return the variance of a mean from the residual sums of its clusters (..., G)."""
    found: FloatArray = (sums**2).sum(axis=-1) / n**2 * clusters / (clusters - 1)
    return found


def _third(sums: FloatArray, clusters: int | npt.NDArray[np.int64]) -> FloatArray:
    """Return the third cumulant of a sum over clusters from their residual sums (..., G), without bias."""
    count = np.asarray(clusters, dtype=np.float64)
    # Two clusters have no skewness to tell.
    scale = np.where(count > 2, count**2 / np.maximum(1.0, (count - 1) * (count - 2)), 0.0)
    return np.asarray((sums**3).sum(axis=-1) * scale)


def _bounded(
    mean: FloatArray, variance: FloatArray, df: FloatArray | float, alpha: float, third: FloatArray
) -> Bounds:
    """Bound means by Student's t; ``third``: their third cumulants, which move the bounds outwards.

    Johnson's statistic is ((m - mu) + k/(6v) + k (m - mu)^2 / (3 v^2)) / sqrt(v) of a mean m with variance v
    and third cumulant k; solved for mu, at first order, it moves both bounds by k (1 + 2 t^2) / (6 v).
    """
    from scipy.special import stdtrit

    se = np.sqrt(variance)
    df = np.broadcast_to(np.asarray(df, dtype=np.float64), mean.shape)
    t = stdtrit(df, 1 - alpha)
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = np.where(variance > 0, third * (1 + 2 * t**2) / (6 * variance), 0.0)
    lower, upper = mean - t * se + np.minimum(shift, 0.0), mean + t * se + np.maximum(shift, 0.0)
    return Bounds(mean, se, df, lower, upper, np.zeros(mean.shape, dtype=bool))


# One study -----------------------------------------------------------------------------------------


def crossed_mean(y: FloatArray, alpha: float, estimand: Estimand = "population") -> MeanInterval:
    """Return the mean of one study, ``y`` (U, T) with NaN where nobody rated, by the interval that fits it.

    Every row and column has a rating. Without two raters (for a population also two tasks), or where no
    rating differs from another, there are no bounds, and the note says why.
    """
    if estimand == "these tasks":
        return _told(y, alpha, RATERS_ONLY, rater_bounds)
    if np.isnan(y).any():
        return _told(y, alpha, TWO_WAY, two_way_bounds)
    return _told(y, alpha, MOMENTS, moment_bounds)


def row_wise_mean(y: FloatArray, alpha: float) -> MeanInterval:
    """Return the interval that takes rows as independent: shown as what not to use."""
    return _told(y, alpha, ROW_WISE, row_wise_bounds)


def no_interval(y: FloatArray, alpha: float, method: str, note: str) -> MeanInterval:
    """Return the mean alone, with the reason why it has no bounds."""
    n = int((~np.isnan(y)).sum())
    mean = float(np.nanmean(y)) if n else math.nan
    raters, tasks = y.shape
    return MeanInterval(mean, None, None, None, None, alpha, method, n, raters, tasks, note)


def _told(y: FloatArray, alpha: float, method: str, bound: Any) -> MeanInterval:
    raters, tasks = y.shape
    if raters < 2 or (tasks < 2 and method in (MOMENTS, TWO_WAY)) or np.isfinite(y).sum() < 2:
        return no_interval(y, alpha, method, "fewer than two raters or tasks: no interval")
    found: Bounds = bound(y[None], alpha)
    if not found.se[0] > 0:
        return no_interval(y, alpha, method, "no rating differs from another: no interval")
    note = ""
    if found.set_to_zero[0]:
        note = "an estimated variance of raters or tasks is below zero: the larger mean square stands alone"
        if method == TWO_WAY:
            note = "the variances of raters and of tasks do not add up: the larger one stands alone"
    known = (float(found.mean[0]), float(found.se[0]), float(found.df[0]))
    bounds = (float(found.lower[0]), float(found.upper[0]))
    return MeanInterval(*known, *bounds, alpha, method, int(np.isfinite(y).sum()), raters, tasks, note)


@dataclass(frozen=True, slots=True)
class Components:
    """Standard deviations of raters, tasks and the rest, in points of the scale."""

    rater: float
    task: float
    residual: float


def components(y: FloatArray) -> Components:
    """Estimate the three variances of a study with or without gaps, (U, T), by moments; negative ones are 0.

    In a complete design it is the analysis of variance. Designs that cannot tell them apart give NaN.
    """
    found = drawn_components(y, np.ones((1, y.shape[0])), np.ones((1, y.shape[1])))[0]
    return Components(*(float(one) for one in np.sqrt(np.maximum(found, 0.0))))


def drawn_components(y: FloatArray, w_u: FloatArray, w_t: FloatArray) -> FloatArray:
    """Return variances of raters, tasks and the rest, (B, 3), with raters and tasks drawn so often.

    ``w_u`` (B, U) and ``w_t`` (B, T). Half the mean squared difference of two ratings holds task and rest
    where one rater gave both, rater and rest where both are of one task, and all three where they share
    neither: three equations (U-statistics as in Gao and Owen 2017, "Efficient moment calculations for
    variance components in large unbalanced crossed random effects models"). Copies of one rating make no
    pair.
    """
    seen = (~np.isnan(y)).astype(np.float64)
    # About the mean, so that the differences of large sums keep their digits.
    filled = np.where(seen > 0, y - np.nanmean(y), 0.0)
    rows = _pairs([w_t @ each.T for each in (seen, filled, filled**2)])
    columns = _pairs([w_u @ each for each in (seen, filled, filled**2)])
    whole = _pairs([((w_u @ each) * w_t).sum(axis=1) for each in (seen, filled, filled**2)])
    own_u, own_t = w_t**2 @ seen.T, w_u**2 @ seen
    same_cell = (own_t * w_t**2).sum(axis=1)
    by_rater = (w_u * rows[0]).sum(axis=1), (w_u * (rows[1] - own_u)).sum(axis=1)
    by_task = (w_t * columns[0]).sum(axis=1), (w_t * (columns[1] - own_t)).sum(axis=1)
    apart = whole[0] - (w_u**2 * rows[0]).sum(axis=1) - (w_t**2 * columns[0]).sum(axis=1)
    pairs = whole[1] - (w_u**2 * rows[1]).sum(axis=1) - (w_t**2 * columns[1]).sum(axis=1) + same_cell
    with np.errstate(invalid="ignore", divide="ignore"):
        of_rater, of_task, of_neither = by_rater[0] / by_rater[1], by_task[0] / by_task[1], apart / pairs
    found = (of_neither - of_rater, of_neither - of_task, of_rater + of_task - of_neither)
    return np.stack(found, axis=1)


def _pairs(sums: list[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Return half the summed squared differences of all pairs, and how many pairs (with itself) there are."""
    count, first, second = sums
    return count * second - first**2, count**2


# Checks --------------------------------------------------------------------------------------------


def pigeonhole(y: FloatArray, alpha: float, *, draws: int = 2000, seed: int = 0) -> MeanInterval:
    """Return percentile bounds of the two-way bootstrap: raters and tasks drawn anew, each by itself.

    Source: Owen 2007, "The pigeonhole bootstrap"; its variance is on the large side.
    """
    method = f"two-way bootstrap, {draws:,} draws"
    raters, tasks = y.shape
    if raters < 2 or tasks < 2:
        return no_interval(y, alpha, method, "fewer than two raters or tasks: no interval")
    w_u, w_t = drawn_weights(raters, draws, seed), drawn_weights(tasks, draws, seed + 1)
    seen = ~np.isnan(y)
    sums = ((w_u @ np.where(seen, y, 0.0)) * w_t).sum(axis=1)
    counts = ((w_u @ seen.astype(np.float64)) * w_t).sum(axis=1)
    # A draw of a sparse design may hold no rating at all.
    means = sums[counts > 0] / counts[counts > 0]
    lower, upper = np.quantile(means, [alpha, 1 - alpha])
    found = no_interval(y, alpha, method, "")
    return replace(found, se=float(means.std(ddof=1)), lower=float(lower), upper=float(upper))


def drawn_weights(count: int, draws: int, seed: int) -> FloatArray:
    """Return how often each of ``count`` was drawn, (draws, count), in draws of as many with replacement."""
    rng = np.random.default_rng([seed, count])
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def mixed_model(y: FloatArray, alpha: float) -> MeanInterval:
    """Return the mean of a linear mixed model with crossed raters and tasks, by REML; t on min(U, T) - 1.

    One that does not converge has no bounds, and its note says so. Source: statsmodels, ``MixedLM``.
    """
    import warnings

    from scipy.special import stdtrit
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec
    from statsmodels.tools.sm_exceptions import ConvergenceWarning

    method = "mixed model, REML"
    raters, tasks = y.shape
    if raters < 2 or tasks < 2:
        return no_interval(y, alpha, method, "fewer than two raters or tasks: no interval")
    rater, task = np.nonzero(~np.isnan(y))
    columns = [[[f"r{k}" for k in range(raters)]], [[f"t{k}" for k in range(tasks)]]]
    matrices = [[np.eye(raters)[rater]], [np.eye(tasks)[task]]]
    values = y[rater, task]
    try:
        with warnings.catch_warnings():
            # What it warns of is told below, in one note.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            model = MixedLM(
                values,
                np.ones((len(values), 1)),
                groups=np.zeros(len(values)),
                exog_vc=VCSpec(["rater", "task"], columns, matrices),
            )
            fit = model.fit(reml=True)
        mean, se = float(fit.fe_params[0]), float(fit.bse_fe[0])
    except (np.linalg.LinAlgError, ValueError) as error:
        return no_interval(y, alpha, method, f"could not be fitted ({error})")
    if not fit.converged or not math.isfinite(se):
        return no_interval(y, alpha, method, "did not converge")
    df = min(raters, tasks) - 1
    reach = float(stdtrit(df, 1 - alpha)) * se
    sds = [math.sqrt(max(0.0, float(one))) for one in (*fit.vcomp, fit.scale)]
    note = "SD of raters {:.2f}, tasks {:.2f}, rest {:.2f}".format(*sds)
    known = (mean, se, float(df), mean - reach, mean + reach)
    return MeanInterval(*known, alpha, method, len(values), raters, tasks, note)
