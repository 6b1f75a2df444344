"""The rating app in this process, and people in front of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from small_study import CONSENT, select
from starlette.testclient import TestClient

from benchmarks.human_client import Form, filled, form_to
from dashboard.human_eval.app import AppSettings, build_app
from evals.human.store import StudyStore

HOST = "http://localhost"
JSON = {"Accept": "application/json"}


@dataclass
class Served:
    """A study and the app on it."""

    store: StudyStore
    public_url: str | None = None
    portal: BlockingPortal | None = None
    """One event loop for all requests; without it each has its own, which takes longer than a page."""

    @cached_property
    def app(self) -> FastAPI:
        return build_app(self.store, AppSettings(self.public_url, self.store.secret))

    def stranger(self, language: str = "en") -> Person:
        """Return someone without a cookie."""
        return Person(self.app, language, self.portal)

    def person(self, token: str | None = None) -> Person:
        """Return someone who followed a link, a new one unless told."""
        person = self.stranger()
        answer = person.get("/join", params={"t": token or self.store.invite(1)[0]})
        assert answer.status_code == 303, answer.text
        return person

    def rater(self) -> Person:
        """Return someone who has read the instructions."""
        (token,) = self.store.invite(1)
        rater = self.store.enter(token)
        assert rater is not None
        self.store.consent(rater, CONSENT, "en")
        self.store.instructed(rater)
        return self.person(token)

    def admin(self) -> Person:
        person = self.stranger()
        assert person.get("/admin", params={"t": self.store.new_admin_token()}).status_code == 303
        return person


@contextmanager
def serving(store: StudyStore) -> Iterator[Served]:
    """Give the app on a study for many tests."""
    with start_blocking_portal() as portal:
        yield Served(store, portal=portal)
    store.dispose()


class Person:
    """A browser of one's own that follows no redirect."""

    def __init__(self, app: FastAPI, language: str, portal: BlockingPortal | None) -> None:
        self.http = TestClient(
            app, base_url=HOST, follow_redirects=False, headers={"Accept-Language": language}
        )
        self.http.portal = portal

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.http.get(path, **more)

    def post(self, path: str, form: Mapping[str, str], **more: Any) -> httpx.Response:
        return self.http.post(path, data=dict(form), **more)

    def form(self, path: str, action: str | None = None) -> Form:
        """Return the form on a page that goes to ``action``, the page's own unless told."""
        answer = self.get(path)
        assert answer.status_code == 200, (path, answer.status_code)
        return form_to(answer.text, action or path)

    def rate(self, position: int, score: int = 7, **more: str) -> httpx.Response:
        """Fill in and send an item's form."""
        return self.post(f"/item/{position}", filled(self.form(f"/item/{position}"), score, **more))


def rater_id(served: Served, state: str = "instructed") -> int:
    (found,) = select(served.store.folder, f"SELECT id FROM raters WHERE state = '{state}'")
    return int(found[0])


def rater_id_of(served: Served, person: Any) -> int:
    """Return the rater whom a browser's cookie names."""
    from dashboard.human_eval.security import RATER_COOKIE, Signer

    found = Signer(served.store.secret).read(RATER_COOKIE, person.http.cookies[RATER_COOKIE])
    assert isinstance(found, int)
    return found
