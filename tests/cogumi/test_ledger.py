from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import make_url

from cogumi.errors import BudgetError, RunError, UsageError
from cogumi.ledger import Ledger, LedgerCalls
from cogumi.ledger.database import DATABASE_URL_ENV
from cogumi.ledger.schema import HEAD_REVISION, metadata
from cogumi.stage import CallRecord, OpenBatch

MIGRATIONS = Path(__file__).parents[2] / "cogumi" / "migrations"


def call(key: str, usd: float | None = 0.25, *, simulated: bool = False) -> CallRecord:
    return CallRecord(key, "openai", "m", {"text": key}, 10, 5, usd, simulated)


def test_a_ledger_that_may_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Ledger(tmp_path)) as ledger:
        ledger.start_run("r", "p", {}, [])
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(os, "access", lambda *_: False)
    with closing(Ledger(tmp_path)) as ledger:
        assert [row["name"] for row in ledger.runs()] == ["r"]
        with pytest.raises(RunError, match=r"the ledger cannot be written: .*writable"):
            ledger.end_run("r", "done", 0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_that_is_no_ledger_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(content)
    with pytest.raises(RunError, match=r"ledger\.sqlite.*move it away"):
        Ledger(tmp_path)


def check_migrated(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrations_build_exactly_the_schema(tmp_path: Path) -> None:
    check_migrated(Ledger(tmp_path))
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == HEAD_REVISION


def test_sqlite_is_durable(tmp_path: Path) -> None:
    with Ledger(tmp_path).engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_broken_ledger_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(
        b"this is no database, but it is long enough to be taken for one" * 99
    )
    with pytest.raises(RunError, match="cannot open the ledger"):
        Ledger(tmp_path)


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(RunError, match="newer"):
        Ledger(tmp_path)


def test_a_bad_url_shows_no_password(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as found:
        Ledger(tmp_path, "no-such-db://user:hunter2@host/name")
    assert "hunter2" not in str(found.value)


def test_recorded_calls_are_kept_once(tmp_path: Path) -> None:
    calls = LedgerCalls(Ledger(tmp_path), "run", "step", None)
    calls.record([call("a"), call("b")])
    calls.record([call("b"), call("c"), call("c")])
    assert calls.recorded(["a", "b", "c", "d"]) == {key: {"text": key} for key in "abc"}
    assert calls._ledger.spent("run") == (0.75, 0.0)


def test_two_runs_that_pay_for_the_same_call_record_it_once(tmp_path: Path) -> None:
    ledger, together = Ledger(tmp_path), Barrier(4)

    def pay(run: str) -> None:
        calls = LedgerCalls(ledger, run, "step", None)
        for number in range(20):
            together.wait(60)
            calls.record([call(f"{number}")])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(pay, "abcd"))
    assert sum(ledger.spent(run)[0] for run in "abcd") == 20 * 0.25


def test_the_limit_stops_after_the_commit(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    calls = LedgerCalls(ledger, "run", "step", 1.0)
    calls.check_budget(0.9)
    with pytest.raises(BudgetError, match="limit"):
        calls.check_budget(1.1)
    with pytest.raises(BudgetError):
        calls.record([call("a", 2.0)])
    assert set(calls.recorded(["a"])) == {"a"}


def test_an_unknown_price_is_not_zero(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    LedgerCalls(ledger, "run", "step", None).record([call("a", None), call("b", 0.5, simulated=True)])
    totals = {row["simulated"]: row for row in ledger.call_totals("run")}
    assert totals[False]["unpriced"] == 1
    assert totals[False]["cost_usd"] is None
    assert ledger.spent("run") == (0.0, 0.5)


def test_batches_are_remembered_until_collected(tmp_path: Path) -> None:
    calls = LedgerCalls(Ledger(tmp_path), "run", "step", None)
    assert calls.open_batches("openai") == []
    batch = OpenBatch("k", "batch_1", ("one", "two"))
    calls.save_batch("openai", batch)
    assert LedgerCalls(Ledger(tmp_path), "run", "step", None).open_batches("openai") == [batch]
    assert calls.open_batches("anthropic") == []
    calls.close_batch("k")
    assert calls.open_batches("openai") == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), max_size=20))
def test_attempt_numbers_count_distinct_artifacts(
    tmp_path_factory: pytest.TempPathFactory, seen: list[str]
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger"))
    first_seen: list[str] = []
    for artifact in seen:
        if artifact not in first_seen:
            first_seen.append(artifact)
        assert ledger.number("phase1", "items", artifact) == first_seen.index(artifact) + 1
    assert ledger.number("phase1", "other items", "a") == 1


def _claim(folder: str, start: int) -> None:
    ledger = Ledger(Path(folder))
    for index in range(start, start + 20):
        ledger.number("gate", "items", f"artifact-{index}")


def test_two_processes_never_share_an_attempt(tmp_path: Path) -> None:
    check_two_processes(tmp_path)


def check_two_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_claim, args=(str(tmp_path), start)) for start in (0, 10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    ledger = Ledger(tmp_path)
    numbers = [ledger.number("gate", "items", f"artifact-{index}") for index in range(30)]
    assert sorted(numbers) == list(range(1, 31))


def test_a_step_that_was_killed_is_replaced(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.start_step("run", "base", 1, "k1", "stage")
    ledger.start_step("run", "base", 1, "k1", "stage")
    assert ledger.finished("k1") is None
    ledger.end_step("run", "base", 1, status="done", artifact="sha256:1", metrics={"seconds": 2.0})
    row = ledger.finished("k1")
    assert row is not None
    assert (row.artifact, row.metrics) == ("sha256:1", {"seconds": 2.0})
    assert len(ledger.steps("run")) == 1


def test_the_same_verdict_is_kept_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    document = {"gate": "phase1", "artifact": "sha256:1", "attempt": 1, "verdict": "FAIL", "criteria": []}
    ledger.record_verdict("run", document)
    ledger.record_verdict("run", document)
    ledger.record_verdict("run", {**document, "attempt": 2, "verdict": "PASS"})
    assert [row["verdict"] for row in ledger.verdicts("run")] == ["FAIL", "PASS"]


@pytest.mark.postgresql
def test_postgresql_holds_the_same_book(tmp_path: Path, postgresql_url: str) -> None:
    ledger = Ledger(tmp_path, postgresql_url)
    check_migrated(ledger)
    calls = LedgerCalls(ledger, "pg", "step", None)
    calls.record([call("pg-a"), call("pg-b")])
    assert set(calls.recorded(["pg-a", "pg-b"])) == {"pg-a", "pg-b"}
    assert ledger.number("pg", "items", "a") == 1
    assert ledger.number("pg", "items", "b") == 2
    ledger.close()


@pytest.mark.postgresql
def test_postgresql_migrates_and_numbers_once_for_many_processes(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE_URL_ENV, postgresql_url)
    check_two_processes(tmp_path)


@pytest.mark.postgresql
def test_postgresql_that_is_away_is_one_line_without_the_password(
    tmp_path: Path, postgresql_url: str
) -> None:
    gone = make_url(postgresql_url).set(database="no_such_database", password="hunter2")
    with pytest.raises(RunError, match="cannot open the ledger") as found:
        Ledger(tmp_path, gone.render_as_string(hide_password=False))
    assert "hunter2" not in str(found.value)
    assert "\n" not in str(found.value)
