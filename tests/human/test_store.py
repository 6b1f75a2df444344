"""A rater's way through the store: link, consent, items, answers, drafts, the end."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_study import (
    CONSENT,
    LENGTH,
    REFERENCE,
    START,
    SUBJECT,
    Clock,
    answer,
    answer_all,
    begun,
    joined,
    select,
)

from cogumi.errors import UsageError
from evals.human.errors import (
    Incomplete,
    Invalid,
    NotFound,
    NotOpen,
    StudyClosed,
    StudyError,
    StudyFull,
)
from evals.human.rows import Draft, Submission
from evals.human.store import StudyStore

MakeStore = Callable[..., StudyStore]


# Links --------------------------------------------------------------------------------------------


def test_a_link_is_one_rater_for_ever_and_its_token_is_kept_nowhere(store: StudyStore) -> None:
    token, other = store.invite(2, "simulated")
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", token)
    assert token != other
    first = store.enter(token)
    assert first is not None
    assert store.enter(token) == first != store.enter(other)
    assert (store.rater(first).state, store.rater(first).source) == ("invited", "simulated")
    row = store.invites()[0]
    assert (row.rater, row.state, row.source) == (first, "invited", "simulated")
    kept = b"".join(path.read_bytes() for path in store.folder.iterdir())
    assert token.encode() not in kept


def test_unknown_and_revoked_links_are_alike(store: StudyStore) -> None:
    unused, used, numbered = store.invite(3)
    rater = store.enter(used)
    assert rater is not None
    store.consent(rater, CONSENT, "en")
    store.revoke(unused)
    store.revoke(used)
    store.revoke(3)
    found = [
        store.enter(token) for token in (unused, used, numbered, "", "x" * 5000, "\ud800", "no such one")
    ]
    assert found == [None] * 7
    assert [row.revoked for row in store.invites()] == [True] * 3
    for call in (store.rater, store.assignments, store.instructed, store.seen, store.finish, store.pause):
        with pytest.raises(NotFound):
            call(rater)
    for nobody in ("nobody's token", 4, 0, -1, 10**30):
        with pytest.raises(NotFound, match="no such invitation"):
            store.revoke(nobody)


@pytest.mark.parametrize("rater", [0, -1, 99, 10**30])
def test_there_is_no_such_rater(store: StudyStore, rater: int) -> None:
    for call in (store.rater, store.assignments, store.finish, store.instructed, store.seen):
        with pytest.raises(NotFound):
            call(rater)
    with pytest.raises(NotFound):
        store.submit(rater, 1, Submission("k", 0, 5))


def test_no_invitation_is_none(store: StudyStore) -> None:
    with pytest.raises(UsageError):
        store.invite(0)


# Places -------------------------------------------------------------------------------------------


def test_places_go_in_order_and_names_are_never_given_twice(store: StudyStore) -> None:
    first, second, third = (joined(store) for _ in range(3))
    rows = [store.consent(rater, CONSENT, "en") for rater in (third, first, second)]
    assert [(row.slot, row.pseudonym) for row in rows] == [(1, "r0001"), (2, "r0002"), (3, "r0003")]
    # Asked again it is the same place, whatever is said this time.
    assert store.consent(first, "cd" * 32, "de") == rows[1]
    late = joined(store)
    with pytest.raises(StudyFull, match="all 3 places"):
        store.consent(late, CONSENT, "en")
    assert store.rater(late).state == "invited"
    assert store.assignments(late) == []
    store.withdraw(first, erase=True)
    found = store.consent(late, CONSENT, "en")
    assert (found.slot, found.pseudonym) == (2, "r0004")


def test_an_abandoned_place_goes_to_the_next_the_longest_abandoned_first(
    store: StudyStore, clock: Clock
) -> None:
    finished = begun(store)
    answer_all(store, finished)
    late, early = begun(store), begun(store)
    answer(store, early, 1)
    clock.forward(hours=1)
    answer(store, late, 1)
    clock.forward(hours=47.5)
    with_place = joined(store)
    assert store.progress().overdue == 1
    assert store.consent(with_place, CONSENT, "en").slot == 3
    assert store.rater(early).state == "expired"
    with pytest.raises(StudyFull):
        store.consent(joined(store), CONSENT, "en")
    clock.forward(hours=1)
    assert store.consent(joined(store), CONSENT, "en").slot == 2
    assert (store.rater(late).state, store.rater(finished).state) == ("expired", "finished")
    # For good: the slot is another's. What was rated stays, and an answer sent again is told so.
    for call in (store.instructed, store.finish, store.pause):
        with pytest.raises(NotOpen):
            call(early)
    with pytest.raises(NotOpen):
        store.consent(early, CONSENT, "en")
    with pytest.raises(NotOpen):
        answer(store, early, 2)
    assert store.submit(early, 1, Submission("key-1-0", 0, 7)).status == "replayed"


def test_of_many_abandoned_places_the_longest_abandoned_goes_first(store: StudyStore, clock: Clock) -> None:
    raters = [begun(store) for _ in range(3)]
    for n in (1, 2, 0):
        clock.forward(hours=1)
        answer(store, raters[n], 1)
    clock.forward(hours=100)
    assert [store.consent(joined(store), CONSENT, "en").slot for _ in range(3)] == [2, 3, 1]


def test_whoever_is_seen_keeps_the_place(store: StudyStore, clock: Clock) -> None:
    raters = [begun(store) for _ in range(3)]
    calls: list[Callable[[int], object]] = [
        store.seen,
        store.pause,
        lambda rater: store.shown(rater, 1),
        lambda rater: store.save_draft(rater, 1, Draft(1, 5)),
        lambda rater: answer(store, rater, 1),
    ]
    for call in calls:
        clock.forward(hours=47)
        for rater in raters:
            call(rater)
        clock.forward(hours=2)
        with pytest.raises(StudyFull):
            store.consent(joined(store), CONSENT, "en")


def test_being_seen_is_written_once_a_minute(store: StudyStore, clock: Clock) -> None:
    rater = begun(store)
    before = store.rater(rater)
    clock.forward(seconds=59)
    store.seen(rater)
    assert store.rater(rater) == before
    clock.forward(seconds=2)
    store.seen(rater)
    assert str(store.rater(rater).lease_until) > str(before.lease_until)


def test_a_revoked_rater_holds_no_place_that_another_needs(store: StudyStore) -> None:
    tokens = store.invite(3)
    for token in tokens:
        store.consent(store.enter(token) or 0, CONSENT, "en")
    store.revoke(tokens[1])
    assert store.consent(joined(store), CONSENT, "en").slot == 2


# States -------------------------------------------------------------------------------------------


def test_the_order_of_a_raters_steps(store: StudyStore, clock: Clock) -> None:
    rater = joined(store)
    for call in (store.instructed, store.finish, store.pause):
        with pytest.raises(NotOpen):
            call(rater)
    store.consent(rater, CONSENT, "en")
    store.shown(rater, 1)
    assert store.assignments(rater)[0].shown_at is None
    with pytest.raises(NotOpen):
        answer(store, rater, 1)
    store.instructed(rater)
    store.instructed(rater)
    assert store.rater(rater).state == "instructed"
    store.pause(rater)
    assert store.rater(rater).paused
    store.shown(rater, 1)
    row = store.rater(rater)
    assert (row.state, row.paused) == ("active", False)
    first = store.assignments(rater)[0].shown_at
    clock.forward(minutes=5)
    store.shown(rater, 1)
    assert store.assignments(rater)[0].shown_at == first == "2026-01-05T08:00:00.000Z"
    for position in (0, LENGTH + 1, -1, 10**30):
        with pytest.raises(NotFound):
            store.shown(rater, position)
        with pytest.raises(NotFound):
            store.submit(rater, position, Submission("k", 0, 5))
        with pytest.raises(NotFound):
            store.save_draft(rater, position, Draft(1, 5))


def test_the_language_is_kept(store: StudyStore) -> None:
    rater = joined(store)
    assert store.rater(rater).locale is None
    store.set_locale(rater, "de")
    assert store.rater(rater).locale == "de"
    assert store.consent(rater, CONSENT, "fr").locale == "fr"
    for wrong in ("", "x" * 21, "a b", "de\n", "\ud800"):
        with pytest.raises(Invalid):
            store.set_locale(rater, wrong)


def test_items_say_what_is_shown_and_never_whose_it_is(new_store: MakeStore) -> None:
    store = new_store(raters=8)
    seen = set[tuple[str, ...]]()
    for _ in range(8):
        rater = begun(store)
        rows = store.assignments(rater)
        assert [row.position for row in rows] == list(range(1, LENGTH + 1))
        assert not any(SUBJECT in repr(row) or REFERENCE in repr(row) for row in rows)
        for row in rows:
            number = row.task_id.removeprefix("task-")
            ours, theirs = f"ours to {number}", f"theirs to {number}"
            if row.kind == "practice":
                assert (row.task_id, row.prompt, row.answers) == ("practice-1", "", ())
            elif row.kind == "pair":
                assert set(row.answers) == {ours, theirs}
                seen.add(tuple(one.split()[0] for one in row.answers))
            elif row.kind == "planted":
                (shown,) = row.answers
                assert (shown == "nonsense") == (number == "0")
                assert shown != ours
            else:
                assert row.answers == (ours,)
            assert row.kind == "practice" or row.prompt == f"Question {number}?"
    assert seen == {("ours", "theirs"), ("theirs", "ours")}


# The end ------------------------------------------------------------------------------------------


def test_finishing_wants_every_item_and_gives_one_code(store: StudyStore) -> None:
    rater = begun(store)
    answer(store, rater, 3)
    with pytest.raises(Incomplete) as caught:
        store.finish(rater)
    assert caught.value.missing == (1, 2, *range(4, LENGTH + 1))
    store.save_draft(rater, 3, Draft(1, 5, revision=1))
    for position in caught.value.missing:
        answer(store, rater, position)
    code = store.finish(rater)
    assert re.fullmatch(r"[2-9A-HJKMNP-Z]{4}(-[2-9A-HJKMNP-Z]{4}){2}", code)
    assert store.finish(rater) == code == store.rater(rater).code
    other = begun(store)
    assert answer_all(store, other) != code
    with pytest.raises(NotOpen):
        answer(store, rater, 3)
    with pytest.raises(NotOpen):
        store.save_draft(rater, 3, Draft(9, 5, revision=1))
    with pytest.raises(NotOpen):
        store.instructed(rater)
    assert store.submit(rater, 3, Submission("key-3-0", 0, 7)).status == "replayed"
    assert select(store.folder, "SELECT * FROM drafts") == []


def test_withdrawing_frees_the_place_and_keeps_what_was_given_until_erased(store: StudyStore) -> None:
    rater = begun(store, "de")
    answer_all(store, rater)
    store.withdraw(rater, erase=False)
    store.withdraw(rater, erase=False)
    assert store.rater(rater).state == "withdrawn"
    assert store.progress().free == 3
    assert len(store.assignments(rater)) == LENGTH
    with pytest.raises(NotOpen):
        store.finish(rater)
    with pytest.raises(NotOpen):
        store.consent(rater, CONSENT, "en")
    store.withdraw(rater, erase=True)
    store.withdraw(rater, erase=True)
    row = store.rater(rater)
    assert (row.state, row.pseudonym, row.slot, row.locale, row.code) == ("erased", "r0001", None, None, None)
    assert store.assignments(rater) == []
    store.set_locale(rater, "de")
    assert store.rater(rater).locale is None
    for table in ("assignments", "drafts", "ratings", "submissions"):
        assert select(store.folder, f"SELECT * FROM {table}") == []
    with pytest.raises(NotOpen):
        store.submit(rater, 2, Submission("key-2-0", 0, 7))


def test_who_never_agreed_can_withdraw_too(store: StudyStore) -> None:
    rater = joined(store)
    store.withdraw(rater, erase=True)
    assert store.rater(rater).state == "erased"


# The study ----------------------------------------------------------------------------------------


def test_a_closed_study_refuses_every_write(store: StudyStore, tmp_path: Path) -> None:
    store.new_admin_token()
    done, begin, fresh = begun(store), begun(store), joined(store)
    (unused,) = store.invite(1)
    code = answer_all(store, done)
    answer(store, begin, 1)
    # As the rating app meets it: another process closes the study.
    other = StudyStore.open(tmp_path / "study")
    assert not store.closed
    other.close()
    other.dispose()
    writes: list[Callable[[], object]] = [
        lambda: store.invite(1),
        lambda: store.revoke(1),
        lambda: store.enter(unused),
        lambda: store.consent(fresh, CONSENT, "en"),
        lambda: store.instructed(begin),
        lambda: store.set_locale(begin, "de"),
        lambda: answer(store, begin, 2),
        lambda: store.save_draft(begin, 2, Draft(1, 5)),
        lambda: store.finish(begin),
        lambda: store.pause(begin),
        lambda: store.withdraw(begin, erase=True),
    ]
    for write in writes:
        with pytest.raises(StudyClosed, match="was closed at"):
            write()
    store.shown(begin, 2)
    store.seen(begin)
    assert store.assignments(begin)[1].shown_at is None
    assert store.closed
    assert store.closed_at is not None
    # What was acknowledged is acknowledged again.
    assert store.submit(begin, 1, Submission("key-1-0", 0, 7)).status == "replayed"
    assert store.finish(done) == code
    assert store.consent(done, CONSENT, "en").state == "finished"
    # Whoever runs the study still looks at it.
    assert store.is_admin(store.new_admin_token())


def test_only_the_last_admin_token_is_one(store: StudyStore) -> None:
    assert store.admin_digest() == ""
    assert not store.is_admin("")
    first = store.new_admin_token()
    digest = store.admin_digest()
    second = store.new_admin_token()
    assert [store.is_admin(token) for token in (first, second, "", "\ud800")] == [False, True, False, False]
    assert store.admin_digest() != digest
    assert second.encode() not in (store.folder / "study.sqlite").read_bytes()


def test_progress_counts_and_depends_on_no_score(new_store: MakeStore, clock: Clock) -> None:
    found = []
    for name, score in (("low", 1), ("high", 9)):
        clock.now = START
        store = new_store(name, raters=4)
        done, begin, gone, lost = (begun(store) for _ in range(4))
        assert store.progress().items_per_hour is None
        answer_all(store, done, score, focus_ms=20_000)
        clock.forward(hours=1.5)
        store.shown(begin, 1)
        answer(store, begin, 1, score)
        answer(store, begin, 2, score, focus_ms=40_000, comment="unclear", flag=True)
        answer(store, gone, 1, score)
        answer(store, gone, 2, score)
        store.withdraw(gone, erase=False)
        store.pause(begin)
        store.revoke(4)
        clock.forward(minutes=30)
        store.invite(2, "simulated")
        progress = store.progress()
        assert store.rater(done).state == "finished"
        assert lost
        found.append(progress)
    low, high = found
    assert (low.name, high.name) == ("low", "high")
    assert {**_fields(low), "name": ""} == {**_fields(high), "name": ""}
    assert low.states["finished"] == low.states["active"] == low.states["withdrawn"] == 1
    assert set(low.states.values()) == {0, 1}
    assert (low.slots, low.free, low.invites, low.revoked, low.paused, low.overdue) == (4, 1, 6, 1, 1, 1)
    assert (low.items_done, low.items_wanted, low.items_last_hour) == (10, 36, 1)
    assert (low.items_per_hour, low.hours_left) == (5.0, 26 / 5)
    assert low.dropped_at == {0: 1, 2: 1}
    assert low.median_seconds == 20.0
    (remark,) = low.remarks
    assert (remark.pseudonym, remark.position, remark.comment, remark.flag) == ("r0002", 2, "unclear", True)
    assert not [name for name in _fields(low) if "score" in name or "mean" in name]


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


def test_opened_for_reading_it_reads_and_makes_no_file(store: StudyStore, tmp_path: Path) -> None:
    rater = begun(store)
    answer(store, rater, 2)
    store.dispose()
    before = sorted(path.name for path in store.folder.iterdir())
    reader = StudyStore.open(tmp_path / "study", read_only=True)
    assert reader.progress().items_done == 1
    assert (len(reader.invites()), reader.secret) == (1, b"")
    writes: list[Callable[[], object]] = [
        lambda: reader.invite(1),
        reader.close,
        reader.new_admin_token,
        lambda: answer(reader, rater, 3),
    ]
    for write in writes:
        with pytest.raises(StudyError, match="for reading only"):
            write()
    reader.dispose()
    assert sorted(path.name for path in store.folder.iterdir()) == before
