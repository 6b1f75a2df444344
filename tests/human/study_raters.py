"""Raters in threads who rate over HTTP, whatever happens to the server, and note what they were told."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
from study_history import End, History, Item, Op

from benchmarks.human_client import Form, Rater, filled

RETRY_S = 0.02


class Stopped(Exception):  # noqa: N818
    """The test is over."""


class Worker(threading.Thread):
    """A rater who goes round and round the items, correcting what stands, until told to stop.

    A submission without an answer is sent again with the same key until there is one. One in five times the
    rater walks away instead and opens the page anew: what became of that submission is then unknown.
    """

    def __init__(self, rater: Rater, rater_id: int, positions: Sequence[int], history: History) -> None:
        super().__init__(daemon=True)
        self._rater, self._id, self._positions, self._history = rater, rater_id, positions, history
        self._random = random.Random(rater_id)
        self._over = threading.Event()
        self.error: BaseException | None = None

    def stop(self) -> None:
        self._over.set()

    def run(self) -> None:
        try:
            while True:
                for position in self._positions:
                    self._rate(position)
        except Stopped:
            pass
        except BaseException as error:
            self.error = error
            raise

    def _rate(self, position: int) -> None:
        form = self._page(position)
        score = self._random.randint(1, 10)
        item: Item = (self._id, position)
        op = self._history.invoke(Op(item, form.fields["key"], score, int(form.fields["revision"])))
        while True:
            if self._over.is_set() and op.sends:
                self._history.end(op, "unknown")
                raise Stopped
            op.sends += 1
            try:
                answer = self._rater.post(f"/item/{position}", filled(form, score), json=True)
            except httpx.TransportError:
                if self._random.random() < 0.2:
                    self._history.end(op, "unknown")
                    return
                time.sleep(RETRY_S)
                continue
            end, seen = _told(answer)
            self._history.end(op, end, seen, "" if end == "ok" else answer.text[:200])
            return

    def _page(self, position: int) -> Form:
        while not self._over.is_set():
            try:
                return self._rater.item(position)
            except httpx.TransportError:
                time.sleep(RETRY_S)
        raise Stopped


def _told(answer: httpx.Response) -> tuple[End, int | None]:
    if answer.status_code == httpx.codes.OK:
        return "ok", int(answer.json()["revision"])
    return "fail", None


def workers(url: str, tokens: Sequence[str], ids: Sequence[int], history: History) -> list[Worker]:
    """Return raters who have joined, consented and read the instructions, not yet started."""
    found = []
    for token, rater_id in zip(tokens, ids, strict=True):
        rater = Rater(url, token)
        assert rater.begin().status_code == httpx.codes.SEE_OTHER
        found.append(Worker(rater, rater_id, positions(rater), history))
    return found


def positions(rater: Rater) -> list[int]:
    """Return the positions of the rater's items, by asking until there is none."""
    found = []
    while rater.http.get(f"/item/{len(found) + 1}").status_code == httpx.codes.OK:
        found.append(len(found) + 1)
    assert found
    return found


def folder_of(workspace: Path) -> Path:
    """Return the folder of the only study in a workspace."""
    (found,) = (workspace / "studies").iterdir()
    return found
