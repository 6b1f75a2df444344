"""The rating app's progress page, and its languages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from app_client import Served, rater_id, rater_id_of
from small_study import LENGTH, answer, select

from benchmarks.human_client import form_to
from dashboard.human_eval import content
from dashboard.human_eval.text import LANGUAGES, language
from evals.human.store import StudyStore

MakeStore = Callable[..., StudyStore]
PAIR = LENGTH


def test_the_progress_page_counts_and_shows_remarks_as_text(new_store: MakeStore) -> None:
    served = Served(new_store())
    hostile = "<script>alert(1)</script>"
    person = served.rater()
    person.rate(2, 9, comment=hostile, flag="yes")
    admin = served.admin()
    page = admin.get("/admin")
    assert page.status_code == 200
    assert hostile not in page.text
    assert "&lt;script&gt;alert(1)" in page.text
    assert 'http-equiv="refresh"' in page.text
    assert 'http-equiv="refresh"' not in admin.get("/admin?refresh=off").text
    figures = admin.get("/admin/progress.json").json()
    assert (figures["items_done"], figures["states"]["active"]) == (1, 1)
    assert figures["remarks"][0]["comment"] == hostile
    answer(served.store, rater_id_of(served, person), 3, 4)
    served.store.close()
    closed = admin.get("/admin").text
    assert "cogumi humaneval analyze study" in closed
    assert 'http-equiv="refresh"' not in closed


def test_progress_says_nothing_that_depends_on_the_scores(new_store: MakeStore) -> None:
    def told(name: str, score: int) -> tuple[Any, str]:
        served = Served(new_store(name))
        person = served.rater()
        for number in range(1, LENGTH + 1):
            answer(served.store, rater_id_of(served, person), number, score)
        admin = served.admin()
        page = admin.get("/admin").text
        return admin.get("/admin/progress.json").json() | {"name": ""}, page[
            page.index('<dl class="figures') :
        ]

    # An odd score prefers the left answer of the pair.
    assert told("low", 1) == told("high", 9)


def test_a_new_admin_token_ends_the_old_cookie(served: Served) -> None:
    admin = served.admin()
    assert admin.get("/admin").status_code == 200
    served.store.new_admin_token()
    assert admin.get("/admin").status_code == 401


# Languages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_page_speaks_the_language_of_the_browser(served: Served, code: str) -> None:
    person = served.rater()
    person.http.headers["Accept-Language"] = f"xx, {code}-XY;q=0.8, en;q=0.1"
    # What the rater chose comes before what the browser likes.
    served.store.set_locale(rater_id(served), code)
    for path in ("/instructions", "/item/1", f"/item/{PAIR}", "/review", "/withdraw", "/paused"):
        page = person.get(path).text
        assert f'<html lang="{code}" dir="{"rtl" if code == "ar" else "ltr"}">' in page
    assert f'lang="{code}"' in served.stranger(f"{code};q=0.5").get("/").text


def test_the_consent_is_stored_with_the_text_that_was_read(served: Served) -> None:
    person = served.person()
    form = form_to(person.get("/consent").text, "/locale").fields
    assert person.post("/locale", {**form, "locale": "de"}).headers["location"] == "/consent"
    page = person.get("/consent").text
    assert "Bevor Sie anfangen" in page
    assert "study@example.org" in page
    sent = form_to(page, "/consent").fields
    assert person.post("/consent", {**sent, "locale": "tlh", "agree": "yes"}).status_code == 422
    assert person.post("/consent", sent).status_code == 422
    assert person.post("/consent", {**sent, "agree": "yes"}).is_redirect
    german = content.consent_sha256(served.store.plan, language("de"))
    assert select(served.store.folder, "SELECT consent_sha256, locale FROM raters") == [(german, "de")]
    hashes = {content.consent_sha256(served.store.plan, language(code)) for code in LANGUAGES}
    newer = served.store.plan.model_copy(update={"consent_version": "2"})
    assert len(hashes | {content.consent_sha256(newer, language("en"))}) == len(LANGUAGES) + 1


@pytest.mark.parametrize(
    "where", ["//evil.example", "https://evil.example/", "/item/1?x=\r\nSet-Cookie: a", ""]
)
def test_a_change_of_language_leads_to_no_other_site(served: Served, where: str) -> None:
    person = served.rater()
    form = form_to(person.get("/item/1").text, "/locale").fields
    assert form["next"] == "/item/1"
    assert person.post("/locale", {**form, "locale": "de", "next": where}).headers["location"] == "/"
    assert person.post("/locale", {**form, "locale": "xx"}).status_code == 422
