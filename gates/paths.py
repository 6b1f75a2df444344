"""The way that a verdict went: capital, estimate and its bounds after every draw, until it was decided.

Nothing new is tested here: it is the arithmetic of ``gates.betting``, kept at every item where a verdict
keeps the last. So the end of a path says what the verdict says. Not covered: numbers that no bet decides
(bytes, tokens per second, ratings), and the exact comparison of all items where the draws of ``mean_of`` did
not tell: such a path ends UNDECIDED.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cogumi.verdict import Verdict
from gates import draws
from gates.betting import (
    FloatArray,
    RatioSample,
    confidence_bounds,
    first_crossing,
    log_capital,
)
from gates.criteria import look
from gates.pairing import Docket, pair_up, recorded, rule_of, with_sampling_error
from gates.spec import Criterion
from gates.suites import Pair, Rule, sample_of, sequence_of
from gates.verdicts import CriterionVerdict

IntArray = npt.NDArray[np.int64]

LOOKS = 48
"""Draws at which the bounds of a path are computed: each costs some thirty evaluations of the test."""


@dataclass(frozen=True, slots=True)
class EvidencePath:
    """One sequential test, draw by draw; ``m`` draws until it was decided, or all that are known.

    ``passing``, ``failing``: (m,) natural logarithm of the capital that was bet on PASS and on FAIL; +inf
    from where arithmetic makes it certain, -inf where it can no longer be. ``alphas``: what a false PASS and
    a false FAIL may cost; a capital of 1 / alpha decides. ``items``: (m,) distinct items known after each
    draw. ``value``: (m,) the running estimate in the criterion's unit, NaN where the reference has no point
    yet. ``lower``, ``upper``: (k,) what the verdict would have told as its bounds, had it stopped at the
    draws ``looks`` (k,), counted from 1. ``certain``: decided by arithmetic, not by a bet. ``n_draws``: draws
    that there are at most. ``task`` is empty where all tasks of the suite are one test.
    """

    task: str
    items: IntArray
    passing: FloatArray
    failing: FloatArray
    alphas: tuple[float, float]
    value: FloatArray
    looks: IntArray
    lower: FloatArray
    upper: FloatArray
    verdict: Verdict
    certain: bool
    n_draws: int

    def __len__(self) -> int:
        return len(self.items)


def criterion_path(
    docket: Docket, criterion: Criterion, looks: int = LOOKS
) -> tuple[CriterionVerdict, tuple[EvidencePath, ...]]:
    """Judge a criterion on recorded evidence and return the path of its test; one path a task for all_of.

    There is none where no item is known, or the criterion is not decided by betting. Raises what its evidence
    raises.
    """
    verdict = look(docket, criterion).verdict
    if criterion.human is not None or (criterion.threshold is not None and criterion.item_rate is None):
        return verdict, ()
    pairs = pair_up(docket, criterion, recorded(docket, criterion))
    rule = rule_of(docket, criterion, docket.spec.alpha if verdict.alpha is None else verdict.alpha)
    if criterion.relative is not None:
        pairs, rule = with_sampling_error(pairs, rule)
    paths = suite_paths(pairs, rule, looks)
    return verdict, tuple(_mirrored(path) for path in paths) if criterion.comparison == "<=" else paths


def suite_paths(pairs: Sequence[Pair], rule: Rule, looks: int = LOOKS) -> tuple[EvidencePath, ...]:
    """Return the path of the test that ``gates.suites.judge`` makes of these pairs."""
    alone = len(pairs) > 1 and rule.combine == "all_of"
    groups = [[pair] for pair in pairs] if alone else [list(pairs)]
    alphas = (rule.alpha, rule.alpha / len(groups))
    found = []
    for group in groups:
        sequence = sequence_of(group, rule)
        usable = sequence.usable([pair.known_units for pair in group])
        if usable:
            sample = sample_of(group, rule, sequence, usable)
            task = group[0].task if len(groups) > 1 else ""
            found.append(_path(task, sample, rule.c, alphas, _items_known(group, sequence, usable), looks))
            found[-1] = replace(found[-1], n_draws=len(sequence.task))
    return tuple(found)


def _path(
    task: str,
    sample: RatioSample,
    c: float,
    alphas: tuple[float, float],
    items: IntArray,
    looks: int,
) -> EvidencePath:
    """Return the path up to the first crossing; ``items`` (n,) as in ``EvidencePath``."""
    (w_pass, m_pass), (w_fail, m_fail) = sample.nulls(c)
    passing, pass_certain = log_capital(w_pass, m_pass, sample.n_total)
    failing, fail_certain = log_capital(1 - w_fail, 1 - m_fail, sample.n_total, strict=True)
    passed, failed = int(first_crossing(passing, alphas[0])), int(first_crossing(failing, alphas[1]))
    end = min(passed, failed, len(items))
    verdict, certain = Verdict.UNDECIDED, False
    if min(passed, failed) <= len(items):
        verdict = Verdict.PASS if passed < failed else Verdict.FAIL
        certain = bool((pass_certain if verdict is Verdict.PASS else fail_certain)[end - 1])
    value = _running_ratio(sample, end)
    at = _spread(end, looks)
    lower, upper = np.empty(len(at)), np.empty(len(at))
    for k, n in enumerate(at.tolist()):
        told = verdict if n == end else Verdict.UNDECIDED
        low, high = confidence_bounds(sample.prefix(n), c, alphas, told)
        # As the verdict widens them: the estimate lies between its bounds.
        lower[k], upper[k] = np.fmin(low, value[n - 1]), np.fmax(high, value[n - 1])
    return EvidencePath(
        task=task,
        items=items[:end],
        passing=passing[:end],
        failing=failing[:end],
        alphas=alphas,
        value=value,
        looks=at,
        lower=lower,
        upper=upper,
        verdict=verdict,
        certain=certain,
        n_draws=len(items),
    )


def _spread(end: int, looks: int) -> IntArray:
    """Return at most ``looks`` draws from 1 to ``end``: half close together at the start, half evenly."""
    some = max(2, looks // 2)
    early, even = np.geomspace(1, end, some), np.linspace(1, end, some)
    return np.unique(np.rint(np.concatenate([early, even])).astype(np.int64))


def _running_ratio(sample: RatioSample, end: int) -> FloatArray:
    """Return mean(X) / mean(Y) over the first 1, 2, ..., ``end`` draws; NaN where mean(Y) is 0."""
    count = np.arange(1, end + 1)
    high, low = (
        np.full(end, y) if isinstance(y, float) else np.cumsum(y[:end]) / count
        for y in (sample.y_high, sample.y_low)
    )
    against = (high + low) / 2
    value = np.full(end, np.nan)
    np.divide(np.cumsum(sample.x[:end]) / count, against, out=value, where=against > 0)
    return value


def _items_known(pairs: Sequence[Pair], sequence: draws.Draws, usable: int) -> IntArray:
    """Return how many distinct items are known after each of the first ``usable`` draws."""
    task, position = sequence.task[:usable], sequence.position[:usable]
    fresh = np.zeros(usable, dtype=np.int64)
    for k, pair in enumerate(pairs):
        mine = np.flatnonzero(task == k)
        # Positions appear in order, so a draw shows something new where it goes beyond all before it.
        highest = np.maximum.accumulate(position[mine]) if len(mine) else position[mine]
        new = mine[np.diff(highest, prepend=-1) > 0]
        sizes = [pair.items_of(n + 1) - pair.items_of(n) for n in range(len(new))]
        fresh[new] = sizes
    return np.cumsum(fresh)


def _mirrored(path: EvidencePath) -> EvidencePath:
    """Turn the path of the share of good items into that of the share of bad ones."""
    return replace(
        path,
        value=1 - path.value,
        lower=1 - np.minimum(1.0, path.upper),
        upper=1 - path.lower,
    )
