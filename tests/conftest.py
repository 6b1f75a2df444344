"""Fixtures that every test folder shares, and the environment that the tests run in."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Before any test imports the libraries that read these: no download, no fork warnings, and no more threads
# than the smallest machine that the tests are meant for has cores.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as cogumi.cli does, and says why


_LONGEST = (
    "test_kill.py",
    "test_many_devices.py",
    "test_data_under_faults.py",
    "test_crash.py",
    "test_browser.py",
)
"""Files of few tests and minutes: begun last they would leave one core alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first (Makefile: processes take whole files in this order)."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the workspace and the database of whoever runs the tests out of them."""
    for name in ("COGUMI_WORKSPACE", "COGUMI_DATABASE_URL", "COGUMI_STUDY_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace folder that every command of the test uses, also in subprocesses."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.setenv("COGUMI_WORKSPACE", str(folder))
    return folder


class Answer(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cogumi(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Answer]:
    """The real command line in this process, called in an empty folder, without the user's data folder."""
    from cogumi.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COGUMI_DATA", raising=False)

    def call(*arguments: str) -> Answer:
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        seen = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Answer(stop.value.code, seen.out, seen.err)

    return call


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real inputs: ``COGUMI_DATA``, else ``../shared/data`` beside the repository."""
    named = os.environ.get("COGUMI_DATA")
    if named:
        folder = Path(named)
        if not folder.is_dir():
            pytest.fail(f"COGUMI_DATA names no folder: {named}")
        return folder
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no benchmark data: set COGUMI_DATA or place it at ../shared/data")
    return folder


@pytest.fixture(scope="session")
def browser() -> str:
    """The headless browser for tests that look at pages: ``COGUMI_TEST_BROWSER``, else an installed one."""
    named = os.environ.get("COGUMI_TEST_BROWSER")
    if named == "none":
        pytest.skip("COGUMI_TEST_BROWSER is none")
    for name in [named] if named else ["chromium", "chromium-browser", "google-chrome"]:
        found = shutil.which(name)
        if found:
            return found
    if named:
        pytest.fail(f"COGUMI_TEST_BROWSER names no program: {named}")
    pytest.skip("no browser: install chromium or set COGUMI_TEST_BROWSER")


@pytest.fixture
def postgresql_url() -> Iterator[str]:
    """An empty database on the server of ``COGUMI_TEST_POSTGRES_URL``, dropped after the test."""
    from sqlalchemy import create_engine, make_url, text

    given = os.environ.get("COGUMI_TEST_POSTGRES_URL")
    if not given:
        pytest.fail("COGUMI_TEST_POSTGRES_URL is not set; `make test-postgresql` starts a server and sets it")
    url = make_url(given)
    name = f"cogumi_test_{uuid.uuid4().hex}"
    server = create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            # A test that failed may have left its connections open.
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        server.dispose()
