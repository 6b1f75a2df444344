"""Locust's raters: ``locust -f benchmarks/human_raters.py Person``, told by the environment what to do.

``COGUMI_LOAD`` holds JSON: ``tokens`` (one a person), ``think_s`` (shortest and longest), ``rounds`` (of the
peers) and ``out``, the file that gets every request's name, milliseconds and status, and every acknowledged
submission. Locust replaces the standard library's sockets, so this file is only ever run by locust.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.exception import StopUser

from benchmarks.human_client import filled, form_to

_TOLD = json.loads(os.environ["COGUMI_LOAD"])
_TOKENS: list[str] = list(_TOLD.get("tokens", ()))
_REQUESTS: list[tuple[str, float, int]] = []
_STORED: list[tuple[str, str]] = []
_ENDED: list[str] = []
_SEE_OTHER = 303


@events.request.add_listener  # type: ignore[untyped-decorator]
def _note(name: str, response_time: float, response: Any, exception: Any, **_: Any) -> None:
    _REQUESTS.append((name, response_time, 0 if response is None else int(response.status_code)))


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _write(environment: Environment, **_: Any) -> None:
    told = {"requests": _REQUESTS, "stored": _STORED, "ended": _ENDED}
    Path(_TOLD["out"]).write_text(json.dumps(told))


class _User(FastHttpUser):
    abstract = True
    insecure = True

    def think(self) -> None:
        gevent.sleep(random.uniform(*_TOLD["think_s"]))

    def ended(self, how: str) -> None:
        """Say how it ended; the last one ends the run."""
        _ENDED.append(how)
        runner = self.environment.runner
        if runner is not None and len(_ENDED) == _TOLD["users"]:
            gevent.spawn_later(0.2, runner.quit)
        raise StopUser

    def got(self, path: str, name: str) -> str:
        """Return a page."""
        answer = self.client.get(path, name=name, allow_redirects=False)
        if answer.status_code != 200:
            self.ended(f"{path}: {answer.status_code}")
        return str(answer.text)

    def posted(self, path: str, form: dict[str, str], name: str) -> Any:
        """Send a form."""
        return self.client.post(path, data=form, name=name, allow_redirects=False)


class Person(_User):
    """A rater from the link to the completion code, with a draft for every item and some doubled clicks."""

    @task
    def rate(self) -> None:
        """Go the whole way once."""
        token = _TOKENS.pop()
        self.client.get(f"/join?t={token}", name="enter", allow_redirects=False)
        form = form_to(self.got("/consent", "page"), "/consent").fields
        self.posted("/consent", {**form, "agree": "yes"}, "enter")
        form = form_to(self.got("/instructions", "page"), "/instructions").fields
        path = self._led(self.posted("/instructions", form, "enter"))
        while path.startswith("/item/"):
            path = self._item(token, path)
        form = form_to(self.got(path, "page"), "/finish").fields
        self.got(self._led(self.posted("/finish", form, "enter")), "page")
        self.ended("done")

    def _item(self, token: str, path: str) -> str:
        form = form_to(self.got(path, "page"), path)
        self.think()
        sent = filled(form, random.randint(1, 10), focus_ms="2000")
        draft = {name: sent[name] for name in ("csrf", "score") if name in sent}
        self.posted(f"{path}/draft", {**draft, "client_seq": "1", "focus_ms": "2000"}, "draft")
        answers = [self.posted(path, sent, "submission")]
        if random.random() < 0.1:
            answers.append(self.posted(path, sent, "submission"))
        for answer in answers:
            if answer.status_code == _SEE_OTHER:
                _STORED.append((token, sent["key"]))
        return self._led(answers[-1])

    def _led(self, answer: Any) -> str:
        if answer.status_code != _SEE_OTHER:
            self.ended(f"{answer.url}: {answer.status_code}")
        return urlsplit(answer.headers["location"]).path


class Bare(_User):
    """A visitor of the bare peer: a page, a thought, a row."""

    @task
    def insert(self) -> None:
        """Do as many rounds as asked."""
        for number in range(_TOLD["rounds"]):
            self.got("/", "page")
            self.think()
            mine = {"rater": str(id(self)), "position": str(number), "score": "7"}
            form = {**mine, "key": f"{id(self)}-{number}"}
            self.posted("/", form, "submission")
        self.ended("done")


class Health(_User):
    """A visitor of the rating app's /healthz: the least that an answer of this server takes."""

    @task
    def ask(self) -> None:
        """Do as many rounds as asked."""
        for _ in range(_TOLD["rounds"]):
            self.got("/healthz", "page")
            self.think()
        self.ended("done")
