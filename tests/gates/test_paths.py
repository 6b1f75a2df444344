"""The path of a test ends where its verdict says, for every kind of criterion that bets decide."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gate_memory import GENERAL, Attempts, Memory, binary, gate, per_item, published
from hypothesis import given, settings
from hypothesis import strategies as st

from cogumi.verdict import Verdict
from evals.references.scores import MetricValue
from gates.engine import decide
from gates.pairing import Docket
from gates.paths import EvidencePath, criterion_path, suite_paths
from gates.suites import Pair, Rule, judge
from gates.verdicts import CriterionVerdict

STOPS = {"id": "stops", "threshold": {"metric": "truncation_rate", "suite": "general"}, "at_most": 0.1}
RETENTION = {"id": "kept", "retention": {"suite": "general", "baseline": "base"}, "margin": 0.1}


def followed(
    source: Memory, criterion: dict[str, object], scope: str = "benchmark"
) -> tuple[CriterionVerdict, tuple[EvidencePath, ...]]:
    """Decide a gate of one criterion as a run does, then follow it on what was measured for that."""
    spec, book = gate(criterion, scope=scope), Attempts()
    book.number(spec.gate, "sha256:items-a", "sha256:an-earlier-model")
    (told,) = decide(spec, source, book, artifact="sha256:model").criteria
    again, paths = criterion_path(Docket(spec, source, book, "sha256:model", None), spec.criteria[0])
    assert again.verdict is told.verdict
    return told, paths


def ends_as_told(path: EvidencePath, told: CriterionVerdict) -> None:
    """Compare the last point of a path with what the verdict recorded."""
    assert path.verdict is told.verdict
    assert path.items[-1] == told.n_used
    assert told.value is not None
    assert told.lower is not None
    assert told.upper is not None
    assert (path.value[-1], path.lower[-1]) == pytest.approx((told.value, told.lower))
    assert path.upper[-1] == pytest.approx(told.upper)
    assert path.looks[-1] == len(path)
    over = [
        bool(capital[-1] >= -math.log(alpha))
        for capital, alpha in zip((path.passing, path.failing), path.alphas, strict=True)
    ]
    assert over == [told.verdict is Verdict.PASS, told.verdict is Verdict.FAIL]
    # Decided at the first crossing: no earlier point knew.
    assert (path.passing[:-1] < -math.log(path.alphas[0])).all()
    assert (path.failing[:-1] < -math.log(path.alphas[1])).all()


@pytest.mark.parametrize(("score", "verdict"), [(0.95, Verdict.PASS), (0.45, Verdict.FAIL)])
@pytest.mark.parametrize("kind", ["per-item", "published"])
@pytest.mark.parametrize("scope", ["benchmark", "population"])
def test_one_task(score: float, verdict: Verdict, kind: str, scope: str) -> None:
    rng = np.random.default_rng(1)
    reference = per_item(binary(rng, 600, 0.7)) if kind == "per-item" else published(0.7, n=600)
    source = Memory({"a": binary(rng, 600, score)}, {"a": reference})
    told, (path,) = followed(source, GENERAL, scope)
    assert (told.verdict, told.attempt) == (verdict, 2)
    ends_as_told(path, told)
    assert path.n_draws == 600


def test_undecided_and_without_items() -> None:
    rng = np.random.default_rng(2)
    source = Memory({"a": binary(rng, 200, 0.63)}, {"a": per_item(binary(rng, 200, 0.7))})
    spec, book = gate(GENERAL), Attempts()
    docket = Docket(spec, source, book, "sha256:model", None)
    assert criterion_path(docket, spec.criteria[0])[1] == ()
    source.measured["a"] = 60
    told, (path,) = criterion_path(docket, spec.criteria[0])
    assert told.verdict is Verdict.UNDECIDED
    ends_as_told(path, told)


@pytest.mark.parametrize("combine", ["mean_of", "pooled_items"])
@pytest.mark.parametrize("ratio", [1.1, 0.6])
def test_several_tasks(combine: str, ratio: float) -> None:
    rng = np.random.default_rng(3)
    answers = {task: binary(rng, 300, ratio * 0.6) for task in "abc"}
    source = Memory(answers, {task: per_item(binary(rng, 300, 0.6)) for task in "abc"})
    told, (path,) = followed(source, {**GENERAL, "combine": combine})
    ends_as_told(path, told)
    assert (np.diff(path.items) >= 0).all()


def test_each_task_has_a_path_of_its_own() -> None:
    rng = np.random.default_rng(4)
    source = Memory(
        {"a": binary(rng, 300, 0.75), "b": binary(rng, 300, 0.3)},
        {task: per_item(binary(rng, 300, 0.6)) for task in "ab"},
    )
    told, paths = followed(source, {**GENERAL, "combine": "all_of"})
    assert told.verdict is Verdict.FAIL
    assert [path.task for path in paths] == ["a", "b"]
    for path, task in zip(paths, told.tasks, strict=True):
        assert path.items[-1] == task.n_used
        assert (path.value[-1], path.lower[-1]) == pytest.approx((task.value, task.lower))
        assert path.alphas[1] == path.alphas[0] / 2


def test_draws_that_do_not_tell_end_undecided_before_the_exact_comparison() -> None:
    rng = np.random.default_rng(5)
    source = Memory(
        {task: binary(rng, 100, 0.44) for task in "ab"},
        {task: per_item(binary(rng, 100, 0.5)) for task in "ab"},
    )
    told, (path,) = followed(source, GENERAL)
    assert (told.verdict, told.n_used) == (Verdict.PASS, 200)
    assert (path.verdict, len(path)) == (Verdict.UNDECIDED, path.n_draws)


def test_a_rate_is_told_as_the_share_of_bad_answers() -> None:
    rng = np.random.default_rng(6)
    for bad in (0.0, 0.4):
        source = Memory({"a": np.ones(500)}, truncated={"a": binary(rng, 500, bad).astype(bool)})
        told, (path,) = followed(source, STOPS)
        assert told.verdict is (Verdict.PASS if bad == 0 else Verdict.FAIL)
        ends_as_told(path, told)


def test_retention_against_a_baseline() -> None:
    rng = np.random.default_rng(7)
    base = binary(rng, 400, 0.6)
    worse = base.copy()
    worse[np.flatnonzero(worse)[::2]] = 0.0
    for answers in (base, worse):
        told, (path,) = followed(Memory({"a": answers}, baselines={"a": base}), RETENTION)
        ends_as_told(path, told)


def test_whole_clusters() -> None:
    rng = np.random.default_rng(8)
    clusters = np.repeat(np.arange(100), 4)
    source = Memory(
        {"a": binary(rng, 400, 0.75)}, {"a": per_item(binary(rng, 400, 0.6))}, clusters={"a": clusters}
    )
    told, (path,) = followed(source, GENERAL, "population")
    ends_as_told(path, told)
    assert (path.items % 4 == 0).all()
    assert path.n_draws == 100


def test_what_no_bet_decides_has_no_path() -> None:
    size = {"id": "size", "threshold": {"metric": "bytes_download"}, "at_most": 100}
    source = Memory({"a": np.ones(3)}, metrics={"bytes_download": MetricValue(7.0, 7.0, 7.0, exact=True)})
    told, paths = followed(source, size)
    assert (told.verdict, paths) == (Verdict.PASS, ())


@given(
    scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40),
    reference=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=40, max_size=40),
    bar=st.floats(0.05, 1.5),
    scope=st.sampled_from(["benchmark", "population"]),
)
@settings(max_examples=60)
def test_any_path_agrees_with_the_judge(
    scores: list[float], reference: list[float], bar: float, scope: str
) -> None:
    pair = Pair("a", np.array(scores), 40, 40, "sha256:o", per_item(np.array(reference)))
    rule = Rule(bar, 0.05, "population" if scope == "population" else "benchmark", "mean_of", None)
    (path,) = suite_paths([pair], rule, looks=4)
    judged = judge([pair], rule)
    assert (path.verdict, len(path)) == (judged.verdict, judged.used[0])
    assert (path.lower[-1], path.upper[-1]) == pytest.approx((judged.lower, judged.upper))
    value = math.nan if judged.value is None else judged.value
    assert path.value[-1] == pytest.approx(value, nan_ok=True)
