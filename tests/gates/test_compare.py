"""The statistics of a comparison, against closed forms, other implementations and simulation."""

from __future__ import annotations

import math
from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gates import paired_tests
from gates.compare import FloatArray, PairedTask, compare_tasks, difference_bounds
from gates.divergence import Divergence, TokenDivergence, summarise, token_divergence
from gates.paired_tests import MOST_ENUMERATED, exact_mcnemar, holm, sign_flip

SCORES = st.sampled_from([0.0, 1.0])
GRADED = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


def floats(values: object) -> FloatArray:
    return np.asarray(values, dtype=np.float64)


def paired(scores: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[FloatArray, FloatArray, int]]:
    """Scores of A and of B on some items, and how many items there are."""
    rows = st.lists(st.tuples(scores, scores), min_size=1, max_size=30)
    return st.tuples(rows, st.integers(0, 20)).map(
        lambda case: (
            floats([a for a, _ in case[0]]),
            floats([b for _, b in case[0]]),
            len(case[0]) + case[1],
        )
    )


# McNemar


@given(st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=40)
def test_mcnemar_is_the_exact_binomial_test(a_only: int, b_only: int) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    n = a_only + b_only
    expected = scipy_stats.binomtest(a_only, n, 0.5).pvalue if n else 1.0
    assert exact_mcnemar(a_only, b_only) == pytest.approx(expected, rel=1e-9)
    assert exact_mcnemar(b_only, a_only) == exact_mcnemar(a_only, b_only)


def test_mcnemar_at_values_known_by_hand() -> None:
    assert exact_mcnemar(0, 0) == 1
    assert exact_mcnemar(5, 0) == 2 / 2**5
    assert exact_mcnemar(1, 7) == 2 * (1 + 8) / 2**8
    assert exact_mcnemar(4, 4) == 1
    # No overflow, and no underflow before there is nothing left to tell.
    assert exact_mcnemar(500, 1500) == pytest.approx(5.3e-115, rel=0.1)
    assert exact_mcnemar(0, 100_000) == 0


@given(a_only=st.integers(0, 900), b_only=st.integers(0, 900))
@settings(max_examples=60)
@example(a_only=5_000, b_only=5_400)
@example(a_only=0, b_only=900)
def test_mcnemar_in_floats_is_that_in_whole_numbers(a_only: int, b_only: int) -> None:
    found = []
    for most_whole in (0, 1_000_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(paired_tests, "MOST_WHOLE", most_whole)
            found.append(exact_mcnemar(a_only, b_only))
    assert found[0] == pytest.approx(found[1], rel=1e-10, abs=0)


def test_mcnemar_of_half_a_million_flips() -> None:
    assert paired_tests.MOST_WHOLE < 450_000
    assert exact_mcnemar(225_000, 225_000) == 1
    # A normal variable with the continuity correction is good to a part in a hundred here.
    assert exact_mcnemar(224_000, 226_000) == pytest.approx(math.erfc(1_999 / math.sqrt(900_000)), rel=0.01)


# Sign flips


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
@settings(max_examples=50)
def test_sign_flips_of_few_items_are_counted_exactly(quarters: list[int]) -> None:
    patterns = list(product((-1, 1), repeat=len(quarters)))
    sums = [abs(sum(s * q for s, q in zip(signs, quarters, strict=True))) for signs in patterns]
    expected = sum(total >= abs(sum(quarters)) for total in sums) / len(patterns)
    assert sign_flip(floats(quarters) / 4, seed=0) == expected


@given(st.lists(SCORES, min_size=1, max_size=16), st.lists(SCORES, min_size=16, max_size=16))
def test_on_right_and_wrong_sign_flips_are_mcnemar(a: list[float], b: list[float]) -> None:
    d = floats(b[: len(a)]) - floats(a)
    assert sign_flip(d, seed=0) == pytest.approx(exact_mcnemar(int((d < 0).sum()), int((d > 0).sum())))


def test_drawn_sign_flips_come_close_to_the_exact_test_and_repeat() -> None:
    d = floats([1.0] * 34 + [-1.0] * 16 + [0.0] * 50)
    assert len(d[d != 0]) > MOST_ENUMERATED
    # 9,999 draws: a standard error of 0.0014 at 0.015.
    assert sign_flip(d, seed=3) == pytest.approx(exact_mcnemar(16, 34), abs=0.006)
    assert sign_flip(d, seed=3) == sign_flip(d, seed=3) == sign_flip(-d, seed=3)
    assert sign_flip(floats([1.0] * 200), seed=0) == 1 / 10_000


def test_a_true_null_is_seldom_rejected() -> None:
    rng = np.random.default_rng(20261123)
    d = (rng.random((150, 20)) - 0.5).round(3)
    rejected = np.mean([sign_flip(row, seed=index) <= 0.05 for index, row in enumerate(d)])
    assert rejected <= 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5


# Holm


def test_holm_at_an_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7]) == [0.7]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(p: list[float]) -> None:
    corrected = holm(p)
    for raw, one in zip(p, corrected, strict=True):
        assert raw <= one <= min(1.0, len(p) * raw) + 1e-15
    in_order = sorted(zip(p, corrected, strict=True))
    assert all(one[1] <= other[1] for one, other in pairwise(in_order))


# The interval of the difference


@pytest.mark.parametrize("seed", range(2))
def test_over_all_orders_of_few_items_no_look_misses_too_often(seed: int) -> None:
    """Exact coverage: of all orders of five items, at most alpha ever see an interval without the truth."""
    rng = np.random.default_rng(seed)
    d = rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0], size=5)
    orders = sorted(set(permutations(d.tolist())))
    missed = 0
    for order in orders:
        a, b = np.maximum(0, -floats(order)), np.maximum(0, floats(order))
        bounds = [difference_bounds(a[:n], b[:n], 5, alpha=0.4) for n in range(1, 6)]
        missed += not all(lower - 1e-9 <= d.mean() <= upper + 1e-9 for lower, upper in bounds)
    assert missed / len(orders) <= 0.4


def test_coverage_by_simulation_while_peeking() -> None:
    rng = np.random.default_rng(7)
    missed, runs = 0, 60
    for _ in range(runs):
        a = (rng.random(120) < 0.5).astype(np.float64)
        b = np.where(rng.random(120) < 0.2, 1 - a, a)
        truth = b.mean() - a.mean()
        looks = [difference_bounds(a[:n], b[:n], 120, alpha=0.2) for n in (20, 45, 70, 95, 120)]
        missed += not all(lower - 1e-9 <= truth <= upper + 1e-9 for lower, upper in looks)
    assert missed / runs <= 0.2 + 3 * (0.2 * 0.8 / runs) ** 0.5


@given(paired(GRADED))
@settings(max_examples=60)
def test_the_interval_holds_its_estimate_and_all_that_is_still_possible_at_the_end(
    case: tuple[FloatArray, FloatArray, int],
) -> None:
    a, b, n_total = case
    found = compare_tasks([PairedTask("t", a, b, n_total)])
    assert -1 <= found.lower <= found.difference <= found.upper <= 1
    if len(a) == n_total:
        assert found.lower == found.difference == found.upper
    else:
        # What the missing items could add bounds any interval that arithmetic alone would give.
        left = n_total - len(a)
        assert found.lower >= ((b - a).sum() - left) / n_total - 1e-4
        assert found.upper <= ((b - a).sum() + left) / n_total + 1e-4


def test_the_interval_narrows() -> None:
    rng = np.random.default_rng(1)
    a = (rng.random(2000) < 0.5).astype(np.float64)
    b = np.where(rng.random(2000) < 0.1, 1 - a, a)
    widths = [np.diff(difference_bounds(a[:n], b[:n], 2000))[0] for n in (50, 200, 800, 1999, 2000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[2] < 0.12
    assert widths[-1] == 0


# The comparison


@given(st.lists(st.one_of(paired(SCORES), paired(GRADED)), min_size=1, max_size=3))
@settings(max_examples=40)
def test_swapping_a_and_b_mirrors_everything(cases: list[tuple[FloatArray, FloatArray, int]]) -> None:
    one = compare_tasks([PairedTask(str(i), a, b, n, seed=i) for i, (a, b, n) in enumerate(cases)])
    other = compare_tasks([PairedTask(str(i), b, a, n, seed=i) for i, (a, b, n) in enumerate(cases)])
    for mine, theirs in zip((one, *one.tasks), (other, *other.tasks), strict=True):
        assert mine.difference == pytest.approx(-theirs.difference, abs=1e-12)
        assert (mine.lower, mine.upper) == pytest.approx((-theirs.upper, -theirs.lower), abs=3e-4)
        assert (mine.score_a, mine.score_b) == (theirs.score_b, theirs.score_a)
    for mine, theirs in zip(one.tasks, other.tasks, strict=True):
        assert (mine.a_only, mine.b_only, mine.both, mine.neither) == (
            theirs.b_only,
            theirs.a_only,
            theirs.both,
            theirs.neither,
        )
        assert (mine.test, mine.p_value, mine.p_holm) == (theirs.test, theirs.p_value, theirs.p_holm)


@given(st.one_of(paired(SCORES), paired(GRADED)))
@settings(max_examples=30)
def test_one_artifact_with_itself_differs_in_nothing(case: tuple[FloatArray, FloatArray, int]) -> None:
    a, _, n_total = case
    found = compare_tasks([PairedTask("t", a, a, n_total)])
    task = found.tasks[0]
    assert (found.difference, task.p_value, task.flips) == (0, 1, 0)
    assert found.lower <= 0 <= found.upper


@given(paired(SCORES))
def test_right_and_wrong_items_are_counted_once_each(case: tuple[FloatArray, FloatArray, int]) -> None:
    a, b, n_total = case
    task = compare_tasks([PairedTask("t", a, b, n_total)]).tasks[0]
    assert task.both is not None
    assert task.neither is not None
    assert task.a_only + task.b_only + task.both + task.neither == task.n
    assert (task.both + task.b_only) / task.n == pytest.approx(task.score_b)


def test_a_task_with_scores_between_gets_the_permutation_test() -> None:
    task = compare_tasks([PairedTask("t", floats([0.5, 0]), floats([1, 0]), 9)]).tasks[0]
    assert (task.test, task.both, task.neither, task.b_only) == ("sign-flip permutation", None, None, 1)
    assert compare_tasks([PairedTask("t", floats([1]), floats([0]), 9)]).tasks[0].test == "exact McNemar"


def test_a_suite_is_the_mean_of_its_tasks_with_bounds_that_hold_together() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.random((2, 100)) < 0.5).astype(np.float64), (rng.random((2, 100)) < 0.6).astype(np.float64)
    pairs = [PairedTask("s", a[0], b[0], 400), PairedTask("t", a[1], b[1], 100)]
    found = compare_tasks(pairs)
    lower, upper = difference_bounds(a[0], b[0], 400, 0.025)
    exact = float(b[1].mean() - a[1].mean())
    assert found.difference == pytest.approx(((b[0] - a[0]).mean() + exact) / 2)
    assert (found.lower, found.upper) == pytest.approx(((lower + exact) / 2, (upper + exact) / 2))
    assert found.tasks[0].lower > lower


# Next tokens


def log_softmax(logits: FloatArray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))).astype(np.float32)


def test_divergence_is_scipys_relative_entropy() -> None:
    entropy = pytest.importorskip("scipy.stats").entropy
    rng = np.random.default_rng(2)
    a, b = (log_softmax(rng.normal(size=(300, 40)) * 3) for _ in range(2))
    found = token_divergence(a, b)
    expected = entropy(np.exp(a.astype(np.float64)), np.exp(b.astype(np.float64)), axis=1)
    assert found.kl == pytest.approx(expected, abs=1e-5)
    assert found.same.tolist() == [bool(x) for x in a.argmax(axis=1) == b.argmax(axis=1)]
    summary = summarise([found, found])
    assert summary.kl_mean == pytest.approx(expected.mean(), abs=1e-5)
    assert summary.kl_p99 == pytest.approx(np.percentile(np.tile(expected, 2), 99), abs=1e-5)
    assert (summary.items, summary.tokens) == (2, 600)


@given(st.integers(0, 2**32 - 1))
def test_a_divergence_is_never_negative_and_0_of_itself(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (log_softmax(rng.normal(size=(4, 9)) * 20) for _ in range(2))
    assert (token_divergence(a, b).kl >= 0).all()
    itself = token_divergence(a, a)
    assert itself.kl.tolist() == [0] * 4
    assert itself.same.all()


def test_what_b_rules_out_has_no_finite_divergence() -> None:
    with np.errstate(divide="ignore"):
        a, b = (np.log(floats(rows)).astype(np.float32) for rows in ([[0.5, 0.5, 0]], [[1, 0, 0]]))
    assert token_divergence(a, b).kl.tolist() == [np.inf]
    assert token_divergence(b, a).kl == pytest.approx([np.log(2)])
    found = summarise([token_divergence(a, b)])
    assert (found.kl_mean, found.kl_p99) == (None, None)
    assert "at 1 of 1 tokens" in (found.note or "")


def test_without_answers_there_is_no_divergence() -> None:
    assert summarise([]) == Divergence(note="no answer to compare along")
    empty = TokenDivergence(np.zeros(1), np.ones(1, dtype=bool))
    assert summarise([empty]).top1_agreement == 1
