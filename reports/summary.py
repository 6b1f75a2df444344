"""All gates of a run as a short Markdown document, for the summary page of a CI job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gates.render import count, number
from reports import rows, text
from reports.render_markdown import escaped, table
from reports.schema import Report

LIMIT = 900 * 1024
"""Bytes: GitHub refuses the summary of a step above 1 MiB (docs, "Workflow commands"); a step may add."""


def render_summary(report: Report, limit: int = LIMIT) -> str:
    """Return the last verdict of every gate, criterion by criterion; at most ``limit`` bytes of UTF-8.

    A longer one is cut behind a line, and its last line says so.
    """
    lines = list(_lines(report))
    document = "\n".join(lines) + "\n"
    if len(document.encode()) <= limit:
        return document
    kept, size = 0, 0
    room = limit - len(_cut(len(lines), len(lines)).encode())
    while size + len(lines[kept].encode()) + 1 <= room:
        size += len(lines[kept].encode()) + 1
        kept += 1
    return "\n".join([*lines[:kept], ""]) + _cut(kept, len(lines))


def _cut(kept: int, total: int) -> str:
    return f"\n(cut after {kept:,} of {total:,} lines; `report.md` has everything)\n"


def _lines(report: Report) -> Iterator[str]:
    run = report.run
    yield f"## {escaped(run.name)}: {rows.headline(report)}"
    yield ""
    yield f"{escaped(run.profile_title)}. Run {escaped(run.status)}, as of {text.when(run.as_of)}."
    yield ""
    yield from table(
        ["Gate", "Verdict", "Model", "Attempt"],
        (
            (
                gate.gate,
                gate.verdict or "not decided",
                *_judged(gate.decisions[-1] if gate.decisions else None),
            )
            for gate in report.gates
        ),
    )
    decided = [gate for gate in report.gates if gate.decisions]
    if not decided:
        return
    yield ""
    yield from table(
        ["Gate", "Criterion", "Verdict", "Measure", "Value", "Bounds", "Bar", "Items", "Note"],
        (
            (gate.gate, *_criterion(criterion))
            for gate in decided
            for criterion in gate.decisions[-1].document["criteria"]
        ),
    )


def _judged(decision: Any) -> tuple[object, object]:
    if decision is None:
        return text.UNKNOWN, text.UNKNOWN
    return decision.artifact_name or text.short(decision.artifact), decision.attempt or text.UNKNOWN


def _criterion(criterion: dict[str, Any]) -> Iterator[object]:
    told = count if str(criterion["measure"]).startswith("bytes") else number
    value, lower, upper = (criterion[name] for name in ("value", "lower", "upper"))
    yield criterion["id"]
    yield criterion["verdict"]
    yield criterion["measure"]
    yield text.UNKNOWN if value is None else told(value)
    if value is None or (lower is None and upper is None):
        yield text.UNKNOWN
    elif lower == upper == value:
        yield "exact"
    else:
        yield f"[{'−∞' if lower is None else told(lower)}, {'∞' if upper is None else told(upper)}]"
    yield f"{criterion['comparison']} {told(criterion['bar'])}"
    yield f"{criterion['n_used']:,} of {criterion['n_total']:,}" if criterion["n_total"] else text.UNKNOWN
    yield "; ".join(text.notes(criterion))
