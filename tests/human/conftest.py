"""A small study with a clock that is told the time; this folder's helpers made importable."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# pytest's importlib mode leaves test folders off the path.
sys.path.insert(0, str(Path(__file__).parent))

from small_study import Clock, small_plan

from evals.human.store import StudyStore

if TYPE_CHECKING:
    from app_client import Served

MakeStore = Callable[..., StudyStore]


@pytest.fixture
def clock() -> Clock:
    """The time of the study, which stands still until it is told otherwise."""
    return Clock()


@pytest.fixture
def new_store(tmp_path: Path, clock: Clock) -> Iterator[MakeStore]:
    """Make a study in ``tmp_path/NAME``: ``new_store("study", raters=5)``, settings as in ``StudyPlan``."""
    made: list[StudyStore] = []

    def make(name: str = "study", /, *, url: str | None = None, **settings: Any) -> StudyStore:
        plan = small_plan(**{"name": name, **settings})
        made.append(StudyStore.create(tmp_path / name, plan, url, now=clock))
        return made[-1]

    yield make
    for store in made:
        store.dispose()


@pytest.fixture(scope="session")
def empty_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of three raters in which nothing has happened yet; only to be copied."""
    folder = tmp_path_factory.mktemp("studies") / "study"
    StudyStore.create(folder, small_plan(), now=Clock()).dispose()
    return folder


@pytest.fixture
def store(empty_study: Path, tmp_path: Path, clock: Clock) -> Iterator[StudyStore]:
    """A study of three raters and ten pages in ``tmp_path/study``."""
    opened = StudyStore.open(shutil.copytree(empty_study, tmp_path / "study"), now=clock)
    yield opened
    opened.dispose()


@pytest.fixture(scope="module")
def shared_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The app on an open study, one for a whole file of tests."""
    from app_client import serving

    folder: Path = tmp_path_factory.mktemp("app") / "study"
    with serving(StudyStore.create(folder, small_plan(), now=Clock())) as served:
        yield served


@pytest.fixture
def served(shared_app: Served) -> Iterator[Served]:
    """An open study without raters."""
    yield shared_app
    with closing(sqlite3.connect(shared_app.store.folder / "study.sqlite")) as database:
        for table in ("drafts", "submissions", "ratings", "assignments", "raters", "invites"):
            database.execute(f"DELETE FROM {table}")
        database.commit()
