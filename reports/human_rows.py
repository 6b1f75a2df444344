"""The words and table cells of a study's report, the same in HTML and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cogumi.verdict import Verdict
from gates.agreement import Coefficient
from gates.crossed import MeanInterval
from gates.people import Analysis, apart
from gates.people_rules import RULES, least_seconds
from reports.text import UNKNOWN, percent

if TYPE_CHECKING:
    from evals.human.frozen import Frozen

ESTIMATE_HEADER = ("Interval", "Mean", "SE", "Bounds", "df", "Ratings", "Raters", "Tasks", "How")
ESTIMATE_NUMBERS = (1, 2, 3, 4, 5, 6, 7)
TASK_HEADER = ("Task", "Domain", "Mean", "Bounds", "Ratings", "Prompt")
TASK_NUMBERS = (2, 3, 4)
DOMAIN_HEADER = ("Domain", "Mean", "Bounds", "Ratings", "Tasks")
DOMAIN_NUMBERS = (1, 2, 3, 4)
AGREEMENT_HEADER = ("Coefficient", "Value", "Bounds", "How")
AGREEMENT_NUMBERS = (1, 2)
RULE_HEADER = ("Flag", "Rule", "Raters")
FLAGGED_HEADER = ("Rater", "Flags", "Left out")

_SENTENCES = {
    Verdict.PASS: "The mean rating lies above the bar.",
    Verdict.FAIL: "The mean rating lies below the bar.",
    Verdict.UNDECIDED: "This study does not decide.",
}
_PROMPT_CHARACTERS = 90

SIMULATED = (
    "Simulated raters. Whoever makes raters up sets what they say: this page shows that the study works, and "
    "says nothing about the system."
)
NOT_BY_LEVEL = (
    "These rules were written down before the first rating. A rater is left out on two flags; none of them "
    "looks at how high or low the scored ratings are. The verdict holds only where it is the same with them "
    "and without."
)
READING = {
    "ICC": "ICC(2,k) says whether the means of the tasks are reliable, ICC(2,1) the same of one rating.",
    "alpha": (
        "Krippendorff's alpha describes how far raters agree on single ratings. One system that is good "
        "throughout leaves little to agree on, so honest raters give about 0.14: no mark of quality, "
        "and no gate."
    ),
}


def sentence(analysis: Analysis) -> str:
    """Return the verdict in one sentence."""
    return _SENTENCES[analysis.verdict]


def headline(analysis: Analysis) -> str:
    """Return mean, bounds and bar in one line."""
    found = analysis.judged.estimate
    if not found.n:
        return f"No rating of {analysis.subject} by a rater who finished"
    return f"{found.mean:.2f} of 10{_bounds_told(found, analysis.bar)}, bar above {analysis.bar:g}"


def population(analysis: Analysis) -> str:
    """Say what the mean is a mean over."""
    if analysis.estimand == "these tasks":
        return "Over raters like these, and on these tasks only: it says nothing about other tasks."
    return "Over raters like these and tasks like these."


def bounds(lower: float | None, upper: float | None, digits: int = 2) -> str:
    """Format bounds; without any there is none."""
    if lower is None or upper is None:
        return UNKNOWN
    return f"[{lower:.{digits}f}, {upper:.{digits}f}]"


def _bounds_told(found: MeanInterval, bar: float) -> str:
    if found.lower is None or found.upper is None:
        return ""
    return f" in [{apart(found.lower, bar)}, {apart(found.upper, bar)}]"


def estimates(analysis: Analysis) -> list[tuple[str, MeanInterval]]:
    """Return the intervals by name: the verdict's first, what not to use last."""
    judged = analysis.judged
    found = [("The verdict's", judged.estimate)]
    if judged.excluded:
        found.append(("With all raters", judged.everyone))
    found += [(f"Check: {one.method.partition(',')[0]}", one) for one in analysis.checks]
    return [*found, ("Not to be used", analysis.row_wise)]


def estimate_rows(analysis: Analysis) -> Iterator[tuple[str, ...]]:
    """Yield a row of ``ESTIMATE_HEADER`` for every interval."""
    for name, one in estimates(analysis):
        known = (
            UNKNOWN if not one.n else f"{one.mean:.3f}",
            UNKNOWN if one.se is None else f"{one.se:.3f}",
            bounds(one.lower, one.upper, 3),
            UNKNOWN if one.df is None else f"{one.df:,.1f}",
        )
        how = "; ".join(filter(None, (one.method, one.note)))
        yield (name, *known, f"{one.n:,}", f"{one.raters:,}", f"{one.tasks:,}", how)


def task_rows(analysis: Analysis, frozen: Frozen) -> Iterator[tuple[str, ...]]:
    """Yield a row of ``TASK_HEADER`` for every task, the best rated first."""
    for one in sorted(analysis.tables.tasks, key=lambda each: (-each.mean, each.name)):
        task = frozen.plan.by_id.get(one.name)
        prompt = " ".join(task.prompt.split()) if task is not None else UNKNOWN
        if len(prompt) > _PROMPT_CHARACTERS:
            prompt = prompt[: _PROMPT_CHARACTERS - 1] + "…"
        yield one.name, one.domain, f"{one.mean:.2f}", bounds(one.lower, one.upper), str(one.n), prompt


def domain_rows(analysis: Analysis) -> Iterator[tuple[str, ...]]:
    """Yield a row of ``DOMAIN_HEADER`` for every domain."""
    for one in analysis.tables.domains:
        yield one.name, f"{one.mean:.2f}", bounds(one.lower, one.upper), f"{one.n:,}", str(one.tasks)


def agreement_rows(analysis: Analysis) -> Iterator[tuple[str, ...]]:
    """Yield a row of ``AGREEMENT_HEADER`` for every coefficient."""
    for one in analysis.agreement:
        value = UNKNOWN if one.value is None else f"{one.value:.3f}"
        yield one.name, value, _coefficient_bounds(one), one.method


def _coefficient_bounds(one: Coefficient) -> str:
    return bounds(one.lower, one.upper, 3)


def rule_rows(analysis: Analysis, frozen: Frozen) -> Iterator[tuple[str, ...]]:
    """Yield a row of ``RULE_HEADER`` for every rule, with how many raters it flags."""
    for name, told in RULES.items():
        count = sum(name in one.flags for one in analysis.judged.flags)
        least = f"; here {least_seconds(frozen.plan):.3g} s" if name == "too fast" else ""
        yield name, told + least, str(count)


def flagged_rows(analysis: Analysis) -> Iterator[tuple[str, ...]]:
    """Yield a row of ``FLAGGED_HEADER`` for every rater with a flag."""
    for one in analysis.judged.flags:
        yield one.rater, ", ".join(one.flags), "yes" if one.excluded else "no"


def funnel(analysis: Analysis) -> list[tuple[str, int]]:
    """Return how many came how far, and who left."""
    counts, judged = analysis.counts, analysis.judged
    names = ("invited", "started", "consented", "finished", "withdrawn", "erased", "expired", "simulated")
    found = [(name, int(counts[name])) for name in names if name in counts]
    return [*found, ("complete", judged.complete), ("left out by the rules", len(judged.excluded))]


def order_told(analysis: Analysis) -> str:
    """Say whether ratings drift over a rater's sequence."""
    slope = analysis.tables.order
    if slope is None:
        return "Too few ratings a rater to see a drift over the sequence."
    told = f"From one item to the next ratings change by {slope.value:+.4f} points"
    if slope.lower is None or slope.upper is None:
        return f"{told}."
    drifts = slope.lower > 0 or slope.upper < 0
    verdict = "they drift" if drifts else "no drift can be told from chance"
    return f"{told}, in [{slope.lower:+.4f}, {slope.upper:+.4f}] over {slope.raters:,} raters: {verdict}."


def time_told(analysis: Analysis) -> str:
    """Say how long raters took."""
    times = analysis.tables.times
    if times is None:
        return "No time is known: the browsers did not tell, or times were left out of the file."
    return (
        f"An item took {times.median:.0f} s (median; a tenth below {times.p10:.0f} s, a tenth above "
        f"{times.p90:.0f} s), the scored items of a rater {times.minutes_per_rater:.1f} minutes."
    )


def missing_told(analysis: Analysis) -> str:
    """Say what is missing, and what raters marked."""
    found = analysis.tables
    missing = (
        f"{found.missing:,} scored ratings of raters who finished are missing"
        if found.missing
        else ("No scored rating of a rater who finished is missing")
    )
    return (
        f"{missing}. They flagged {found.flags:,} items and left {found.comments:,} comments, which stand in "
        "the exported data and not here: they are people's own words."
    )


def ceiling_told(analysis: Analysis) -> str:
    """Say how many ratings cannot go higher."""
    share = analysis.tables.ceiling_share
    return f"{percent(share)} of the ratings are 10, the end of the scale." if share is not None else ""


def preference_told(analysis: Analysis) -> str:
    """Say how often the judged system is preferred to the reference; nothing without pairs."""
    found = analysis.tables.preference
    if found is None:
        return ""
    told = (
        f"Side by side {analysis.subject} wins {100 * found.mean:.1f} % of {found.n:,} pairs against "
        f"{analysis.reference}, ties as halves"
    )
    if found.lower is None or found.upper is None:
        return f"{told} ({found.note})."
    side = (
        "it is preferred"
        if found.lower > 0.5
        else "the other is preferred"
        if found.upper < 0.5
        else ("half lies within the interval")
    )
    return (
        f"{told}, in [{100 * found.lower:.1f} %, {100 * found.upper:.1f} %]: {side}. It decides nothing here."
    )


def fact_rows(analysis: Analysis) -> Iterator[tuple[str, str]]:
    """Yield what the plan fixed beforehand, and the digests that tell this study from any other."""
    facts = analysis.facts
    yield "Judged system", analysis.subject
    yield "Reference of pairs", analysis.reference or UNKNOWN
    yield "Tasks", f"{facts['tasks']:,}"
    yield (
        "Design",
        (
            f"{facts['raters']:,} raters, each {facts['items']} scored items, {facts['planted']} planted bad "
            f"answers, {facts['repeats']} repeated, {facts['practice']} for practice, {facts['pairs']} pairs"
        ),
    )
    yield "Complete raters needed", f"{analysis.needed:,}"
    yield "Error rate of each bound", f"{analysis.alpha:g}"
    yield "Names replaced in answers", f"{facts['scrubbed']:,}"
    yield "Consent text", f"version {facts['consent_version']}"
    for digest, count in analysis.consents.items():
        yield "Consent SHA-256", f"{digest}, {count:,} raters"
    yield "Seed", str(facts["seed"])
    yield "Closed", str(facts["closed_at"] or UNKNOWN)
    yield "Plan", str(facts["plan_digest"])
    yield "Ratings", str(facts["ratings_digest"])
    yield "Analysed by", f"cogumi {facts['cogumi']}"
