"""The rating app's pages: a rater's whole way, what each page says, what is refused and how."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from app_client import JSON, Served, rater_id_of
from small_study import LENGTH, Clock, answer_all, select

from benchmarks.human_client import filled, form_to
from dashboard.human_eval import content
from dashboard.human_eval.text import language
from evals.human.errors import DiskFull, Unavailable
from evals.human.store import StudyStore

MakeStore = Callable[..., StudyStore]
PAIR = LENGTH


# The whole way ------------------------------------------------------------------------------------


def test_a_rater_goes_from_link_to_code_without_javascript(served: Served) -> None:
    person = served.person()
    assert person.get("/").headers["location"] == "/consent"
    consent = person.form("/consent")
    assert "agree" not in consent.fields
    assert person.post("/consent", {**consent.fields, "agree": "yes"}).headers["location"] == "/instructions"
    assert person.get("/").headers["location"] == "/instructions"
    begin = person.post("/instructions", person.form("/instructions").fields)
    where, seen = begin.headers["location"], []
    while where != "/review":
        seen.append(where)
        where = person.rate(int(where.rpartition("/")[2]), len(seen) % 10 + 1).headers["location"]
    assert seen == [f"/item/{number}" for number in range(1, LENGTH + 1)]
    assert person.post("/finish", person.form("/review", "/finish").fields).headers["location"] == "/thanks"
    thanks = person.get("/thanks").text
    (row,) = select(served.store.folder, "SELECT state, code, locale, consent_sha256 FROM raters")
    assert row[0] == "finished"
    assert f">{row[1]}<" in thanks
    assert row[2:] == ("en", content.consent_sha256(served.store.plan, language("en")))
    for path in ("/", "/item/1", "/review", "/consent", "/instructions", "/paused"):
        assert person.get(path).headers["location"] in ("/thanks", "/"), path


def test_practice_is_explained_on_the_next_page_until_that_is_rated(new_store: MakeStore) -> None:
    served = Served(new_store(practice=2))
    person = served.rater()
    assert "does not count" in person.get("/item/1").text
    person.rate(1, 9)
    second = person.get("/item/2").text
    assert "You gave the practice answer 9." in second
    assert content.practice("practice-1", language("en")).why in second
    assert "From here on" not in second
    person.rate(2, 2)
    third = person.get("/item/3").text
    assert "From here on your ratings count." in third
    person.rate(3, 5)
    assert "practice answer" not in person.get("/item/3").text


def test_an_item_shows_what_is_stored_and_a_draft_before_it(served: Served) -> None:
    person = served.rater()
    form = person.form("/item/2")
    assert {"score", "comment", "flag"} & set(form.fields) == {"comment"}
    draft = {
        **form.fields,
        "score": "4",
        "comment": "half",
        "flag": "yes",
        "focus_ms": "1500",
        "client_seq": "9",
    }
    told = person.post("/item/2/draft", draft)
    assert told.json() == {"saved": True, "client_seq": 9}
    again = person.form("/item/2").fields
    assert (again["score"], again["comment"], again["flag"], again["focus_ms"]) == (
        "4",
        "half",
        "yes",
        "1500",
    )
    assert again["revision"] == "0"
    assert again["key"] != form.fields["key"]
    assert person.rate(2, 6, comment="whole").headers["location"] == "/item/3"
    after = person.form("/item/2").fields
    assert (after["score"], after["comment"], after["revision"]) == ("6", "whole", "1")
    assert person.post("/item/2/draft", {**after, "score": "9", "client_seq": "10"}).json()["saved"]
    page = person.get("/item/2").text
    assert "It counts once you save it." in page
    assert "change not saved" in person.get("/review").text
    assert person.rate(2, 9).headers["location"] == "/item/3"
    assert select(served.store.folder, "SELECT score, revision FROM ratings") == [(9, 2)]
    assert "change not saved" not in person.get("/review").text


def test_after_a_rating_comes_the_next_open_item_and_then_the_ones_left_out(served: Served) -> None:
    person = served.rater()
    assert person.rate(LENGTH - 1).headers["location"] == f"/item/{LENGTH}"
    assert person.rate(LENGTH).headers["location"] == "/item/1"
    assert person.rate(2).headers["location"] == "/item/3"
    assert person.rate(2, 3).headers["location"] == "/item/3"
    assert 'rel="next"' in person.get("/item/2").text
    assert 'rel="next"' not in person.get("/item/3").text
    assert 'rel="prev"' not in person.get("/item/1").text


def test_review_lists_everything_and_finishing_waits_for_all(served: Served) -> None:
    person = served.rater()
    person.rate(2, 10, comment="look", flag="yes")
    page = person.get("/review").text
    assert page.count('<span class="number">') == LENGTH
    assert f"1 of {LENGTH} are done." in page
    assert 'href="/item/1">Go on' in page
    assert 'action="/finish"' not in page
    csrf = person.form("/review", "/pause").fields
    refused = person.post("/finish", csrf)
    assert refused.status_code == 409
    assert f"{LENGTH - 1} items are still open." in refused.text
    assert person.post("/finish", csrf, headers=JSON).json()["missing"] == [1, *range(3, LENGTH + 1)]


def test_a_pair_takes_a_preference_and_no_score(served: Served) -> None:
    person = served.rater()
    form = person.form(f"/item/{PAIR}")
    assert form.has("preference")
    assert not form.has("score")
    for wrong in ({}, {"preference": "both"}, {"score": "7"}, {"preference": "tie", "score": "7"}):
        assert person.post(f"/item/{PAIR}", {**form.fields, **wrong}).status_code == 422
    assert person.post(f"/item/{PAIR}", {**form.fields, "preference": "tie"}).status_code == 303
    assert select(served.store.folder, "SELECT preference FROM ratings") == [("tie",)]
    assert "About equal" in person.get("/review").text


def test_no_page_of_a_rater_names_a_system_or_tells_what_an_item_is_for(served: Served) -> None:
    person = served.rater()
    pages = [person.get(f"/item/{number}").text for number in range(1, LENGTH + 1)]
    pages += [person.get(path).text for path in ("/review", "/instructions", "/withdraw", "/paused")]
    for page in pages:
        assert not re.search(r"candidate-|planted|repeat|scored|task-\d", page)
        assert len(page.encode()) < 50 * 1024


# Exactly once -------------------------------------------------------------------------------------


def test_json_tells_stored_replayed_and_where_to_go(served: Served) -> None:
    person = served.rater()
    sent = filled(person.form("/item/1"), 8)
    told = [person.post("/item/1", sent, headers=JSON).json() for _ in range(2)]
    assert [one.pop("status") for one in told] == ["stored", "replayed"]
    assert told[0] == told[1] == {"position": 1, "revision": 1, "next": "/item/2"}


@pytest.mark.parametrize("change", [{"score": "3"}, {"key": "another"}])
def test_a_conflict_shows_what_is_stored_with_a_form_that_can_correct_it(
    served: Served, change: dict[str, str]
) -> None:
    person = served.rater()
    sent = filled(person.form("/item/1"), 8, comment="mine <b>")
    assert person.post("/item/1", sent).status_code == 303
    refused = person.post("/item/1", {**sent, **change})
    assert refused.status_code == 409
    assert "another window" in refused.text
    form = form_to(refused.text, "/item/1").fields
    assert (form["score"], form["comment"], form["revision"]) == ("8", "mine <b>", "1")
    told = person.post("/item/1", {**sent, **change}, headers=JSON)
    assert told.status_code == 409
    assert told.json()["stored"] == {"score": 8, "preference": None, "comment": "mine <b>", "flag": False}
    assert person.post("/item/1", {**form, "score": "2"}).status_code == 303
    assert select(served.store.folder, "SELECT score, revision FROM ratings") == [(2, 2)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": ""}, "Please choose a score"),
        ({"score": "11"}, "Please choose a score"),
        ({"score": "7.5"}, "Please choose a score"),
        ({"score": "٣"}, "Please choose a score"),
        ({"comment": "x" * 2001}, "The comment is too long"),
        ({"key": ""}, "could not be read"),
        ({"revision": "one"}, "could not be read"),
        ({"preference": "tie"}, "could not be read"),
    ],
)
def test_a_form_that_cannot_be_stored_comes_back_with_what_was_entered(
    served: Served, change: dict[str, str], words: str
) -> None:
    person = served.rater()
    sent = {**filled(person.form("/item/1"), 8, comment="kept", flag="yes", focus_ms="77"), **change}
    refused = person.post("/item/1", sent)
    assert refused.status_code == 422
    assert words in refused.text
    form = form_to(refused.text, "/item/1").fields
    assert (form["comment"], form["flag"], form["focus_ms"]) == (sent["comment"], "yes", "77")
    assert words in person.post("/item/1", sent, headers=JSON).json()["detail"]
    assert select(served.store.folder, "SELECT count(*) FROM submissions") == [(0,)]


def test_comments_are_stored_with_unix_lines_and_without_controls(served: Served) -> None:
    person = served.rater()
    assert person.rate(
        1, comment=" a\r\nb\x00c\u202e\x1b[31m\ud800 ".encode("utf-8", "replace").decode()
    ).is_redirect
    assert select(served.store.folder, "SELECT comment FROM ratings") == [("a\nbc\u202e[31m?",)]
    assert "a\nbc" in person.get("/item/1").text


# Leaving ------------------------------------------------------------------------------------------


def test_pause_says_until_when_and_going_on_ends_it(served: Served) -> None:
    person = served.rater()
    csrf = person.form("/item/1", "/pause").fields
    assert person.post("/pause", csrf).headers["location"] == "/paused"
    assert "until 7 January 2026, 08:00 (UTC)" in person.get("/paused").text
    assert served.store.progress().paused == 1
    person.get("/item/1")
    assert served.store.progress().paused == 0


@pytest.mark.parametrize("erase", ["no", "yes"])
def test_who_withdraws_may_keep_or_erase_and_comes_no_further(served: Served, erase: str) -> None:
    person = served.rater()
    person.rate(1, comment="gone?")
    form = person.form("/withdraw").fields
    for missing in ({"erase": erase}, {"sure": "yes"}, {"erase": "maybe", "sure": "yes"}):
        assert person.post("/withdraw", {**form, **missing}).status_code == 422
    done = person.post("/withdraw", {**form, "erase": erase, "sure": "yes"})
    assert done.headers["location"] == "/withdraw"
    kept = select(served.store.folder, "SELECT count(*) FROM submissions")
    assert kept == [(0,)] if erase == "yes" else [(1,)]
    page = person.get("/withdraw").text
    assert ("Your data are erased" if erase == "yes" else "You have withdrawn") in page
    assert person.get("/").headers["location"] == "/withdraw"
    assert person.get("/item/1").headers["location"] == "/"
    if erase == "no":
        assert person.post("/withdraw", {**form, "erase": "yes", "sure": "yes"}).is_redirect
        assert select(served.store.folder, "SELECT count(*) FROM submissions") == [(0,)]


def test_a_full_study_says_so_and_takes_who_comes_when_a_place_is_free(new_store: MakeStore) -> None:
    served = Served(new_store(raters=1))
    first, second = served.rater(), served.person()
    form = {**second.form("/consent").fields, "agree": "yes"}
    refused = second.post("/consent", form)
    assert refused.status_code == 409
    assert "All places are taken" in refused.text
    leave = first.form("/withdraw").fields
    first.post("/withdraw", {**leave, "erase": "no", "sure": "yes"})
    assert second.post("/consent", form).is_redirect


def test_who_was_away_too_long_is_told_and_can_erase(new_store: MakeStore, clock: Clock) -> None:
    served = Served(new_store(raters=1))
    away = served.rater()
    sent = filled(away.form("/item/2"), 5)
    away.rate(1)
    clock.forward(hours=49)
    other = served.person()
    assert other.post("/consent", {**other.form("/consent").fields, "agree": "yes"}).is_redirect
    told = away.get("/")
    assert told.status_code == 409
    assert "Your place was given to somebody else" in told.text
    assert away.post("/item/2", sent).status_code == 409
    leave = away.form("/withdraw").fields
    assert away.post("/withdraw", {**leave, "erase": "yes", "sure": "yes"}).is_redirect
    assert select(served.store.folder, "SELECT count(*) FROM submissions") == [(0,)]


def test_a_closed_study_takes_nothing_and_says_so(new_store: MakeStore) -> None:
    served = Served(new_store())
    done, working, new = served.rater(), served.rater(), served.person()
    answer_all(served.store, rater_id_of(served, done))
    sent = filled(working.form("/item/1"), 5)
    agreed = {**new.form("/consent").fields, "agree": "yes"}
    leave = working.form("/withdraw").fields
    (late,) = served.store.invite(1)
    served.store.close()
    for path in ("/", "/item/1", "/review", "/instructions", "/paused"):
        assert working.get(path).status_code == 410, path
    told = working.post("/item/1", sent)
    assert (told.status_code, "The study is closed" in told.text) == (410, True)
    assert working.post("/item/1/draft", {**sent, "client_seq": "1"}).json()["detail"]
    assert new.post("/consent", agreed).status_code == 410
    assert served.stranger().get("/join", params={"t": late}).status_code == 410
    refused = working.post("/withdraw", {**leave, "erase": "yes", "sure": "yes"})
    assert refused.status_code == 410
    assert "frozen without names" in refused.text
    assert done.get("/thanks").status_code == 200
    # The language of a page can still be chosen.
    form = form_to(done.get("/thanks").text, "/locale").fields
    assert done.post("/locale", {**form, "locale": "de"}).is_redirect
    assert "Vielen Dank" in done.get("/thanks").text


# The database in trouble --------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "status"), [(DiskFull("no room"), 507), (Unavailable("busy"), 503)])
def test_what_cannot_be_stored_is_said_and_nothing_is_acknowledged(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    person = served.rater()
    sent = filled(person.form("/item/1"), 5)

    def fails(*_: object, **__: object) -> None:
        raise error

    for name in ("submit", "save_draft"):
        monkeypatch.setattr(served.store, name, fails)
    page = person.post("/item/1", sent)
    assert page.status_code == status
    assert page.headers["content-type"].startswith("text/html")
    assert "stored" in page.text
    assert ("retry-after" in page.headers) == (status == 503)
    assert person.post("/item/1", sent, headers=JSON).json()["detail"]
    assert person.post("/item/1/draft", {**sent, "client_seq": "1"}).status_code == status


def test_pages_are_shown_while_the_disk_is_full(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    person = served.rater()

    def full(*_: object) -> None:
        raise DiskFull("no room")

    for name in ("shown", "seen", "set_locale"):
        monkeypatch.setattr(served.store, name, full)
    for path in ("/item/1", "/review", "/instructions", "/healthz"):
        assert person.get(path).status_code == 200, path
    form = form_to(person.get("/item/1").text, "/locale").fields
    assert person.post("/locale", {**form, "locale": "de"}).is_redirect


def test_a_fault_of_the_program_is_a_page_without_a_traceback(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    person = served.rater()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("internal detail")

    monkeypatch.setattr(served.store, "assignments", broken)
    page = person.get("/item/1")
    assert page.status_code == 500
    assert "It is our fault" in page.text
    assert "internal detail" not in page.text
    assert page.headers["content-security-policy"]
    assert "internal detail" in caplog.text
