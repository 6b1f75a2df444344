"""A rater's client for tests and load: it reads the study's pages as a browser without JavaScript does.

Forms are read out of the HTML, so what is sent is what the page offered: its CSRF token, its idempotency key,
its revision. Nothing here knows the server's code.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from evals.human.simulate_page import Form, read_page

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""An empty context: reading the machine's certificates for each client takes longer than a rating."""


def form_to(page: str, path: str) -> Form:
    """Return the page's form whose action is ``path``; ``LookupError`` names those that are there."""
    forms = read_page(path, 200, page).forms
    for form in forms:
        if urlsplit(form.action).path == path:
            return form
    raise LookupError(f"no form to {path} among {[form.action for form in forms]}: {page[:300]}")


class Rater:
    """One rater at a running server, from the personal link on. Not for two threads at once."""

    def __init__(self, base: str, token: str, *, timeout: float = 10.0) -> None:
        self.base, self.token = base.rstrip("/"), token
        self.http = httpx.Client(base_url=self.base, timeout=timeout, trust_env=False, verify=NO_TLS)

    def close(self) -> None:
        """Close its connections."""
        self.http.close()

    def join(self) -> httpx.Response:
        """Follow the personal link; the cookie stays in this client."""
        return self.http.get("/join", params={"t": self.token})

    def get(self, path: str) -> str:
        """Return a page that must be there; ``httpx.HTTPStatusError`` if it is not."""
        answer = self.http.get(path)
        answer.raise_for_status()
        return answer.text

    def post(self, path: str, form: Mapping[str, Any], *, json: bool = False) -> httpx.Response:
        """Send a form, without following where the answer leads."""
        return self.http.post(path, data=dict(form), headers={"Accept": "application/json"} if json else {})

    def begin(self) -> httpx.Response:
        """Follow the link, consent and take the instructions as read; return the consent's answer."""
        joined = self.join()
        if joined.status_code != httpx.codes.SEE_OTHER:
            return joined
        consent = form_to(self.get("/consent"), "/consent")
        answer = self.post("/consent", {**consent.fields, "agree": "yes"})
        if answer.status_code == httpx.codes.SEE_OTHER:
            told = form_to(self.get("/instructions"), "/instructions")
            self.post("/instructions", told.fields)
        return answer

    def item(self, position: int) -> Form:
        """Return the rating form of an item's page."""
        path = f"/item/{position}"
        return form_to(self.get(path), path)

    def where(self) -> str:
        """Return the path that ``/`` leads to."""
        return urlsplit(urljoin(self.base, self.http.get("/").headers.get("location", ""))).path


def filled(form: Form, score: int, **others: str) -> dict[str, str]:
    """Return what a rater sends who gives ``score``: for a pair its parity chooses the side."""
    if form.has("preference"):
        return {**form.fields, "preference": ("left", "right", "tie")[score % 3], **others}
    return {**form.fields, "score": str(score), **others}
