"""Evidence held in memory, with everything that the real source can do: measure on demand, run out, break."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cogumi.errors import CogumiError, UsageError
from evals.references.scores import (
    Clusters,
    MetricValue,
    NotMeasuredError,
    PairedScores,
    ReferenceScores,
)
from gates.spec import GateSpec, Human

FloatArray = npt.NDArray[np.float64]
FAMILY = "ifeval/prompt_level_strict/0-shot-chat"


@dataclass
class Memory:
    """One artifact's whole answers, of which ``measured`` items per task are known so far."""

    answers: dict[str, FloatArray]
    references: dict[str, ReferenceScores] = field(default_factory=dict)
    baselines: dict[str, FloatArray] = field(default_factory=dict)
    measured: dict[str, int] = field(default_factory=dict)
    truncated: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    clusters: dict[str, Clusters] = field(default_factory=dict)
    metrics: dict[str, MetricValue] = field(default_factory=dict)
    best: dict[str, tuple[float, str]] = field(default_factory=dict)
    studies: dict[str, MetricValue] = field(default_factory=dict)
    broken: CogumiError | None = None
    """What ``extend`` raises instead of measuring."""
    baseline_measured: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)

    def tasks(self, suite: str) -> Sequence[str]:
        if suite not in ("general", "code", "reasoning", "automation"):
            raise UsageError(f"no suite '{suite}'")
        return list(self.answers)

    def scores(self, suite: str, task: str) -> PairedScores:
        whole, n = self.answers[task], self.measured.get(task, 0)
        cut = self.truncated.get(task, np.zeros(len(whole), dtype=bool))
        return PairedScores(
            task=task,
            family=FAMILY,
            protocol_digest="sha256:protocol",
            items_digest=f"sha256:items-{task}",
            order_digest=f"sha256:order-{task}",
            n_total=len(whole),
            scores=whole[:n],
            truncated=cut[:n],
            errors=np.zeros(n, dtype=bool),
            clusters=self.clusters.get(task),
        )

    def extend(self, suite: str, task: str, n: int) -> PairedScores:
        self.asked.append((task, n))
        if self.broken is not None:
            raise self.broken
        self.measured[task] = max(self.measured.get(task, 0), min(n, len(self.answers[task])))
        return self.scores(suite, task)

    def reference(self, reference: str, suite: str, task: str) -> ReferenceScores:
        if reference != "gpt-4":
            raise UsageError(f"no reference '{reference}'")
        return self.references[task]

    def baseline(self, baseline: str, suite: str, task: str, n: int) -> ReferenceScores:
        if task not in self.baselines:
            raise NotMeasuredError(f"no artifact is given for '{baseline}'")
        self.baseline_measured = max(self.baseline_measured, n)
        items = self.baselines[task][: self.baseline_measured]
        return ReferenceScores(
            id="sha256:base",
            kind="baseline",
            family=FAMILY,
            score=float(items.mean()) if len(items) else 0.0,
            items=items,
            items_digest=f"sha256:items-{task}",
            order_digest=f"sha256:order-{task}",
        )

    def metric(self, metric: str, suite: str | None, alpha: float) -> MetricValue:
        if metric not in self.metrics:
            raise NotMeasuredError("")
        return self.metrics[metric]

    def best_possible(self, metric: str) -> tuple[float, str] | None:
        return self.best.get(metric)

    def human(self, asked: Human, bar: float, alpha: float) -> MetricValue:
        if asked.study not in self.studies:
            raise NotMeasuredError("not measured: no closed study")
        return self.studies[asked.study]


class Attempts:
    """The ledger's numbering, and what was asked of it."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], list[str]] = {}

    def number(self, gate: str, items_digest: str, artifact: str) -> int:
        artifacts = self.seen.setdefault((gate, items_digest), [])
        if artifact not in artifacts:
            artifacts.append(artifact)
        return artifacts.index(artifact) + 1


def binary(rng: np.random.Generator, n: int, mean: float) -> FloatArray:
    """Right-or-wrong answers in random order, with exactly this mean to the nearest item."""
    answers = np.zeros(n)
    answers[: round(n * mean)] = 1.0
    return rng.permutation(answers)


def per_item(items: FloatArray, *, simulated: bool = False, family: str = FAMILY) -> ReferenceScores:
    return ReferenceScores(
        id="gpt-4/ifeval@2023-11-07",
        kind="per-item",
        family=family,
        score=float(items.mean()),
        items=items,
        simulated=simulated,
    )


def published(score: float, *, margin: float = 0.005, n: int | None = None) -> ReferenceScores:
    return ReferenceScores(
        id="gpt-4/gsm8k@report", kind="published", family=FAMILY, score=score, margin=margin, n=n
    )


def gate(*criteria: dict[str, object], scope: str = "benchmark", alpha: float = 0.05) -> GateSpec:
    return GateSpec.model_validate(
        {"gate": "phase1", "title": "a gate", "alpha": alpha, "scope": scope, "criteria": list(criteria)}
    )


GENERAL: dict[str, object] = {
    "id": "general",
    "relative": {"suite": "general", "reference": "gpt-4"},
    "at_least": 0.88,
}
STOPS: dict[str, object] = {
    "id": "stops",
    "threshold": {"metric": "truncation_rate", "suite": "general"},
    "at_most": 0.01,
}
