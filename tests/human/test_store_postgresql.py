"""The same study in PostgreSQL: the same answers, the same races, the same frozen bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_study import CONSENT, LENGTH, START, Clock, answer, answer_all, begun, joined, small_plan
from sqlalchemy import create_engine, text
from test_store_races import at_once, given

from cogumi.errors import RunError, UsageError
from evals.human.errors import KeyConflict, StaleRevision, StudyClosed, StudyError, StudyFull
from evals.human.frozen import Frozen
from evals.human.rows import Draft, Submission
from evals.human.store import StudyStore

MakeStore = Callable[..., StudyStore]
pytestmark = pytest.mark.postgresql


@pytest.fixture
def store(new_store: MakeStore, postgresql_url: str) -> StudyStore:
    """A study in an empty PostgreSQL database."""
    return new_store(url=postgresql_url, database="postgresql", raters=10)


def asked(url: str, query: str) -> list[tuple[Any, ...]]:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(query))]
    engine.dispose()
    return found


def whole_study(store: StudyStore, clock: Clock) -> Frozen:
    """Play every step of a study, on a clock that stands where it stood."""
    clock.now = START
    done, corrected, gone, erased = (begun(store, "de") for _ in range(4))
    answer_all(store, done, 8, focus_ms=1000)
    answer(store, corrected, 2, 3, comment="caf\u00e9 \u2014 a\x00b")
    clock.forward(seconds=90)
    with pytest.raises(StaleRevision):
        store.submit(corrected, 2, Submission("late", 0, 5))
    answer(store, corrected, 2, 4, flag=True)
    with pytest.raises(KeyConflict):
        store.submit(corrected, 3, Submission("key-2-0", 0, 3))
    assert store.save_draft(corrected, 3, Draft(2**52, 5))
    assert not store.save_draft(corrected, 3, Draft(7, 5))
    answer(store, gone, 2)
    store.withdraw(gone, erase=False)
    answer(store, erased, 2, comment="to be forgotten")
    store.withdraw(erased, erase=True)
    progress = store.progress()
    assert (progress.items_done, progress.free, progress.states["erased"]) == (LENGTH, 8, 1)
    return store.close()


def test_a_whole_study_freezes_the_bytes_that_sqlite_freezes(
    new_store: MakeStore, postgresql_url: str, clock: Clock
) -> None:
    kept = new_store("a", url=postgresql_url, database="postgresql", raters=10)
    in_postgresql = whole_study(kept, clock)
    in_file = whole_study(new_store("b", raters=10), clock)
    assert in_postgresql.table.num_rows == LENGTH - 1 + 2
    assert in_postgresql.digest == in_file.digest
    assert (in_postgresql.counts, in_postgresql.closed_at) == (in_file.counts, in_file.closed_at)
    assert asked(postgresql_url, "SELECT comment FROM submissions WHERE comment LIKE '%forgotten%'") == []
    with pytest.raises(StudyClosed):
        kept.invite(1)
    assert kept.close().digest == in_file.digest


def test_answers_sent_four_times_at_once_are_stored_once(store: StudyStore, postgresql_url: str) -> None:
    ids = [begun(store) for _ in range(6)]
    for position in range(1, LENGTH + 1):
        jobs = [(rater, position, given(store, rater, position)) for rater in ids]
        told = at_once([lambda job=job: store.submit(*job).status for job in jobs * 4])  # type: ignore[misc]
        assert sorted(told) == ["replayed"] * 18 + ["stored"] * 6
    assert asked(postgresql_url, "SELECT count(*) FROM submissions") == [(6 * LENGTH,)]


def test_of_30_claimants_for_10_places_10_get_one(store: StudyStore) -> None:
    ids = [joined(store) for _ in range(30)]

    def claim(rater: int) -> int | None:
        try:
            return store.consent(rater, CONSENT, "en").slot
        except StudyFull:
            return None

    found = at_once([lambda rater=rater: claim(rater) for rater in ids])  # type: ignore[misc]
    assert sorted(slot for slot in found if slot is not None) == list(range(1, 11))


def test_opened_again_and_for_reading(store: StudyStore, postgresql_url: str, tmp_path: Path) -> None:
    rater = begun(store)
    answer(store, rater, 2)
    with pytest.raises(UsageError, match="set COGUMI_STUDY_DATABASE_URL"):
        StudyStore.open(tmp_path / "study")
    reader = StudyStore.open(tmp_path / "study", postgresql_url, read_only=True)
    assert reader.progress().items_done == 1
    with pytest.raises(StudyError, match="for reading only"):
        reader.invite(1)
    reader.dispose()
    again = StudyStore.open(tmp_path / "study", postgresql_url)
    assert answer(again, rater, 2, 3).revision == 2
    again.dispose()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "study").iterdir())
    assert postgresql_url.encode() not in kept


def test_one_database_holds_one_study(store: StudyStore, postgresql_url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds a study already"):
        StudyStore.create(tmp_path / "other", small_plan("other", database="postgresql"), postgresql_url)
    assert not (tmp_path / "other").exists()
    asked_for = small_plan("third", database="postgresql")
    folder = tmp_path / "third"
    folder.mkdir()
    (folder / "plan.json").write_text(asked_for.model_dump_json())
    (folder / "secret").write_text("ab" * 32)
    with pytest.raises(RunError, match="belongs to another study"):
        StudyStore.open(folder, postgresql_url)


def test_an_empty_database_is_no_study(tmp_path: Path, postgresql_url: str) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "plan.json").write_text(small_plan(database="postgresql").model_dump_json())
    (folder / "secret").write_text("ab" * 32)
    with pytest.raises(RunError, match="holds no study"):
        StudyStore.open(folder, postgresql_url)
