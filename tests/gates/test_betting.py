"""The test's statistics: closed forms, an independent slow implementation, exact enumeration, invariants."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cogumi.verdict import Verdict
from gates.betting import FRACTIONS, FloatArray, RatioSample, first_crossing, log_capital, sequential_test

ALPHA = 0.05


def slow_capital(w: list[float], m0: float, n_total: int | None) -> list[float]:
    """The formulas of the design, one item at a time, in plain floats."""
    capitals, products, seen = [], [1.0] * len(FRACTIONS), 0.0
    for i, value in enumerate(w):
        mu = m0 if n_total is None else (n_total * m0 - seen) / (n_total - i)
        if mu <= 1e-12:
            capitals.append(math.inf)
            continue
        products = [p * (1 + g / mu * (value - mu)) for p, g in zip(products, FRACTIONS, strict=True)]
        seen += value
        capitals.append(sum(products) / len(FRACTIONS))
    return capitals


def slow_verdict(x: list[float], y: list[float], c: float, n_total: int) -> tuple[Verdict, int]:
    """Look after every item: exact where certain, by exact fractions; else the two capitals of the design."""
    w = [(a - c * b + c) / (1 + c) for a, b in zip(x, y, strict=True)]
    m0 = c / (1 + c)
    up = slow_capital(w, m0, n_total)
    down = slow_capital([1 - v for v in w], 1 - m0, n_total)
    bar = Fraction(str(c))
    exact = [Fraction(str(a)) - bar * Fraction(str(b)) + bar for a, b in zip(x, y, strict=True)]
    for i in range(len(x)):
        total = sum(exact[: i + 1], Fraction(0))
        least, most = total, total + (n_total - i - 1) * (1 + bar)
        if least >= n_total * bar:
            return Verdict.PASS, i + 1
        if most < n_total * bar:
            return Verdict.FAIL, i + 1
        if i + 1 < n_total:
            if up[i] >= 1 / ALPHA:
                return Verdict.PASS, i + 1
            if down[i] >= 1 / ALPHA:
                return Verdict.FAIL, i + 1
    return Verdict.UNDECIDED, len(x)


def paired(x: list[float], y: list[float], n_total: int | None) -> RatioSample:
    scores = np.array(y, dtype=np.float64)
    return RatioSample(np.array(x, dtype=np.float64), scores, scores, n_total)


def test_capital_of_always_right_has_a_closed_form() -> None:
    """W = 1 against a constant null mean of one half: each fraction g grows as (1 + g) to the n."""
    capital, certain = log_capital(np.ones(12), 0.5)
    expected = [math.log(sum((1 + g) ** n for g in FRACTIONS) / len(FRACTIONS)) for n in range(1, 13)]
    assert capital == pytest.approx(expected, rel=1e-12)
    assert not certain.any()


def test_without_replacement_is_certain_once_the_sum_suffices() -> None:
    """Of 10 items with a bar of 4 right ones, the fourth right answer decides, whatever follows."""
    sample = RatioSample(np.array([1.0, 1.0, 0.0, 1.0, 1.0]), 1.0, 1.0, 10)
    result = sequential_test(sample, 0.4, 1e-9)
    assert (result.verdict, result.n_used, result.exact) == (Verdict.PASS, 5, True)
    assert result.lower == pytest.approx(0.4)


def test_without_replacement_fails_once_too_few_are_left() -> None:
    """Of 10 items with a bar of 8 right ones, the third wrong answer decides."""
    sample = RatioSample(np.array([0.0, 0.0, 1.0, 0.0]), 1.0, 1.0, 10)
    result = sequential_test(sample, 0.8, 1e-9)
    assert (result.verdict, result.n_used, result.exact) == (Verdict.FAIL, 4, True)


@pytest.mark.parametrize(("right", "verdict"), [(88, Verdict.PASS), (87, Verdict.FAIL)])
def test_a_tie_at_the_end_is_a_pass(right: int, verdict: Verdict) -> None:
    """0.88 x 100 right reference answers is 88, although 0.88 is no binary fraction."""
    x = [1.0] * right + [0.0] * (100 - right)
    shuffled = np.random.default_rng(3).permutation(x).tolist()
    result = sequential_test(paired(shuffled, [1.0] * 100, 100), 0.88, 1e-12)
    assert (result.verdict, result.exact) == (verdict, True)
    assert result.n_used >= 99


def test_ties_survive_a_hundred_thousand_roundings() -> None:
    n = 100_000
    x = np.random.default_rng(1).permutation(np.repeat([0.7, 0.3], n // 2))
    assert sequential_test(RatioSample(x, 1.0, 1.0, n), 0.5, 1e-300, bounds=False).verdict is Verdict.PASS
    lower = x.copy()
    lower[0] -= 1e-4
    result = sequential_test(RatioSample(lower, 1.0, 1.0, n), 0.5, 1e-300, bounds=False)
    assert result.verdict is Verdict.FAIL


def test_published_margin_leaves_a_zone_without_a_verdict() -> None:
    """Mean 0.80 against 0.80 give or take 0.05: neither side is proven, even with all items."""
    x = np.random.default_rng(2).permutation([1.0] * 80 + [0.0] * 20)
    result = sequential_test(RatioSample(x, 0.85, 0.75, 100), 1.0, 1e-9)
    assert (result.verdict, result.final) == (Verdict.UNDECIDED, True)
    assert result.lower == pytest.approx(0.80 / 0.85, abs=1e-4)
    assert result.upper == pytest.approx(0.80 / 0.75, abs=1e-4)


scores = st.sampled_from([0.0, 1.0, 0.25, 0.5])


@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=14), st.sampled_from([0.5, 0.88, 1.2]))
def test_agrees_with_the_slow_implementation(rows: list[tuple[float, float]], c: float) -> None:
    x, y = [row[0] for row in rows], [row[1] for row in rows]
    for n_total in (len(rows), len(rows) + 3):
        result = sequential_test(paired(x, y, n_total), c, ALPHA)
        assert (result.verdict, result.n_used) == slow_verdict(x, y, c, n_total)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.05, 0.95))
def test_population_capital_agrees_with_the_slow_one(w: list[float], m0: float) -> None:
    fast, _ = log_capital(np.array(w), m0)
    assert np.exp(fast) == pytest.approx(slow_capital(w, m0, None), rel=1e-9)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40),
    st.sampled_from([0.05, 0.5]),
    st.booleans(),
)
def test_more_evidence_never_changes_a_verdict(
    rows: list[tuple[float, float]], alpha: float, replacement: bool
) -> None:
    x, y = [row[0] for row in rows], [row[1] for row in rows]
    n_total = None if replacement else len(rows)
    decided: tuple[Verdict, int] | None = None
    for n in range(1, len(rows) + 1):
        result = sequential_test(paired(x[:n], y[:n], n_total), 0.88, alpha, bounds=False)
        if decided is not None:
            assert (result.verdict, result.n_used) == decided
        elif result.verdict is not Verdict.UNDECIDED:
            decided = (result.verdict, result.n_used)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40),
    st.integers(0, 20),
    st.sampled_from([0.05, 0.5]),
)
def test_value_lies_within_bounds_that_agree_with_the_verdict(
    rows: list[tuple[float, float]], more: int, alpha: float
) -> None:
    sample = paired([r[0] for r in rows], [r[1] for r in rows], len(rows) + more)
    result = sequential_test(sample, 0.88, alpha)
    assert result.lower <= result.upper
    if result.value is not None:
        assert result.lower <= result.value <= result.upper
    if result.verdict is Verdict.UNDECIDED:
        assert result.lower <= 0.88 <= result.upper
    if result.verdict is Verdict.FAIL:
        assert result.upper <= 0.88 or result.value is None
    if result.verdict is Verdict.PASS and result.value is not None and result.value >= 0.88:
        assert result.lower >= 0.88


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 10), st.floats(0.1, 0.9))
def test_swapping_directions_swaps_the_verdict(x: list[float], more: int, bar: float) -> None:
    """At least b of X is at most 1 - b of 1 - X; only an exact tie passes both ways."""
    n_total = len(x) + more
    w = np.array(x)
    # Where the rest can still bring an exact tie, that tie would pass in both directions.
    reached, left = np.cumsum(w), n_total - 1 - np.arange(len(x))
    assume(np.abs(reached - n_total * bar).min() > 1e-6)
    assume(np.abs(reached + left - n_total * bar).min() > 1e-6)
    one = sequential_test(RatioSample(w, 1.0, 1.0, n_total), bar, ALPHA, bounds=False)
    other = sequential_test(RatioSample(1 - w, 1.0, 1.0, n_total), 1 - bar, ALPHA, bounds=False)
    swapped = {Verdict.PASS: Verdict.FAIL, Verdict.FAIL: Verdict.PASS, Verdict.UNDECIDED: Verdict.UNDECIDED}
    assert (other.verdict, other.n_used) == (swapped[one.verdict], one.n_used)


def orders(rows: list[tuple[float, float]]) -> list[tuple[FloatArray, FloatArray]]:
    found = set(itertools.permutations(rows))
    return [(np.array([r[0] for r in order]), np.array([r[1] for r in order])) for order in sorted(found)]


@pytest.mark.parametrize(
    ("rows", "truth"),
    [
        # theta = mean(X) - 0.5 mean(Y) just below and just above 0, over every order of 8 items
        ([(1.0, 1.0)] * 2 + [(0.0, 1.0)] * 3 + [(0.0, 0.0)] * 3, Verdict.FAIL),
        ([(1.0, 0.0)] * 2 + [(0.0, 1.0)] * 5 + [(0.0, 0.0)], Verdict.FAIL),
        ([(1.0, 1.0)] * 2 + [(1.0, 0.0)] + [(0.0, 1.0)] * 3 + [(0.0, 0.0)] * 2, Verdict.PASS),
    ],
)
@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.4])
def test_wrong_verdicts_over_all_orders(
    rows: list[tuple[float, float]], truth: Verdict, alpha: float
) -> None:
    """The committed order is a uniformly random one: count every order, and the wrong verdicts among them.

    Equal items make distinct orders equally likely, so the share over distinct orders is the probability.
    """
    wrong = total = 0
    for x, y in orders(rows):
        total += 1
        result = sequential_test(RatioSample(x, y, y, len(rows)), 0.5, alpha, bounds=False)
        assert result.verdict is not Verdict.UNDECIDED
        wrong += result.verdict is not truth
    assert wrong <= alpha * total


@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["binary", "continuous"]))
def test_bounds_cover_in_most_orders(seed: int, kind: str) -> None:
    """Over 60 random orders of one population both bounds hold at least as often as promised, with slack."""
    rng = np.random.default_rng(seed)
    x = rng.random(60) if kind == "continuous" else (rng.random(60) < 0.6).astype(float)
    y = rng.random(60) if kind == "continuous" else (rng.random(60) < 0.7).astype(float)
    truth = x.mean() / y.mean()
    missed = 0
    for _ in range(60):
        order = rng.permutation(60)[:25]
        result = sequential_test(RatioSample(x[order], y[order], y[order], 60), 0.88, 0.1)
        missed += not (result.lower <= truth <= result.upper)
    # 20 % may miss in the worst case (two bounds at 10 %); 25 of 60 has a chance under 1e-4 at 20 %.
    assert missed < 25


def test_first_crossing_counts_from_one_and_past_the_end() -> None:
    capital = np.log(np.array([[1.0, 30.0, 2.0], [1.0, 2.0, 3.0]]))
    assert first_crossing(capital, 0.05).tolist() == [2, 4]


def test_batched_capital_equals_single_runs() -> None:
    w = np.random.default_rng(5).random((4, 20))
    batch, certain = log_capital(w, 0.5, 20)
    for row in range(4):
        single, alone = log_capital(w[row], 0.5, 20)
        assert np.array_equal(batch[row], single)
        assert np.array_equal(certain[row], alone)


def test_no_items_is_undecided() -> None:
    result = sequential_test(RatioSample(np.zeros(0), 0.9, 0.9, 10), 0.88, ALPHA)
    assert (result.verdict, result.n_used, result.value) == (Verdict.UNDECIDED, 0, None)
