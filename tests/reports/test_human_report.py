"""The report of a human study: the analysis's figures and nothing else, safe to open and to print."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from evals.human.frozen import Frozen
from gates.people import Analysis, analyse
from reports.human import human_markdown, human_report
from reports.human_plot import histogram_plot, intervals_plot, tasks_plot
from reports.human_rows import estimates

# Made-up studies live beside the tests of the gates.
sys.path.insert(0, str(Path(__file__).parents[1] / "gates"))

from study_memory import frozen, plan_of, rows_of, study

HOSTILE = '</title><script>alert(1)</script><img src="https://x.example/a.png" onerror=x> | `a` \u202e'

Made = tuple[Analysis, Frozen]


@pytest.fixture(scope="module")
def made() -> Made:
    """People, pairs, careless raters, and hostile text wherever text may be."""
    plain = study(mean=8.9, seed=1, pairs=0.7, plan={"title": "People"})
    tasks = [task.model_copy(update={"prompt": HOSTILE, "domain": HOSTILE}) for task in plain.plan.tasks]
    tasks[0] = tasks[0].model_copy(update={"task_id": HOSTILE})
    plan = plain.plan.model_copy(update={"title": HOSTILE, "tasks": tuple(tasks), "reference": HOSTILE})
    rows = []
    for one in rows_of(plain):
        changed = {"task_id": HOSTILE} if one["task_id"] == "t000" else {}
        if one["rater"] == "r0001" and one["kind"] == "scored":
            changed |= {"score": 9, "focus_ms": 500}
        rows.append(one | {"comment": HOSTILE, "flag": True, "domain": HOSTILE} | changed)
    found = frozen(plan, rows)
    return analyse(found), found


@pytest.fixture(scope="module")
def simulated() -> Made:
    found = study(12, 60, mean=8.3, simulated=12)
    return analyse(found), found


@pytest.fixture(scope="module")
def empty() -> Made:
    found = frozen(plan_of(100, 20), [])
    return analyse(found), found


class Page(HTMLParser):
    """What a page's elements are, and whether each is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())


def test_the_page_stands_alone_and_shows_no_text_as_markup(made: Made) -> None:
    page = human_report(*made)
    found = Page(page)
    assert found.open == []
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "form", "base"}
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert "src" not in attributes
    assert "url(" not in page
    assert "\u202e" not in page
    assert "default-src 'none'" in page
    # People's own words stay in the data.
    assert page.count("alert(1)") == page.count("&lt;script&gt;alert(1)")
    assert human_report(*made) == page


def test_words_of_raters_stay_out_of_it() -> None:
    plain = study(20, mean=9, seed=2)
    rows = [one | {"comment": "my telephone is 555-0100"} for one in rows_of(plain)]
    found = frozen(plain.plan, rows)
    analysis = analyse(found)
    assert analysis.tables.comments == len(rows)
    for told in (human_report(analysis, found), human_markdown(analysis, found), str(analysis.to_json())):
        assert "555-0100" not in told


def test_page_and_markdown_tell_the_figures_of_the_analysis(made: Made) -> None:
    analysis, found = made
    page, markdown = human_report(*made), human_markdown(*made)
    estimate = analysis.judged.estimate
    wanted = [f"{estimate.mean:.3f}", f"{estimate.se:.3f}", f"{estimate.lower:.3f}", found.digest]
    wanted += [f"{one.value:.3f}" for one in analysis.agreement if one.value is not None]
    wanted += [f"{one.mean:.2f}" for one in analysis.tables.tasks]
    wanted += [analysis.reasons[-1], "130", "no variance, too fast", "r0001", "Not to be used"]
    for told in wanted:
        assert told in page
        assert told in markdown
    assert "Simulated raters." not in page + markdown
    lengths = {line.count("|") - line.count("\\|") for line in markdown.splitlines() if line.startswith("|")}
    assert lengths <= {3, 4, 5, 6, 7, 10, 11}
    assert analysis.tables.preference is not None
    assert f"{100 * analysis.tables.preference.mean:.1f} % of 396 pairs" in page


def test_a_simulated_study_says_so_first(simulated: Made) -> None:
    page, markdown = human_report(*simulated), human_markdown(*simulated)
    title = re.search(r"<title>(.*?)</title>", page)
    assert title is not None
    assert title[1] == "A study: UNDECIDED, simulated raters"
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert body.index("Simulated raters.") < body.index("v-undecided")
    assert markdown.splitlines()[2].startswith("**Simulated raters.")
    assert "12 of 12 raters are simulated: these can never decide" in page


def test_nothing_rated_is_a_page_too(empty: Made) -> None:
    page, markdown = human_report(*empty), human_markdown(*empty)
    assert "No rating of ours by a rater who finished" in page
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower()
    assert "nan" not in markdown.lower()
    assert Page(page).open == []


def test_these_tasks_only_is_said() -> None:
    found = study(10, mean=9, plan={"estimand": "these tasks"})
    assert "on these tasks only" in human_report(analyse(found), found)


@pytest.mark.parametrize("which", ["made", "simulated"])
@pytest.mark.parametrize("width", [360, 1040])
def test_plots_stay_within_their_frames(which: str, width: int, request: pytest.FixtureRequest) -> None:
    analysis: Analysis = request.getfixturevalue(which)[0]
    pictures = [
        intervals_plot(estimates(analysis), 8.0, width, "a < b"),
        histogram_plot(analysis.tables.histogram, width, "a < b"),
        tasks_plot(analysis.tables.tasks, 8.0, width, "a < b"),
        tasks_plot(analysis.tables.tasks[:1], 2.0, width, "a < b"),
    ]
    for picture in pictures:
        root = Xml.fromstring(picture)
        height = float(root.get("height", "0"))
        assert root.get("aria-label") == "a < b"
        assert root.get("width") == str(width)
        for one in root.iter():
            for name, most in (("x", width), ("x1", width), ("x2", width), ("cx", width)):
                assert 0 <= float(one.get(name, "0")) <= most, Xml.tostring(one)
            for name in ("y", "y1", "y2", "cy"):
                assert 0 <= float(one.get(name, "0")) <= height, Xml.tostring(one)


def test_a_browser_shows_it_light_dark_and_narrow(simulated: Made, browser: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    file = tmp_path / "study.html"
    file.write_text(human_report(*simulated), encoding="utf-8")
    with playwright.sync_playwright() as driver:
        chromium: Any = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        colours = set()
        for scheme, width in (("light", 1200), ("dark", 1200), ("dark", 360)):
            page = chromium.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
            faults: list[str] = []
            asked: list[str] = []
            page.on("console", lambda message, faults=faults: faults.append(message.text))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(file.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator("figure svg:visible").count() == 3
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert (faults, asked) == ([], [file.as_uri()])
            page.close()
        assert len(colours) == 2
        chromium.close()
