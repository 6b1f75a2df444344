"""The verdict of a closed study: who counts, who is left out, and what never decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from study_memory import frozen, plan_of, row, rows_of, study

from cogumi.errors import RunError
from cogumi.verdict import Verdict
from evals.human.frozen import Frozen
from gates.people import Analysis, analyse, apart, judge_study
from gates.people_rows import Rows, complete_raters, counted
from gates.people_rules import flagged, side_of_bar

Row = dict[str, Any]


def changed(found: Frozen, change: Callable[[Row], Row | None]) -> Frozen:
    """The same study with every row changed, or left out where None comes back."""
    return frozen(found.plan, [made for one in rows_of(found) if (made := change(dict(one))) is not None])


def number(one: Row) -> int:
    return int(one["rater"][1:])


@pytest.fixture(scope="module")
def good() -> Frozen:
    return study(mean=8.9, seed=1)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(study(mean=8.9, seed=1, pairs=0.7))


@pytest.mark.parametrize(
    ("mean", "verdict", "told"),
    [
        (9.0, Verdict.PASS, "lies above 8"),
        (6.5, Verdict.FAIL, "lies below 8"),
        (8.2, Verdict.UNDECIDED, "8 lies within"),
    ],
)
def test_a_hundred_people_decide_by_the_bounds_alone(mean: float, verdict: Verdict, told: str) -> None:
    found = judge_study(study(mean=mean, seed=1))
    assert found.verdict is verdict
    assert (found.complete, found.simulated, found.obstacles) == (100, 0, ())
    assert len(found.reasons) == 1
    assert told in found.reasons[0]


def test_one_simulated_row_among_good_ones_never_decides(good: Frozen) -> None:
    one = changed(good, lambda row: row | {"source": "simulated" if number(row) == 3 else "human"})
    found = judge_study(one)
    assert found.verdict is Verdict.UNDECIDED
    assert found.reasons[0] == "1 of 100 raters are simulated: these can never decide"
    # Also one who never finished, and whose ratings count for nothing.
    left = changed(
        good,
        lambda row: row | ({"source": "simulated", "rater_state": "expired"} if number(row) == 3 else {}),
    )
    assert judge_study(left, needed=99).verdict is Verdict.UNDECIDED


def test_too_few_complete_raters_never_decide(good: Frozen) -> None:
    few = changed(good, lambda row: row if number(row) else None)
    found = judge_study(few)
    assert found.verdict is Verdict.UNDECIDED
    assert found.reasons[0] == "99 complete raters, 100 are needed"
    assert judge_study(few, needed=99).verdict is Verdict.PASS
    # Who lacks a single item is not complete, though finished.
    short = changed(good, lambda row: None if (number(row), row["position"]) == (5, 3) else row)
    assert (judge_study(short).complete, judge_study(short).estimate.raters) == (99, 100)
    assert analyse(short).tables.missing == 1


def test_only_scored_items_of_the_subject_by_raters_who_finished_count(good: Frozen) -> None:
    """Whatever practice, planted, repeated, unfinished or other systems' ratings say, the mean stays."""
    plain = judge_study(good).estimate

    def spoilt(one: Row) -> Row:
        return one if one["kind"] == "scored" else one | {"score": 6}

    rows = rows_of(changed(good, spoilt))
    task = good.plan.tasks[0]
    for state in ("withdrawn", "expired", "active"):
        extra = row(500, 3, "scored", task) | {"rater": f"x{state}", "rater_state": state, "score": 1}
        rows.append(extra)
    rows.append(row(1, 90, "scored", task) | {"system": "theirs", "score": 1})
    found = judge_study(frozen(good.plan, rows))
    assert (found.estimate.mean, found.estimate.n) == (plain.mean, plain.n)
    assert found.verdict is Verdict.PASS


def test_two_flags_leave_a_rater_out_and_one_does_not(good: Frozen) -> None:
    def careless(one: Row) -> Row:
        u, kind = number(one), one["kind"]
        if u == 0 and kind == "scored":  # says always the same, and hurries
            return one | {"score": 9, "focus_ms": 900}
        if u == 1 and kind == "planted":  # likes a bad answer, nothing else
            return one | {"score": 7}
        if u == 2 and kind in ("planted", "repeat"):  # likes a bad answer and contradicts himself
            return one | {"score": 10 if kind == "planted" else 1}
        return one | {"focus_ms": 900} if u == 3 else one

    found = changed(good, careless)
    flags = {one.rater: (one.flags, one.excluded) for one in flagged(Rows.of(found), found.plan)}
    # The judged item that is shown again is rated at least 5 by this rater.
    assert flags["r0000"] == (("no variance", "too fast"), True)
    assert flags["r0001"] == (("planted",), False)
    assert flags["r0002"] == (("planted", "repeat"), True)
    assert flags["r0003"] == (("too fast",), False)
    judged = judge_study(found)
    assert {one.rater for one in judged.excluded} == {"r0000", "r0002"}
    assert (judged.estimate.raters, judged.everyone.raters, judged.complete) == (98, 100, 100)
    assert judged.verdict is Verdict.PASS


def test_the_level_of_ratings_flags_nobody(good: Frozen) -> None:
    def harsh(one: Row) -> Row:
        if number(one) < 50 and one["kind"] in ("scored", "repeat"):
            return one | {"score": 1 + one["position"] % 2}
        return one

    assert {one.rater for one in judge_study(changed(good, harsh)).excluded} == set()


def test_two_planted_answers_are_one_flag(good: Frozen) -> None:
    found = changed(good, lambda one: one | ({"score": 10} if one["kind"] == "planted" else {}))
    flags = flagged(Rows.of(found), found.plan)
    assert {one.flags for one in flags if not one.excluded} == {("planted",)}
    assert len(flags) == 100


@pytest.mark.parametrize(
    ("focus", "wall", "pilot", "fast"),
    [
        (2900, None, None, True),
        (3100, None, None, False),
        (3100, None, 12.0, True),  # a third of the pilot's: 4 s
        (2900, None, 3.0, True),  # never less than 3 s
        (0, None, None, False),  # a browser without scripts does not tell
        (0, 2000, None, True),
        (0, 60_000, None, False),
    ],
)
def test_hurry_is_measured_on_known_times(
    good: Frozen, focus: int, wall: int | None, pilot: float | None, fast: bool
) -> None:
    found = changed(
        good, lambda one: one | ({"focus_ms": focus, "wall_ms": wall} if number(one) == 4 else {})
    )
    plan = found.plan.model_copy(update={"pilot_p10_seconds": pilot})
    flags = {one.rater: one.flags for one in flagged(Rows.of(found), plan)}
    assert ("too fast" in flags.get("r0004", ())) is fast


def test_careless_raters_who_make_the_difference_leave_it_undecided() -> None:
    """Twelve who always say 1 in a second hide a mean that passes without them, and the other way round."""
    plain = study(112, mean=8.75, seed=3)

    def clicked(score: int) -> Frozen:
        return changed(
            plain,
            lambda one: (
                one
                | ({"score": score, "focus_ms": 800} if number(one) < 12 and one["kind"] == "scored" else {})
            ),
        )

    found = judge_study(clicked(1))
    assert found.verdicts == (Verdict.PASS, Verdict.UNDECIDED)
    assert found.verdict is Verdict.UNDECIDED
    assert "UNDECIDED with all, PASS without the 12 that the rules leave out" in found.reasons[0]
    same = judge_study(clicked(9))
    assert same.verdicts == (Verdict.PASS, Verdict.PASS)
    assert same.verdict is Verdict.PASS


def test_a_dealt_pool_and_an_estimand_choose_the_interval() -> None:
    pool = judge_study(study(50, 100, mean=8.9), needed=50)
    assert pool.estimate.method.startswith("two-way clusters")
    assert (pool.estimate.tasks, pool.estimate.n) == (100, 1000)
    these = judge_study(study(50, mean=8.9, plan={"estimand": "these tasks"}), needed=50)
    assert these.estimate.method.startswith("clusters of raters")


def test_nobody_and_nothing_are_told_and_not_decided() -> None:
    plan = plan_of(100, 20)
    for rows in ([], [row(0, 3, "scored", plan.tasks[0]) | {"score": 9, "rater_state": "active"}]):
        found = analyse(frozen(plan, rows))
        assert found.verdict is Verdict.UNDECIDED
        assert "nobody who finished rated ours" in found.reasons[-1]
        assert found.to_json()["estimate"]["mean"] is None
    same = changed(study(100, mean=9), lambda one: one | ({"score": 9} if one["kind"] == "scored" else {}))
    assert judge_study(same).reasons == ("no rating differs from another: no interval",)
    assert judge_study(same).verdict is Verdict.UNDECIDED


def test_a_study_whose_rows_make_no_sense_is_refused(good: Frozen) -> None:
    rows = rows_of(good)
    with pytest.raises(RunError, match="two scored ratings of one task"):
        judge_study(frozen(good.plan, [*rows, rows[0] | {"position": 99}]))
    with pytest.raises(RunError, match="not one of 1 to 10"):
        judge_study(frozen(good.plan, [rows[0] | {"score": 11}, *rows[1:]]))


def test_the_analysis_tells_it_all_and_twice_the_same(analysis: Analysis) -> None:
    document = analysis.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (document["verdict"], document["exit_code"], document["simulated"]) == ("PASS", 0, False)
    assert [one["method"].partition(",")[0] for one in document["checks"]] == [
        "mixed model",
        "two-way bootstrap",
    ]
    assert document["row_wise"]["se"] < document["estimate"]["se"] / 3
    assert len(document["tasks"]) == 20
    assert {one["name"] for one in document["domains"]} == {"coding", "math"}
    assert sum(document["histogram"]) == document["estimate"]["n"] == 2000
    assert document["ceiling_share"] == pytest.approx(document["histogram"][9] / 2000)
    assert document["facts"]["seed"] == 5
    assert document["facts"]["ratings_digest"].startswith("sha256:")
    assert analyse(study(mean=8.9, seed=1, pairs=0.7)).to_json() == document


def test_pairs_are_told_beside_a_half_and_decide_nothing(analysis: Analysis) -> None:
    found = analysis.tables.preference
    assert found is not None
    assert found.n == 400
    assert found.mean == pytest.approx(0.7, abs=0.08)
    assert found.lower is not None
    assert found.lower > 0.5
    ties = changed(
        study(20, mean=9, pairs=0.5),
        lambda one: one | ({"preference": "tie"} if one["kind"] == "pair" else {}),
    )
    tied = analyse(ties).tables.preference
    assert tied is not None
    assert (tied.mean, tied.lower) == (0.5, None)


def test_a_drift_over_the_sequence_is_seen_where_there_is_one() -> None:
    def tired(one: Row) -> Row:
        if one["kind"] != "scored":
            return one
        return one | {"score": max(1, round(one["score"] - 0.1 * one["position"]))}

    plain = study(60, mean=7.5, seed=2)
    still, drift = analyse(plain).tables.order, analyse(changed(plain, tired)).tables.order
    assert still is not None
    assert drift is not None
    assert drift.value == pytest.approx(still.value - 0.1, abs=0.03)
    assert drift.upper is not None
    assert drift.upper < 0


def test_order_of_rows_and_names_of_raters_do_not_matter(good: Frozen) -> None:
    rng = np.random.default_rng(0)
    rows = rows_of(good)
    shuffled = frozen(good.plan, [rows[int(k)] for k in rng.permutation(len(rows))])
    assert judge_study(shuffled).estimate.lower == pytest.approx(judge_study(good).estimate.lower)
    assert complete_raters(Rows.of(shuffled), good.plan) == complete_raters(Rows.of(good), good.plan)
    assert len(counted(Rows.of(good), "theirs")) == 0


def test_a_number_beside_the_bar_never_looks_like_it() -> None:
    assert [apart(value, 8.0) for value in (8.4, 8.004, 7.9999)] == ["8.40", "8.004", "7.9999"]
    assert side_of_bar(8.0, 8.4, 8.0) is Verdict.UNDECIDED
    assert side_of_bar(None, None, 8.0) is Verdict.UNDECIDED
