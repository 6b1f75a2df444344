"""The dashboard's ledger in PostgreSQL: read in transactions that cannot write."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url

from cogumi.errors import RunError
from cogumi.ledger import Ledger
from cogumi.ledger.database import writing
from cogumi.workspace import DATABASE_URL_ENV
from dashboard.source import ReadOnlyLedger
from dashboard.view import open_view


@pytest.mark.postgresql
def test_it_is_read_and_not_written(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE_URL_ENV, postgresql_url)
    found = ReadOnlyLedger(tmp_path)
    # Nothing was ever written there: no table is missing, all are empty.
    assert found.run_rows() == []
    assert found.warning() is None
    writer = Ledger(tmp_path)
    before = found.state()
    writer.start_run("run", "p", {"title": "half a pair \ud800"}, [])
    assert found.state() != before
    assert found.state() == found.state()
    assert open_view(tmp_path / "none", None).run == "run"
    assert found.runs()[0]["profile"] == {"title": "half a pair ?"}
    with found.engine.connect() as connection, pytest.raises(RunError, match="read-only"):
        connection.exec_driver_sql("DELETE FROM runs")
    with pytest.raises(RunError, match="only reads"):
        found.end_run("run", "done", 0, "")
    writer.close()


@pytest.mark.postgresql
def test_an_older_schema_is_read_and_not_migrated(tmp_path: Path, postgresql_url: str) -> None:
    writer = Ledger(tmp_path, postgresql_url)
    with writing(writer.engine) as connection:
        connection.exec_driver_sql("INSERT INTO batches VALUES ('k', 'r', 'openai', 'b', 'open', 1.0, '[]')")
        connection.exec_driver_sql("ALTER TABLE batches DROP COLUMN requests")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    found = ReadOnlyLedger(tmp_path, postgresql_url)
    assert "older schema 0001" in str(found.warning())
    assert found.snapshot()["batches"][0]["requests"] is None
    assert found.revision() == "0001"
    writer.close()


@pytest.mark.postgresql
def test_one_that_is_away_is_one_line_without_the_password(tmp_path: Path, postgresql_url: str) -> None:
    gone = make_url(postgresql_url).set(database="no_such_database", password="hunter2")
    with pytest.raises(RunError, match="cannot read the ledger") as found:
        ReadOnlyLedger(tmp_path, gone.render_as_string(hide_password=False)).run_rows()
    assert "hunter2" not in str(found.value)
    assert "\n" not in str(found.value)
