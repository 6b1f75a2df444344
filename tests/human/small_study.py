"""A small study for tests of its store: real plan, real database, and a clock that is told the time."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from evals.human.plan import StudyPlan, make_plan
from evals.human.rows import Submission, Submitted
from evals.human.store import StudyStore

START = datetime(2026, 1, 5, 8, tzinfo=UTC)
CONSENT = "ab" * 32
SUBJECT, REFERENCE = "candidate-1", "candidate-2"
ITEMS = 6
LENGTH = 1 + ITEMS + 1 + 1 + 1
"""Pages: practice, scored, planted, repeated, a pair."""


class Clock:
    """What a store takes for the time."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


def small_plan(name: str = "study", **settings: Any) -> StudyPlan:
    """Return a plan of three raters and ten pages; task 0 has a bad answer of its own."""
    tasks: list[dict[str, Any]] = [
        {
            "task_id": f"task-{number}",
            "domain": ("general", "science")[number % 2],
            "prompt": f"Question {number}?",
            "answers": {SUBJECT: f"ours to {number}", REFERENCE: f"theirs to {number}"},
            **({"bad_answer": "nonsense"} if number == 0 else {}),
        }
        for number in range(settings.get("items", ITEMS))
    ]
    made: dict[str, Any] = {
        "name": name,
        "title": "A small study",
        "subject": SUBJECT,
        "reference": REFERENCE,
        "seed": 3,
        "raters": 3,
        "items": ITEMS,
        "planted": 1,
        "repeats": 1,
        "practice": 1,
        "pairs": 1,
        "contact": "study@example.org",
        "tasks": tasks,
    }
    return make_plan(**{**made, **settings})


def joined(store: StudyStore) -> int:
    """Return a new rater who has only opened the link."""
    rater = store.enter(*store.invite(1))
    assert rater is not None
    return rater


def begun(store: StudyStore, locale: str = "en") -> int:
    """Return a new rater who may rate."""
    rater = joined(store)
    store.consent(rater, CONSENT, locale)
    store.instructed(rater)
    return rater


def answer(store: StudyStore, rater: int, position: int, score: int = 7, **more: Any) -> Submitted:
    """Rate one item as its kind wants it: an odd score prefers the left one of a pair."""
    row = store.assignments(rater)[position - 1]
    given: dict[str, Any] = {"key": f"key-{position}-{row.revision}", "revision": row.revision, **more}
    if row.kind == "pair":
        given["preference"] = "left" if score % 2 else "right"
    else:
        given["score"] = score
    return store.submit(rater, position, Submission(**given))


def answer_all(store: StudyStore, rater: int, score: int = 7, **more: Any) -> str:
    """Show and rate every item, and finish."""
    for row in store.assignments(rater):
        store.shown(rater, row.position)
        answer(store, rater, row.position, score, **more)
    return store.finish(rater)


def select(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """Return what the study's SQLite file says."""
    with closing(sqlite3.connect(folder / "study.sqlite")) as database:
        return database.execute(query).fetchall()
