"""A small real workspace, made once, and its pages drawn by Streamlit's own test driver."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

# pytest's importlib mode leaves test folders off the path.
sys.path.insert(0, str(Path(__file__).parent))

from small_dashboard import fill

Page = Callable[..., "AppTest"]


@pytest.fixture(scope="session", autouse=True)
def _packages_read_once() -> Iterator[None]:
    """Every AppTest reads the metadata of all installed packages, most of its time; none is added here."""
    from streamlit.components.v2 import manifest_scanner

    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(manifest_scanner.scan_component_manifests)
        patch.setattr(manifest_scanner, "scan_component_manifests", read)
        yield


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a workspace with a whole run; only to be read. ``copied`` is one to change."""
    folder = tmp_path_factory.mktemp("dashboard") / "workspace"
    fill(folder)
    return folder


@pytest.fixture
def copied(workspace: Path, tmp_path: Path) -> Path:
    """A copy of the workspace."""
    return shutil.copytree(workspace, tmp_path / "workspace")


@pytest.fixture
def page_of() -> Page:
    """Draw a page of any workspace: ``page_of(folder, "gates", run="small-1", ...)``."""
    return draw


@pytest.fixture
def page(workspace: Path) -> Page:
    """Draw a page of the small workspace: ``page("gates", attempt="2")``, parameters as in the address."""

    def of_the_workspace(name: str, /, **query: str) -> AppTest:
        return draw(workspace, name, **query)

    return of_the_workspace


def draw(workspace: Path, name: str, /, **query: str) -> AppTest:
    """Return the page after its first run, in the dashboard's own shell."""
    from streamlit.testing.v1 import AppTest

    # AppTest runs the text of this function as a script of its own.
    def script(name: str, workspace: str) -> None:
        from pathlib import Path

        from dashboard.app import main

        main(name, Path(workspace))

    app = AppTest.from_function(script, default_timeout=60, args=(name, str(workspace)))
    for parameter, value in query.items():
        app.query_params[parameter] = value
    return app.run()


@pytest.fixture(autouse=True)
def _own_main() -> Iterator[None]:
    """AppTest leaves its script as ``__main__``, which processes spawned by later tests would run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main
