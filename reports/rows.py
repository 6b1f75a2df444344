"""The rows of a report's tables, the same in every form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reports import text
from reports.schema import (
    ConfidencePart,
    Decision,
    GatePart,
    MetricPart,
    Report,
    StepPart,
    TaskPart,
    TrainingPart,
)

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
    return [(name, value) for name, value in shown if 0 < len(value) <= _LONGEST_FIGURE][:_KEY_FIGURES]


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


# Training -----------------------------------------------------------------------------------------


def trainings_of(report: Report) -> list[tuple[str, TrainingPart]]:
    """Return each training with its step's name, and the attempt where there are several."""
    names = attempt_names(report)
    return [
        (name, step.training)
        for name, step in zip(names, report.steps, strict=True)
        if step.training is not None
    ]


def confidences_of(report: Report) -> list[tuple[str, ConfidencePart]]:
    """Return each calibration of confidence with its step's name, and the attempt where there are several."""
    names = attempt_names(report)
    return [
        (name, step.confidence)
        for name, step in zip(names, report.steps, strict=True)
        if step.confidence is not None
    ]


def metrics_of(report: Report) -> list[tuple[str, MetricPart]]:
    """Return each number that a stage measured with its step's name, as ``confidences_of``."""
    names = attempt_names(report)
    return [(name, part) for name, step in zip(names, report.steps, strict=True) for part in step.measured]


def attempt_names(report: Report) -> list[str]:
    """Return a name for each step of the report, with the attempt where there are several."""
    several = {step.step for step in report.steps if step.attempt > 1}
    return [
        f"{step.step}, attempt {step.attempt}" if step.step in several else step.step for step in report.steps
    ]


def training_table(report: Report) -> list[tuple[str, list[str]]]:
    """Return the rows of the table of trainings: what is told, and how it stands in each of them."""
    parts = [part for _, part in trainings_of(report)]
    return [(name, [cell(part) for part in parts]) for name, cell in _TRAINING_ROWS.items()]


def losses_told(part: TrainingPart) -> str:
    """Say in words what the curves of a training show: first, last and lowest loss."""
    held_out = [(look.step, look.held_out_loss) for look in part.looks if look.held_out_loss is not None]
    train = [(look.step, look.train_loss) for look in part.looks if look.train_loss is not None]
    told = []
    for name, losses in ((f"{part.held_out_name} loss", held_out), ("training loss", train)):
        if losses:
            told.append(f"{name} from {losses[0][1]:.3g} to {losses[-1][1]:.3g}")
    if held_out:
        step, lowest = min(held_out, key=lambda look: look[1])
        told.append(f"lowest {part.held_out_name} loss {lowest:.3g} at step {step:,.10g}")
    return "; ".join(told)


def _rows_told(part: TrainingPart) -> str:
    if part.rows is None:
        return text.UNKNOWN
    return f"{part.rows:,}, and {part.held_out_rows:,} held out" if part.held_out_rows else f"{part.rows:,}"


def _left_out_told(part: TrainingPart) -> str:
    if part.rows is None and not part.left_out:
        return text.UNKNOWN
    return "; ".join(f"{one.rows:,}: {one.why}" for one in part.left_out) or "none"


def _trainable_told(part: TrainingPart) -> str:
    if part.trainable_parameters is None:
        return text.UNKNOWN
    share = part.trainable_parameters / part.parameters if part.parameters else None
    return f"{text.count(part.trainable_parameters)} ({text.percent(share)})"


def _steps_told(part: TrainingPart) -> str:
    if part.steps is None:
        return text.UNKNOWN
    return f"{part.steps:,}{', stopped early' if part.stopped_early else ''}"


def _lowest_told(part: TrainingPart) -> str:
    losses = [look.held_out_loss for look in part.looks if look.held_out_loss is not None]
    return f"{min(losses):.3g}" if losses else text.UNKNOWN


def _cost_told(part: TrainingPart) -> str:
    if part.gpu_hours is None:
        return text.UNKNOWN if part.gpus is None else "no GPU"
    return f"{text.usd(part.gpu_usd)} for {part.gpu_hours:.3g} GPU hours"


_TRAINING_ROWS: dict[str, Callable[[TrainingPart], str]] = {
    "Objective": lambda part: part.objective,
    "Tokens seen": lambda part: text.count(part.tokens_seen),
    "Supervised tokens": lambda part: text.percent(part.supervised_share),
    "Padding": lambda part: text.percent(part.padding_share),
    "Rows": _rows_told,
    "Rows left out": _left_out_told,
    "Trainable parameters": _trainable_told,
    "Optimizer steps": _steps_told,
    "Lowest held-out loss": _lowest_told,
    "Tokens per second": lambda part: text.speed(part.tokens_per_second),
    "Model FLOP utilisation": lambda part: text.percent(part.model_flop_utilization),
    "Peak memory": lambda part: text.size(part.peak_bytes),
    "Time": lambda part: text.duration(part.seconds),
    "Energy": lambda part: text.energy(part.joules),
    "Cost": _cost_told,
}
