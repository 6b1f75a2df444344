"""The rating app before strangers: default deny, forged forms, hostile text, oversized and odd requests."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from app_client import HOST, JSON, Person, Served, serving
from fastapi.routing import APIRoute
from small_study import small_plan
from starlette.testclient import TestClient

from benchmarks.human_client import filled, form_to
from cogumi.errors import UsageError
from dashboard.human_eval.app import AppSettings, build_app
from dashboard.human_eval.security import (
    ADMIN_COOKIE,
    HEADERS,
    MOST_BODY_BYTES,
    RATER_COOKIE,
    VISITOR,
    GuessLimit,
    Signer,
)
from dashboard.human_eval.serve import serve
from evals.human.store import StudyStore

MakeStore = Callable[..., StudyStore]

PUBLIC = {("GET", "/join"), ("GET", "/static/{name}"), ("GET", "/healthz"), ("POST", "/locale")}
"""What answers to who has no cookie: entering, the style sheet, health; a language needs a form's token."""
ADMIN = {("GET", "/admin"), ("GET", "/admin/progress.json")}
RATER = {
    *(
        ("GET", path)
        for path in ("/", "/consent", "/instructions", "/review", "/thanks", "/paused", "/withdraw")
    ),
    *(("POST", path) for path in ("/consent", "/instructions", "/finish", "/pause", "/withdraw")),
    ("GET", "/item/{position}"),
    ("POST", "/item/{position}"),
    ("POST", "/item/{position}/draft"),
}
FORM = {
    "score": "5",
    "key": "k",
    "client_seq": "1",
    "agree": "yes",
    "locale": "en",
    "erase": "yes",
    "sure": "yes",
}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</textarea></div><svg onload=alert(1)>",
    "{{ 7*7 }}{% raw %}${7*7}",
    "javascript:alert(1)",
    "&lt;b&gt; &amp; <b>",
    "\u202egnp.exe\u2066",
    "--><!--]]>",
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A study that the tests of this file share; each brings raters of its own."""
    folder: Path = tmp_path_factory.mktemp("app") / "study"
    store = StudyStore.create(folder, small_plan(raters=500))
    with serving(store) as served:
        yield served


def routes(served: Served) -> set[tuple[str, str]]:
    found = set()
    for route in served.app.routes:
        assert isinstance(route, APIRoute)
        found |= {(method, route.path) for method in route.methods}
    return found


def ask(person: Person, method: str, path: str, form: dict[str, str]) -> Any:
    path = path.replace("{position}", "1").replace("{name}", "app.css")
    return person.get(path) if method == "GET" else person.post(path, form)


# Default deny -------------------------------------------------------------------------------------


def test_every_route_is_known_and_denied_without_a_cookie(served: Served) -> None:
    assert routes(served) == PUBLIC | ADMIN | RATER
    for method, path in ADMIN | RATER:
        assert ask(served.stranger(), method, path, FORM).status_code == 401, (method, path)


def test_a_revoked_or_forged_rater_is_denied_everywhere(served: Served) -> None:
    (token,) = served.store.invite(1)
    revoked = served.person(token)
    csrf = form_to(revoked.get("/consent").text, "/consent").fields["csrf"]
    served.store.revoke(token)
    forged = served.stranger()
    forged.http.cookies.set(RATER_COOKIE, Signer(b"x" * 32).sign(RATER_COOKIE, 1))
    for person, (method, path) in product((revoked, forged), RATER):
        answer = ask(person, method, path, {**FORM, "csrf": csrf})
        assert answer.status_code == 401, (method, path)
        assert "personal link" in answer.text or "/draft" in path


def test_every_form_needs_the_token_that_was_made_for_this_rater(served: Served) -> None:
    mine, other = served.rater(), served.rater()
    theirs = other.form("/item/1").fields["csrf"]
    visitors = Signer(served.store.secret).form_token(VISITOR)
    posts = [path for method, path in routes(served) if method == "POST"]
    assert len(posts) == 8
    for path, csrf in product(posts, (None, "", "x", theirs, visitors, theirs[:-2] + "AA")):
        answer = ask(mine, "POST", path, FORM if csrf is None else {**FORM, "csrf": csrf})
        assert answer.status_code == 403, (path, csrf)
    assert mine.get("/item/1").status_code == 200


def test_a_rater_reaches_no_item_but_their_own(served: Served) -> None:
    mine, other = served.rater(), served.rater()
    other.rate(1, 9, comment="private to the other")
    assert "private to the other" not in mine.get("/item/1").text
    assert mine.get("/review").text.count("private") == 0
    for path in (
        "/item/0",
        "/item/11",
        "/item/-1",
        "/item/x",
        "/item/1.0",
        "/item/" + "9" * 5000,
        "/item/%00",
    ):
        assert mine.get(path).status_code == 404, path
        assert mine.post(path, {"csrf": mine.form("/item/1").fields["csrf"], "score": "5"}).status_code == 404


def test_a_raters_cookie_opens_no_admin_page_and_the_other_way_round(served: Served) -> None:
    rater, admin = served.rater(), served.admin()
    for path in ("/admin", "/admin/progress.json"):
        assert rater.get(path).status_code == 401
        assert admin.get(path).status_code == 200
    admin.http.cookies.set(RATER_COOKIE, admin.http.cookies[ADMIN_COOKIE])
    assert admin.get("/item/1").status_code == 401
    rater.http.cookies.set(ADMIN_COOKIE, rater.http.cookies[RATER_COOKIE])
    assert rater.get("/admin").status_code == 401


# Cookies and headers ------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [None, "https://rate.example.org"])
def test_cookies_are_out_of_reach_of_scripts_and_other_sites(served: Served, url: str | None) -> None:
    here = Served(served.store, url)
    (token,) = served.store.invite(1)
    links = {"/join": token, "/admin": served.store.new_admin_token()}
    for path, t in links.items():
        cookie = here.stranger().get(path, params={"t": t}).headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert "Max-Age=2592000" in cookie
        assert ("Secure" in cookie) == (url is not None)
        assert t not in cookie


def test_every_answer_has_the_headers(served: Served) -> None:
    person = served.rater()
    answers = [
        person.get("/item/1"),
        person.get("/"),
        person.get("/nowhere"),
        person.get("/healthz"),
        person.get("/static/app.js"),
        person.post("/item/1", {}),
        person.http.delete("/item/1"),
        person.get("/item/1", headers={"Host": "evil.example"}),
        person.http.post("/item/1", content=b"x" * (MOST_BODY_BYTES + 1)),
    ]
    assert [answer.status_code for answer in answers] == [200, 303, 404, 200, 200, 403, 405, 400, 413]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert "server" not in answer.headers
        cached = answer.request.url.path.startswith("/static/")
        assert ("no-store" in answer.headers["cache-control"]) != cached
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_pages_bring_nothing_that_the_policy_refuses(served: Served) -> None:
    person = served.rater()
    for path in ("/instructions", "/item/1", "/item/10", "/review", "/withdraw", "/paused"):
        page = person.get(path).text
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?! src=\"/static/)|javascript:", page), (
            path
        )
        for address in re.findall(r'(?:src|href|action)="([^"]+)"', page):
            assert address.startswith(("/", "#")), address


# Requests that no browser sends -------------------------------------------------------------------


def test_bodies_are_forms_and_small(served: Served) -> None:
    person = served.rater()
    form = filled(person.form("/item/1"), 5)

    def post(**sent: Any) -> int:
        return int(person.http.post("/item/1", **sent).status_code)

    assert post(data={**form, "comment": "x" * MOST_BODY_BYTES}) == 413
    assert post(content=iter([b"score=5&comment=" + b"x" * 40_000] * 2), headers=_FORM) == 413
    assert post(json=form) == 415
    assert post(files={"comment": ("x.txt", b"x")}, data=form) == 415
    assert post(content=b"score=5", headers={"Content-Type": "text/plain"}) == 415
    assert post(content=b"score=5", headers={**_FORM, "Content-Length": "-1"}) == 400
    assert post(data=form, headers={"Sec-Fetch-Site": "cross-site"}) == 403
    assert post(content="&".join(f"f{n}=1" for n in range(5000)), headers=_FORM) in (400, 403)
    assert post(content=b"\xff\xfe%zz=%ff&&&==", headers=_FORM) == 403
    assert post(data=form, headers={"Sec-Fetch-Site": "same-origin"}) == 303


_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    ("host", "public", "status"),
    [
        ("localhost:8400", None, 200),
        ("127.0.0.1", None, 200),
        ("[::1]:8400", None, 200),
        ("LocalHost", None, 200),
        ("rate.example.org", None, 400),
        ("rate.example.org", "https://rate.example.org", 200),
        ("rate.example.org:443", "https://rate.example.org", 200),
        ("rate.example.org.evil.example", "https://rate.example.org", 400),
        ("", None, 400),
        ("[::1", None, 400),
    ],
)
def test_only_the_studys_own_names_are_answered(
    served: Served, host: str, public: str | None, status: int
) -> None:
    person = Served(served.store, public).stranger()
    assert person.get("/healthz", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    "settings",
    [
        AppSettings("rate.example.org", b"x" * 32),
        AppSettings("ftp://x", b"x" * 32),
        AppSettings(None, b"short"),
    ],
)
def test_settings_that_do_not_fit_are_refused(served: Served, settings: AppSettings) -> None:
    with pytest.raises(UsageError):
        build_app(served.store, settings)


def test_an_address_that_is_taken_is_told_in_a_line(served: Served) -> None:
    settings = AppSettings(None, served.store.secret)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {port} .*choose another"):
            serve(served.store, settings, "127.0.0.1", port, lambda _: None)


def test_methods_and_paths_that_are_not_there(served: Served) -> None:
    person = served.rater()
    for path in ("/docs", "/openapi.json", "/redoc", "/item", "/item/1/", "/static/../app.py", "/static/x"):
        answer = person.get(path)
        assert answer.status_code == 404, path
        assert "<h1>" in answer.text
    for method in ("put", "delete", "patch", "options"):
        assert getattr(person.http, method)("/item/1").status_code == 405


# Guessing -----------------------------------------------------------------------------------------


def test_guesses_are_limited_and_tell_nothing(served: Served) -> None:
    fresh = Served(served.store)
    revoked, valid = served.store.invite(2)
    served.store.revoke(revoked)
    stranger = fresh.stranger()
    tried = [stranger.get("/join", params={"t": token}) for token in [revoked, "", "x", *["A" * 32] * 6]]
    tried.append(stranger.get("/admin", params={"t": "wrong"}))
    assert {answer.status_code for answer in tried} == {404}
    assert len({answer.text for answer in tried}) == 1
    late = [stranger.get(path, params={"t": valid}) for path in ("/join", "/admin")]
    assert [answer.status_code for answer in late] == [429, 429]
    assert 0 < int(late[0].headers["retry-after"]) <= 61
    assert not stranger.http.cookies
    # Who is in already goes on.
    assert fresh.stranger().get("/healthz").status_code == 200


def test_the_limit_ends_with_the_minute_and_keeps_few_addresses() -> None:
    now = [0.0]
    limit = GuessLimit(most=2, seconds=60, most_addresses=3, clock=lambda: now[0])
    for moment in (0.0, 30.0):
        now[0] = moment
        limit.wrong("a")
    assert limit.wait("a") == 31
    assert limit.wait("b") == 0
    now[0] = 60.5
    assert limit.wait("a") == 0
    for address in "bcde":
        limit.wrong(address)
    assert len(limit._wrong) == 3


def test_addresses_of_one_ipv6_household_count_as_one(served: Served) -> None:
    app = Served(served.store).app
    for number in range(10):
        client = TestClient(app, base_url=HOST, client=(f"2001:db8::{number:x}", 1))
        assert client.get("/join?t=wrong").status_code == 404
    last = TestClient(app, base_url=HOST, client=("2001:db8::ffff", 1))
    assert last.get("/join?t=wrong").status_code == 429
    other = TestClient(app, base_url=HOST, client=("2001:db8:0:1::1", 1))
    assert other.get("/join?t=wrong").status_code == 404


def test_the_log_names_routes_and_no_token(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    (token,) = served.store.invite(1)
    with caplog.at_level(logging.DEBUG, "cogumi"):
        served.stranger().get("/join", params={"t": token})
        served.stranger().get(f"/jion/{token}?t={token}")
    assert "GET /join 303" in caplog.text
    assert "GET (no route) 404" in caplog.text
    assert token not in caplog.text


# Hostile text -------------------------------------------------------------------------------------


def test_hostile_text_is_shown_as_text_everywhere(new_store: MakeStore) -> None:
    tasks = [
        {"task_id": f"t{n}", "domain": "d", "prompt": text, "answers": {"s": text + "\x1b[0m", "r": text}}
        for n, text in enumerate(HOSTILE)
    ]
    design = {"items": len(tasks), "planted": 0, "repeats": 0, "pairs": 1, "practice": 0}
    title = '<b>"&'
    served = Served(
        new_store(tasks=tasks, subject="s", reference="r", title=title, contact="<i>me</i>", **design)
    )
    person, admin = served.rater(), served.admin()
    pages = []
    for number in range(1, len(tasks) + 2):
        text = HOSTILE[number % len(HOSTILE)]
        assert person.rate(number, 5, comment=text).status_code == 303
        pages.append(person.get(f"/item/{number}").text)
    pages += [person.get("/review").text, person.get("/withdraw").text, admin.get("/admin").text]
    for page in pages:
        for raw in ("<script>alert", "<img", "<svg", "<i>me", '<b>"', "</textarea></div>", "--><!--]]>"):
            assert raw not in page
        assert "49" not in re.sub(r"value=\"[^\"]*\"", "", page)
        assert "\x1b" not in page
    joined = "".join(pages)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in joined
    assert "{{ 7*7 }}" in joined
    texts = re.findall(r'class="text"[^>]*>([^<]*)<', joined)
    assert texts
    assert not any(mark in text for text in texts for mark in "\u202e\u2066")


def test_refusals_are_json_where_that_is_asked(served: Served) -> None:
    stranger = served.stranger()
    for path in ("/item/1", "/nowhere", "/admin/progress.json"):
        answer = stranger.get(path, headers=JSON)
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.json()) == {"detail"}
