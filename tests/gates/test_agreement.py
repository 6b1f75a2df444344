"""Agreement of raters, against published examples and the package's own values."""

from __future__ import annotations

import krippendorff
import numpy as np
import pytest
from study_memory import latent

from gates.agreement import agreement, intraclass, krippendorff_alpha
from gates.crossed import FloatArray

# Shrout and Fleiss 1979, table 2: six targets (tasks) by four judges; ICC(2,1) is .29, ICC(2,4) .62.
SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=np.float64
).T


def with_gaps(seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    y: FloatArray = latent(rng, 30, 24, 7.0)
    y[rng.random(y.shape) < 0.5] = np.nan
    return y


def test_intraclass_correlations_of_shrout_and_fleiss() -> None:
    one, many = intraclass(SHROUT_FLEISS, 0.025)
    assert (one.name, many.name) == ("ICC(2,1)", "ICC(2,4)")
    assert (one.value, many.value) == pytest.approx((0.29, 0.62), abs=0.005)
    # The two-sided 95 % bounds that R's psych::ICC gives for this table.
    assert (one.lower, one.upper) == pytest.approx((0.0188, 0.7611), abs=0.002)
    assert (many.lower, many.upper) == pytest.approx((0.0711, 0.9272), abs=0.002)


def test_intraclass_correlations_with_gaps_find_the_share_of_the_tasks() -> None:
    rng = np.random.default_rng(2)
    y = rng.normal(0, 1, (80, 1)) + rng.normal(0, 1, (1, 80)) + rng.normal(0, 1, (80, 80))
    full = intraclass(y, 0.05)[0]
    y[rng.random(y.shape) < 0.6] = np.nan
    part, many = intraclass(y, 0.05, draws=300)
    assert part.value == pytest.approx(full.value, abs=0.03)
    assert part.lower is not None
    assert part.upper is not None
    assert part.value is not None
    assert part.lower < part.value < part.upper
    assert many.name == f"ICC(2,{(~np.isnan(y)).sum() / 80:.0f})"
    assert many.value is not None
    assert many.value > part.value


@pytest.mark.parametrize("level", ["ordinal", "interval"])
def test_alpha_is_the_package_s_with_bounds_around_it(level: str) -> None:
    y = with_gaps()
    found = krippendorff_alpha(y, 0.05, level, draws=400)  # type: ignore[arg-type]
    expected = krippendorff.alpha(
        reliability_data=y, value_domain=list(range(1, 11)), level_of_measurement=level
    )
    assert found.value == pytest.approx(expected)
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower < expected < found.upper


@pytest.mark.parametrize("level", ["ordinal", "interval"])
def test_a_draw_of_everybody_once_is_alpha_itself(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gates.agreement.drawn_weights", lambda count, draws, seed: np.ones((draws, count)))
    found = krippendorff_alpha(with_gaps(), 0.05, level, draws=2)  # type: ignore[arg-type]
    assert found.lower == pytest.approx(found.value)


def test_copies_of_a_rater_do_not_agree_with_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody drawn twice: nothing is added to what was known."""
    y = with_gaps()
    once = krippendorff_alpha(y, 0.05, "interval", draws=2)
    monkeypatch.setattr(
        "gates.agreement.drawn_weights", lambda count, draws, seed: np.full((draws, count), 2.0)
    )
    twice = krippendorff_alpha(y, 0.05, "interval", draws=2)
    assert once.value is not None
    assert twice.lower == pytest.approx(once.value, abs=0.005)
    naive = krippendorff.alpha(
        reliability_data=np.repeat(y, 2, axis=0),
        value_domain=list(range(1, 11)),
        level_of_measurement="interval",
    )
    assert naive > once.value + 0.02


def test_a_good_system_has_little_to_agree_on_and_perfect_raters_agree() -> None:
    rng = np.random.default_rng(1)
    honest = agreement(latent(rng, 100, 20, 8.0), 0.05, draws=200)
    assert [one.name for one in honest[:2]] == ["ICC(2,1)", "ICC(2,100)"]
    assert all(one.value is not None and 0.03 < one.value < 0.3 for one in (honest[0], *honest[2:]))
    same = np.tile(rng.integers(1, 11, 15).astype(np.float64), (8, 1))
    assert [one.value for one in agreement(same, 0.05, draws=50)[2:]] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("y", [np.full((5, 4), 9.0), np.array([[1.0, 2.0, 3.0]]), np.array([[4.0], [6.0]])])
def test_what_cannot_be_computed_is_unknown_and_not_a_number(y: FloatArray) -> None:
    for one in agreement(y, 0.05, draws=20):
        assert one.value is None or np.isfinite(one.value)
    if np.ptp(y) == 0:
        assert all(one.value is None for one in agreement(y, 0.05, draws=20))
