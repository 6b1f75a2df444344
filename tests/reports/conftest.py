"""Workspaces to report on; ``small_run`` makes them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from cogumi.workspace import Workspace

# pytest's importlib mode leaves test folders off the path.
sys.path.insert(0, str(Path(__file__).parent))

from small_run import Maker, fill


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    """A workspace with a run that has just begun."""
    return Maker(Workspace(tmp_path / "workspace"))


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a whole run; only to be copied."""
    folder = tmp_path_factory.mktemp("whole") / "workspace"
    maker = Maker(Workspace(folder))
    fill(maker)
    maker.workspace.ledger.close()
    return folder


@pytest.fixture
def filled(whole_run: Path, tmp_path: Path) -> Maker:
    """A copy of the workspace with a whole run."""
    return Maker(Workspace(shutil.copytree(whole_run, tmp_path / "workspace")), begun=True)
