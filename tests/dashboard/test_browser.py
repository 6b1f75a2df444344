"""The dashboard as a browser shows it: one real server, every page, downloads, both themes, a phone."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from small_dashboard import MARKUP, OLDER, RUN

from cogumi.evidence import list_evidence
from cogumi.workspace import LEDGER_FILE
from dashboard.app import PAGES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Download, Page, Request

pytestmark = pytest.mark.timeout(300)

SCREEN = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
# The page that the server says it is at is tried as the server's base first (streamlit, index.html).
STREAMLITS_OWN = re.compile(r"/\w+/_stcore/(health|host-config)$")
HOSTILE = (
    f"<img src=x onerror=alert(2)>{MARKUP}",
    "<b>a line of a megabyte</b>" * 38_837,
    "\u202eabc\u2066 שלום مرحبا\x00\x1b[31m ![](https://example.test/x.png)",
)
GRAVE = ("serious", "critical")
WHOLE = """() => {
  const app = document.querySelector('[data-testid=stApp]');
  return app && app.dataset.testScriptState === 'notRunning'
    && app.dataset.testConnectionState === 'CONNECTED' && document.querySelector('h1')
    && !document.querySelector('[data-testid=stSkeleton], [data-stale=true]');
}"""
SIDEWAYS = """() => [document.documentElement, document.querySelector('[data-testid=stMain]')]
  .map(one => one.scrollWidth - one.clientWidth)"""


class Server:
    """The dashboard on a folder that may be exchanged for another while it serves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "cogumi", "dashboard", "--port", "0", "--no-browser"]
        self.process = subprocess.Popen(
            [*command, "--workspace", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().removeprefix("dashboard: ").strip()

    def stop(self) -> str:
        """End it as Ctrl-C does; return what it said on standard error."""
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, said
        return said


class Visitor:
    """One browser window, and all that went wrong in it."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.wrong: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        self.page.on(
            "dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss())
        )
        self.page.on("request", self._asked)
        self.page.on("websocket", lambda socket: self._reached(socket.url))

    def _said(self, message: ConsoleMessage) -> None:
        where = str(message.location.get("url", ""))
        if message.type == "error" and not STREAMLITS_OWN.search(where):
            self.wrong.append(f"console: {message.text} ({where})")

    def _asked(self, request: Request) -> None:
        self._reached(request.url)

    def _reached(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.wrong.append(f"left this machine: {url}")

    def go(self, address: str) -> Page:
        """Open an address of the dashboard and wait until the page is whole."""
        self.page.goto(f"{self.url}/{address}")
        return self.whole()

    def click(self, page: str) -> Page:
        """Go to a page by the sidebar."""
        title = PAGES[page][0]
        self.page.get_by_test_id("stSidebarNav").get_by_role("link", name=title, exact=True).click()
        self.page.get_by_role("heading", level=1, name=title, exact=True).wait_for()
        return self.whole()

    def whole(self) -> Page:
        """Wait until nothing is being drawn."""
        self.page.wait_for_function(WHOLE)
        return self.page

    def check(self, what: str) -> None:
        """Hold what is true of every page: no traceback, no error of the browser, no way sideways."""
        assert self.page.get_by_test_id("stException").count() == 0, what
        told = self.page.inner_text("body")
        assert [one for one in ("Traceback", "cannot be drawn", "Page not found") if one in told] == [], what
        # A plot or a table takes a moment to follow the window.
        for _ in range(100):
            if self.page.evaluate(SIDEWAYS) == [0, 0]:
                break
            self.page.wait_for_timeout(50)
        assert self.page.evaluate(SIDEWAYS) == [0, 0], what
        assert self.wrong == [], what

    def check_names(self, what: str) -> None:
        """Hold that axe finds nothing serious, in Streamlit's own markup neither."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page, options={"resultTypes": ["violations"]}).response["violations"]
        grave = [
            f"{one['id']}: {node['html'][:160]}"
            for one in found
            if one["impact"] in GRAVE
            for node in one["nodes"]
        ]
        assert grave == [], what

    def saved(self, click: Callable[[], Any]) -> tuple[str, bytes]:
        """Return name and content of the file that a click saves."""
        with self.page.expect_download() as waiting:
            click()
        download: Download = waiting.value
        return download.suggested_filename, Path(download.path()).read_bytes()


@pytest.fixture(scope="module")
def server(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The dashboard on a copy of the small workspace."""
    server = Server(shutil.copytree(workspace, tmp_path_factory.mktemp("served") / "workspace"))
    try:
        yield server
    finally:
        said = server.stop()
    # A traceback goes to this log and nowhere else; no test here makes a defect show.
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def chromium(browser: str) -> Iterator[Browser]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        yield chromium
        chromium.close()


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(server: Server, chromium: Browser) -> Iterator[Visit]:
    """Open a window: ``visit(theme="dark", size=PHONE)``."""
    contexts = []

    def open_window(theme: Any = "light", size: Any = SCREEN) -> Visitor:
        contexts.append(chromium.new_context(color_scheme=theme, viewport=size, reduced_motion="reduce"))
        return Visitor(contexts[-1], server.url)

    yield open_window
    for context in contexts:
        context.close()


def test_every_page_in_both_themes_and_on_a_phone(visit: Visit) -> None:
    visitor = visit()
    page = visitor.go("overview")
    assert page.title() == "Overview · Cogumi"
    for name in PAGES:
        if name == "artifact":
            # It has no entry in the sidebar.
            visitor.go("artifact")
        else:
            visitor.click(name)
        visitor.check(name)
        visitor.check_names(name)
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        visitor.check(f"{name} on a phone")
        visitor.check_names(f"{name}, dark, on a phone")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(SCREEN)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [SCREEN, PHONE], ids=["screen", "phone"])
def test_every_address_opens_its_page(visit: Visit, theme: str, size: Any) -> None:
    visitor = visit(theme, size)
    for name, (title, _) in PAGES.items():
        page = visitor.go(name)
        assert page.title() == f"{title} · Cogumi"
        assert page.get_by_role("heading", level=1).all_inner_texts() == [title]
        visitor.check(name)
        visitor.check_names(name)


def test_from_a_mark_to_its_artifact_to_its_items(visit: Visit) -> None:
    visitor = visit()
    page = visitor.go("quality")
    page.locator(".scatterlayer .points path.point").first.click(force=True)
    page.get_by_role("heading", level=1, name="Artifact").wait_for()
    visitor.whole()
    digest = asked(page)["artifact"]
    visitor.check("artifact")
    page.get_by_role("link", name="Its items").click()
    page.get_by_role("heading", level=1, name="Items").wait_for()
    visitor.whole()
    assert asked(page)["artifact"] == digest
    # The table is drawn on a canvas: the box before the first row.
    page.get_by_test_id("stDataFrame").first.click(position={"x": 18, "y": 52}, force=True)
    page.get_by_role("heading", level=2).get_by_text("Item ").wait_for()
    visitor.whole()
    assert asked(page)["item"]
    assert page.get_by_role("heading", level=3).first.inner_text() == "Prompt"
    visitor.check("item")


def asked(page: Page) -> dict[str, str]:
    """Return the parameters of the address; each stands there once."""
    found = parse_qs(urlsplit(page.url).query)
    assert all(len(values) == 1 for values in found.values()), page.url
    return {name: values[0] for name, values in found.items()}


def test_plots_and_tables_are_saved(visit: Visit) -> None:
    visitor = visit()
    page = visitor.go("quality")
    camera = page.locator(".modebar-btn[data-title^='Download plot']").first
    name, content = visitor.saved(camera.click)
    assert name == "quality-general-download-size.png"
    assert content.startswith(b"\x89PNG\r\n")
    page.get_by_test_id("stRadio").get_by_text("SVG").first.click()
    visitor.whole()
    name, content = visitor.saved(camera.click)
    assert name == "quality-general-download-size.svg"
    assert content.startswith(b"<svg")
    name, content = visitor.saved(page.get_by_role("button", name="Save as CSV").first.click)
    assert name == "quality-general-download-size.csv"
    assert content.decode().startswith("Number,Model,Kind,Score on general,lower bound,upper bound,")
    assert {line.split(",")[1] for line in content.decode().splitlines()[1:]} >= {"q8", "q4"}
    page = visitor.go("items")
    _, content = visitor.saved(page.get_by_role("button", name="Save as CSV").click)
    assert content.count(b"\n") > 10
    _, content = visitor.saved(page.get_by_role("button", name="Save as Parquet").click)
    assert content.startswith(b"PAR1")
    visitor.check("saved")


def test_the_run_of_the_address_stays_there_once(visit: Visit) -> None:
    visitor = visit()
    page = visitor.go(f"?run={OLDER}")
    for _ in range(2):
        page.get_by_role("link", name="Cost by step").click()
        page.get_by_role("heading", level=1, name="Cost").wait_for()
        visitor.whole()
        assert asked(page) == {"run": OLDER}
        visitor.click("overview")
        assert asked(page) == {"run": OLDER}
    visitor.check("run")


@contextmanager
def exchanged(server: Server) -> Iterator[Path]:
    """Serve a copy of the workspace, which may be damaged, for as long as this lasts."""
    aside = server.folder.with_name("aside")
    server.folder.rename(aside)
    try:
        yield shutil.copytree(aside, server.folder)
    finally:
        shutil.rmtree(server.folder)
        aside.rename(server.folder)


def spoil(folder: Path) -> list[str]:
    """Put a corrupt Parquet file, a missing one, an artifact less and hostile text into a workspace.

    Return the addresses at which it is to be seen.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = {found.key.artifact: found for found in list_evidence(folder / "evidence")}
    paths = {artifact: next(found.folder.glob("*.parquet")) for artifact, found in files.items()}
    objects = folder / "artifacts" / "objects"
    made = [digest for digest in sorted(paths) if (objects / digest.removeprefix("sha256:")).is_dir()]
    corrupt, missing, *_, hostile = made
    paths[corrupt].write_bytes(b"PAR1 this is no Parquet file")
    paths[missing].unlink()
    table = pq.read_table(paths[hostile])
    cells = pa.array([HOSTILE[row % len(HOSTILE)] for row in range(table.num_rows)])
    for column in ("output", "prompt", "domain", "finish_reason"):
        table = table.set_column(table.schema.get_field_index(column), column, cells)
    pq.write_table(table, paths[hostile])
    shutil.rmtree(objects / hostile.removeprefix("sha256:"))
    ledger = sqlite3.connect(folder / LEDGER_FILE)
    ledger.execute("UPDATE runs SET note = ?", (HOSTILE[0],))
    ledger.execute("UPDATE steps SET note = ? WHERE run = ?", (HOSTILE[1], RUN))
    ledger.commit()
    ledger.close()
    task = f"task={files[hostile].key.task}"
    items = [f"items?artifact={hostile}&{task}&item={name}" for name in table["item_id"].to_pylist()[:3]]
    return [*(f"items?artifact={digest}&{task}" for digest in (corrupt, missing)), *items,
            *(f"artifact?artifact={digest}" for digest in (missing, hostile))]  # fmt: skip


def test_no_page_of_a_hostile_workspace_shows_a_traceback(server: Server, visit: Visit) -> None:
    with exchanged(server) as folder:
        addresses = spoil(folder)
        visitor = visit()
        page = visitor.go("artifact")
        for name in PAGES:
            if name != "artifact":
                visitor.click(name)
            visitor.check(name)
        for address in addresses:
            visitor.go(address)
            visitor.check(address)
            assert page.locator("[data-testid=stMain] :is(script, b, img[src=x])").count() == 0, address
            if "item=" in address:
                assert page.get_by_role("heading", level=3).first.inner_text() == "Prompt"
        with locked(folder):
            page.goto(f"{visitor.url}/gates")
            page.get_by_text("locked by another program").wait_for()
            assert page.get_by_test_id("stException").count() == 0
        page.get_by_role("button", name="Read the ledger again").click()
        page.get_by_role("heading", level=1, name="Gates").wait_for()
        visitor.whole()
        visitor.check("gates, read again")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the ledger as a writer does that lets nobody read."""
    writer = sqlite3.connect(folder / LEDGER_FILE, isolation_level=None)
    writer.execute("PRAGMA journal_mode=DELETE")
    writer.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        writer.execute("ROLLBACK")
        writer.close()
