"""Closing a study: the last write to its database, and what is then read out of it for good."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, select, update

from evals.human.book import AnyRow, Transaction
from evals.human.rows import State
from evals.human.schema import assignments, invites, raters, ratings, study

_ENDS: tuple[State, ...] = ("finished", "withdrawn", "erased", "expired")


def close(t: Transaction) -> None:
    """Write down that the study is closed, once."""
    t.run(update(study).where(study.c.closed_at.is_(None)).values(closed_at=t.moment))


def counts(t: Transaction) -> dict[str, int]:
    """Return how many were invited, came, agreed, and how they ended."""
    states = t.counts(select(raters.c.state, func.count()).group_by(raters.c.state))
    sources = t.counts(select(raters.c.source, func.count()).group_by(raters.c.source))
    return {
        "invited": t.number(select(func.count()).select_from(invites)),
        "started": sum(states.values()),
        "consented": sum(consents(t).values()),
        **{state: states.get(state, 0) for state in _ENDS},
        "simulated": sources.get("simulated", 0),
    }


def consents(t: Transaction) -> dict[str, int]:
    """Return the raters by the SHA-256 of the text that they agreed to."""
    text = raters.c.consent_sha256
    return t.counts(select(text, func.count()).where(text.is_not(None)).group_by(text).order_by(text))


def rating_rows(t: Transaction) -> list[dict[str, Any]]:
    """Return the rows of the ratings file, in order: slot, position, rater; practice left out."""
    query = (
        select(
            ratings,
            assignments.c.kind,
            assignments.c.task_id,
            assignments.c.system,
            assignments.c.swapped,
            assignments.c.shown_at,
            raters.c.pseudonym,
            raters.c.state,
            raters.c.slot,
            raters.c.locale,
        )
        .select_from(ratings)
        .join(
            assignments,
            and_(assignments.c.rater == ratings.c.rater, assignments.c.position == ratings.c.position),
        )
        .join(raters, raters.c.id == ratings.c.rater)
        .where(assignments.c.kind != "practice")
        .order_by(raters.c.slot, ratings.c.position, raters.c.id)
    )
    return [_rating(t, row) for row in t.rows(query)]


def _rating(t: Transaction, row: AnyRow) -> dict[str, Any]:
    return {
        "rater": row.pseudonym,
        "source": row.source,
        "rater_state": row.state,
        "slot": row.slot,
        "position": row.position,
        "kind": row.kind,
        "task_id": row.task_id,
        "domain": t.plan.by_id[row.task_id].domain,
        "system": row.system,
        "score": row.score,
        "preference": _preferred(row),
        "focus_ms": row.focus_ms,
        "wall_ms": _wall_ms(row),
        "revisions": row.revision,
        "comment": row.comment,
        "flag": row.flag,
        "locale": row.locale or "",
    }


def _preferred(row: AnyRow) -> str | None:
    """Return whom a pair's preference means: swapped, the subject stood on the right."""
    if row.preference is None:
        return None
    if row.preference == "tie":
        return "tie"
    return "subject" if (row.preference == "right") == row.swapped else "reference"


def _wall_ms(row: AnyRow) -> int | None:
    if row.shown_at is None:
        return None
    taken = datetime.fromisoformat(row.first_at) - datetime.fromisoformat(row.shown_at)
    return max(0, taken // timedelta(milliseconds=1))
