"""Power of a study before it is held, against simulation through the verdict's own interval."""

from __future__ import annotations

import numpy as np
import pytest
from study_memory import study

from benchmarks.human_coverage import observed_sds, simulate
from gates.human_power import (
    SDS,
    Claim,
    degrees_of_freedom,
    power_table,
    recommendation,
    sds_of,
    standard_error,
)
from gates.people_rows import Rows


def test_the_assumed_deviations_are_what_latent_ones_become_in_ratings() -> None:
    for assumed, found in zip(SDS, observed_sds(np.random.default_rng(1), 100), strict=True):
        assert assumed.name == found.name
        for name in ("rater", "task", "residual"):
            assert getattr(assumed, name) == pytest.approx(getattr(found, name), abs=0.03)


@pytest.mark.parametrize(
    ("case", "tasks", "studies"), [("mid", 20, 500), ("high", 20, 500), ("mid", 100, 200)]
)
def test_closed_form_is_what_simulation_finds(case: str, tasks: int, studies: int) -> None:
    (expected,) = (row for row in power_table((tasks,)) if row.case == case)
    rng = np.random.default_rng(7)
    at_the_bar, above = (simulate(rng, case, tasks, mean, studies) for mean in (8.0, 8.4))
    assert expected.se == pytest.approx(at_the_bar.sd, rel=0.12)
    # What the widening for skewness costs, and the smaller spread near the scale's end gives back.
    assert expected.power[8.4] == pytest.approx(above.passes, abs=0.1)


def test_more_tasks_help_and_more_raters_hardly_do() -> None:
    table = {(row.case, row.tasks): row for row in power_table()}
    assert len(table) == 9
    mid = [table["mid", tasks] for tasks in (20, 100, 200)]
    assert [row.ratings for row in mid] == [2000, 2000, 2000]
    assert [row.ratings_per_task for row in mid] == [100, 20, 10]
    assert mid[0].se > 1.35 * mid[1].se > 1.35 * mid[2].se
    (twice,) = power_table((20,), 200, (SDS[1],))
    assert mid[1].se < twice.se < mid[0].se
    assert all(list(row.power.values()) == sorted(row.power.values()) for row in table.values())
    assert mid[1].decides_from == 8.4
    assert table["high", 20].decides_from == 8.6
    assert power_table((20,), 10, (SDS[2],))[0].decides_from is None
    assert mid[0].to_json()["power"]["8.4"] == pytest.approx(mid[0].power[8.4], abs=1e-4)


def test_an_easier_claim_has_more_power_and_one_at_the_bar_has_alpha() -> None:
    (row,) = power_table((20,), sds=(SDS[0],), claim=Claim(bar=7.0, means=(7.0, 7.5)))
    assert row.power[7.0] == pytest.approx(0.05, abs=1e-6)
    assert row.power[7.5] > 0.9


def test_degrees_of_freedom_are_those_of_the_verdict() -> None:
    assert degrees_of_freedom(SDS[1], 100, 100, 20) == 99
    assert 19 < degrees_of_freedom(SDS[1], 20, 100, 20) < 60


def test_a_pilot_gives_its_own_deviations() -> None:
    found = study(60, 20, mean=7.0)
    pilot = sds_of(Rows.of(found), "ours")
    assert (pilot.name, pilot.task > 0) == ("pilot", True)
    assert pilot.rater == pytest.approx(1.1, abs=0.35)
    (row,) = power_table((20,), 60, (pilot,))
    assert row.se == pytest.approx(standard_error(pilot, 20, 60, 20))


def test_the_recommendation_is_a_pool_where_there_is_none() -> None:
    assert "Deal 20 to each rater from a pool of 100 to 200 tasks" in recommendation(20)
    assert "2,000 ratings" in recommendation(20)
    assert "20 dealt to each" in recommendation(150)
    assert "pool of" not in recommendation(150)
