"""A workspace is read whatever state it is in, and reading it changes nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_dashboard import OLDER, RUN, contents

from cogumi.errors import RunError, UsageError
from cogumi.ledger import Ledger
from cogumi.ledger.database import writing
from cogumi.ledger.schema import HEAD_REVISION, metadata
from cogumi.workspace import DATABASE_URL_ENV, LEDGER_FILE
from dashboard import view as views
from dashboard.source import ReadOnlyLedger, ReadOnlyWorkspace
from dashboard.view import Kept, open_view

WRITER = """
import sys, time
from pathlib import Path
from cogumi.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
for number in range(100_000):
    ledger.start_run(f"live-{number}", "p", {"text": "x" * 40_000}, [])
    if number == 5:
        print("writing", flush=True)
"""


def change(folder: Path, *statements: str) -> None:
    """Change the ledger as another program would, which leaves no WAL behind."""
    connection = sqlite3.connect(folder / LEDGER_FILE)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_reading_everything_changes_no_file(copied: Path) -> None:
    before = contents(copied)
    view = open_view(copied, None)
    ledger = view.workspace.ledger
    assert view.report().run.name == RUN
    assert view.evidence().tasks(view.report().artifacts[0].digest)
    assert ledger.spent(RUN)[0] == pytest.approx(0.04)
    assert ledger.latest_done(RUN)["q4"].artifact
    assert set(ledger.snapshot()) == {table.name for table in metadata.sorted_tables}
    assert ledger.warning() is None
    assert contents(copied) == before


@pytest.mark.parametrize(
    "write",
    [
        lambda found: found.ledger.start_run("x", "p", {}, []),
        lambda found: found.ledger.record_verdict(RUN, {"gate": "g", "artifact": "", "attempt": 1}),
        lambda found: found.ledger.number("g", "items", "a"),
        lambda found: found.create(),
        lambda found: found.lock("x"),
        lambda found: found.publish(found.root / "a", "b"),
    ],
)
def test_writing_is_refused(copied: Path, write: Any) -> None:
    before = contents(copied)
    with pytest.raises((RunError, KeyError)):
        write(ReadOnlyWorkspace(copied))
    assert not ReadOnlyWorkspace(copied).scratch("sha256:00").exists()
    assert contents(copied) == before


def test_even_sql_cannot_write(copied: Path) -> None:
    with ReadOnlyWorkspace(copied).ledger.engine.connect() as connection, pytest.raises(RunError):
        connection.exec_driver_sql("DELETE FROM runs")
    assert len(open_view(copied, None).workspace.ledger.run_rows()) == 2


def test_the_run_touched_last_is_chosen_and_an_unknown_one_is_told(workspace: Path) -> None:
    assert open_view(workspace, None).run == RUN
    assert open_view(workspace, OLDER).run == OLDER
    with pytest.raises(UsageError, match="did you mean 'small-1'"):
        open_view(workspace, "smal-1")


def test_a_workspace_that_is_not_there_is_empty_and_stays_away(tmp_path: Path) -> None:
    view = open_view(tmp_path / "gone", None)
    assert view.run is None
    assert view.workspace.ledger.snapshot()["runs"] == []
    assert view.workspace.ledger.revision() is None
    assert view.workspace.ledger.warning() is None
    with pytest.raises(UsageError, match="cogumi run"):
        view.report()
    assert not (tmp_path / "gone").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        open_view(tmp_path / "file", None)


def test_a_ledger_that_begins_to_exist_is_seen(tmp_path: Path) -> None:
    view = open_view(tmp_path, None)
    (tmp_path / LEDGER_FILE).touch()
    assert view.workspace.ledger.run_rows() == []
    Ledger(tmp_path).start_run("first", "p", {}, [])
    assert [row["name"] for row in view.workspace.ledger.run_rows()] == ["first"]


def test_reading_goes_on_while_another_process_writes(copied: Path) -> None:
    ledger = ReadOnlyWorkspace(copied).ledger
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(copied)], stdout=subprocess.PIPE, text=True
    ) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
            seen, states = [], set()
            # Far past a checkpoint of the WAL (1,000 pages), through which readers must go on as well.
            while len(seen) < 2 or seen[-1] - seen[0] < 150:
                states.add(ledger.state())
                seen.append(len(ledger.run_rows()))
        finally:
            writer.kill()
    assert seen == sorted(seen)
    assert len(states) > 2
    # Killed: its WAL lies there, and what it acknowledged is read.
    assert (copied / f"{LEDGER_FILE}-wal").stat().st_size > 0
    assert len(ledger.run_rows()) >= seen[-1]
    assert open_view(copied, RUN).report().run.name == RUN


def test_an_older_ledger_is_read_and_not_migrated(copied: Path) -> None:
    writer = Ledger(copied)
    rows = writer.snapshot()
    writer.close()
    change(
        copied,
        "INSERT INTO batches VALUES ('k', 'r', 'openai', 'b', 'open', 1.0, '[]')",
        "ALTER TABLE batches DROP COLUMN requests",
        "UPDATE alembic_version SET version_num = '0001'",
    )
    before = contents(copied)
    ledger = open_view(copied, RUN).workspace.ledger
    assert ledger.revision() == "0001"
    assert "older schema 0001" in str(ledger.warning())
    found = ledger.snapshot()
    assert found["batches"][0]["requests"] is None
    assert {**found, "batches": []} == rows
    assert open_view(copied, RUN).report().gates[0].verdict == "PASS"
    assert contents(copied) == before
    assert Ledger(copied).snapshot()["batches"][0]["requests"] is None


def test_what_a_newer_ledger_still_has_is_read(copied: Path) -> None:
    change(
        copied,
        "ALTER TABLE runs ADD COLUMN colour TEXT",
        "ALTER TABLE calls RENAME COLUMN cost_usd TO cost",
        "DROP TABLE gate_attempts",
        "UPDATE alembic_version SET version_num = '0099'",
    )
    before = contents(copied)
    view = open_view(copied, None)
    warning = str(view.workspace.ledger.warning())
    assert "newer than this program's" in warning
    assert HEAD_REVISION in warning
    money = view.report().money
    assert money.real_usd == 0
    # What it paid is unknown here, and not nothing.
    assert money.unpriced_calls == sum(row.calls for row in money.calls) > 0
    assert view.workspace.ledger.snapshot()["gate_attempts"] == []
    assert contents(copied) == before


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_locked_ledger_is_one_line_and_read_again_later(
    copied: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashboard.source._WAIT_S", 0.05)
    other = sqlite3.connect(copied / LEDGER_FILE, isolation_level=None)
    other.execute(f"PRAGMA journal_mode={mode}")
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    other.execute("UPDATE runs SET note = 'held'")
    with pytest.raises(RunError, match="locked by another program") as found:
        open_view(copied, None)
    assert "\n" not in str(found.value)
    other.execute("COMMIT")
    other.close()
    assert open_view(copied, None).workspace.ledger.runs()[0]["note"] == "held"


def test_a_wal_that_cannot_be_joined_is_one_line(copied: Path) -> None:
    # Stands for a folder that may not be written: the file beside a WAL cannot be made.
    (copied / f"{LEDGER_FILE}-wal").write_bytes(b"x" * 64)
    (copied / f"{LEDGER_FILE}-shm").symlink_to(copied / "gone" / "shm")
    with pytest.raises(RunError, match="copy the workspace"):
        open_view(copied, None)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data: b"no database at all" * 100, "damaged"),
        (lambda data: data[:5000], "damaged"),
        (lambda data: data[:4096] + b"\xff" * (len(data) - 4096), "damaged"),
    ],
)
def test_a_corrupt_ledger_is_one_line(copied: Path, spoil: Any, told: str) -> None:
    file = copied / LEDGER_FILE
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(RunError, match=told) as found:
        open_view(copied, None).report()
    assert "\n" not in str(found.value)


def test_a_row_that_is_no_json_is_one_line(copied: Path) -> None:
    change(copied, "UPDATE verdicts SET document = '{'")
    with pytest.raises(RunError, match="a row that is broken"):
        open_view(copied, None).report()


def test_a_report_is_built_once_for_a_state(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_REPORTS", Kept(4))
    first = open_view(copied, RUN).report()
    assert open_view(copied, RUN).report() is first
    assert open_view(copied, OLDER).report() is not first
    with writing(Ledger(copied).engine) as connection:
        connection.exec_driver_sql("UPDATE runs SET note = 'changed'")
    second = open_view(copied, RUN).report()
    assert second.run.note == "changed"
    assert open_view(copied, RUN).report() is second
    index = open_view(copied, RUN).evidence()
    assert open_view(copied, OLDER).evidence() is index
    part = next((copied / "evidence").rglob("*.parquet"))
    part.rename(part.with_name("gone"))
    assert open_view(copied, RUN).evidence() is not index


def test_the_state_of_evidence_is_another_after_every_change_of_a_file(copied: Path) -> None:
    def state() -> object:
        return ReadOnlyWorkspace(copied).evidence_state

    # As if all was written a minute ago: settled folders are not listed again, and files are still seen.
    for path in [*(copied / "evidence").rglob("*"), copied / "evidence"]:
        os.utime(path, (0, time.time() - 60))
    seen = [state()]
    assert state() == seen[0]
    part = next((copied / "evidence").rglob("*.parquet"))
    whole = part.read_bytes()
    # Broken in place: same folder, same name, same size.
    part.write_bytes(b"x" * len(whole))
    seen.append(state())
    (part.parent / "part-00000099.parquet").write_bytes(b"")
    seen.append(state())
    part.unlink()
    seen.append(state())
    meta = part.with_name("meta.json")
    meta.write_text(meta.read_text() + " ")
    seen.append(state())
    (copied / "references").mkdir(exist_ok=True)
    (copied / "references" / "mine.yaml").write_text("a: 1")
    seen.append(state())
    (copied / "references" / "mine.yaml").write_text("a: 12")
    seen.append(state())
    shutil.rmtree(part.parent)
    seen.append(state())
    assert len(set(seen)) == len(seen)
    assert ReadOnlyWorkspace(copied / "nowhere").evidence_state


def test_only_the_last_values_are_kept_and_no_error_is() -> None:
    kept, made = Kept[str](2), []

    def make(name: str) -> str:
        made.append(name)
        if name == "bad":
            raise RunError("broken")
        return name

    for name in ("a", "b", "a", "c", "a", "b"):
        assert kept.get((name,), lambda name=name: make(name)) == name
    assert made == ["a", "b", "c", "b"]
    for _ in range(2):
        with pytest.raises(RunError):
            kept.get(("bad",), lambda: make("bad"))
    assert made.count("bad") == 2


def test_the_database_of_the_environment_is_read(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE_URL_ENV, f"sqlite:///{copied / LEDGER_FILE}")
    assert open_view(tmp_path / "elsewhere", None).run == RUN
    for url in ("sqlite://", "no-such-db://user:hunter2@host/name", "not a url"):
        with pytest.raises(UsageError, match=DATABASE_URL_ENV) as found:
            ReadOnlyLedger(copied, url)
        assert "hunter2" not in str(found.value)
