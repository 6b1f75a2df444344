"""Suites of several tasks: what mean_of, all_of and pooled_items decide, and that they rarely err."""

from __future__ import annotations

import numpy as np
import pytest
from gate_memory import (
    GENERAL,
    Attempts,
    FloatArray,
    Memory,
    binary,
    gate,
    per_item,
    published,
)

from cogumi.errors import UsageError
from cogumi.verdict import Verdict
from evals.references.scores import NotMeasuredError, PairedScores, ReferenceScores
from gates.engine import decide
from gates.spec import GateSpec
from gates.verdicts import GateVerdict


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261123)


def decided(source: Memory, criterion: dict[str, object], scope: str = "benchmark") -> GateVerdict:
    return decide(gate(criterion, scope=scope), source, Attempts(), artifact="sha256:model")


def suite_of(rng: np.random.Generator, ratios: dict[str, float], reference: float = 0.7) -> Memory:
    return Memory(
        {task: binary(rng, 300, ratio * reference) for task, ratio in ratios.items()},
        {task: per_item(binary(rng, 300, reference)) for task in ratios},
    )


def test_mean_of_decides_on_the_mean_of_tasks(rng: np.random.Generator) -> None:
    good = suite_of(rng, {"a": 1.2, "b": 1.15, "c": 0.95})
    (general,) = decided(good, GENERAL).criteria
    assert general.verdict is Verdict.PASS
    assert "mean of 3 tasks" in general.note
    assert [task.task for task in general.tasks] == ["a", "b", "c"]
    assert general.n_used == sum(task.n_used for task in general.tasks) <= sum(good.measured.values())
    bad = suite_of(rng, {"a": 0.2, "b": 0.9, "c": 0.3})
    assert decided(bad, GENERAL).verdict is Verdict.FAIL
    assert sum(bad.measured.values()) < 300


def test_mean_of_compares_exactly_when_draws_do_not_tell(rng: np.random.Generator) -> None:
    at_the_bar = suite_of(rng, {"a": 0.88, "b": 0.88}, reference=0.5)
    (general,) = decided(at_the_bar, GENERAL).criteria
    assert (general.verdict, general.n_used) == (Verdict.PASS, 600)
    assert "all items compared exactly" in general.note
    assert general.value == general.lower == general.upper == pytest.approx(0.88)
    at_the_bar.answers["b"][at_the_bar.answers["b"].argmax()] = 0.0
    assert decided(at_the_bar, GENERAL).verdict is Verdict.FAIL


def test_mean_of_takes_weights(rng: np.random.Generator) -> None:
    ratios = {"a": 1.3, "b": 0.3}
    heavy = {**GENERAL, "weights": {"a": 9.0, "b": 1.0}}
    assert decided(suite_of(rng, ratios), heavy).verdict is Verdict.PASS
    light = {**GENERAL, "weights": {"a": 1.0, "b": 9.0}}
    assert decided(suite_of(rng, ratios), light).verdict is Verdict.FAIL
    with pytest.raises(UsageError, match="weights name no task 'd'"):
        decided(suite_of(rng, ratios), {**GENERAL, "weights": {"a": 1.0, "d": 1.0}})
    with pytest.raises(UsageError, match="weights miss the task 'b'"):
        decided(suite_of(rng, ratios), {**GENERAL, "weights": {"a": 1.0}})


def test_all_of_fails_when_one_task_fails(rng: np.random.Generator) -> None:
    each = {**GENERAL, "combine": "all_of"}
    assert decided(suite_of(rng, {"a": 1.3, "b": 1.3}), each).verdict is Verdict.PASS
    one_bad = suite_of(rng, {"a": 0.2, "b": 1.3})
    (general,) = decided(one_bad, each).criteria
    assert general.verdict is Verdict.FAIL
    assert general.value == general.tasks[0].value
    assert "b" not in one_bad.measured


def test_pooled_items_is_one_population(rng: np.random.Generator) -> None:
    pooled = {**GENERAL, "combine": "pooled_items"}
    (general,) = decided(suite_of(rng, {"a": 1.2, "b": 1.0}), pooled).criteria
    assert general.verdict is Verdict.PASS
    assert "items of 2 tasks pooled" in general.note
    assert decided(suite_of(rng, {"a": 0.5, "b": 0.6}), pooled).verdict is Verdict.FAIL


def test_mean_of_published_scores(rng: np.random.Generator) -> None:
    source = Memory(
        {"a": binary(rng, 400, 0.8), "b": binary(rng, 200, 0.6)},
        {"a": published(0.8, n=400), "b": published(0.6, n=200)},
    )
    (general,) = decided(source, GENERAL).criteria
    assert general.verdict is Verdict.PASS
    assert general.reference_kind == "published"


def test_mixed_references_of_one_suite(rng: np.random.Generator) -> None:
    source = Memory(
        {"a": binary(rng, 300, 0.1), "b": binary(rng, 300, 0.1)},
        {"a": per_item(binary(rng, 300, 0.8)), "b": published(0.8, n=300)},
    )
    (general,) = decided(source, GENERAL).criteria
    assert general.verdict is Verdict.FAIL
    assert general.reference_kind == "per-item, published"


def test_false_pass_of_a_whole_gate_is_rare(rng: np.random.Generator) -> None:
    """A model one item below the bar, mean_of two tasks, before exactness can tell: few runs may pass.

    120 runs at 5 % times 6/pi^2: 3.6 expected at most; 12 or more have a chance below 1e-3.
    """
    y = binary(rng, 150, 0.8)
    spec: GateSpec = gate(GENERAL)
    passes = 0
    for run in range(120):
        answers: dict[str, FloatArray] = {
            "a": binary(rng, 150, 0.88 * 0.8 - 1 / 150),
            "b": binary(rng, 150, 0.88 * 0.8 - 1 / 150),
        }
        source = Seeded(
            answers, {"a": per_item(y), "b": per_item(y)}, measured={"a": 149, "b": 149}, seed=run
        )
        source.broken = NotMeasuredError("")
        passes += decide(spec, source, Attempts(), artifact="m").verdict is Verdict.PASS
    assert passes < 12


class Seeded(Memory):
    """Evidence whose committed order differs from run to run."""

    def __init__(
        self,
        answers: dict[str, FloatArray],
        references: dict[str, ReferenceScores],
        measured: dict[str, int],
        seed: int,
    ) -> None:
        super().__init__(answers, references, measured=measured)
        self.seed = seed

    def scores(self, suite: str, task: str) -> PairedScores:
        found = super().scores(suite, task)
        return PairedScores(
            found.task,
            found.family,
            found.protocol_digest,
            found.items_digest,
            f"sha256:{self.seed}-{task}",
            found.n_total,
            found.scores,
            found.truncated,
            found.errors,
        )


def test_mean_of_in_scope_population_takes_new_items_only(rng: np.random.Generator) -> None:
    source = suite_of(rng, {"a": 1.3, "b": 1.3})
    (general,) = decided(source, GENERAL, scope="population").criteria
    assert general.verdict is Verdict.PASS
    near = suite_of(rng, {"a": 0.88, "b": 0.88}, reference=0.5)
    assert "exactly" not in decided(near, GENERAL, scope="population").criteria[0].note
