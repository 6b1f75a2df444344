"""The evidence path of a recorded verdict: the engine is asked again, on the items that the verdict used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cogumi.errors import CogumiError
from cogumi.verdict import Verdict
from dashboard.recorded import Place, VerdictEvidence
from gates.attempts import alpha_of
from gates.pairing import Docket
from gates.paths import EvidencePath, criterion_path
from gates.spec import Criterion, GateSpec, load_gate
from gates.verdicts import CriterionVerdict, GateVerdict

IntArray = npt.NDArray[np.int64]

AGREES = 1e-5
"""Verdicts are recorded to six decimals, and another processor may round the last ones differently."""

MOST_POINTS = 2000
"""Points of a drawn line: more than a screen has columns."""


@dataclass(frozen=True, slots=True)
class Trail:
    """The paths of one criterion (one a task for all_of), or none and ``why``.

    ``doubt``: where the end is not what was recorded, in one line; empty where it agrees.
    """

    paths: tuple[EvidencePath, ...]
    why: str = ""
    doubt: str = ""


class _Number:
    """The book of one recorded attempt."""

    def __init__(self, attempt: int) -> None:
        self._attempt = attempt

    def number(self, gate: str, items_digest: str, artifact: str) -> int:
        """Return the attempt that the verdict was."""
        return self._attempt


def trail(place: Place, verdict: GateVerdict, criterion: CriterionVerdict) -> Trail:
    """Follow a recorded criterion from its evidence; what cannot be followed says ``why`` in one line."""
    why = _undrawn(criterion)
    if why:
        return Trail((), why)
    try:
        spec, asked = _asked(verdict.gate, criterion)
        source = VerdictEvidence(place, verdict, criterion, spec.scope)
        docket = Docket(spec, source, _Number(criterion.attempt), verdict.artifact, None)
        found, paths = criterion_path(docket, asked)
    except CogumiError as error:
        return Trail((), f"No path: {error}.")
    if not paths:
        return Trail((), f"No path: {found.note or 'nothing is recorded of it'}.")
    return Trail(paths, doubt=_doubt(criterion, found))


def _undrawn(criterion: CriterionVerdict) -> str:
    """Say why a criterion has no path whatever is recorded; nothing where it may have one."""
    if criterion.measure == "rating":
        return "No path: people's ratings decide this criterion, not bets on items."
    if criterion.reference is None and not criterion.measure.endswith("_rate"):
        return f"No path: {criterion.measure} is one number beside its bar; nothing is bet on items."
    if criterion.verdict is Verdict.INFEASIBLE:
        return "No path: arithmetic decides it before any item."
    if not criterion.n_used:
        return "No path: no item was measured for it."
    return ""


def _asked(gate: str, criterion: CriterionVerdict) -> tuple[GateSpec, Criterion]:
    """Return gate and criterion of the gate file, if they still ask what the verdict answered."""
    spec = load_gate(gate)
    asked = spec.only([criterion.id]).criteria[0]
    then = (criterion.comparison, criterion.bar, criterion.alpha or 0.0)
    now = (asked.comparison, asked.bar, alpha_of(max(1, criterion.attempt), spec.alpha))
    if then[0] != now[0] or not np.allclose(then[1:], now[1:], rtol=0, atol=1e-6):
        raise CogumiError(
            f"the gate file was changed since: bar {then[0]} {then[1]:g} at alpha {then[2]:.3g} then, "
            f"{now[0]} {now[1]:g} at {now[2]:.3g} now"
        )
    return spec, asked


def _doubt(recorded: CriterionVerdict, found: CriterionVerdict) -> str:
    """Say where what is found now is not what was recorded."""
    # A verdict that ran out of money or broke down keeps the numbers that it had until then.
    stopped = recorded.verdict in (Verdict.ERROR, Verdict.BUDGET) and found.verdict is Verdict.UNDECIDED
    differing = [] if stopped or recorded.verdict is found.verdict else ["verdict"]
    for name in ("value", "lower", "upper", "n_used"):
        then, now = (getattr(one, name) for one in (recorded, found))
        infinite = then is None and now is not None and math.isinf(now)
        if not infinite and not _close(then, now):
            differing.append(name)
    if not differing:
        return ""
    return (
        f"Asked again today, it ends elsewhere ({', '.join(differing)}): {found.verdict.value} now, "
        f"{recorded.verdict.value} as recorded. The gate file, the reference or the evidence changed since."
    )


def _close(then: float | None, now: float | None) -> bool:
    if then is None or now is None:
        return then is now
    return math.isclose(then, now, rel_tol=AGREES, abs_tol=AGREES)


def account(path: EvidencePath, criterion: CriterionVerdict) -> str:
    """Tell in two sentences where a path was decided, and by what."""
    draws, items = len(path), int(path.items[-1])
    where = f"after draw {draws:,} of at most {path.n_draws:,}"
    where += f" ({items:,} items)" if draws != items else ""
    name = f"{path.task}: " if path.task else ""
    if path.verdict is Verdict.UNDECIDED:
        told = f"{name}Undecided {where}: neither capital reached its threshold."
        if not path.task and criterion.verdict in (Verdict.PASS, Verdict.FAIL):
            told += f" Then all items were compared exactly: {criterion.verdict.value}."
        return told
    side = 0 if path.verdict is Verdict.PASS else 1
    threshold = f"{1 / path.alphas[side]:,.3g}"
    if path.certain:
        return f"{name}{path.verdict.value} {where}: from there on arithmetic makes it certain."
    return (
        f"{name}{path.verdict.value} {where}: there the capital that was bet on {path.verdict.value} first "
        f"reached 1/alpha = {threshold}. A wrong {path.verdict.value} gets that far with chance "
        f"{path.alphas[side]:.3g} at most."
    )


def thin(columns: Sequence[npt.NDArray[np.float64]], most: int = MOST_POINTS) -> IntArray:
    """Return the points (k,) of lines (n,) to draw: of each stretch its ends and every line's extremes.

    At most about ``most`` points, in order, the first and the last among them.
    """
    n = len(columns[0])
    if n <= most:
        return np.arange(n)
    stretches = max(1, most // (2 * len(columns) + 1))
    edges = np.linspace(0, n, stretches + 1).astype(np.int64)
    kept = [np.append(edges[:-1], n - 1)]
    for column in columns:
        low = np.where(np.isnan(column), np.inf, column)
        high = np.where(np.isnan(column), -np.inf, column)
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            kept.append(
                np.array([start + int(low[start:stop].argmin()), start + int(high[start:stop].argmax())])
            )
    return np.unique(np.concatenate(kept))
