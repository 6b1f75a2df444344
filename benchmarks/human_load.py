"""A hundred raters at once on the rating app: how fast it answers, what it stores, how much memory it takes.

Locust runs as a process of its own on the same machine. Each rater goes the whole way: link, consent,
instructions, 2 practice, 20 scored, 2 planted and 1 repeated item with a draft each, one submission in ten
sent twice, review, code. Think time is compressed to 1 to 3 seconds, where a person takes some thirty.

Peers, in the same run and at the same pace: ``/healthz`` of the same server, which is the floor of any
answer, and a bare FastAPI app of one page and one SQLite INSERT (``human_bare``).
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.human_server import REPOSITORY, STUDY, Command, free_port
from benchmarks.human_study import make_study
from benchmarks.timing import machine

PAGE_MS, SUBMISSION_MS, MEMORY_MIB = 300.0, 400.0, 300.0
_SEQUENCE = 2 + 20 + 2 + 1


@dataclass(frozen=True, slots=True)
class Ran:
    """What locust saw: milliseconds by name of request, statuses, acknowledged submissions, ends."""

    ms: dict[str, list[float]]
    statuses: list[int]
    stored: set[tuple[str, str]]
    ended: list[str]
    seconds: float

    def p95(self, name: str) -> float:
        """Return the 95th percentile of a kind of request."""
        return statistics.quantiles(self.ms[name], n=20, method="inclusive")[18]

    def median(self, name: str) -> float:
        """Return the median of a kind of request."""
        return statistics.median(self.ms[name])


def locust(user: str, url: str, users: int, folder: Path, **told: Any) -> Ran:
    """Let ``users`` of a class of ``human_raters`` go their way."""
    out = folder / f"{user}.json"
    load = {"users": users, "out": str(out), **told}
    words = [sys.executable, "-m", "locust", "-f", "benchmarks/human_raters.py", user, "--headless"]
    words += ["-u", str(users), "-r", "25", "--host", url, "--only-summary", "--loglevel", "WARNING"]
    start = time.perf_counter()
    done = subprocess.run(
        words,
        cwd=REPOSITORY,
        env={**os.environ, "COGUMI_LOAD": json.dumps(load), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if not out.is_file():
        raise SystemExit(f"locust left nothing: {done.stderr[-2000:]}")
    seen = json.loads(out.read_text())
    ms: dict[str, list[float]] = defaultdict(list)
    for name, took, _ in seen["requests"]:
        ms[name].append(took)
    stored = {(token, key) for token, key in seen["stored"]}
    return Ran(ms, [status for _, _, status in seen["requests"]], stored, seen["ended"], seconds)


class Memory:
    """The most that a process and its children have taken together."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._process, self._over = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            tree = [self._process, *self._process.children(recursive=True)]
            self.peak = max(self.peak, sum(one.memory_info().rss for one in tree))

    def stop(self) -> float:
        """Return it in MiB."""
        self._over.set()
        self._thread.join()
        return self.peak / 2**20


def rows(database: Path) -> tuple[int, int]:
    """Return how many ratings and how many submissions a study holds."""
    with closing(sqlite3.connect(database)) as opened:
        (ratings,) = opened.execute("SELECT count(*) FROM ratings").fetchone()
        (submissions,) = opened.execute("SELECT count(*) FROM submissions").fetchone()
    return ratings, submissions


def beside(folder: Path, users: int, pace: Mapping[str, Any]) -> Ran:
    """Return what locust saw of the bare peer."""
    port = free_port()
    words = [sys.executable, "-m", "benchmarks.human_bare", str(folder / "bare.sqlite"), str(port)]
    process = subprocess.Popen(words, cwd=REPOSITORY)
    try:
        _answering(f"http://127.0.0.1:{port}/")
        return locust("Bare", f"http://127.0.0.1:{port}", users, folder, **pace)
    finally:
        process.terminate()
        process.wait()


def _answering(url: str) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{url} does not answer")


def main(arguments: Sequence[str]) -> int:
    """Run it and print the table; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raters", type=int, default=100)
    parser.add_argument("--think", type=float, nargs=2, default=(1.0, 3.0), help="seconds, from and to")
    parser.add_argument("--rounds", type=int, default=5, help="of each visitor of the peers")
    given = parser.parse_args(arguments)
    pace = {"think_s": given.think, "rounds": given.rounds}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        study = folder / "studies" / STUDY
        store = make_study(study, raters=given.raters)
        tokens = store.invite(given.raters)
        store.dispose()
        server = Command(folder)
        memory = Memory(server.pid)
        try:
            ran = locust("Person", server.url, given.raters, folder, **pace, tokens=tokens)
            floor = locust("Health", server.url, given.raters, folder, **pace)
        finally:
            peak = memory.stop()
            code = server.stop()
        peer = beside(folder, given.raters, pace)
        ratings, submissions = rows(study / "study.sqlite")
    met = goals(given.raters, ran, Kept(ratings, submissions, peak, code))
    _compare(ran, floor, peer)
    return 0 if met else 1


@dataclass(frozen=True, slots=True)
class Kept:
    """What the run left: rows of the database, MiB at most, the server's exit code."""

    ratings: int
    submissions: int
    memory: float
    code: int


def goals(raters: int, ran: Ran, kept: Kept) -> bool:
    """Print what was seen beside each goal, and tell whether all are met."""
    wanted, whole = raters * _SEQUENCE, sum(how == "done" for how in ran.ended)
    broken = sum(status == 0 or status >= 500 for status in ran.statuses)
    page, sent, stored = ran.p95("page"), ran.p95("submission"), len(ran.stored)
    lines = [
        ("raters who went the whole way", f"{whole}", f"{raters}", whole == raters),
        ("answers of 5xx, or none", f"{broken} of {len(ran.statuses)}", "0", broken == 0),
        ("p95 of a page", f"{page:.0f} ms", f"< {PAGE_MS:.0f} ms", page < PAGE_MS),
        ("p95 of a submission", f"{sent:.0f} ms", f"< {SUBMISSION_MS:.0f} ms", sent < SUBMISSION_MS),
        (
            "ratings, submissions, acknowledged",
            f"{kept.ratings}, {kept.submissions}, {stored}",
            f"{wanted} each",
            {kept.ratings, kept.submissions, stored} == {wanted},
        ),
        ("most memory", f"{kept.memory:.0f} MiB", f"< {MEMORY_MIB:.0f} MiB", kept.memory < MEMORY_MIB),
        ("exit code after SIGTERM", f"{kept.code}", "0", kept.code == 0),
    ]
    rate = len(ran.statuses) / ran.seconds
    print(f"{machine()}; {raters} raters, {rate:.0f} requests a second over {ran.seconds:.0f} s\n")
    print("| what | seen | goal | met |\n|---|---|---|---|")
    for name, seen, goal, met in lines:
        print(f"| {name} | {seen} | {goal} | {'yes' if met else 'NO'} |")
    for how in sorted(set(ran.ended) - {"done"}):
        print(f"ended early: {how}", file=sys.stderr)
    return all(met for *_, met in lines)


def _compare(ran: Ran, floor: Ran, peer: Ran) -> None:
    print("\n| request | rating app, median and p95 | peer, median and p95 | ratio of medians |")
    print("|---|---|---|---|")
    pairs = (
        ("page", floor, "/healthz"),
        ("page", peer, "bare page"),
        ("submission", peer, "bare INSERT"),
    )
    for name, theirs, what in pairs:
        mine = f"{ran.median(name):.1f}, {ran.p95(name):.1f} ms"
        peers = f"{what}: {theirs.median(name):.1f}, {theirs.p95(name):.1f} ms"
        print(f"| {name} | {mine} | {peers} | {ran.median(name) / theirs.median(name):.1f} |")
    print(f"| draft | {ran.median('draft'):.1f}, {ran.p95('draft'):.1f} ms | | |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
