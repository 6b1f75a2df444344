"""The report of a closed human study as Markdown (GitHub's dialect), with the same figures as the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from gates.people import Analysis
from reports import human_rows as rows
from reports.render_markdown import escaped, table

if TYPE_CHECKING:
    from evals.human.frozen import Frozen


def human_markdown(analysis: Analysis, frozen: Frozen) -> str:
    """Return the document."""
    return "\n".join(_lines(analysis, frozen)).rstrip() + "\n"


def _lines(analysis: Analysis, frozen: Frozen) -> Iterator[str]:
    yield f"# {analysis.verdict.value} – {escaped(analysis.title)}"
    yield ""
    if analysis.simulated:
        yield f"**{rows.SIMULATED}**"
        yield ""
    yield f"Study {escaped(analysis.study)}: {rows.sentence(analysis)} {escaped(rows.headline(analysis))}."
    yield rows.population(analysis)
    yield ""
    yield from (f"- {escaped(reason)}" for reason in analysis.reasons)
    yield from _section("The mean", table(rows.ESTIMATE_HEADER, rows.estimate_rows(analysis)))
    yield ""
    yield f"Each bound is wrong with chance {analysis.alpha:g}. Checks decide nothing."
    yield from _section("Ratings", _histogram(analysis))
    if analysis.tables.preference is not None:
        yield from _section("Side by side", [escaped(rows.preference_told(analysis))])
    yield from _section("Domains", table(rows.DOMAIN_HEADER, rows.domain_rows(analysis)))
    yield from _section("Tasks", table(rows.TASK_HEADER, rows.task_rows(analysis, frozen)))
    yield from _section("Raters", table(("Raters", "Count"), rows.funnel(analysis)))
    yield ""
    yield rows.missing_told(analysis)
    yield from _section("Careless raters", [rows.NOT_BY_LEVEL, ""])
    yield from table(rows.RULE_HEADER, rows.rule_rows(analysis, frozen))
    if analysis.judged.flags:
        yield ""
        yield from table(rows.FLAGGED_HEADER, rows.flagged_rows(analysis))
    yield from _section("Agreement", table(rows.AGREEMENT_HEADER, rows.agreement_rows(analysis)))
    yield ""
    yield " ".join(rows.READING.values())
    yield from _section("Order and time", [rows.order_told(analysis), "", rows.time_told(analysis)])
    yield from _section("Fixed beforehand", table(("What", "Value"), rows.fact_rows(analysis)))


def _section(name: str, lines: Iterable[str]) -> Iterator[str]:
    yield ""
    yield f"## {name}"
    yield ""
    yield from lines


def _histogram(analysis: Analysis) -> Iterator[str]:
    yield from table([str(k) for k in range(1, 11)], [analysis.tables.histogram])
    yield ""
    yield rows.ceiling_told(analysis)
