"""Calibration of confidence: scalings found back, errors of known size, and intervals that hold them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.calibration import (
    FloatArray,
    auroc,
    bin_of,
    brier,
    cross_fitted,
    ece_interval,
    fit_platt,
    fit_temperature,
    log_loss,
    logit,
    reliability,
)


def sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-x)))


def drawn(n: int, seed: int, slope: float = 1.0, intercept: float = 0.0) -> tuple[FloatArray, FloatArray]:
    """Confidences whose true chance is sigma(slope * logit + intercept), and what came of them."""
    rng = np.random.default_rng(seed)
    p = rng.beta(4, 1.5, size=n)
    return p, (rng.random(n) < sigmoid(slope * logit(p) + intercept)).astype(np.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_back(temperature: float) -> None:
    found = fit_temperature(*drawn(20_000, 1, slope=1 / temperature))
    assert 1 / found.slope == pytest.approx(temperature, rel=0.06)
    assert found.intercept == 0


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.4, -0.7), (1.6, 0.5)])
def test_platts_parameters_are_found_back(slope: float, intercept: float) -> None:
    found = fit_platt(*drawn(20_000, 2, slope, intercept))
    assert found.slope == pytest.approx(slope, rel=0.06)
    assert found.intercept == pytest.approx(intercept, abs=0.08)


def test_a_scaling_is_the_most_likely_one() -> None:
    """No neighbour has a higher likelihood: of the answers for a temperature, of the targets for Platt's."""
    p, y = drawn(300, 3, 0.6, 0.4)
    best = fit_temperature(p, y)
    for change in (0.99, 1.01):
        assert log_loss(sigmoid(best.slope * change * logit(p)), y) > log_loss(best(p), y)
    right, wrong = y.sum(), (1 - y).sum()
    target = np.where(y > 0, (right + 1) / (right + 2), 1 / (wrong + 2))
    platt = fit_platt(p, y)

    def loss(a: float, b: float) -> float:
        z = a * logit(p) + b
        return float((np.logaddexp(0, z) - target * z).mean())

    for da, db in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert loss(platt.slope + da, platt.intercept + db) > loss(platt.slope, platt.intercept)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_scalings_stay_finite_where_all_answers_are_alike(rate: float) -> None:
    p = np.array([0.2, 0.6, 0.9, 1.0, 0.0])
    y = np.full(5, rate)
    for found in (fit_platt(p, y), fit_temperature(p, y)):
        assert all(map(math.isfinite, (found.slope, found.intercept)))
        assert np.isfinite(found(p)).all()
    same = fit_platt(np.full(50, 0.7), np.array([1.0] * 20 + [0.0] * 30))
    # Targets are pulled in: 20 * 21/22 + 30 * 1/32 of 50.
    assert same(np.array([0.7]))[0] == pytest.approx((20 * 21 / 22 + 30 / 32) / 50, abs=1e-6)


def test_nobody_fits_on_nothing() -> None:
    none = np.zeros(0)
    with pytest.raises(ValueError, match="no items"):
        fit_platt(none, none)
    with pytest.raises(ValueError, match="no items"):
        fit_temperature(none, none)
    with pytest.raises(ValueError, match="two folds"):
        cross_fitted(np.ones(3), np.ones(3), np.zeros(3, dtype=np.int64), fit_platt)
    with pytest.raises(ValueError, match="two items"):
        ece_interval(
            np.ones(2), np.ones(2), np.zeros(2, dtype=np.int64), alpha=0.05, seed=0, clusters=["a"] * 2
        )


def test_no_item_judges_what_it_was_fitted_on() -> None:
    p, y = drawn(40, 4)
    fold = np.arange(40) % 2
    found = cross_fitted(p, y, fold, fit_platt)
    changed = y.copy()
    changed[0] = 1 - changed[0]
    again = cross_fitted(p, changed, fold, fit_platt)
    assert (found[fold == 0] == again[fold == 0]).all()
    assert (found[fold == 1] != again[fold == 1]).all()


def test_errors_by_hand() -> None:
    p = np.array([0.9, 0.9, 0.6, 0.6])
    y = np.array([1.0, 0.0, 1.0, 1.0])
    bins = bin_of(p, 10, "width")
    assert bins.tolist() == [1, 1, 0, 0]
    # |0.5 - 0.9| / 2 + |1 - 0.6| / 2.
    assert ece_interval(p, y, bins, alpha=0.05, seed=0).plain == pytest.approx(0.4)
    assert brier(p, y) == pytest.approx((0.01 + 0.81 + 0.16 + 0.16) / 4)
    assert log_loss(p, y) == pytest.approx(-(math.log(0.9) + math.log(0.1) + 2 * math.log(0.6)) / 4)
    # Of the pairs (0.9, 0.9), (0.6, 0.9), (0.6, 0.9) one is a tie.
    assert auroc(p, y) == pytest.approx(0.5 / 3)
    assert auroc(p, np.ones(4)) is None
    first, second = reliability(p, y, bins, 0.05)
    assert (first.n, first.confidence, first.accuracy, first.upper) == (2, pytest.approx(0.6), 1.0, 1.0)
    assert (second.accuracy, second.n) == (0.5, 2)
    assert 0 < second.lower < 0.5 < second.upper < 1


@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=60), st.integers(1, 12)
)
def test_bins_keep_order_and_equal_confidences_together(values: list[float], bins: int) -> None:
    p = np.array(values)
    for found in (bin_of(p, bins, "mass"), bin_of(p, bins, "width")):
        assert sorted(set(found.tolist())) == list(range(found.max() + 1))
        assert found.max() < bins
        order = np.argsort(p, kind="stable")
        assert (np.diff(found[order]) >= 0).all()
        assert all(len(set(found[p == value].tolist())) == 1 for value in values)


def test_bins_of_equal_mass_have_equal_mass() -> None:
    p = np.random.default_rng(0).random(1000)
    assert np.bincount(bin_of(p, 8, "mass")).tolist() == [125] * 8


def true_ece(slope: float) -> float:
    p, _ = drawn(400_000, 99)
    bins = bin_of(p, 10, "mass")
    return float(np.abs(np.bincount(bins, sigmoid(slope * logit(p)) - p)).sum() / len(p))


@pytest.mark.parametrize("slope", [1.0, 0.8, 0.4])
def test_the_interval_holds_the_truth_as_often_as_it_says(slope: float) -> None:
    """Perfect, slightly off and far off; at 5 % a bound, 10 misses of 100 have a chance of 3 %."""
    truth, above, below, plain, value = true_ece(slope), 0, 0, [], []
    for seed in range(100):
        p, y = drawn(400, 1000 + seed, slope)
        found = ece_interval(p, y, bin_of(p, 10, "mass"), alpha=0.05, seed=seed)
        assert 0 <= found.lower <= found.value <= found.upper
        # Bins are cut in each sample, which moves the truth by less than a hundredth of it.
        above, below = above + (found.lower > truth * 1.01), below + (found.upper < truth * 0.99)
        plain.append(found.plain)
        value.append(found.value)
    assert max(above, below) <= 9
    # The plain estimate is biased upwards, the value less.
    assert np.mean(plain) > truth
    assert abs(np.mean(value) - truth) < abs(np.mean(plain) - truth)


def test_a_perfect_confidence_is_told_apart_once_there_are_items_enough() -> None:
    p, y = drawn(3000, 5)
    found = ece_interval(p, y, bin_of(p, 10, "mass"), alpha=0.05, seed=0)
    assert (found.lower, found.upper < 0.05, found.plain > 0.01) == (0, True, True)


def test_clusters_widen_the_interval_and_repeats_tell_nothing_new() -> None:
    p, y = drawn(150, 6, 0.5)
    names = [str(k) for k in range(150)]
    once = ece_interval(p, y, bin_of(p, 5, "mass"), alpha=0.05, seed=0)
    p5, y5 = np.repeat(p, 5), np.repeat(y, 5)
    bins = np.repeat(bin_of(p, 5, "mass"), 5)
    told = ece_interval(p5, y5, bins, alpha=0.05, seed=0, clusters=[name for name in names for _ in range(5)])
    alone = ece_interval(p5, y5, bins, alpha=0.05, seed=0)
    assert told.plain == pytest.approx(once.plain)
    assert told.upper - told.lower == pytest.approx(once.upper - once.lower, rel=0.15)
    assert alone.upper - alone.lower < 0.7 * (told.upper - told.lower)


def test_scaling_mends_an_overconfident_model_and_leaves_its_order() -> None:
    p, y = drawn(4000, 7, 0.5, -0.3)
    fold = np.arange(len(p)) % 2
    scaled = cross_fitted(p, y, fold, fit_platt)
    before, after = (ece_interval(q, y, bin_of(q, 10, "mass"), alpha=0.05, seed=0) for q in (p, scaled))
    assert before.lower > 0.1
    assert after.upper < 0.05
    assert log_loss(scaled, y) < log_loss(p, y)
    assert brier(scaled, y) < brier(p, y)
    assert auroc(fit_platt(p, y)(p), y) == pytest.approx(auroc(p, y))
