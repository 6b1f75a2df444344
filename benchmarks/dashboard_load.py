"""How fast the dashboard is on a large workspace, in a browser, and with twenty viewers at once.

The workspace (``dashboard_workspace``) has one run with 250 models, 2,009 measurements, 500 verdicts and
5 million item rows; one measurement has a million. The server is ``cogumi dashboard``, the browser headless
Chromium on the same machine. A page is complete when its script has ended and all tables and plots are
painted.

Peers, in the same run: a bare Streamlit page of a title, a text and a table, the least that any Streamlit
page takes; and for the text filter plain duckdb, as it comes, and pandas, which loads both columns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from benchmarks.dashboard_viewers import look
from benchmarks.dashboard_workspace import LARGE, NEEDLE, NEEDLE_EVERY, Builder, Size
from benchmarks.timing import machine, spread
from cogumi.evidence import EvidenceFile, list_evidence
from cogumi.workspace import Workspace
from dashboard.items import Filters, Items

OVERVIEW, QUALITY = "Steps", "Quality"
"""Headings with which a page is complete, its tables painted."""
OVERVIEW_S, FILTER_S, MEMORY_GB, VIEWERS = 2.0, 1.0, 1.0, 20
_LAYOUT = 2
"""Raised when the workspace would be another one: a kept one of another layout is built again."""
_BARE = """import streamlit as st
st.title("Hello")
st.write("A text")
st.dataframe({"a": [1, 2], "b": ["c", "d"]})
"""
_COMPLETE = """last => {
    const app = document.querySelector('[data-testid=stApp]');
    const told = [...document.querySelectorAll('h1, h2')].some(one => one.textContent.startsWith(last));
    const seen = [...document.querySelectorAll('[data-testid=stDataFrame], [data-testid=stPlotlyChart]')]
        .filter(one => one.checkVisibility());
    return app?.getAttribute('data-test-script-state') === 'notRunning' && told
        && seen.length > 0 && seen.every(one => one.querySelector('canvas, .main-svg'));
}"""
_FOUND = """wanted => {
    const app = document.querySelector('[data-testid=stApp]');
    return app?.getAttribute('data-test-script-state') === 'notRunning'
        && !document.querySelector('[data-stale=true]')
        && document.body.innerText.includes(wanted);
}"""


def kept(work: Path, size: Size, *, anew: bool) -> Path:
    """Return the folder of the workspace, built where it is not there yet or another size was asked for."""
    folder, mark = work / "dashboard-load", work / "dashboard-load.json"
    told = json.dumps({"layout": _LAYOUT, **asdict(size)})
    if anew or not mark.is_file() or mark.read_text() != told:
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        Builder(folder, size).build()
        mark.write_text(told)
        print(f"workspace built in {time.perf_counter() - start:.0f} s", flush=True)
    return folder / "workspace"


# Servers ------------------------------------------------------------------------------------------


class Server:
    """A running ``cogumi dashboard`` and how much memory it and its children have taken together."""

    def __init__(self, workspace: Path) -> None:
        command = [sys.executable, "-m", "cogumi", "dashboard", "--workspace", str(workspace)]
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, "--port", "0", "--json", "--no-browser"], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        # One document over several lines; the process prints nothing behind it until it ends.
        told = "".join(iter(self._process.stdout.readline, "}\n"))
        self.url = str(json.loads(f"{told}}}")["url"])
        self.start_s = time.perf_counter() - start
        self.peak = 0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _watch(self) -> None:
        mine = psutil.Process(self._process.pid)
        while not self._ended.wait(0.05):
            try:
                tree = [mine, *mine.children(recursive=True)]
                self.peak = max(self.peak, sum(one.memory_info().rss for one in tree))
            except psutil.NoSuchProcess:
                continue

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self._watcher.join()
        self._process.terminate()
        self._process.wait()


@contextmanager
def serving(workspace: Path) -> Iterator[Server]:
    """Give a server of the workspace."""
    server = Server(workspace)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def bare(folder: Path) -> Iterator[str]:
    """Give the address of a bare Streamlit page, served with the dashboard's own options."""
    from dashboard.serve import command

    script, port = folder / "bare.py", _free_port()
    script.write_text(_BARE)
    options = command({"server.address": "127.0.0.1", "server.port": str(port)})[4:]
    flags = [one for one in options if one.startswith("--")]
    words = [sys.executable, "-m", "streamlit", "run", str(script), *flags]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# In the browser -----------------------------------------------------------------------------------


def opened(context: Any, url: str, last: str) -> float:
    """Return the seconds until a page is complete whose last heading is ``last``, in a tab of its own."""
    page = context.new_page()
    start = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_function(_COMPLETE, arg=last, timeout=300_000)
    took = time.perf_counter() - start
    page.close()
    return took


def answering(context: Any, url: str) -> None:
    """Wait until a server answers."""
    for _ in range(200):
        try:
            context.request.get(f"{url}/_stcore/health")
            return
        except Exception:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


def filtered(context: Any, url: str, asked: Sequence[tuple[str, str]]) -> list[float]:
    """Return the seconds from Enter in the Items filter to the rows, for each (text, words of the answer)."""
    page = context.new_page()
    page.goto(url, wait_until="commit")
    page.wait_for_function(_COMPLETE, arg="Items", timeout=300_000)
    found = []
    for word, told in asked:
        box = page.get_by_label("Text in prompt or output")
        box.fill(word)
        start = time.perf_counter()
        box.press("Enter")
        page.wait_for_function(_FOUND, arg=told, timeout=300_000)
        found.append(time.perf_counter() - start)
    page.close()
    return found


# Peers --------------------------------------------------------------------------------------------


def hits(file: Path, word: str) -> int:
    """Count with plain duckdb, as it comes, the rows that hold a text, whatever its case."""
    import duckdb

    query = "SELECT count(*) FROM read_parquet($f) WHERE prompt ILIKE $w OR output ILIKE $w"
    with duckdb.connect() as connection:
        found = connection.execute(query, {"f": str(file), "w": f"%{word}%"}).fetchall()
    return int(found[0][0])


def pandas_hits(file: Path, word: str) -> int:
    """Count the same with pandas, which loads both columns."""
    import pandas as pd

    frame = pd.read_parquet(file, columns=["prompt", "output"])
    held = [frame[name].str.contains(word, case=False, regex=False) for name in ("prompt", "output")]
    return int((held[0] | held[1]).sum())


def timed(call: Callable[[], object], times: int) -> list[float]:
    """Return the seconds of each call."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


# All of it ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table: what was measured, its peer in the same run, and whether a goal is met."""

    what: str
    found: str
    peer: str = ""
    goal: str = ""
    met: bool | None = None

    def cells(self) -> list[str]:
        """Return the row as text."""
        return [
            self.what,
            self.found,
            self.peer,
            self.goal,
            {None: "", True: "met", False: "NOT met"}[self.met],
        ]


def below(what: str, values: Sequence[float], goal: float | None, peer: Sequence[float] = ()) -> Line:
    """Return the row of a time: its median is below the goal or not, and how often the peer's it is."""
    middle = statistics.median(values)
    beside = f"{spread(peer)}, ratio {middle / statistics.median(peer):.2f}" if peer else ""
    met = None if goal is None else middle < goal
    return Line(what, spread(values), beside, f"under {goal:g} s" if goal is not None else "", met)


def overview_lines(browser: Any, workspace: Path, folder: Path, runs: int) -> Iterator[Line]:
    """Yield the rows of the first page; every run has servers and an empty browser cache of its own."""
    starts: list[float] = []
    found: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
    for _ in range(runs):
        context = browser.new_context()
        with bare(folder) as url:
            answering(context, url)
            found["bare"].append((opened(context, url, "Hello"), opened(context, url, "Hello")))
        with serving(workspace) as server:
            starts.append(server.start_s)
            found["ours"].append(
                (opened(context, server.url, OVERVIEW), opened(context, server.url, OVERVIEW))
            )
        context.close()
    yield below("from the command to its address", starts, None)
    for number, visit in enumerate(("first visit after start", "second visit")):
        mine, peer = ([pair[number] for pair in found[whose]] for whose in ("ours", "bare"))
        yield below(f"Overview, {visit}", mine, OVERVIEW_S, peer)


def quality_lines(context: Any, url: str, runs: int, plain: Sequence[float]) -> Iterator[Line]:
    """Yield the rows of the page that reads all evidence; there is no goal for it."""
    times = [opened(context, f"{url}/quality", QUALITY) for _ in range(runs + 1)]
    yield below("Quality, first visit after start", times[:1], None)
    yield below("Quality, second visit", times[1:], None, plain)


def items_lines(context: Any, url: str, large: EvidenceFile, runs: int) -> Iterator[Line]:
    """Yield the rows of the text filter; no text is asked for twice, so that no answer is remembered."""
    rows = large.count()
    total = rows // NEEDLE_EVERY
    asked = []
    for number in range(runs):
        asked += [(NEEDLE[: len(NEEDLE) - number % 3].swapcase(), f"{total:,} of {rows:,} known")]
        asked += [(f"zz{number}", f"None of the {rows:,} known")]
    taken = filtered(context, f"{url}/items?{_query(large)}", asked[:runs])
    file = large.folder / "items.parquet"
    own = timed(lambda: Items(large).page(Filters(text=NEEDLE)), runs)
    peer = timed(lambda: hits(file, NEEDLE), runs)
    yield below(f"Items: a text among {rows:,}, from Enter to the rows", taken, FILTER_S, peer)
    yield below("the same question without a browser", own, FILTER_S, peer)
    yield below("the same question in pandas", timed(lambda: pandas_hits(file, NEEDLE), 1), None)


def viewer_lines(server: Server, large: EvidenceFile, before: int) -> Iterator[Line]:
    """Yield the rows of many viewers at once, and of the memory that they took; ``before``: one viewer's."""
    pages = [("", ""), ("quality", ""), ("items", _query(large))]
    seen = look(server.url, pages, VIEWERS)
    for page, _ in pages:
        times = sorted(one.seconds for one in seen if one.page == page)
        late = times[max(0, -(-95 * len(times) // 100) - 1)]
        told = f"median {statistics.median(times):.2f} s, 95 % within {late:.2f} s"
        yield Line(f"{VIEWERS} viewers at once, {page or 'overview'}", told)
    broken = sorted({told for one in seen for told in one.broken})
    whole = len(seen) == VIEWERS * len(pages) and not broken
    told = "; ".join(broken)[:200] or f"{len(seen)} of {VIEWERS * len(pages)}"
    yield Line(f"{VIEWERS} viewers at once, pages complete", told, "", "all", whole)
    beside = f"{before / 1e9:.2f} GB with one viewer of all pages"
    met = max(before, server.peak) < MEMORY_GB * 1e9
    yield Line("peak memory of the server", f"{server.peak / 1e9:.2f} GB", beside, "under 1 GB", met)


def measure(workspace: Path, runs: int, browser_path: str) -> Iterator[Line]:
    """Yield the rows of the table as they are found."""
    from playwright.sync_api import sync_playwright

    large = next(file for file in list_evidence(Workspace(workspace).evidence) if file.key.task == LARGE)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        context = browser.new_context()
        with bare(Path(folder)) as url:
            answering(context, url)
            plain = [opened(context, url, "Hello") for _ in range(runs + 1)][1:]
        yield from overview_lines(browser, workspace, Path(folder), runs)
        with serving(workspace) as server:
            answering(context, server.url)
            yield from quality_lines(context, server.url, runs, plain)
            yield from items_lines(context, server.url, large, runs)
            before = server.peak
    # Outside of the browser's driver, which has the thread's event loop for itself.
    with serving(workspace) as server:
        look(server.url, [("items", _query(large))], 1)
        yield from viewer_lines(server, large, before)


def _query(file: EvidenceFile) -> str:
    return f"artifact={quote(file.key.artifact)}&task={file.key.task}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns 1 where a goal is not met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard_load")
    parser.add_argument("--work", type=Path, help="folder that keeps the workspace (2 GB) for the next time")
    parser.add_argument("--anew", action="store_true", help="build the workspace again")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--browser", default="/usr/bin/chromium", help="a Chromium")
    parser.add_argument("--small", action="store_true", help="a fiftieth: does it run at all")
    chosen = parser.parse_args(arguments)
    size = Size(4, 10, 200, 100_000) if chosen.small else Size()
    with tempfile.TemporaryDirectory() as folder:
        workspace = kept(chosen.work or Path(folder), size, anew=chosen.anew)
        print(
            f"{size.measurements:,} measurements, {size.verdicts} verdicts, {size.rows:,} item rows",
            f"; {machine()}",
            sep="",
            flush=True,
        )
        lines = []
        for line in measure(workspace, chosen.runs, chosen.browser):
            print(" | ".join(cell for cell in line.cells() if cell), flush=True)
            lines.append(line)
    print("\n| what | found | peer, same run | goal | |\n|---|---|---|---|---|")
    for line in lines:
        print(f"| {' | '.join(line.cells())} |")
    return int(any(line.met is False for line in lines))


if __name__ == "__main__":
    sys.exit(main())
