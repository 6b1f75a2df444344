"""One look at one criterion: from recorded evidence to a verdict and to what must be measured next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cogumi.digest import digest_of
from cogumi.errors import BudgetError, CogumiError, InfeasibleError, RunError, UsageError
from cogumi.verdict import Verdict
from evals.references.scores import MetricValue, NotMeasuredError, PairedScores
from gates.attempts import alpha_of
from gates.metrics import DATA_METRICS, PEOPLE_METRICS
from gates.pairing import (
    Docket,
    bar_in_words,
    check_feasible,
    pair_up,
    prospect,
    recorded,
    rule_of,
    with_sampling_error,
)
from gates.people_rules import side_of_bar
from gates.spec import Criterion, Human
from gates.suites import Judgement, Pair, Rule, judge
from gates.verdicts import SIMULATED_RATERS, CriterionVerdict, TaskVerdict

# Whoever made the raters up set what they say: it shows that the study works, and nothing else.
_MADE_UP = f"{SIMULATED_RATERS}: these can never decide"


@dataclass(frozen=True, slots=True)
class Look:
    """A criterion's verdict on recorded evidence; ``wants`` says how many items each task needs next."""

    verdict: CriterionVerdict
    wants: Mapping[str, int] = field(default_factory=dict)


def look(docket: Docket, criterion: Criterion, *, bounds: bool = True) -> Look:
    """Judge a criterion on recorded evidence; ``bounds=False`` skips the search for confidence bounds."""
    try:
        if criterion.human is not None:
            found = Look(_human_verdict(docket, criterion, criterion.human))
        elif criterion.threshold is not None and criterion.item_rate is None:
            found = Look(_metric_verdict(docket, criterion, criterion.threshold.metric))
        else:
            found = _suite_look(docket, criterion, bounds)
    except UsageError:
        raise
    except NotMeasuredError as error:
        return Look(_foreseen(docket, criterion, error))
    except CogumiError as error:
        return Look(blocked(docket, criterion, error))
    if docket.limit is not None and found.verdict.verdict is Verdict.PASS:
        note = _join(found.verdict.note, f"limited to {docket.limit} items: a limited run cannot pass")
        return replace(found, verdict=replace(found.verdict, verdict=Verdict.UNDECIDED, note=note))
    return found


def blocked(
    docket: Docket, criterion: Criterion, error: CogumiError, so_far: CriterionVerdict | None = None
) -> CriterionVerdict:
    """Return the verdict of a criterion whose evidence could not be had, keeping what was found."""
    if isinstance(error, NotMeasuredError):
        verdict, note = Verdict.UNDECIDED, "not measured"
        note = str(error) if str(error).startswith(note) else f"{note}: {error}".removesuffix(": ")
    elif isinstance(error, InfeasibleError):
        verdict, note = Verdict.INFEASIBLE, str(error)
    elif isinstance(error, BudgetError):
        verdict, note = Verdict.BUDGET, str(error)
    else:
        verdict, note = Verdict.ERROR, str(error)
    if so_far is None:
        return _empty(docket, criterion, verdict, note)
    if verdict is Verdict.UNDECIDED and so_far.n_used:
        note = f"{so_far.n_used} of {so_far.n_total} items measured, the others {note}"
    return replace(so_far, verdict=verdict, note=_join(so_far.note.removesuffix("not measured"), note))


def feasibility(docket: Docket, criterion: Criterion) -> str | None:
    """Return why no model can meet a criterion; None where one can, or where references do not tell yet."""
    if criterion.threshold is not None and criterion.item_rate is None:
        best = docket.source.best_possible(criterion.threshold.metric)
        return None if best is None or _reaches(criterion, best[0]) else _at_best(criterion, *best)
    if criterion.relative is None:
        return None
    try:
        pairs = prospect(docket, criterion, sizes=criterion.combine == "pooled_items")
        check_feasible(pairs, rule_of(docket, criterion, docket.spec.alpha))
    except InfeasibleError as error:
        return str(error)
    except NotMeasuredError:
        return None
    return None


def _foreseen(docket: Docket, criterion: Criterion, error: NotMeasuredError) -> CriterionVerdict:
    """Tell what nobody measured: that no model can meet it, or else which score the bar is."""
    try:
        reason = feasibility(docket, criterion)
        if reason is not None:
            return blocked(docket, criterion, InfeasibleError(reason))
        told = blocked(docket, criterion, error)
        if criterion.relative is None:
            return told
        rule = rule_of(docket, criterion, docket.spec.alpha)
        words = bar_in_words(prospect(docket, criterion, sizes=criterion.combine == "pooled_items"), rule)
        return replace(told, note=_join(told.note, words))
    except (RunError, NotMeasuredError):
        # The reference cannot be looked at here (no data folder, not measured): nothing is foreseen.
        return blocked(docket, criterion, error)


def _suite_look(docket: Docket, criterion: Criterion, bounds: bool) -> Look:
    measured = recorded(docket, criterion)
    pairs = pair_up(docket, criterion, measured)
    attempt, alpha = 0, docket.spec.alpha
    rule = rule_of(docket, criterion, alpha)
    if criterion.relative is not None:
        check_feasible(pairs, rule)
    if any(pair.known for pair in pairs):
        attempt = docket.book.number(docket.spec.gate, _items_digest(measured), docket.artifact)
        alpha = alpha_of(attempt, docket.spec.alpha)
    rule = replace(rule, alpha=alpha)
    doubt = ""
    if criterion.relative is not None:
        pairs, rule, doubt = _with_doubt(pairs, rule)
    judgement = judge(pairs, rule, bounds=bounds)
    judgement = replace(judgement, note=_join(judgement.note, doubt))
    if criterion.comparison == "<=":
        judgement = _mirrored(judgement)
    elif judgement.verdict is Verdict.PASS and not any(pair.high for pair in pairs):
        # Any share of nothing is nothing: a model that gets everything wrong would "retain" it all.
        note = "the reference gets none of these items right, so a share of it says nothing"
        judgement = replace(judgement, verdict=Verdict.UNDECIDED, exact=False, note=note)
    verdict = _suite_verdict(criterion, judgement, measured, pairs)
    return Look(replace(verdict, attempt=attempt, alpha=alpha), _within_limit(docket, judgement, pairs))


def _with_doubt(pairs: Sequence[Pair], rule: Rule) -> tuple[list[Pair], Rule, str]:
    """Count the sampling error of published scores in, where the items are a sample; say how large it is."""
    widened, shared = with_sampling_error(pairs, rule)
    told = [
        f"{pair.reference.id} give or take {pair.reference.margin:.3f} with its own sampling error"
        for before, pair in zip(pairs, widened, strict=True)
        if pair.reference.margin > before.reference.margin
    ]
    return widened, shared, "; ".join(told)


def _items_digest(measured: Sequence[PairedScores]) -> str:
    digests = sorted(scores.items_digest for scores in measured)
    return digests[0] if len(digests) == 1 else digest_of(digests)


def _mirrored(judgement: Judgement) -> Judgement:
    """Turn a judgement on the share of good items into one on the share of bad ones."""
    return replace(
        judgement,
        value=None if judgement.value is None else 1 - judgement.value,
        lower=1 - min(1.0, judgement.upper),
        upper=1 - judgement.lower,
        parts=tuple(
            replace(
                part,
                value=None if part.value is None else 1 - part.value,
                lower=1 - min(1.0, part.upper),
                upper=1 - part.lower,
            )
            for part in judgement.parts
        ),
    )


def _within_limit(docket: Docket, judgement: Judgement, pairs: Sequence[Pair]) -> dict[str, int]:
    wants = dict(judgement.wants)
    if docket.limit is None:
        return wants
    known = {pair.task: pair.known for pair in pairs}
    capped = {task: min(n, docket.limit) for task, n in wants.items()}
    return {task: n for task, n in capped.items() if n > known[task]}


def _suite_verdict(
    criterion: Criterion,
    judgement: Judgement,
    measured: Sequence[PairedScores],
    pairs: Sequence[Pair],
) -> CriterionVerdict:
    rate = criterion.item_rate is not None
    references = [pair.reference for pair in pairs]
    used = judgement.used
    truncated = [int(scores.truncated[:n].sum()) for scores, n in zip(measured, used, strict=True)]
    errors = [int(scores.errors[:n].sum()) for scores, n in zip(measured, used, strict=True)]
    simulated = any(reference.simulated for reference in references)
    protocols = [scores.protocol_digest for scores in measured]
    return CriterionVerdict(
        id=criterion.id,
        verdict=judgement.verdict,
        value=judgement.value,
        bar=criterion.bar,
        comparison=criterion.comparison,
        lower=judgement.lower if sum(used) else None,
        upper=judgement.upper if sum(used) else None,
        alpha=None,
        n_used=sum(used),
        n_total=sum(pair.population for pair in pairs),
        reference=None if rate else ", ".join(dict.fromkeys(reference.id for reference in references)),
        reference_kind=None if rate else ", ".join(dict.fromkeys(reference.kind for reference in references)),
        protocol=protocols[0] if len(protocols) == 1 else digest_of(protocols),
        note=_note(judgement, pairs, simulated, (sum(truncated), sum(errors))),
        measure=criterion.item_rate or "ratio",
        simulated=simulated,
        truncated=sum(truncated),
        errors=sum(errors),
        tasks=_task_verdicts(judgement, pairs, truncated, errors) if len(pairs) > 1 else (),
    )


def _task_verdicts(
    judgement: Judgement, pairs: Sequence[Pair], truncated: Sequence[int], errors: Sequence[int]
) -> tuple[TaskVerdict, ...]:
    rows = []
    for k, pair in enumerate(pairs):
        part = judgement.parts[k] if judgement.parts else None
        rows.append(
            TaskVerdict(
                task=pair.task,
                reference=pair.reference.id or None,
                value=part.value if part else None,
                lower=part.lower if part else None,
                upper=part.upper if part else None,
                n_used=judgement.used[k],
                n_total=pair.population,
                truncated=truncated[k],
                errors=errors[k],
            )
        )
    return tuple(rows)


def _note(judgement: Judgement, pairs: Sequence[Pair], simulated: bool, lost: tuple[int, int]) -> str:
    if not sum(judgement.used):
        return _join("simulated reference" if simulated else "", "not measured")
    parts = ["simulated reference" if simulated else "", judgement.note]
    whole = sum(judgement.used) == sum(pair.population for pair in pairs)
    if judgement.exact and judgement.verdict is Verdict.UNDECIDED:
        parts.append("the score lies within the reference's protocol margin of the bar: no items can decide")
    elif judgement.exact:
        parts.append("exact: all items measured" if whole else "certain whatever the other items are")
    for pair in pairs:
        if pair.population > pair.available:
            parts.append(
                f"{pair.available} of the {pair.population} items of {pair.reference.id} are at hand, "
                "taken as a random part of them"
            )
    truncated, errors = lost
    if truncated or errors:
        parts.append(f"{truncated} truncated and {errors} failed answers among the items used score 0")
    return _join(*parts)


def _metric_verdict(docket: Docket, criterion: Criterion, metric: str) -> CriterionVerdict:
    """Compare a number that is no score with its bar."""
    found = docket.source.metric(metric, criterion.suite, docket.spec.alpha)
    bar, smaller_is_better = criterion.bar, criterion.comparison == "<="
    best, worst = (found.lower, found.upper) if smaller_is_better else (found.upper, found.lower)
    sign = -1.0 if smaller_is_better else 1.0
    note = _join(_tier(criterion, worst), found.note)
    if found.best_possible is not None and not _reaches(criterion, found.best_possible):
        verdict = Verdict.INFEASIBLE
        note = _join(_at_best(criterion, found.best_possible, found.why_not_better), note)
    elif sign * worst >= sign * bar:
        verdict = Verdict.PASS
    elif sign * best < sign * bar:
        verdict = Verdict.FAIL
    else:
        verdict, note = Verdict.UNDECIDED, _join(note, "the bar lies within the interval: measure more")
    if found.simulated and metric in PEOPLE_METRICS:
        verdict, note = Verdict.UNDECIDED, _join(_MADE_UP, note)
    # Of data and costs the line itself says so, as they have no reference.
    elif found.simulated and metric not in DATA_METRICS:
        note = _join("simulated reference", note)
    return _with_value(docket, _empty(docket, criterion, verdict, note), found)


def _human_verdict(docket: Docket, criterion: Criterion, asked: Human) -> CriterionVerdict:
    """Compare the mean rating of people with its bar: its lower bound must lie above."""
    found = docket.source.human(asked, criterion.bar, docket.spec.alpha)
    verdict, note = side_of_bar(found.lower, found.upper, criterion.bar), found.note
    if found.simulated:
        verdict, note = Verdict.UNDECIDED, _join(_MADE_UP, found.undecided, note)
    elif found.undecided:
        verdict, note = Verdict.UNDECIDED, _join(found.undecided, note)
    elif verdict is Verdict.UNDECIDED:
        note = _join("the bar lies within the interval: rate more tasks, or ask more people", note)
    return _with_value(docket, _empty(docket, criterion, verdict, note), found)


def _reaches(criterion: Criterion, value: float) -> bool:
    return value <= criterion.bar if criterion.comparison == "<=" else value >= criterion.bar


def _at_best(criterion: Criterion, best: float, why: str) -> str:
    return _join(f"at best {best:,.10g}, the bar is {criterion.bar:,.10g}", why)


def _tier(criterion: Criterion, value: float) -> str:
    """Say which is the smallest named size that a number fits into, if the criterion names any."""
    tiers = criterion.threshold.tiers if criterion.threshold is not None else None
    fitting = sorted((size, name) for name, size in (tiers or {}).items() if value <= size)
    return f"tier {fitting[0][1]}, at most {fitting[0][0]:,.10g}" if fitting else ""


def _with_value(docket: Docket, verdict: CriterionVerdict, found: MetricValue) -> CriterionVerdict:
    return replace(
        verdict,
        value=found.value,
        lower=found.lower,
        upper=found.upper,
        alpha=None if found.exact else docket.spec.alpha,
        n_used=found.n,
        n_total=found.n,
        protocol=found.protocol_digest,
        simulated=found.simulated,
    )


def _empty(docket: Docket, criterion: Criterion, verdict: Verdict, note: str) -> CriterionVerdict:
    named = criterion.relative.reference if criterion.relative is not None else None
    if criterion.retention is not None:
        named = criterion.retention.baseline
    metric = criterion.threshold.metric if criterion.threshold is not None else "ratio"
    if criterion.human is not None:
        metric, named = "rating", f"study {criterion.human.study}"
    return CriterionVerdict(
        id=criterion.id,
        verdict=verdict,
        value=None,
        bar=criterion.bar,
        comparison=criterion.comparison,
        lower=None,
        upper=None,
        alpha=docket.spec.alpha,
        n_used=0,
        n_total=0,
        reference=named,
        reference_kind="baseline" if criterion.retention is not None else None,
        protocol=None,
        note=note,
        measure=metric,
    )


def _join(*parts: str) -> str:
    return "; ".join(part.strip("; ") for part in parts if part.strip("; "))
