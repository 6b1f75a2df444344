"""What a store does when its files are full, broken, foreign or gone, and what it leaves of the erased."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from small_study import CONSENT, answer, begun, select, small_plan
from sqlalchemy import event

from cogumi.errors import RunError, UsageError
from evals.human import book, opening
from evals.human.errors import DiskFull, Unavailable
from evals.human.rows import Draft, Submission
from evals.human.store import StudyStore

MakeStore = Callable[..., StudyStore]
LONG = "no end of words " * 120


# A full disk --------------------------------------------------------------------------------------


def test_without_room_nothing_is_acknowledged_and_with_room_it_goes_on(store: StudyStore) -> None:
    """``max_page_count`` is SQLite's own disk full; it is per connection, so it is set at each loan."""
    rater = begun(store)
    limit = {"pages": 1}  # SQLite takes the present size for the least.
    engine = store._book._engine

    @event.listens_for(engine, "checkout")
    def _limited(connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count={limit['pages']}")

    told: dict[int, int] = {}
    at = itertools.cycle(range(2, 9))

    def rate_on() -> None:
        for position in at:
            told[position] = answer(store, rater, position, comment=LONG).revision

    with pytest.raises(DiskFull, match="nothing was stored") as caught:
        rate_on()
    position = next(at)
    assert "\n" not in str(caught.value)
    refused = Submission("refused", told.get(position, 0), 9, comment=LONG)
    for _ in range(2):
        with pytest.raises(DiskFull):
            store.submit(rater, position, refused)
    # Pages are still shown, from what is stored.
    assert {row.position: row.revision for row in store.assignments(rater) if row.rating} == told
    assert store.progress().items_done == len(told)
    limit["pages"] = 2**30
    assert store.submit(rater, position, refused).status == "stored"
    assert select(store.folder, "PRAGMA integrity_check") == [("ok",)]
    kept = dict(select(store.folder, "SELECT position, revision FROM ratings"))
    assert kept == {**told, position: told.get(position, 0) + 1}


def test_a_database_that_another_holds_is_waited_for_and_then_said(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rater = begun(store)
    monkeypatch.setattr(book, "_RETRY_S", 0.05)
    event.listen(
        store._book._engine, "checkout", lambda connection, *_: connection.execute("PRAGMA busy_timeout=1")
    )
    with closing(sqlite3.connect(store.folder / "study.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="try again"):
            answer(store, rater, 2)
        assert len(store.assignments(rater)) > 0
        other.execute("ROLLBACK")
    assert answer(store, rater, 2).status == "stored"


def test_a_database_broken_under_way_is_said(store: StudyStore) -> None:
    rater = begun(store)
    store.dispose()
    path = store.folder / "study.sqlite"
    path.write_bytes(b"not a database at all" * 500)
    with pytest.raises(Unavailable, match="restore it from a backup"):
        store.rater(rater)
    with pytest.raises(Unavailable, match="restore it from a backup"):
        store.invite(1)


# Erasing ------------------------------------------------------------------------------------------

TRACES = (b"unmistakable", b"corrected-text", b"half-written", b"xx-lang")


def traces(folder: Path) -> list[tuple[str, bytes]]:
    """Say in which file of a study which text of the rater stands."""
    return [(path.name, text) for path in folder.iterdir() for text in TRACES if text in path.read_bytes()]


def confided(store: StudyStore) -> int:
    """Return a rater who wrote much: corrected it, left drafts, among others who write too."""
    others = [begun(store) for _ in range(2)]
    rater = begun(store, "xx-lang")
    for position in range(2, 9):
        store.save_draft(rater, position, Draft(1, comment=f"half-written {position} " * 40))
        answer(store, rater, position, comment=f"unmistakable {position} " * 60)
        for other in others:
            answer(store, other, position, comment="of another " * 50)
        answer(store, rater, position, 3, comment=f"corrected-text {position} " * 30)
    store.save_draft(rater, 2, Draft(9, comment="half-written", revision=2))
    return rater


def test_of_the_erased_no_byte_is_left_in_any_file(store: StudyStore) -> None:
    rater = confided(store)
    assert {text for _, text in traces(store.folder)} == set(TRACES)
    with closing(sqlite3.connect(store.folder / "study.sqlite")) as other:
        # While the study is served, other connections keep the write-ahead log from being taken away.
        other.execute("SELECT * FROM ratings").fetchall()
        store.withdraw(rater, erase=True)
        assert (store.folder / "study.sqlite-wal").exists()
        assert traces(store.folder) == []
    assert len(select(store.folder, "SELECT * FROM ratings")) == 14
    assert select(store.folder, "PRAGMA integrity_check") == [("ok",)]


def test_what_a_reader_kept_from_being_erased_is_erased_later(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "_SCRUB_WAIT_MS", 1)
    rater = confided(store)
    with closing(sqlite3.connect(store.folder / "study.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM ratings").fetchone()
        store.withdraw(rater, erase=True)
        assert store.rater(rater).state == "erased"
        assert traces(store.folder) != []
        reader.execute("ROLLBACK")
    monkeypatch.setattr(book, "_SCRUB_AGAIN_S", 0.0)
    store._book.scrub()
    assert traces(store.folder) == []


# Making and opening -------------------------------------------------------------------------------


def test_a_study_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "studies" / "study"

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(opening, "_make_database", fail)
        with pytest.raises(KeyboardInterrupt):
            StudyStore.create(place, small_plan())
    assert list(place.parent.iterdir()) == []
    store = StudyStore.create(place, small_plan())
    assert sorted(path.name for path in place.parent.iterdir()) == ["study"]
    secret = place / "secret"
    assert (secret.stat().st_mode & 0o777, len(store.secret)) == (0o600, 32)
    store.dispose()
    assert sorted(path.name for path in place.iterdir()) == ["plan.json", "secret", "study.sqlite"]
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(UsageError, match="a study is there already"):
        StudyStore.create(place, small_plan())
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_two_studies_have_two_secrets(new_store: MakeStore) -> None:
    assert new_store("a").secret != new_store("b").secret


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    StudyStore.create(tmp_path / "study", small_plan()).dispose()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "file").touch()
    with pytest.raises(UsageError, match="something is there already"):
        StudyStore.create(tmp_path / "notes", small_plan("notes"))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write") as caught:
        StudyStore.create(tmp_path / "file" / "study", small_plan())
    assert "\n" not in str(caught.value)


def _sql(*statements: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "study.sqlite", isolation_level=None)) as database:
            for statement in statements:
                database.execute(statement)

    return change


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (
        folder.joinpath(name).write_bytes(change(folder.joinpath(name).read_bytes())) and None
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda folder: (folder / "study.sqlite").unlink(), "missing, and with it all ratings"),
        (_bytes("study.sqlite", lambda _: b"no database " * 999), "restore it from a backup"),
        (_bytes("study.sqlite", lambda data: data[:8192]), "restore it from a backup"),
        (_bytes("study.sqlite", lambda data: data[:4096] + b"\xff" * (len(data) - 4096)), "backup"),
        (_bytes("study.sqlite", lambda _: b""), "holds no study"),
        (_sql("DELETE FROM study"), "holds no study"),
        (_sql("UPDATE study SET schema_version = 99"), "schema 99 is newer than this program's 1"),
        (_sql("UPDATE study SET plan_digest = 'sha256:0'"), "belongs to another study"),
        (_sql("UPDATE study SET name = 'other'"), r"belongs to another study \(other"),
        (lambda folder: (folder / "secret").unlink(), "secret: cannot be read"),
        (_bytes("secret", lambda _: b"ab\n"), "1 bytes instead of 32"),
        (_bytes("secret", lambda _: b"\xff\xfe"), "secret: cannot be read"),
        (_bytes("plan.json", lambda _: b"{"), "broken plan"),
    ],
)
def test_what_is_wrong_with_a_study_is_one_line(
    store: StudyStore, change: Callable[[Path], None], line: str
) -> None:
    begun(store)
    store.dispose()
    change(store.folder)
    with pytest.raises(RunError, match=line) as caught:
        StudyStore.open(store.folder)
    assert "\n" not in str(caught.value)
    assert str(store.folder) in str(caught.value)


def test_a_study_that_is_not_there_is_not_made_by_opening(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no study there"):
        StudyStore.open(tmp_path / "study")
    assert list(tmp_path.iterdir()) == []


def test_a_url_goes_with_postgresql_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "study"
    with pytest.raises(UsageError, match="kept in a file"):
        StudyStore.create(place, small_plan(), "postgresql://nobody@127.0.0.1:1/none")
    # The environment's is meant for other studies.
    monkeypatch.setenv("COGUMI_STUDY_DATABASE_URL", "postgresql://nobody:hunter2@127.0.0.1:1/none")
    StudyStore.create(place, small_plan()).dispose()
    monkeypatch.delenv("COGUMI_STUDY_DATABASE_URL")
    for url, line in ((None, "set COGUMI_STUDY_DATABASE_URL"), ("sqlite:///x", "begins with postgresql://")):
        with pytest.raises(UsageError, match=line):
            StudyStore.create(tmp_path / "other", small_plan(database="postgresql"), url)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study"]


@pytest.mark.postgresql
def test_a_refused_server_shows_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs the driver and no server."""
    monkeypatch.setenv("COGUMI_STUDY_DATABASE_URL", "postgresql://nobody:hunter2@127.0.0.1:1/none")
    with pytest.raises(RunError, match="refused") as caught:
        StudyStore.create(tmp_path / "other", small_plan(database="postgresql"))
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_database_itself_refuses_what_the_code_never_writes(store: StudyStore) -> None:
    first, second = begun(store), begun(store)
    answer(store, first, 2)
    store.dispose()
    wrong = [
        f"UPDATE raters SET slot = 1 WHERE id = {second}",
        "UPDATE ratings SET score = 11",
        "UPDATE ratings SET preference = 'left'",
        "UPDATE ratings SET source = 'machine'",
        f"INSERT INTO ratings SELECT {first}, 99, source, score, preference, comment, flag, focus_ms, "
        "revision, first_at, submitted_at FROM ratings",
        f"INSERT INTO submissions SELECT {first}, 'k', position, source, score, preference, comment, flag, "
        "focus_ms, revision, submitted_at FROM ratings",
    ]
    with closing(sqlite3.connect(store.folder / "study.sqlite")) as database:
        database.execute("PRAGMA foreign_keys=ON")
        for statement in wrong:
            with pytest.raises(sqlite3.IntegrityError):
                database.execute(statement)


def test_every_row_says_where_it_came_from(store: StudyStore) -> None:
    rater = store.enter(*store.invite(1, "simulated"))
    assert rater is not None
    store.consent(rater, CONSENT, "en")
    store.instructed(rater)
    answer(store, rater, 2)
    answer(store, begun(store), 2)
    for table in ("raters", "ratings", "submissions"):
        found = select(store.folder, f"SELECT source FROM {table} ORDER BY 1")
        assert found == [("human",), ("simulated",)]
