"""The shell around the pages: it reads only, says what is missing, and shows no traceback."""

from __future__ import annotations

import importlib
import logging
import sqlite3
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from small_dashboard import OLDER, RUN, contents
from streamlit.testing.v1 import AppTest

from cogumi.errors import RunError
from cogumi.workspace import LEDGER_FILE, Workspace
from dashboard.app import PAGES
from dashboard.view import View


def told(app: AppTest) -> str:
    """Return all that the page says outside tables, one part a line."""
    return "\n".join(
        str(part.value)
        for kind in ("title", "header", "markdown", "caption", "info", "warning", "error", "code")
        for part in app.get(kind)
    )


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a page of the test's own in the place of the overview."""

    def put_page(draw: Any) -> None:
        module = ModuleType("dashboard.pages.overview")
        module.draw = draw  # type: ignore[attr-defined]
        real = importlib.import_module
        monkeypatch.setattr(
            "importlib.import_module",
            lambda name, *rest: module if name == "dashboard.pages.overview" else real(name, *rest),
        )

    return put_page


@pytest.mark.parametrize("name", list(PAGES))
def test_a_page_is_drawn_and_changes_no_file(copied: Path, page_of: Any, name: str) -> None:
    before = contents(copied)
    app = page_of(copied, name)
    assert not app.exception
    assert "cannot be drawn" not in told(app)
    assert len(app.title) == 1
    assert app.sidebar.selectbox(key="run").value == RUN
    assert contents(copied) == before


def test_the_sidebar_tells_the_run_and_where_it_lies(workspace: Path, page: Any, put: Any) -> None:
    seen: list[View] = []
    put(seen.append)
    app = page("overview")
    assert "■ stopped · profile small" in told(app)
    assert "gate phase3 says FAIL on attempt 1" in told(app)
    assert str(workspace.name) in told(app)
    app.sidebar.selectbox(key="run").select(OLDER).run()
    assert "✗ failed" in told(app)
    assert [view.run for view in seen] == [RUN, OLDER]
    assert page("overview", run=OLDER).sidebar.selectbox(key="run").value == OLDER


def test_a_run_that_is_not_there_is_told_and_the_latest_shown(page: Any, put: Any) -> None:
    put(lambda view: None)
    app = page("overview", run="<b>gone</b>")
    assert r"The address asks for run “\<b\>gone\</b\>”, which is not here." in told(app)
    assert app.sidebar.selectbox(key="run").value == RUN


def test_an_empty_workspace_says_what_to_type(tmp_path: Path, page_of: Any) -> None:
    for folder, line in ((tmp_path / "gone", "There is no workspace"), (tmp_path, "has no run")):
        app = page_of(folder, "gates")
        assert not app.exception
        assert line in app.info[0].value
        assert app.code[0].value == f"cogumi run --workspace {folder}"
    Workspace(tmp_path).ledger.close()
    assert "has no run" in page_of(tmp_path, "overview").info[0].value
    assert sorted(path.name for path in tmp_path.iterdir()) == [LEDGER_FILE]


def test_an_error_is_one_line_and_what_was_drawn_stays(
    page: Any, put: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def draw(view: View) -> None:
        import streamlit as st

        st.title("Begun")
        raise ZeroDivisionError("secret detail")

    put(draw)
    with caplog.at_level(logging.ERROR, "dashboard"):
        app = page("overview")
    assert not app.exception
    assert app.title[0].value == "Begun"
    assert "ZeroDivisionError" in app.error[0].value
    assert "secret detail" not in told(app)
    assert "Traceback" not in told(app)
    assert "secret detail" in caplog.text


def test_an_error_of_ours_says_its_line_as_text(page: Any, put: Any) -> None:
    def draw(view: View) -> None:
        raise RunError("evidence/<b>x</b>.parquet: *broken*")

    put(draw)
    assert page("overview").error[0].value == r"evidence/\<b\>x\</b\>.parquet: \*broken\*"


def test_a_locked_ledger_is_one_line_until_it_is_read_again(
    copied: Path, page_of: Any, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashboard.source._WAIT_S", 0.05)
    put(lambda view: None)
    other = sqlite3.connect(copied / LEDGER_FILE, isolation_level=None)
    other.execute("PRAGMA journal_mode=DELETE")
    other.execute("BEGIN EXCLUSIVE")
    app = page_of(copied, "overview")
    assert not app.exception
    assert "locked" in app.error[0].value
    other.execute("COMMIT")
    other.close()
    app.button[0].click().run()
    assert not app.error
    assert app.sidebar.selectbox(key="run").value == RUN


@pytest.mark.parametrize(("revision", "word"), [("0001", "older"), ("0099", "newer")])
def test_another_schema_is_told(copied: Path, page_of: Any, put: Any, revision: str, word: str) -> None:
    put(lambda view: None)
    connection = sqlite3.connect(copied / LEDGER_FILE)
    connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.commit()
    connection.close()
    app = page_of(copied, "overview")
    assert word in app.warning[0].value
    assert app.sidebar.selectbox(key="run").value == RUN


def test_a_corrupt_ledger_is_one_line_on_every_page(copied: Path, page_of: Any) -> None:
    (copied / LEDGER_FILE).write_bytes(b"not a database at all" * 1000)
    for name in ("overview", "items"):
        app = page_of(copied, name)
        assert not app.exception
        assert len(app.error) == 1
        assert "damaged" in app.error[0].value
