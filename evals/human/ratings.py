"""Ratings of a study: items as their pages need them, drafts, and answers stored exactly once."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import and_, bindparam, delete, insert, select, update

from evals.human.book import AnyRow, Transaction
from evals.human.errors import Incomplete, Invalid, KeyConflict, NotFound, NotOpen, StaleRevision
from evals.human.plan import SCALE
from evals.human.raters import (
    CLOSED_AT,
    change,
    known_rater,
    new_code,
    no_rater,
    refuse_closed,
    seen_long_ago,
)
from evals.human.rows import (
    COMMENT_CHARACTERS,
    RATING,
    AssignmentRow,
    Draft,
    RaterId,
    StoredRating,
    Submission,
    Submitted,
)
from evals.human.schema import assignments, drafts, invites, raters, ratings, submissions
from evals.human.text import harmless

MOST_SEQ = 2**53
"""Client's numbers of drafts stay below what a browser counts exactly."""
_MOST_FOCUS_MS = 10**12
_KEY_CHARACTERS = 100
_PREFERENCES = ("left", "right", "tie")
_COMPARED = ("score", "preference", "comment", "flag")

_ANSWER = [ratings.c[name] for name in (*_COMPARED, "focus_ms", "revision", "submitted_at")]
_SAME_ITEM = and_(ratings.c.rater == assignments.c.rater, ratings.c.position == assignments.c.position)
_ITEM = (
    select(
        raters.c.id,
        raters.c.state,
        raters.c.source,
        raters.c.paused_at,
        raters.c.last_seen,
        invites.c.revoked_at,
        CLOSED_AT,
        assignments.c.kind,
        assignments.c.shown_at,
        *_ANSWER,
    )
    .select_from(raters)
    .join(invites, invites.c.id == raters.c.invite)
    .outerjoin(
        assignments,
        and_(assignments.c.rater == raters.c.id, assignments.c.position == bindparam("position")),
    )
    .outerjoin(ratings, _SAME_ITEM)
    .where(raters.c.id == bindparam("rater"))
)
_SUBMISSION = select(submissions).where(
    submissions.c.rater == bindparam("rater"), submissions.c.key == bindparam("key")
)
_DRAFT = select(drafts).where(
    drafts.c.rater == bindparam("rater"), drafts.c.position == bindparam("position")
)
_DRAFT_COLUMNS = [
    drafts.c[name].label(f"draft_{name}") for name in ("client_seq", *_COMPARED, "focus_ms", "revision")
]
_ITEMS = (
    select(assignments, *_ANSWER, *_DRAFT_COLUMNS)
    .select_from(assignments)
    .outerjoin(ratings, _SAME_ITEM)
    .outerjoin(
        drafts, and_(drafts.c.rater == assignments.c.rater, drafts.c.position == assignments.c.position)
    )
    .where(assignments.c.rater == bindparam("rater"))
    .order_by(assignments.c.position)
)
_MISSING = (
    select(assignments.c.position)
    .outerjoin(ratings, _SAME_ITEM)
    .where(assignments.c.rater == bindparam("rater"), ratings.c.position.is_(None))
    .order_by(assignments.c.position)
)


# Items --------------------------------------------------------------------------------------------


def items(t: Transaction, rater_id: RaterId) -> list[AssignmentRow]:
    """Return a rater's items in order."""
    known_rater(t, rater_id)
    return [_assignment(t, row) for row in t.rows(_ITEMS, rater=rater_id)]


def _assignment(t: Transaction, row: AnyRow) -> AssignmentRow:
    task = t.plan.by_id.get(row.task_id)
    rating = _stored(row)
    draft = None
    if row.draft_client_seq is not None:
        draft = Draft(
            client_seq=row.draft_client_seq,
            score=row.draft_score,
            preference=row.draft_preference,
            comment=row.draft_comment,
            flag=row.draft_flag,
            focus_ms=row.draft_focus_ms,
            revision=row.draft_revision,
        )
    return AssignmentRow(
        position=row.position,
        kind=row.kind,
        task_id=row.task_id,
        domain=task.domain if task else "",
        prompt=task.prompt if task else "",
        answers=_answers(t, row),
        rating=rating,
        draft=draft,
        shown_at=row.shown_at,
        focus_ms=max(rating.focus_ms if rating else 0, draft.focus_ms if draft else 0),
    )


def _answers(t: Transaction, row: AnyRow) -> tuple[str, ...]:
    """Return what is shown: one answer, a pair's two from left to right, none for practice."""
    if row.kind == "practice":
        return ()
    task, subject = t.plan.by_id[row.task_id], t.plan.subject
    if row.kind == "planted":
        # The task's own bad answer, else what the subject said to another task.
        shown = task.bad_answer if row.other is None else t.plan.by_id[row.other].answers[subject]
        return (shown or "",)
    if row.kind == "pair":
        sides = (task.answers[row.system], task.answers[row.other])
        return sides[::-1] if row.swapped else sides
    return (task.answers[row.system],)


def _stored(row: AnyRow) -> StoredRating | None:
    if row.revision is None:
        return None
    return StoredRating(
        row.score, row.preference, row.comment, row.flag, row.focus_ms, row.revision, row.submitted_at
    )


def _item(t: Transaction, rater_id: RaterId, position: int) -> AnyRow:
    """Return rater, item and rating in a row; ``kind`` is None where there is no such item."""
    here = position if 0 < position <= t.plan.length else 0
    row = t.row(_ITEM, rater=rater_id, position=here) if 0 < rater_id < 2**31 else None
    if row is None or row.revoked_at is not None:
        raise no_rater()
    return row


def _refuse_ended(t: Transaction, row: AnyRow, position: int) -> None:
    """Raise where this rater cannot rate this item now."""
    refuse_closed(t, row.study_closed_at)
    if row.state not in RATING:
        raise NotOpen(f"a rater who is {row.state} rates nothing")
    if row.kind is None:
        raise NotFound(f"there is no item {position}")


def needs_showing(t: Transaction, rater_id: RaterId, position: int) -> bool:
    """Tell whether ``shown`` would change something; raises ``NotFound``."""
    row = _item(t, rater_id, position)
    if row.kind is None:
        raise NotFound(f"there is no item {position}")
    if row.study_closed_at is not None or row.state not in RATING:
        return False
    return row.shown_at is None or row.paused_at is not None or seen_long_ago(t, row)


def shown(t: Transaction, rater_id: RaterId, position: int) -> None:
    """Keep when an item was first shown; whoever looks at an item is at work."""
    if not needs_showing(t, rater_id, position):
        return
    first = and_(
        assignments.c.rater == rater_id,
        assignments.c.position == position,
        assignments.c.shown_at.is_(None),
    )
    t.run(update(assignments).where(first).values(shown_at=t.moment))
    change(t, rater_id, state="active", paused_at=None, **t.lease)


# Answers ------------------------------------------------------------------------------------------


def submit(t: Transaction, rater_id: RaterId, position: int, given: Submission) -> Submitted:
    """Store an answer exactly once; see ``StudyStore.submit``."""
    if not (0 < len(given.key) <= _KEY_CHARACTERS and given.key.isascii() and given.key.isprintable()):
        raise Invalid(f"a key has 1 to {_KEY_CHARACTERS} plain characters")
    answer = _checked(given)
    if (given.score is None) == (given.preference is None):
        raise Invalid("choose one: a score, or of a pair a preference")
    row = _item(t, rater_id, position)
    known = t.row(_SUBMISSION, rater=rater_id, key=given.key)
    if known is not None:
        if known.position != position or any(getattr(known, name) != answer[name] for name in _COMPARED):
            raise KeyConflict("this form was sent before with another answer", _stored(row))
        return _told("replayed", position, answer, known.revision)
    _refuse_ended(t, row, position)
    _refuse_other_kind(row.kind, given)
    stored = _stored(row)
    if given.revision != (stored.revision if stored else 0):
        raise StaleRevision("the answer was changed since this page was opened", stored)
    revision = given.revision + 1
    # A second device may have begun to count anew.
    answer["focus_ms"] = max(answer["focus_ms"], stored.focus_ms if stored else 0)
    _keep(t, row, position, {**answer, "revision": revision, "submitted_at": t.moment}, given.key)
    change(t, rater_id, state="active", paused_at=None, **t.lease)
    return _told("stored", position, answer, revision)


def _keep(t: Transaction, row: AnyRow, position: int, values: dict[str, Any], key: str) -> None:
    """Append the submission, and let it be the answer that counts."""
    where = {"rater": row.id, "position": position}
    t.run(insert(submissions), **where, key=key, source=row.source, **values)
    if row.revision is None:
        t.run(insert(ratings), **where, source=row.source, first_at=t.moment, **values)
    else:
        here = and_(ratings.c.rater == row.id, ratings.c.position == position)
        t.run(update(ratings).where(here).values(**values))
    t.run(delete(drafts).where(drafts.c.rater == row.id, drafts.c.position == position))


def _checked(given: Submission | Draft) -> dict[str, Any]:
    """Return an answer as it is kept; raises ``Invalid``."""
    low, high = SCALE
    score = given.score
    if score is not None and (
        not isinstance(score, int) or isinstance(score, bool) or not low <= score <= high
    ):
        raise Invalid(f"a score is a whole number from {low} to {high}")
    if given.preference is not None and given.preference not in _PREFERENCES:
        raise Invalid("a preference is left, right or tie")
    return {
        "score": score,
        "preference": given.preference,
        "comment": harmless(given.comment, COMMENT_CHARACTERS),
        "flag": bool(given.flag),
        "focus_ms": min(max(int(given.focus_ms), 0), _MOST_FOCUS_MS),
    }


def _refuse_other_kind(kind: str, given: Submission | Draft) -> None:
    if kind == "pair" and given.score is not None:
        raise Invalid("a pair is answered by left, right or tie")
    if kind != "pair" and given.preference is not None:
        raise Invalid("a single answer is rated by a score")


def _told(
    status: Literal["stored", "replayed"], position: int, answer: dict[str, Any], revision: int
) -> Submitted:
    told = {name: answer[name] for name in _COMPARED}
    return Submitted(status=status, position=position, revision=revision, **told)


def save_draft(t: Transaction, rater_id: RaterId, position: int, given: Draft) -> bool:
    """Keep a draft unless something newer is known; see ``StudyStore.save_draft``."""
    if not 0 <= given.client_seq < MOST_SEQ:
        raise Invalid("client_seq is a whole number from 0 to 2^53")
    answer = _checked(given)
    row = _item(t, rater_id, position)
    _refuse_ended(t, row, position)
    _refuse_other_kind(row.kind, given)
    if given.revision != (row.revision or 0):
        return False
    values = {**answer, "client_seq": given.client_seq, "revision": given.revision}
    known = t.row(_DRAFT, rater=rater_id, position=position)
    if known is not None and known.client_seq >= given.client_seq:
        # The same draft again, because its answer was lost, is kept already.
        return all(getattr(known, name) == value for name, value in values.items())
    values["saved_at"] = t.moment
    if known is None:
        t.run(insert(drafts), rater=rater_id, position=position, **values)
    else:
        here = and_(drafts.c.rater == rater_id, drafts.c.position == position)
        t.run(update(drafts).where(here).values(**values))
    if seen_long_ago(t, row):
        change(t, rater_id, **t.lease)
    return True


def finish(t: Transaction, rater_id: RaterId) -> str:
    """End a rater's work; returns the completion code."""
    row = known_rater(t, rater_id)
    if row.state == "finished":
        return str(row.code)
    refuse_closed(t, row.study_closed_at)
    if row.state not in RATING:
        raise NotOpen(f"a rater who is {row.state} has nothing to finish")
    missing = [one.position for one in t.rows(_MISSING, rater=rater_id)]
    if missing:
        raise Incomplete(f"{len(missing)} items are not rated yet, the first is {missing[0]}", missing)
    code = new_code()
    change(t, rater_id, state="finished", code=code, finished_at=t.moment, paused_at=None, last_seen=t.moment)
    t.run(delete(drafts).where(drafts.c.rater == rater_id))
    return code
