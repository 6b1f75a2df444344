"""Many at once: doubled requests, two tabs, a race for places, guessed tokens."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from test_crash import stored

from benchmarks.human_client import NO_TLS, Rater, filled, form_to
from benchmarks.human_load import locust, rows
from benchmarks.human_server import Server
from benchmarks.human_study import make_study

T = TypeVar("T")
OK, SEE_OTHER, CONFLICT = httpx.codes.OK, httpx.codes.SEE_OTHER, httpx.codes.CONFLICT


@contextmanager
def served(folder: Path, invites: int, **settings: Any) -> Iterator[tuple[str, list[str]]]:
    """Give the address of a study and its tokens."""
    store = make_study(folder, **settings)
    tokens = store.invite(invites)
    store.dispose()
    with Server(folder) as server:
        server.start()
        yield server.url, tokens
        server.stop()


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Call all of them at the same moment, each in a thread of its own."""
    gate = threading.Barrier(len(calls))

    def call(one: Callable[[], T]) -> T:
        gate.wait()
        return one()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


# Doubled requests ---------------------------------------------------------------------------------


def _rates_all_four_times(url: str, token: str, items: int) -> list[tuple[int, int]]:
    """Rate every item, each submission sent four times, two in parallel; return (position, score)."""
    rater, twin = Rater(url, token), Rater(url, token)
    assert rater.begin().status_code == SEE_OTHER
    twin.http.cookies.update(rater.http.cookies)
    given = []
    for position in range(1, items + 1):
        score = (position * 7 + len(token)) % 10 + 1
        sent = filled(rater.item(position), score, comment=f"on {position}")
        send = [partial(client.post, f"/item/{position}", sent, json=True) for client in (rater, twin)]
        answers = at_once(send) + [one() for one in send]
        assert [answer.status_code for answer in answers] == [OK] * 4, [a.text for a in answers]
        told = [answer.json() for answer in answers]
        assert sorted(one.pop("status") for one in told) == ["replayed"] * 3 + ["stored"]
        assert all(one == told[0] for one in told)
        given.append((position, score))
    for client in (rater, twin):
        client.close()
    return given


def _doubled(folder: Path, raters: int, items: int) -> None:
    settings = {"items": items, "planted": 0, "repeats": 0, "practice": 0}
    with served(folder, raters, raters=raters, **settings) as (url, tokens), ThreadPoolExecutor(6) as pool:
        given = list(pool.map(lambda token: _rates_all_four_times(url, token, items), tokens))
    kept, current = stored(folder)
    assert len(kept) == len(current) == raters * items
    assert Counter(score for one in given for _, score in one) == Counter(row.score for row in kept)
    assert {revision for _, revision in current.values()} == {1}


def test_a_submission_sent_four_times_is_stored_once(tmp_path: Path) -> None:
    _doubled(tmp_path / "study", raters=20, items=5)


@pytest.mark.slow
def test_8000_posts_of_2000_submissions_are_2000_rows(tmp_path: Path) -> None:
    _doubled(tmp_path / "study", raters=100, items=20)


@pytest.mark.slow
def test_locusts_raters_go_the_whole_way(tmp_path: Path) -> None:
    with served(tmp_path / "study", 10, raters=10) as (url, tokens):
        ran = locust("Person", url, 10, tmp_path, think_s=(0, 0.1), tokens=tokens)
    assert ran.ended == ["done"] * 10
    assert {status for status in ran.statuses if status not in (OK, SEE_OTHER)} == set()
    assert rows(tmp_path / "study" / "study.sqlite") == (len(ran.stored),) * 2 == (250, 250)


# Two tabs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_tabs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Rater, Rater]]:
    """One rater in two tabs of a study of 50 items."""
    folder = tmp_path_factory.mktemp("tabs") / "study"
    with served(folder, 1, raters=1, items=50, planted=0, repeats=0, practice=0) as (url, tokens):
        first, second = Rater(url, tokens[0]), Rater(url, tokens[0])
        assert first.begin().status_code == SEE_OTHER
        assert second.join().status_code == SEE_OTHER
        yield folder, first, second
        first.close()
        second.close()


def test_of_two_tabs_that_submit_at_once_one_wins_and_the_other_is_told(
    two_tabs: tuple[Path, Rater, Rater],
) -> None:
    folder, first, second = two_tabs
    won = {}
    for position in range(1, 21):
        path = f"/item/{position}"
        sent = [filled(tab.item(position), score) for tab, score in ((first, 3), (second, 8))]
        answers = at_once(
            [partial(tab.post, path, one) for tab, one in zip((first, second), sent, strict=True)]
        )
        assert sorted(answer.status_code for answer in answers) == [SEE_OTHER, CONFLICT]
        winner = [answer.status_code for answer in answers].index(SEE_OTHER)
        won[position] = (3, 8)[winner]
        # The loser's page shows what is stored, and from there it can be corrected.
        shown = form_to(answers[1 - winner].text, path)
        assert (shown.fields["score"], shown.fields["revision"]) == (str(won[position]), "1")
    _, current = stored(folder)
    assert {position: score for (_, position), (score, _) in current.items()} == won
    corrected = first.post("/item/1", filled(first.item(1), 10))
    assert corrected.status_code == SEE_OTHER
    assert second.item(1).fields["score"] == "10"


def test_the_later_draft_of_two_tabs_is_kept_and_none_overwrites_a_rating(
    two_tabs: tuple[Path, Rater, Rater],
) -> None:
    _, first, second = two_tabs

    def draft(tab: Rater, position: int, sequence: int, score: int) -> bool:
        form = tab.item(position)
        told = tab.post(
            f"/item/{position}/draft",
            {**form.fields, "client_seq": str(sequence), "score": str(score), "focus_ms": "10"},
        )
        assert told.status_code == OK, told.text
        return bool(told.json()["saved"])

    for position in range(30, 40):
        assert draft(first, position, 100, 2)
        assert draft(second, position, 300, 4)
        assert not draft(first, position, 200, 6)
        assert first.item(position).fields["score"] == "4"
        stale = {**first.item(position).fields, "client_seq": "400", "score": "9", "focus_ms": "10"}
        assert first.post(f"/item/{position}", filled(first.item(position), 5)).status_code == SEE_OTHER
        assert not second.post(f"/item/{position}/draft", stale).json()["saved"]
        assert second.item(position).fields["score"] == "5"


# A race for places --------------------------------------------------------------------------------


def _claim(pairs: Sequence[tuple[Rater, dict[str, str]]]) -> list[int]:
    answers = at_once([partial(rater.post, "/consent", form) for rater, form in pairs])
    return [answer.status_code for answer in answers]


def _race(folder: Path, claimants: int, places: int) -> None:
    small = {"items": 3, "planted": 0, "repeats": 0, "practice": 0}
    with served(folder, claimants, raters=places, **small) as (url, tokens):
        raters = [Rater(url, token) for token in tokens]
        forms = []
        for rater in raters:
            assert rater.join().status_code == SEE_OTHER
            forms.append({**form_to(rater.get("/consent"), "/consent").fields, "agree": "yes"})

        pairs = list(zip(raters, forms, strict=True))
        told = _claim(pairs)
        assert Counter(told) == {SEE_OTHER: places, CONFLICT: claimants - places}
        inside = [pair for pair, status in zip(pairs, told, strict=True) if status == SEE_OTHER]
        outside = [pair for pair, status in zip(pairs, told, strict=True) if status == CONFLICT]
        # Two leave; of all who were refused, two get in.
        for rater, _ in inside[:2]:
            leave = form_to(rater.get("/withdraw"), "/withdraw").fields
            assert rater.post("/withdraw", {**leave, "erase": "no", "sure": "yes"}).status_code < 400
        again = _claim(outside)
        assert Counter(again) == {SEE_OTHER: 2, CONFLICT: claimants - places - 2}
        for rater in raters:
            rater.close()


def test_of_50_claimants_for_10_places_10_get_in(tmp_path: Path) -> None:
    _race(tmp_path / "study", claimants=50, places=10)


@pytest.mark.slow
def test_of_50_claimants_for_10_places_10_get_in_20_times(tmp_path: Path) -> None:
    for number in range(20):
        _race(tmp_path / f"study-{number}", claimants=50, places=10)


# Guessing -----------------------------------------------------------------------------------------


def _guessed(folder: Path, addresses: int) -> None:
    """Guess ten tokens from each of many loopback addresses, and one more, with a header that lies."""
    small = {"items": 3, "planted": 0, "repeats": 0, "practice": 0}
    store = make_study(folder, raters=2, **small)
    revoked, valid = store.invite(2)
    store.revoke(revoked)
    store.dispose()
    bodies, statuses = set(), Counter[int]()
    with Server(folder) as server:
        server.start()
        for number in range(addresses):
            address = f"127.{1 + number // 62500}.{number // 250 % 250}.{1 + number % 250}"
            with _from(server.url, address) as client:
                guesses = [revoked, *(secrets.token_urlsafe(24) for _ in range(9))]
                for guess in guesses:
                    answer = client.get("/join", params={"t": guess})
                    statuses[answer.status_code] += 1
                    bodies.add(answer.text)
                    assert "set-cookie" not in answer.headers
                # The eleventh within the minute is not looked at, whoever it claims to come from.
                late = client.get("/join", params={"t": valid}, headers={"X-Forwarded-For": "203.0.113.7"})
                assert late.status_code == httpx.codes.TOO_MANY_REQUESTS
                assert int(late.headers["retry-after"]) > 0
        assert statuses == {httpx.codes.NOT_FOUND: 10 * addresses}
        assert len(bodies) == 1
        with _from(server.url, "127.0.0.1") as client:
            assert client.get("/join", params={"t": valid}).status_code == SEE_OTHER
        server.stop()


@contextmanager
def _from(url: str, address: str) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(local_address=address, verify=NO_TLS)
    with httpx.Client(base_url=url, transport=transport, trust_env=False) as client:
        yield client


def test_guessed_and_revoked_tokens_are_told_apart_by_nothing_and_limited(tmp_path: Path) -> None:
    _guessed(tmp_path / "study", addresses=30)


@pytest.mark.slow
def test_of_10000_guessed_tokens_none_is_accepted(tmp_path: Path) -> None:
    _guessed(tmp_path / "study", addresses=1000)
