"""Many at once on one study: the same answer twice, few places, two processes, a process killed."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import pytest
from small_study import CONSENT, LENGTH, Clock, answer, begun, joined, select, small_plan

from evals.human.errors import StaleRevision, StudyClosed, StudyFull
from evals.human.frozen import Frozen
from evals.human.rows import Draft, Submission
from evals.human.store import StudyStore

T = TypeVar("T")
MakeStore = Callable[..., StudyStore]
# Fork: a child that only opens the store itself, without two seconds of imports.
_FORK = multiprocessing.get_context("fork")


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Call all of them at the same moment, each in a thread of its own."""
    gate = threading.Barrier(len(calls))

    def call(one: Callable[[], T]) -> T:
        gate.wait()
        return one()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def given(store: StudyStore, rater: int, position: int) -> Submission:
    pair = store.assignments(rater)[position - 1].kind == "pair"
    score = 1 + (rater * 31 + position) % 10
    if pair:
        return Submission(f"key-{position}", 0, preference="tie")
    return Submission(f"key-{position}", 0, score, comment=f"of {rater} at {position}")


# Exactly once -------------------------------------------------------------------------------------


def doubled(store: StudyStore, raters: int, times: int) -> None:
    """Send each answer of each rater many times, half of them from another pool of threads."""
    ids = [begun(store) for _ in range(raters)]
    jobs = [
        (rater, position, given(store, rater, position)) for rater in ids for position in range(1, LENGTH + 1)
    ]
    rng = random.Random(raters)

    def send(job: tuple[int, int, Submission]) -> tuple[int, int, str, int]:
        told = store.submit(*job)
        assert (told.score, told.preference) == (job[2].score, job[2].preference)
        return job[0], job[1], told.status, told.revision

    with ThreadPoolExecutor(12) as one, ThreadPoolExecutor(12) as other:
        found = []
        for pool in itertools.islice(itertools.cycle((one, other)), times):
            # About the same place in every round, so that equal ones meet.
            order = sorted(range(len(jobs)), key=lambda n: n + rng.uniform(0, 6))
            found += [pool.submit(send, jobs[n]) for n in order]
        told = [future.result() for future in found]
    assert Counter(status for *_, status, _ in told) == {
        "stored": len(jobs),
        "replayed": len(jobs) * (times - 1),
    }
    assert {revision for *_, revision in told} == {1}
    rows = select(store.folder, "SELECT rater, position, score, preference, comment FROM ratings")
    assert sorted(rows, key=lambda row: row[:2]) == [
        (rater, position, sent.score, sent.preference, sent.comment) for rater, position, sent in jobs
    ]
    assert len(select(store.folder, "SELECT * FROM submissions")) == len(jobs)


def test_answers_sent_four_times_are_stored_once(new_store: MakeStore) -> None:
    doubled(new_store(raters=10), raters=10, times=4)


@pytest.mark.slow
def test_8000_answers_of_which_2000_differ_are_2000_rows(new_store: MakeStore) -> None:
    doubled(new_store(raters=200), raters=200, times=4)


def test_of_corrections_from_two_devices_one_counts_and_the_other_is_told(store: StudyStore) -> None:
    rater = begun(store)
    answer(store, rater, 2, 5)

    def correct(n: int) -> str:
        try:
            return store.submit(rater, 2, Submission(f"device-{n}", 1, 1 + n)).status
        except StaleRevision as stale:
            return f"stale, {stale.stored.revision if stale.stored else 0} is stored"

    told = at_once([lambda n=n: correct(n) for n in range(8)])  # type: ignore[misc]
    assert sorted(told) == ["stale, 2 is stored"] * 7 + ["stored"]
    (rating,) = select(store.folder, "SELECT score, revision FROM ratings")
    assert rating == (1 + told.index("stored"), 2)


def test_of_drafts_from_two_tabs_the_latest_stays(store: StudyStore) -> None:
    rater = begun(store)
    order = random.Random(4).sample(range(16), 16)
    at_once([lambda n=n: store.save_draft(rater, 2, Draft(n, 1 + n % 10)) for n in order])  # type: ignore[misc]
    draft = store.assignments(rater)[1].draft
    assert draft is not None
    assert (draft.client_seq, draft.score) == (15, 6)


# Places -------------------------------------------------------------------------------------------


def race(store: StudyStore, claimants: int, places: int) -> list[int]:
    """Let all claim a place at once; return who got one."""
    ids = [joined(store) for _ in range(claimants)]

    def claim(rater: int) -> int | None:
        try:
            return store.consent(rater, CONSENT, "en").slot
        except StudyFull:
            return None

    found = at_once([lambda rater=rater: claim(rater) for rater in ids])  # type: ignore[misc]
    slots = [slot for slot in found if slot is not None]
    assert len(slots) == len(set(slots)) == places
    assert store.progress().free == 0
    return [rater for rater, slot in zip(ids, found, strict=True) if slot is not None]


def rounds_of_races(store: StudyStore, clock: Clock, rounds: int) -> None:
    for n in range(rounds):
        taken = race(store, claimants=50, places=10)
        # The places of the next round: withdrawn, or abandoned.
        if n % 2:
            for rater in taken:
                store.withdraw(rater, erase=False)
        else:
            clock.forward(hours=49)
    names = [
        name for (name,) in select(store.folder, "SELECT pseudonym FROM raters WHERE pseudonym IS NOT NULL")
    ]
    assert len(names) == len(set(names)) == 10 * rounds


def test_of_50_claimants_for_10_places_10_get_one(new_store: MakeStore, clock: Clock) -> None:
    rounds_of_races(new_store(raters=10), clock, 3)


@pytest.mark.slow
def test_of_50_claimants_for_10_places_10_get_one_50_times(new_store: MakeStore, clock: Clock) -> None:
    rounds_of_races(new_store(raters=10), clock, 50)


def test_a_link_opened_on_many_devices_at_once_is_one_rater(store: StudyStore) -> None:
    (token,) = store.invite(1)
    found = at_once([lambda: store.enter(token)] * 12)
    assert len(set(found)) == 1
    assert len(select(store.folder, "SELECT * FROM raters")) == 1


def test_what_was_acknowledged_before_closing_is_frozen_and_nothing_else(new_store: MakeStore) -> None:
    store = new_store(raters=6)
    ids = [begun(store) for _ in range(6)]
    told: list[tuple[str, int]] = []

    def rate(rater: int) -> None:
        name = store.rater(rater).pseudonym
        with contextlib.suppress(StudyClosed):
            for n in itertools.count(1):
                for position in range(2, LENGTH):
                    store.submit(rater, position, Submission(f"{n}-{position}", n - 1, 1 + n % 10))
                    told.append((name, position))

    def close() -> Frozen:
        while len(told) < 40:
            time.sleep(0.001)
        return store.close()

    calls: list[Callable[[], Frozen | None]] = [close, *(lambda rater=rater: rate(rater) for rater in ids)]  # type: ignore[misc]
    frozen, *_ = at_once(calls)
    assert frozen is not None
    rows = frozen.table.to_pylist()
    assert {(row["rater"], row["position"]): row["revisions"] for row in rows} == Counter(told)


# Processes ----------------------------------------------------------------------------------------


def _rate_for_ever(folder: Path, rater: int, told: Connection) -> None:
    """Rate and correct all items, and tell of each answer what the store acknowledged."""
    store = StudyStore.open(folder)
    for n in itertools.count(1):
        for position in range(1, LENGTH):
            key = f"{os.getpid()}-{n}-{position}"
            shown = store.assignments(rater)[position - 1].revision
            done = store.submit(rater, position, Submission(key, shown, 1 + n % 10))
            told.send((position, key, done.revision))


def killed(store: StudyStore, times: int) -> None:
    """Kill a writing process again and again, and compare what it told with what is stored."""
    rater = begun(store)
    store.dispose()
    chance, told = random.Random(times), list[tuple[int, str, int]]()
    for _ in range(times):
        mine, its = _FORK.Pipe(duplex=False)
        writer = _FORK.Process(target=_rate_for_ever, args=(store.folder, rater, its), daemon=True)
        writer.start()
        its.close()
        until = len(told) + chance.randint(3, 15)
        while len(told) < until:
            assert mine.poll(60), "the writer stands still"
            told.append(mine.recv())
        time.sleep(chance.random() * 0.005)
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        with contextlib.suppress(EOFError):
            # What it told before it died.
            while True:
                told.append(mine.recv())
        mine.close()
    assert select(store.folder, "PRAGMA integrity_check") == [("ok",)]
    assert select(store.folder, "PRAGMA foreign_key_check") == []
    rows = select(store.folder, "SELECT position, key, revision FROM submissions")
    assert len(told) == len(set(told))
    assert set(told) <= set(rows)
    # A submission that nobody told of is one that a kill cut off.
    assert len(rows) - len(told) <= times
    last = {position: max(r for p, _, r in rows if p == position) for position, *_ in rows}
    assert dict(select(store.folder, "SELECT position, revision FROM ratings")) == last
    assert len(rows) == sum(last.values())


def test_a_killed_process_loses_and_doubles_nothing(store: StudyStore) -> None:
    killed(store, 4)


@pytest.mark.slow
def test_a_process_killed_60_times_loses_and_doubles_nothing(store: StudyStore) -> None:
    killed(store, 60)


@contextlib.contextmanager
def _beside(folder: Path, rater: int) -> Iterator[Connection]:
    """Let another process rate while the context lasts."""
    mine, its = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_rate_for_ever, args=(folder, rater, its), daemon=True)
    process.start()
    its.close()
    try:
        yield mine
    finally:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        mine.close()


def test_two_processes_write_one_study_without_a_word(tmp_path: Path) -> None:
    store = StudyStore.create(tmp_path / "study", small_plan())
    mine, other = begun(store), begun(store)
    # Connections do not survive a fork.
    store.dispose()
    with _beside(store.folder, other) as told:
        heard, n = 0, 0
        while heard < 10 or n < 40:
            store.submit(mine, 2, Submission(f"mine-{n}", n, 1 + n % 10))
            store.save_draft(mine, 3, Draft(n, 5))
            n += 1
            # An end of the other process is an EOFError here.
            while told.poll(0.001):
                told.recv()
                heard += 1
    store.dispose()
    assert select(store.folder, f"SELECT revision FROM ratings WHERE rater = {mine}") == [(n,)]
    assert len(select(store.folder, f"SELECT * FROM submissions WHERE rater = {other}")) >= heard
