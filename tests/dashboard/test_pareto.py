"""Who beats whom in any objectives: equal ones stay, unknown ones stay out, bounds tell what is sure."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.pareto import Better, Candidate, Value, beats, front, standings, tie_groups
from gates import frontier as by_bytes

SIZE_SCORE: tuple[Better, ...] = ("less", "more")


def one(name: str, size: float | None, score: float | None, off: float = 0.0) -> Candidate:
    values = (
        None if size is None else Value.exactly(size),
        None if score is None else Value(score, score - off, score + off),
    )
    return Candidate(name, values)


def test_a_smaller_and_better_one_beats_and_equal_ones_both_stay() -> None:
    candidates = [one("big", 9, 0.9), one("small", 1, 0.5), one("worse", 9, 0.8), one("twin", 1, 0.5)]
    assert [found.name for found in front(candidates, SIZE_SCORE)] == ["small", "twin", "big"]
    assert standings(candidates, SIZE_SCORE) == ["best", "best", "behind", "best"]


def test_what_lacks_a_value_neither_enters_nor_keeps_another_out() -> None:
    candidates = [one("no score", 1, None), one("no size", None, 1.0), one("known", 5, 0.4)]
    assert standings(candidates, SIZE_SCORE) == [None, None, "best"]
    assert [found.name for found in front(candidates, SIZE_SCORE)] == ["known"]


def test_overlapping_bounds_are_not_told_apart_and_exact_ones_are() -> None:
    better = one("better", 1, 0.6, 0.1)
    assert standings([better, one("near", 2, 0.55, 0.1)], SIZE_SCORE) == ["best", "not told apart"]
    assert standings([better, one("far", 2, 0.3, 0.1)], SIZE_SCORE) == ["best", "behind"]
    # No chance is left in two scores over all items: of equal ones the larger model is behind.
    assert standings([one("a", 1, 0.6), one("b", 2, 0.6)], SIZE_SCORE) == ["best", "behind"]


def test_a_third_objective_lets_a_larger_and_worse_but_faster_model_in() -> None:
    better: tuple[Better, ...] = ("less", "more", "more")
    slow = Candidate("slow", (Value.exactly(1), Value.exactly(0.9), Value.exactly(10)))
    fast = Candidate("fast", (Value.exactly(2), Value.exactly(0.8), Value.exactly(99)))
    assert standings([slow, fast], better) == ["best", "best"]
    two = [Candidate(found.name, found.values[:2]) for found in (slow, fast)]
    assert standings(two, better[:2]) == ["best", "behind"]


point = st.tuples(
    st.one_of(st.none(), st.integers(1, 6)), st.one_of(st.none(), st.integers(0, 6)), st.integers(0, 2)
)


@given(st.lists(point, max_size=20))
def test_the_front_beats_all_others_and_none_of_itself_in_whatever_order(
    drawn: list[tuple[int | None, int | None, int]],
) -> None:
    candidates = [one(f"{k:02}", size, score, off / 2) for k, (size, score, off) in enumerate(drawn)]
    best = front(candidates, SIZE_SCORE)
    assert front(candidates[::-1], SIZE_SCORE) == best
    for candidate, standing in zip(candidates, standings(candidates, SIZE_SCORE), strict=True):
        beaten = any(beats(other, candidate, SIZE_SCORE) for other in candidates)
        assert (standing is None) == (None in candidate.values)
        assert (candidate in best) == (standing == "best") == (candidate.known and not beaten)
        if candidate.known and beaten:
            assert any(beats(other, candidate, SIZE_SCORE) for other in best)
        if any(beats(other, candidate, SIZE_SCORE, surely=True) for other in candidates):
            assert standing == "behind"


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 50), st.sampled_from([3, 5])), max_size=20))
def test_bytes_and_divergence_get_the_standings_of_the_gates_own_frontier(
    drawn: list[tuple[int, int, int]],
) -> None:
    # Bounds that only touch are the one place where the two differ.
    rows = [(str(k), size, 2.0 * kl, off / 2) for k, (size, kl, off) in enumerate(drawn)]
    ours = [Candidate(name, (Value.exactly(n), Value(kl, kl - off, kl + off))) for name, n, kl, off in rows]
    theirs = [by_bytes.FrontierPoint(name, n, n, kl, kl - off, kl + off) for name, n, kl, off in rows]
    touching = any(abs(a[2] - b[2]) == a[3] + b[3] for k, a in enumerate(rows) for b in rows[k + 1 :])
    if not touching:
        assert standings(ours, ("less", "less")) == by_bytes.standings(theirs)
    assert [found.name for found in front(ours, ("less", "less"))] == [
        found.name for found in by_bytes.pareto(theirs)
    ]


def test_ties_are_chains_of_overlap_the_best_chain_first() -> None:
    values = {
        "low": Value(0.1, 0.0, 0.2),
        "a": Value(0.5, 0.45, 0.55),
        "b": Value(0.6, 0.54, 0.66),
        "c": Value(0.7, 0.65, 0.75),
        "alone": Value(0.9, 0.88, 0.92),
        "low too": Value(0.2, 0.2, 0.2),
    }
    assert tie_groups(values) == [("c", "b", "a"), ("low too", "low")]


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=15))
def test_whoever_overlaps_stands_in_one_tie_and_chains_have_no_gap(drawn: dict[str, tuple[int, int]]) -> None:
    values = {name: Value(at, at - off, at + off) for name, (at, off) in drawn.items()}
    groups = tie_groups(values)
    where = {name: k for k, group in enumerate(groups) for name in group}
    for name, value in values.items():
        for other, its in values.items():
            if name != other and value.overlaps(its):
                assert where[name] == where[other]
    for group in groups:
        spans = sorted((values[name].lower, values[name].upper) for name in group)
        reach = spans[0][1]
        for _, (lower, upper) in pairwise(spans):
            assert lower <= reach
            reach = max(reach, upper)


@pytest.mark.parametrize("surely", [False, True])
def test_none_beats_itself(surely: bool) -> None:
    candidate = one("a", 1, 0.5, 0.1)
    assert not beats(candidate, candidate, SIZE_SCORE, surely=surely)
