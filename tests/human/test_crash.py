"""The server is killed, stopped and starved of disk under load: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from study_history import History, Item, Kept, Op, violations
from study_raters import Worker, workers

from benchmarks.human_server import Server
from benchmarks.human_study import make_study

RATERS = 6
SHORT = {"items": 4, "planted": 1, "repeats": 0, "practice": 1}


@dataclass
class Load:
    """Raters at work on a server."""

    folder: Path
    server: Server
    history: History
    workers: list[Worker]

    def more(self, answers: int) -> None:
        """Wait until this many more submissions are acknowledged."""
        wanted, until = self.history.acknowledged + answers, time.monotonic() + 60
        while self.history.acknowledged < wanted:
            broken = [worker.error for worker in self.workers if worker.error]
            assert not broken, broken
            assert time.monotonic() < until, f"{self.history.counts()}"
            time.sleep(0.002)

    def rest(self) -> None:
        """Let every rater come to an end."""
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            worker.join(30)
            assert not worker.is_alive()
            assert worker.error is None

    def check(self) -> None:
        """Compare what was told with what is stored."""
        kept, current = stored(self.folder)
        assert violations(self.history, kept, current) == []
        assert self.history.counts().get("fail", 0) == 0
        assert self.history.counts().get("invoke", 0) == 0


def stored(folder: Path) -> tuple[list[Kept], dict[Item, tuple[int, int]]]:
    """Return every submission and every rating of a study, after an integrity check of the database."""
    with closing(sqlite3.connect(folder / "study.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        rows = database.execute("SELECT rater, position, key, score, revision FROM submissions").fetchall()
        kept = [
            Kept((rater, position), key, score, revision) for rater, position, key, score, revision in rows
        ]
        ratings = database.execute("SELECT rater, position, score, revision FROM ratings").fetchall()
    return kept, {(rater, position): (score, revision) for rater, position, score, revision in ratings}


@contextmanager
def load(folder: Path) -> Iterator[Load]:
    """Give raters at work; at the end they rest, and the server ends as told."""
    store = make_study(folder, raters=RATERS, **SHORT)
    tokens = store.invite(RATERS)
    ids = [store.enter(token) for token in tokens]
    store.dispose()
    with Server(folder) as server:
        server.start()
        history = History()
        work = Load(folder, server, history, workers(server.url, tokens, [one or 0 for one in ids], history))
        for worker in work.workers:
            worker.start()
        try:
            yield work
        finally:
            for worker in work.workers:
                worker.stop()


def killed(work: Load, times: int) -> None:
    chance = random.Random(times)
    for _ in range(times):
        work.more(chance.randint(1, 12))
        time.sleep(chance.random() * 0.01)
        work.server.kill()
        work.server.start()
    work.more(20)
    work.rest()
    work.check()


def test_no_acknowledged_rating_is_lost_or_doubled_by_20_kills(tmp_path: Path) -> None:
    with load(tmp_path / "study") as work:
        killed(work, 20)
        # Had no submission been cut off, the kills would have shown nothing.
        assert any(op.sends > 1 or op.end == "unknown" for op in work.history.ops)


@pytest.mark.slow
def test_no_acknowledged_rating_is_lost_or_doubled_by_200_kills(tmp_path: Path) -> None:
    with load(tmp_path / "study") as work:
        killed(work, 200)


@pytest.mark.slow
def test_a_server_that_stands_still_for_three_seconds_loses_nothing(tmp_path: Path) -> None:
    with load(tmp_path / "study") as work:
        for _ in range(5):
            work.more(20)
            work.server.signal(signal.SIGSTOP)
            time.sleep(3)
            work.server.signal(signal.SIGCONT)
        work.more(20)
        work.rest()
        work.check()


def test_a_server_told_to_end_under_load_ends_and_loses_nothing(tmp_path: Path) -> None:
    with load(tmp_path / "study") as work:
        for _ in range(2):
            work.more(10)
            work.server.stop()
            work.server.start()
        work.more(10)
        work.rest()
        work.check()


# The checker itself -------------------------------------------------------------------------------

ITEM = (1, 1)


def _history(*ops: Op) -> History:
    history = History()
    for op in ops:
        history.invoke(op)
        history.end(op, op.end, op.seen)
    return history


@pytest.mark.parametrize(
    ("kept", "current", "line"),
    [
        ([], None, "acknowledged a is lost"),
        ([Kept(ITEM, "a", 7, 1), Kept(ITEM, "a", 7, 2)], (7, 2), "key a stored 2 times"),
        ([Kept(ITEM, "a", 6, 1)], (6, 1), "sent 7 at 0, stored 6 as 1"),
        ([Kept(ITEM, "a", 7, 1)], (8, 1), "the rating is (8, 1)"),
        ([Kept(ITEM, "a", 7, 1), Kept(ITEM, "z", 9, 2)], (9, 2), "stored z, which nobody sent"),
        ([Kept(ITEM, "a", 7, 1), Kept(ITEM, "c", 3, 2)], (3, 2), "stored c, which was refused"),
        ([Kept(ITEM, "b", 5, 1), Kept(ITEM, "a", 7, 2)], (7, 2), "stored in the order [1, 0]"),
        ([Kept(ITEM, "a", 7, 1), Kept(ITEM, "b", 5, 3)], (5, 3), "revisions [1, 3]"),
    ],
)
def test_the_checker_finds_each_kind_of_loss(
    kept: list[Kept], current: tuple[int, int] | None, line: str
) -> None:
    history = _history(
        Op(ITEM, "a", 7, 0, "ok", seen=1), Op(ITEM, "b", 5, 1, "unknown"), Op(ITEM, "c", 3, 1, "fail")
    )
    found = violations(history, kept, {} if current is None else {ITEM: current})
    assert any(line in one for one in found), found


@pytest.mark.parametrize("became", ["stored", "lost"])
def test_an_unknown_submission_may_be_stored_or_lost(became: str) -> None:
    history = _history(Op(ITEM, "a", 7, 0, "ok", seen=1), Op(ITEM, "b", 5, 1, "unknown"))
    kept = [Kept(ITEM, "a", 7, 1)] + ([Kept(ITEM, "b", 5, 2)] if became == "stored" else [])
    assert violations(history, kept, {ITEM: (kept[-1].score, kept[-1].revision)}) == []
