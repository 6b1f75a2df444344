"""The rows of a report's tables, the same in every form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reports import text
from reports.schema import Decision, GatePart, Report, StepPart, TaskPart

_KEY_FIGURES = 8
_LONGEST_FIGURE = 40
"""A longer text is a digest or a sentence, no figure; it stands in the JSON."""


@dataclass(frozen=True, slots=True)
class SuiteColumn:
    """A suite on which any model was measured, with the reference that ratios are to."""

    name: str
    reference: str | None
    simulated: bool

    @property
    def ratio_to(self) -> str:
        """What a ratio in this column is to, or nothing."""
        if self.reference is None:
            return ""
        return f"ratio to {self.reference}{', simulated' if self.simulated else ''}"


def suite_columns(report: Report) -> list[SuiteColumn]:
    """Return the suites on which any model was measured: the columns of the table of models."""
    columns: dict[str, SuiteColumn] = {}
    for part in (part for one in report.artifacts for part in one.quality):
        known = columns.get(part.suite)
        if known is None or known.reference is None:
            columns[part.suite] = SuiteColumn(part.suite, part.reference, part.reference_simulated)
    return list(columns.values())


def headline(report: Report) -> str:
    """Return the run in a few words: ``1 of 2 gates passed``."""
    passed = sum(gate.verdict == "PASS" for gate in report.gates)
    return f"{passed} of {len(report.gates)} gates passed" if report.gates else report.run.status


def key_figures(step: StepPart) -> list[tuple[str, str]]:
    """Return what a step measured and made, the first few figures that fit into a table."""
    found = {**step.metrics, **step.facts}
    shown = [(name.replace("_", " "), text.scalar_text(name, value)) for name, value in found.items()]
    return [(name, value) for name, value in shown if len(value) <= _LONGEST_FIGURE][:_KEY_FIGURES]


def history_of(report: Report) -> Iterator[tuple[GatePart, Decision, Mapping[str, Any]]]:
    """Yield every criterion of every verdict, gate by gate, oldest first."""
    for gate in report.gates:
        for decision in gate.decisions:
            for criterion in decision.document["criteria"]:
                yield gate, decision, criterion


def tasks_of(report: Report) -> Iterator[tuple[str, TaskPart]]:
    """Yield each model's name with each of its tasks, once however many suites hold the task."""
    for artifact in report.artifacts:
        tasks = {task.task: task for part in reversed(artifact.quality) for task in part.tasks}
        for task in sorted(tasks.values(), key=lambda one: one.task):
            yield artifact.name, task
