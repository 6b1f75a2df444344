"""Answers and drafts: stored exactly once, corrected, replayed, refused; late ones change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from small_study import Clock, begun, select

from evals.human.errors import Invalid, KeyConflict, StaleRevision
from evals.human.rows import COMMENT_CHARACTERS, AssignmentRow, Draft, Submission
from evals.human.store import StudyStore

MakeStore = Callable[..., StudyStore]


def item_of(store: StudyStore, rater: int, kind: str) -> AssignmentRow:
    return next(row for row in store.assignments(rater) if row.kind == kind)


def test_an_answer_is_stored_once_replayed_and_corrected(store: StudyStore, clock: Clock) -> None:
    rater = begun(store)
    given = Submission("one", 0, 7, comment="good\r\n", flag=True, focus_ms=1500)
    told = store.submit(rater, 2, given)
    assert (told.status, told.score, told.comment, told.flag, told.revision) == (
        "stored",
        7,
        "good\n",
        True,
        1,
    )
    clock.forward(minutes=1)
    again = store.submit(rater, 2, given)
    assert (again.status, again.revision, again.comment) == ("replayed", 1, "good\n")
    corrected = store.submit(rater, 2, Submission("two", 1, 4, focus_ms=900))
    assert (corrected.status, corrected.revision) == ("stored", 2)
    # The first form again, late: it did what it did, and undoes nothing.
    assert store.submit(rater, 2, given).revision == 1
    rating = store.assignments(rater)[1].rating
    assert rating is not None
    assert (rating.score, rating.comment, rating.flag, rating.revision) == (4, "", False, 2)
    assert rating.focus_ms == 1500
    kept = select(store.folder, "SELECT key, score, comment, revision FROM submissions ORDER BY revision")
    assert kept == [("one", 7, "good\n", 1), ("two", 4, "", 2)]


@pytest.mark.parametrize(
    "other",
    [{"score": 8}, {"comment": "no"}, {"flag": True}, {"score": None, "preference": "tie"}, {"position": 3}],
)
def test_a_key_that_was_used_for_something_else_is_refused(store: StudyStore, other: dict[str, Any]) -> None:
    rater = begun(store)
    store.submit(rater, 2, Submission("key", 0, 7))
    position, other = other.get("position", 2), {k: v for k, v in other.items() if k != "position"}
    with pytest.raises(KeyConflict) as caught:
        store.submit(rater, position, Submission(**{"key": "key", "revision": 1, "score": 7, **other}))
    assert (caught.value.stored is None) == (position == 3)
    assert len(select(store.folder, "SELECT * FROM submissions")) == 1
    # Another rater's keys are another's.
    assert store.submit(begun(store), 2, Submission("key", 0, 3)).status == "stored"


@pytest.mark.parametrize("revision", [-1, 0, 2, 99])
def test_an_answer_from_an_older_page_is_told_what_is_stored(store: StudyStore, revision: int) -> None:
    rater = begun(store)
    store.submit(rater, 2, Submission("key", 0, 7))
    with pytest.raises(StaleRevision) as caught:
        store.submit(rater, 2, Submission("other", revision, 3))
    assert caught.value.stored is not None
    assert (caught.value.stored.score, caught.value.stored.revision) == (7, 1)
    with pytest.raises(StaleRevision) as caught:
        store.submit(rater, 3, Submission("third", 1, 3))
    assert caught.value.stored is None


@pytest.mark.parametrize(
    "given",
    [
        {"score": 0},
        {"score": 11},
        {"score": True},
        {"score": 7.0},
        {},
        {"preference": "left"},
        {"score": 5, "preference": "left"},
        {"preference": "both"},
        {"score": 5, "key": ""},
        {"score": 5, "key": "k" * 101},
        {"score": 5, "key": "a\x00b"},
        {"score": 5, "key": "\ud800"},
    ],
)
def test_what_is_no_rating_is_refused(store: StudyStore, given: dict[str, Any]) -> None:
    rater = begun(store)
    with pytest.raises(Invalid):
        store.submit(rater, 2, Submission(**{"key": "k", "revision": 0, **given}))
    assert store.assignments(rater)[1].rating is None


def test_a_pair_takes_a_preference(store: StudyStore) -> None:
    rater = begun(store)
    pair = item_of(store, rater, "pair").position
    with pytest.raises(Invalid, match="pair"):
        store.submit(rater, pair, Submission("k", 0, 5))
    with pytest.raises(Invalid, match="pair"):
        store.save_draft(rater, pair, Draft(1, 5))
    assert store.submit(rater, pair, Submission("k", 0, preference="tie")).preference == "tie"


def test_a_strangers_text_is_made_storable_and_cut(store: StudyStore) -> None:
    rater = begun(store)
    text = "a\x00b\ud800" + "x" * 3000
    told = store.submit(rater, 2, Submission("k", 0, 5, comment=text, focus_ms=-5))
    assert told.comment.startswith("a\ufffdb\ufffdxx")
    assert len(told.comment) == COMMENT_CHARACTERS
    assert store.submit(rater, 2, Submission("k", 0, 5, comment=text)).status == "replayed"
    assert store.assignments(rater)[1].focus_ms == 0
    store.submit(rater, 3, Submission("l", 0, 5, focus_ms=10**30))
    assert store.assignments(rater)[2].focus_ms > 10**9


# Drafts -------------------------------------------------------------------------------------------


def test_drafts_that_come_late_change_nothing(store: StudyStore) -> None:
    rater = begun(store)
    assert store.save_draft(rater, 2, Draft(20, 5, comment="second", focus_ms=100))
    assert not store.save_draft(rater, 2, Draft(10, 9, comment="first"))
    # Its answer was lost, so it comes again.
    assert store.save_draft(rater, 2, Draft(20, 5, comment="second", focus_ms=100))
    assert not store.save_draft(rater, 2, Draft(20, 6, comment="of another tab"))
    row = store.assignments(rater)[1]
    assert row.draft == Draft(20, 5, comment="second", focus_ms=100)
    assert (row.focus_ms, row.revision) == (100, 0)
    store.submit(rater, 2, Submission("k", 0, 8))
    assert store.assignments(rater)[1].draft is None
    assert not store.save_draft(rater, 2, Draft(30, 2))
    assert store.save_draft(rater, 2, Draft(40, 2, revision=1))
    row = store.assignments(rater)[1]
    assert row.draft is not None
    assert row.rating is not None
    assert (row.draft.score, row.rating.score) == (2, 8)


def test_an_empty_draft_is_one_and_a_wrong_number_is_none(store: StudyStore) -> None:
    rater = begun(store)
    assert store.save_draft(rater, 2, Draft(2**53 - 1))
    for wrong in (-1, 2**53):
        with pytest.raises(Invalid):
            store.save_draft(rater, 2, Draft(wrong))
    with pytest.raises(Invalid):
        store.save_draft(rater, 2, Draft(5, 11))
