"""Who sees what in which order: even, blind to the seed's user, and the same for the same seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.human.design import balance, deal
from evals.human.plan import StudyPlan, make_plan
from evals.human.rows import Assignment


def plan_of(tasks: int = 20, **changed: Any) -> StudyPlan:
    """Return a plan of so many tasks in three domains, two thirds with an answer of the reference."""
    rows = [
        {
            "task_id": f"t{number}",
            "domain": "abc"[number % 3],
            "prompt": f"question {number}",
            "answers": {"ours": f"answer {number}" + "!" * (number % 7)}
            | ({"theirs": f"other {number}"} if number % 3 else {}),
        }
        for number in range(tasks)
    ]
    made: dict[str, Any] = {
        "name": "s", "title": "t", "subject": "ours", "reference": "theirs", "seed": 5, "contact": "c",
        "raters": 12, "items": 10, "pairs": 2, "tasks": rows,
    }  # fmt: skip
    return make_plan(**(made | changed))


def scored(sequence: tuple[Assignment, ...]) -> list[str]:
    return [one.task_id for one in sequence if one.kind == "scored"]


@pytest.mark.parametrize(("items", "rows"), [(20, 20), (7, 14), (2, 2), (6, 6)])
def test_a_square_is_balanced_for_place_and_neighbour(items: int, rows: int) -> None:
    plan = plan_of(items, items=items, raters=2 * rows, planted=0, repeats=0, pairs=0)
    found = balance(deal(plan))
    assert found.ratings_per_task == (2 * rows, 2 * rows)
    assert len(set(found.ratings_per_position)) == 1
    assert len(set(found.followings)) == 1


def test_a_hundred_raters_on_twenty_tasks_are_exactly_even() -> None:
    found = balance(deal(plan_of(20, items=20, raters=100)))
    assert found.ratings_per_task == (100, 100)
    assert found.ratings_per_position == (5, 5)
    assert found.followings == (5, 5)
    assert abs(found.pairs_left[0] - found.pairs_left[1]) <= 2


def test_a_pool_is_dealt_evenly() -> None:
    found = balance(deal(plan_of(200, items=20, raters=100, planted=2)))
    assert found.ratings_per_task == (10, 10)
    assert found.ratings_per_position == (0, 1)
    # 1,900 neighbours among 39,800 ordered pairs: dealt blindly, dozens would meet twice.
    assert found.followings == (0, 1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(6, 18),
    st.integers(0, 15),
    st.integers(1, 13),
    st.integers(0, 3),
    st.integers(0, 1),
    st.integers(0, 3),
    st.integers(0, 2**63 - 1),
)
def test_every_rater_sees_what_the_plan_promises(
    items: int, more: int, raters: int, planted: int, repeats: int, pairs: int, seed: int
) -> None:
    plan = plan_of(
        items + more, items=items, raters=raters, planted=planted, repeats=repeats, pairs=pairs, seed=seed
    )
    sequences = deal(plan)
    assert sequences == deal(plan)
    assert len(sequences) == raters
    for sequence in sequences:
        assert [one.position for one in sequence] == list(range(1, plan.length + 1))
        kinds = [one.kind for one in sequence]
        assert kinds[: plan.practice] == ["practice"] * plan.practice
        assert kinds[plan.practice : plan.practice + 3] == ["scored"] * 3
        assert kinds[len(kinds) - pairs :] == ["pair"] * pairs
        assert (
            Counter(kinds)
            == Counter({"practice": 2, "scored": items, "planted": planted, "repeat": repeats, "pair": pairs})
            - Counter()
        )
        assert len(set(scored(sequence))) == items
        places = {one.task_id: one.position for one in sequence if one.kind == "scored"}
        for one in sequence:
            assert one.kind != "repeat" or one.position - places[one.task_id] >= 5
            assert one.kind != "pair" or (one.system, one.other) == ("ours", "theirs")
            if one.kind == "planted":
                assert one.other not in (None, one.task_id)
                assert plan.by_id[str(one.other)].domain != plan.by_id[one.task_id].domain
    counts = balance(sequences)
    if items + more == counts.tasks:
        assert counts.ratings_per_task[1] - counts.ratings_per_task[0] <= 1


def test_no_place_tells_what_is_planted_or_repeated() -> None:
    plan = plan_of(40, items=20, raters=100, planted=2, repeats=1)
    places = Counter(
        (one.kind, one.position) for sequence in deal(plan) for one in sequence if one.kind != "scored"
    )
    for kind, most in (("planted", 40), ("repeat", 30)):
        at = [place for (found, place) in places if found == kind]
        assert len(at) > 12
        assert max(places[kind, place] for place in at) < most


def test_a_planted_prompt_is_new_to_the_rater_where_the_pool_allows() -> None:
    for sequence in deal(plan_of(40, items=20, raters=30, planted=2)):
        planted = {one.task_id for one in sequence if one.kind == "planted"}
        assert len(planted) == 2
        assert not planted & set(scored(sequence))


def test_written_bad_answers_are_planted_first() -> None:
    plain = plan_of(12, items=8, pairs=0)
    tasks = [
        task.model_copy(update={"bad_answer": "nonsense"} if number < 3 else {})
        for number, task in enumerate(plain.tasks)
    ]
    plan = plain.model_copy(update={"tasks": tuple(tasks)})
    found = Counter(one.task_id for row in deal(plan) for one in row if one.kind == "planted")
    assert set(found) <= {"t0", "t1", "t2"}
    assert all(one.other is None for row in deal(plan) for one in row if one.kind == "planted")


def test_another_seed_deals_otherwise() -> None:
    one, other = deal(plan_of(30)), deal(plan_of(30, seed=6))
    assert one != other


def test_pairs_are_even_in_tasks_and_sides() -> None:
    sequences = deal(plan_of(30, raters=40, pairs=4))
    pairs = [one for sequence in sequences for one in sequence if one.kind == "pair"]
    shown = Counter(one.task_id for one in pairs)
    assert max(shown.values()) - min(shown.values()) <= 1
    for task in shown:
        right = sum(one.swapped for one in pairs if one.task_id == task)
        assert abs(2 * right - shown[task]) <= 1


def test_balance_counts_what_was_never_dealt() -> None:
    sequences = [
        tuple(Assignment(at, "scored", name, "ours") for at, name in enumerate(row, 1))
        for row in ("ab", "ac")
    ]
    found = balance(sequences)
    assert (found.tasks, found.raters) == (3, 2)
    assert found.ratings_per_task == (1, 2)
    assert found.ratings_per_position == (0, 2)
    assert found.followings == (0, 1)
