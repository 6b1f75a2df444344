"""What the engine asks of whoever holds the measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from evals.references.scores import MetricValue, PairedScores, ReferenceScores
from gates.spec import Human


class EvidenceSource(Protocol):
    """Measurements of one artifact, and those that it is compared with.

    Any method may raise ``NotMeasuredError`` (the criterion stays UNDECIDED, "not measured"), ``RunError``
    (ERROR), ``InfeasibleError`` (INFEASIBLE) or ``BudgetError`` (BUDGET, and the gate stops). ``UsageError``
    ends the command.
    """

    def tasks(self, suite: str) -> Sequence[str]:
        """Return the names of a suite's tasks, at least one; ``UsageError`` for an unknown suite."""
        ...

    def scores(self, suite: str, task: str) -> PairedScores:
        """Return what is recorded of the artifact on a task, perhaps no item; measures nothing."""
        ...

    def extend(self, suite: str, task: str, n: int) -> PairedScores:
        """Measure in the committed order until at least ``n`` items are known, and return them all."""
        ...

    def reference(self, reference: str, suite: str, task: str) -> ReferenceScores:
        """Return what the gate's ``reference`` (a role such as ``gpt-4``) scored on a task."""
        ...

    def baseline(self, baseline: str, suite: str, task: str, n: int) -> ReferenceScores:
        """Return the scores of an earlier artifact: at least ``n`` items if need be by measuring them.

        With ``n`` 0 only what is recorded, perhaps no item; ``items`` are in the same committed order.
        """
        ...

    def best_possible(self, metric: str) -> tuple[float, str] | None:
        """Return what arithmetic allows a metric at best before it is measured, and why; None if unknown."""
        ...

    def human(self, asked: Human, bar: float, alpha: float) -> MetricValue:
        """Return the mean rating of a closed study, 1 to 10, bounded on each side at level ``alpha``.

        ``undecided`` says why the study cannot decide on the ``bar``, where it cannot.
        """
        ...

    def metric(self, metric: str, suite: str | None, alpha: float) -> MetricValue:
        """Return a number that is no score, with an interval that misses it with chance at most ``alpha``."""
        ...
