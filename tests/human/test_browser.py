"""A rater in headless Chromium, from link to thanks: desktop and phone, with JavaScript and without."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.human_server import Server
from benchmarks.human_study import make_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}
DESIGN = {"items": 6, "planted": 1, "repeats": 1, "practice": 2, "pairs": 1}
LENGTH = sum(DESIGN.values())
WIDTHS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass
class Study:
    """A served study and its unused links."""

    folder: Path
    server: Server
    admin: str
    tokens: list[str]

    def link(self) -> str:
        return f"{self.server.url}/join?t={self.tokens.pop()}"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.folder / "study.sqlite")) as database:
            return database.execute(query).fetchall()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    folder = tmp_path_factory.mktemp("browser") / "study"
    store = make_study(folder, raters=30, **DESIGN)
    tokens, admin = store.invite(30), store.new_admin_token()
    store.dispose()
    with Server(folder) as server:
        server.start()
        yield Study(folder, server, admin, tokens)
        server.stop()


@pytest.fixture(scope="module")
def chromium(browser: str) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        yield launched
        launched.close()


@dataclass
class Watched:
    """A page whose complaints and requests are kept."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    expected: re.Pattern[str] | None = None
    """Complaints that a test provokes, such as those of a stopped server."""

    def watch(self) -> Watched:
        self.page.on("console", lambda said: self._complain(said.text) if said.type != "info" else None)
        self.page.on("pageerror", lambda error: self._complain(str(error)))
        self.page.on("request", lambda request: self._request(request.url))
        return self

    def _complain(self, text: str) -> None:
        if not (self.expected and self.expected.search(text)):
            self.complaints.append(text)

    def _request(self, url: str) -> None:
        if not re.match(r"(http://127\.0\.0\.1:\d+/|data:|about:)", url):
            self.strangers.append(url)

    def whole(self) -> None:
        """Nothing is wider than the window, and axe finds nothing on the page."""
        from axe_playwright_python.sync_playwright import Axe

        assert self.page.evaluate(WIDTHS) <= 0, f"{self.page.url} scrolls sideways"
        found = Axe().run(self.page).response["violations"]
        told = [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found]
        assert told == [], self.page.url


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Callable[..., Watched]]:
    """Open a browser of one's own with these settings; at the end nothing was complained of."""
    contexts: list[BrowserContext] = []
    pages: list[Watched] = []

    def new(**settings: Any) -> Watched:
        context = chromium.new_context(**settings)
        context.set_default_timeout(15_000)
        contexts.append(context)
        pages.append(Watched(context.new_page()).watch())
        return pages[-1]

    yield new
    for context in contexts:
        context.close()
    assert [line for one in pages for line in one.complaints] == []
    assert [url for one in pages for url in one.strangers] == []


def begun(seen: Watched, study: Study) -> Page:
    """Consent and read the instructions with the mouse; the first item is open then."""
    page = seen.page
    page.goto(study.link())
    page.check("input[name=agree]")
    page.click("main form button")
    page.wait_for_url("**/instructions")
    page.click("main form button")
    page.wait_for_url("**/item/1")
    return page


def state(page: Page, wanted: str) -> None:
    """Wait until the page says ``saved``, ``retrying`` or another state of what was entered."""
    page.wait_for_selector(f"#state[data-state={wanted}]")


# The whole way ------------------------------------------------------------------------------------


def test_a_rater_with_a_keyboard_alone(study: Study, opened: Callable[..., Watched]) -> None:
    seen = opened(**DESKTOP, color_scheme="light")
    page = seen.page
    page.goto(study.link())
    assert page.url == f"{study.server.url}/consent"  # the token is gone from the address
    seen.whole()
    page.focus("input[name=agree]")
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.wait_for_url("**/instructions")
    seen.whole()
    page.focus("main form button")
    page.keyboard.press("Enter")
    given = []
    for position in range(1, LENGTH + 1):
        page.wait_for_url(f"**/item/{position}")
        pair = page.locator("input[name=preference]").count() > 0
        if position in (1, 3) or pair:
            seen.whole()
        key = "3" if pair else str(position % 10)
        page.keyboard.press(key)
        assert page.locator("input:checked[type=radio]").count() == 1
        given.append("right" if pair else str(position % 10 or 10))
        if position == 4:
            page.focus("#comment")
            page.keyboard.type("in 1492 or 5")
            assert page.locator("input[name=score]:checked").input_value() == "4"
            state(page, "saved")
            page.keyboard.press("Control+Enter")
        else:
            page.keyboard.press("Enter")
    page.wait_for_url("**/review")
    seen.whole()
    page.focus("form[action='/finish'] button")
    page.keyboard.press("Enter")
    page.wait_for_url("**/thanks")
    seen.whole()
    code = page.text_content("#code")
    (rater,) = study.rows(f"SELECT id, state FROM raters WHERE code = '{code}'")
    assert rater[1] == "finished"
    stored = study.rows(
        f"SELECT coalesce(preference, score), comment FROM ratings WHERE rater = {rater[0]} ORDER BY position"
    )
    assert [str(answer) for answer, _ in stored] == given
    assert [comment for _, comment in stored if comment] == ["in 1492 or 5"]


def test_a_rater_on_a_dark_phone_without_javascript_in_german(
    study: Study, opened: Callable[..., Watched]
) -> None:
    seen = opened(**PHONE, color_scheme="dark", locale="de-DE", java_script_enabled=False)
    page = begun(seen, study)
    assert page.get_attribute("html", "lang") == "de"
    for position in range(1, LENGTH + 1):
        assert page.url.endswith(f"/item/{position}")
        name = "preference" if page.locator("input[name=preference]").count() else "score"
        # Targets under the thumb: the label of a choice is at least 44 px high.
        choice = page.locator(f"label:has(input[name={name}])").first
        box = choice.bounding_box()
        assert box is not None
        assert box["height"] >= 44
        choice.click()
        page.click("main form button.primary")
    assert page.url.endswith("/review")
    page.click("form[action='/finish'] button")
    assert page.url.endswith("/thanks")
    assert page.text_content("#code")


@pytest.mark.parametrize(("width", "language"), [(390, "de-DE"), (360, "en-GB"), (360, "ar")])
def test_every_page_on_a_dark_phone_fits_and_axe_finds_nothing(
    study: Study, opened: Callable[..., Watched], width: int, language: str
) -> None:
    seen = opened(
        **{**PHONE, "viewport": {"width": width, "height": 780}}, color_scheme="dark", locale=language
    )
    page = seen.page
    page.goto(study.link())
    seen.whole()
    page.check("input[name=agree]")
    page.click("main form button")
    page.wait_for_url("**/instructions")
    seen.whole()
    page.click("main form button")
    page.wait_for_url("**/item/1")
    seen.whole()
    for path in ("/item/3", f"/item/{LENGTH}", "/review", "/withdraw"):
        page.goto(study.server.url + path)
        seen.whole()
    page.click("footer form[action='/pause'] button")
    page.wait_for_url("**/paused")
    seen.whole()


def test_the_language_can_be_changed_on_the_page_and_what_was_entered_stays(
    study: Study, opened: Callable[..., Watched]
) -> None:
    seen = opened(**DESKTOP, locale="en-GB")
    page = begun(seen, study)
    page.keyboard.press("6")
    page.fill("#comment", "before the change")
    page.click("form[action='/locale'] button[value=de]")
    page.wait_for_selector("html[lang=de]")
    assert page.input_value("#comment") == "before the change"
    assert page.locator("input[name=score]:checked").input_value() == "6"


# Nothing entered is lost --------------------------------------------------------------------------


def test_what_was_entered_survives_a_reload_and_another_device(
    study: Study, opened: Callable[..., Watched]
) -> None:
    seen = opened(**DESKTOP)
    page, link = seen.page, study.link()
    page.goto(link)
    page.check("input[name=agree]")
    page.click("main form button")
    page.click("main form button")
    page.wait_for_url("**/item/1")
    page.keyboard.press("8")
    page.fill("#comment", "not sent yet")
    page.check("input[name=flag]")
    state(page, "saved")
    page.reload()
    other = opened(**PHONE).page
    other.goto(link)
    assert other.url.endswith("/item/1")
    for each in (page, other):
        assert each.locator("input[name=score]:checked").input_value() == "8"
        assert each.input_value("#comment") == "not sent yet"
        assert each.is_checked("input[name=flag]")
    assert study.rows("SELECT count(*) FROM ratings WHERE comment = 'not sent yet'") == [(0,)]


def test_a_server_that_is_away_for_a_moment_costs_nothing(
    study: Study, opened: Callable[..., Watched]
) -> None:
    seen = opened(**DESKTOP)
    seen.expected = re.compile("ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|ERR_SOCKET")
    page = begun(seen, study)
    study.server.kill()
    page.keyboard.press("2")
    page.fill("#comment", "while it was away")
    state(page, "retrying")
    assert page.text_content("#state") == "Not saved, retrying …"
    study.server.start()
    state(page, "saved")
    study.server.kill()
    page.click("button.primary")
    state(page, "unsent")
    study.server.start()
    page.wait_for_url("**/item/2")
    assert study.rows("SELECT score FROM ratings WHERE comment = 'while it was away'") == [(2,)]
    assert study.rows("SELECT count(*) FROM submissions WHERE comment = 'while it was away'") == [(1,)]


# Leaving, and who watches -------------------------------------------------------------------------


def test_who_withdraws_is_erased_and_told(study: Study, opened: Callable[..., Watched]) -> None:
    seen = opened(**DESKTOP)
    page = begun(seen, study)
    page.keyboard.press("5")
    page.fill("#comment", "to be erased")
    page.click("button.primary")
    page.wait_for_url("**/item/2")
    page.click("footer a[href='/withdraw']")
    seen.whole()
    page.check("input[name=erase][value=yes]")
    page.check("input[name=sure]")
    page.click("main form button")
    page.wait_for_load_state()
    seen.whole()
    assert study.rows("SELECT count(*) FROM submissions WHERE comment = 'to be erased'") == [(0,)]


def test_the_admin_page_tells_counts_and_no_score(study: Study, opened: Callable[..., Watched]) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    rater = begun(opened(**DESKTOP), study)
    rater.keyboard.press("9")
    rater.fill("#comment", hostile)
    rater.click("button.primary")
    rater.wait_for_url("**/item/2")
    for settings in (DESKTOP, {**PHONE, "color_scheme": "dark"}):
        seen = opened(**settings)
        seen.page.goto(f"{study.server.url}/admin?t={study.admin}")
        assert seen.page.url == f"{study.server.url}/admin"
        seen.whole()
        assert hostile in seen.page.inner_text("main")
        assert seen.page.locator("main img, main script").count() == 0
        for word in ("mean", "average", "score of"):
            assert word not in re.sub("nor anything that a mean follows", "", seen.page.inner_text("main"))


def test_a_stranger_sees_a_page_that_explains(study: Study, opened: Callable[..., Watched]) -> None:
    seen = opened(**PHONE)
    seen.expected = re.compile("status of 40[14]")
    for path in ("/", "/join?t=guessed", "/nowhere", "/admin"):
        seen.page.goto(study.server.url + path)
        seen.whole()
        assert seen.page.locator("h1").count() == 1
