"""How far a study is: counts and times in one snapshot, never a score or what a mean follows from."""

from __future__ import annotations

import statistics
from collections import Counter
from datetime import datetime, timedelta
from typing import Any, get_args

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from evals.human.book import Transaction, moment
from evals.human.rows import HOLDING, Progress, Remark, State
from evals.human.schema import assignments, invites, raters, ratings, study

MOST_REMARKS = 200
_SHORTEST = timedelta(minutes=15)
"""A pace over less would be chance."""

_OF_ITEM = and_(assignments.c.rater == ratings.c.rater, assignments.c.position == ratings.c.position)


def progress(t: Transaction) -> Progress:
    """Return how far the study is."""
    closed_at = t.connection.execute(select(study.c.closed_at)).scalar()
    states = t.counts(select(raters.c.state, func.count()).group_by(raters.c.state))
    overdue = and_(
        raters.c.state.in_(HOLDING), raters.c.state != "finished", raters.c.lease_until <= t.moment
    )
    wanted = t.plan.raters * (t.plan.length - t.plan.practice)
    done = t.number(_counted(func.count()))
    pace = _pace(t, done, closed_at)
    return Progress(
        name=t.plan.name,
        title=t.plan.title,
        closed_at=closed_at,
        slots=t.plan.raters,
        free=t.plan.raters - sum(states.get(state, 0) for state in HOLDING),
        invites=t.number(select(func.count()).select_from(invites)),
        revoked=t.number(select(func.count(invites.c.revoked_at))),
        states={state: states.get(state, 0) for state in get_args(State)},
        paused=_raters(t, raters.c.paused_at.is_not(None), raters.c.state.in_(HOLDING)),
        overdue=_raters(t, overdue),
        simulated=_raters(t, raters.c.source == "simulated"),
        items_done=done,
        items_wanted=wanted,
        items_last_hour=t.number(
            _counted(func.count()).where(ratings.c.first_at > moment(t.now - timedelta(hours=1)))
        ),
        items_per_hour=pace,
        hours_left=max(0, wanted - done) / pace if pace and closed_at is None else None,
        dropped_at=_dropped(t, overdue),
        median_seconds=_median_seconds(t),
        remarks=_remarks(t),
    )


def _raters(t: Transaction, *which: ColumnElement[bool]) -> int:
    return t.number(select(func.count()).select_from(raters).where(*which))


def _counted(*columns: Any) -> Select[Any]:
    """Return a query over the ratings of raters who hold a slot, practice left out."""
    return (
        select(*columns)
        .select_from(ratings)
        .join(assignments, _OF_ITEM)
        .join(raters, raters.c.id == ratings.c.rater)
        .where(raters.c.state.in_(HOLDING), assignments.c.kind != "practice")
    )


def _pace(t: Transaction, done: int, closed_at: str | None) -> float | None:
    """Return ratings an hour since the first one, None before it."""
    first = t.connection.execute(_counted(func.min(ratings.c.first_at))).scalar()
    if first is None:
        return None
    end = datetime.fromisoformat(closed_at) if closed_at else t.now
    return done / (max(end - datetime.fromisoformat(first), _SHORTEST) / timedelta(hours=1))


def _dropped(t: Transaction, overdue: ColumnElement[bool]) -> dict[int, int]:
    """Return how many left after which position; 0: before they rated anything."""
    last = func.coalesce(func.max(ratings.c.position), 0).label("last")
    query = (
        select(raters.c.id, last)
        .outerjoin(ratings, ratings.c.rater == raters.c.id)
        .where(or_(raters.c.state.in_(("withdrawn", "expired")), overdue))
        .group_by(raters.c.id)
    )
    return dict(sorted(Counter(int(row.last) for row in t.rows(query)).items()))


def _median_seconds(t: Transaction) -> float | None:
    # No focus is a browser that tells none.
    times = [row.focus_ms for row in t.rows(_counted(ratings.c.focus_ms).where(ratings.c.focus_ms > 0))]
    return statistics.median(times) / 1000 if times else None


def _remarks(t: Transaction) -> tuple[Remark, ...]:
    query = (
        select(
            raters.c.pseudonym,
            ratings.c.position,
            assignments.c.task_id,
            ratings.c.flag,
            ratings.c.comment,
            ratings.c.submitted_at,
        )
        .select_from(ratings)
        .join(assignments, _OF_ITEM)
        .join(raters, raters.c.id == ratings.c.rater)
        .where(or_(ratings.c.flag, ratings.c.comment != ""))
        .order_by(ratings.c.submitted_at.desc(), ratings.c.rater, ratings.c.position)
        .limit(MOST_REMARKS)
    )
    return tuple(Remark(*row) for row in t.rows(query))
