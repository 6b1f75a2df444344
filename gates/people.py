"""The verdict of a human study: a closed study in, an analysis with one verdict and its reasons out.

PASS when the lower bound of the mean rating lies above the bar, FAIL when the upper bound lies below it, else
UNDECIDED. UNDECIDED also, whatever the numbers are: where a rater is simulated, where too few raters are
complete, and where leaving careless raters out changes the verdict. Not covered: looking before the study is
closed. Nothing here can be asked of an open one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cogumi.verdict import Verdict
from gates.agreement import Coefficient, agreement
from gates.crossed import (
    Estimand,
    MeanInterval,
    crossed_mean,
    mixed_model,
    no_interval,
    pigeonhole,
    row_wise_mean,
)
from gates.people_rows import Rows, complete_raters, counted, grid
from gates.people_rules import Flagged, flagged, side_of_bar
from gates.people_tables import Tables, tables

if TYPE_CHECKING:
    from evals.human.frozen import Frozen

NEEDED = 100
"""Plan 8.2, "100 users x 20 tasks"."""
BAR = 8.0
"""Plan 8.2, "Target: >8/10 rating"."""
ALPHA = 0.05
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict of a closed study on one bar, with what it rests on."""

    verdict: Verdict
    obstacles: tuple[str, ...]
    """Why it is UNDECIDED wherever the interval lies; none where the interval may decide."""
    interval: str
    """Where the interval lies, in words."""
    estimate: MeanInterval
    """Without the raters that the rules leave out."""
    everyone: MeanInterval
    """With all raters who finished."""
    verdicts: tuple[Verdict, Verdict]
    """What these two intervals alone would say."""
    complete: int
    """Raters with their whole share, people or simulated."""
    simulated: int
    """Raters who are no people."""
    flags: tuple[Flagged, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is what it is, all of them."""
        return (*self.obstacles, self.interval)

    @property
    def excluded(self) -> tuple[Flagged, ...]:
        """The raters that the rules leave out."""
        return tuple(one for one in self.flags if one.excluded)


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything that the report of a closed study says; numbers only, no text of a rater."""

    study: str
    title: str
    subject: str
    reference: str | None
    estimand: Estimand
    bar: float
    alpha: float
    needed: int
    judged: Judged
    checks: tuple[MeanInterval, ...]
    """Other ways to the same interval: mixed model and two-way bootstrap. They decide nothing."""
    row_wise: MeanInterval
    """What not to use."""
    agreement: tuple[Coefficient, ...]
    tables: Tables
    counts: Mapping[str, int]
    consents: Mapping[str, int]
    facts: Mapping[str, Any]
    """The plan's figures, seed, versions and digests."""

    @property
    def verdict(self) -> Verdict:
        """The verdict of the study."""
        return self.judged.verdict

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is what it is, all of them."""
        return self.judged.reasons

    @property
    def simulated(self) -> bool:
        """Whether any rater is no person."""
        return self.judged.simulated > 0

    @property
    def exit_code(self) -> int:
        """The process exit code of the contract."""
        return self.verdict.exit_code

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``cogumi humaneval analyze --json`` prints."""
        judged = self.judged
        found = {
            "schema_version": SCHEMA_VERSION,
            "study": self.study,
            "title": self.title,
            "subject": self.subject,
            "reference": self.reference,
            "estimand": self.estimand,
            "bar": self.bar,
            "alpha": self.alpha,
            "needed": self.needed,
            "verdict": judged.verdict.value,
            "exit_code": self.exit_code,
            "reasons": list(judged.reasons),
            "simulated": self.simulated,
            "simulated_raters": judged.simulated,
            "complete_raters": judged.complete,
            "estimate": judged.estimate.to_json(),
            "everyone": judged.everyone.to_json(),
            "verdict_without_excluded": judged.verdicts[0].value,
            "verdict_with_everyone": judged.verdicts[1].value,
            "flagged": [{**asdict(one), "excluded": one.excluded} for one in judged.flags],
            "checks": [one.to_json() for one in self.checks],
            "row_wise": self.row_wise.to_json(),
            "agreement": [one.to_json() for one in self.agreement],
            **self.tables.to_json(),
            "counts": dict(self.counts),
            "consents": dict(self.consents),
            "facts": dict(self.facts),
        }
        plain: dict[str, Any] = _plain(found)
        return plain


def judge_study(frozen: Frozen, *, bar: float = BAR, alpha: float = ALPHA, needed: int = NEEDED) -> Judged:
    """Return the verdict of a closed study; ``needed``: complete raters without whom nothing is decided."""
    return _judge(Rows.of(frozen), frozen.plan, bar, alpha, needed)


def analyse(frozen: Frozen, *, bar: float = BAR, alpha: float = ALPHA, needed: int = NEEDED) -> Analysis:
    """Return the whole analysis of a closed study; equal files give equal numbers.

    Bounds are one-sided, each wrong with chance ``alpha``. Draws are seeded by the plan.
    """
    from importlib.metadata import version

    plan, rows = frozen.plan, Rows.of(frozen)
    judged = _judge(rows, plan, bar, alpha, needed)
    kept = rows.without({one.rater for one in judged.excluded})
    scored = counted(kept, plan.subject)
    y = grid(scored, scored.score)[0]
    checks: tuple[MeanInterval, ...] = ()
    coefficients: tuple[Coefficient, ...] = ()
    if judged.estimate.lower is not None:
        checks = (mixed_model(y, alpha), pigeonhole(y, alpha, seed=plan.seed))
    if len(scored):
        coefficients = agreement(y, alpha, seed=plan.seed)
    return Analysis(
        study=plan.name,
        title=plan.title,
        subject=plan.subject,
        reference=plan.reference,
        estimand=plan.estimand,
        bar=bar,
        alpha=alpha,
        needed=needed,
        judged=judged,
        checks=checks,
        row_wise=row_wise_mean(y, alpha) if len(scored) else judged.estimate,
        agreement=coefficients,
        tables=tables(kept, plan, alpha),
        counts=frozen.counts,
        consents=frozen.consents,
        facts={
            "seed": plan.seed,
            "raters": plan.raters,
            "items": plan.items,
            "planted": plan.planted,
            "repeats": plan.repeats,
            "practice": plan.practice,
            "pairs": plan.pairs,
            "tasks": len(plan.tasks),
            "scrubbed": plan.scrubbed,
            "consent_version": plan.consent_version,
            "pilot_p10_seconds": plan.pilot_p10_seconds,
            "plan_digest": plan.digest,
            "ratings_digest": frozen.digest,
            "closed_at": frozen.closed_at,
            "cogumi": version("cogumi"),
        },
    )


def _judge(rows: Rows, plan: Any, bar: float, alpha: float, needed: int) -> Judged:
    finished = rows.where(rows.finished)
    flags = tuple(flagged(finished, plan))
    excluded = {one.rater for one in flags if one.excluded}
    everyone = _mean(finished, plan, alpha)
    estimate = _mean(finished.without(excluded), plan, alpha) if excluded else everyone
    both = (
        side_of_bar(estimate.lower, estimate.upper, bar),
        side_of_bar(everyone.lower, everyone.upper, bar),
    )
    complete = len(complete_raters(rows, plan))
    raters, simulated = len(set(rows.rater.tolist())), len(set(rows.rater[rows.simulated].tolist()))
    obstacles = []
    if simulated:
        obstacles.append(f"{simulated} of {raters} raters are simulated: these can never decide")
    if complete < needed:
        obstacles.append(f"{complete} complete raters, {needed} are needed")
    if both[0] is not both[1]:
        obstacles.append(
            f"careless raters make the difference: {both[1]} with all, {both[0]} without the "
            f"{len(excluded)} that the rules leave out"
        )
    verdict = Verdict.UNDECIDED if obstacles else both[0]
    told = _told(estimate, bar)
    return Judged(verdict, tuple(obstacles), told, estimate, everyone, both, complete, simulated, flags)


def _mean(rows: Rows, plan: Any, alpha: float) -> MeanInterval:
    scored = counted(rows, plan.subject)
    y = grid(scored, scored.score)[0]
    if not len(scored):
        return no_interval(y, alpha, "none", f"nobody who finished rated {plan.subject}")
    return crossed_mean(y, alpha, plan.estimand)


def _told(found: MeanInterval, bar: float) -> str:
    """Say where the interval lies; digits until it is told apart from the bar."""
    if found.lower is None or found.upper is None:
        return found.note
    side = side_of_bar(found.lower, found.upper, bar)
    if side is Verdict.PASS:
        return f"the lower bound {apart(found.lower, bar)} lies above {bar:g}"
    if side is Verdict.FAIL:
        return f"the upper bound {apart(found.upper, bar)} lies below {bar:g}"
    return f"{bar:g} lies within {found.lower:.2f} to {found.upper:.2f}: rate more tasks, or ask more people"


def apart(value: float, bar: float) -> str:
    """Round to two digits or more, so that a number beside the bar does not look like the bar."""
    for digits in range(2, 8):
        if round(value, digits) != bar:
            return f"{value:.{digits}f}"
    return repr(value)


def _plain(value: Any) -> Any:
    """Return a JSON value: floats to six decimals, what is not finite as None."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
