"""Raters: invitations, places, consent, leases, withdrawal. Each function is one transaction's work."""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update

from evals.human.book import AnyRow, Transaction
from evals.human.errors import Invalid, NotFound, NotOpen, StudyClosed, StudyFull
from evals.human.rows import HOLDING, RATING, InviteRow, RaterId, RaterRow, Source
from evals.human.schema import PERSONAL, assignments, invites, raters, slots, study

_TOKEN_BYTES = 24
_CODE_LETTERS = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
_CODE_PARTS, _CODE_PART = 3, 4
_SEEN_AGAIN = timedelta(minutes=1)
_LOCALE = re.compile(r"[A-Za-z0-9_@.-]{1,20}")
_DIGEST = re.compile(r"[\x21-\x7e]{1,64}")
_MOST_ID = 2**31

CLOSED_AT = select(study.c.closed_at).scalar_subquery().label("study_closed_at")
_RATER = (
    select(raters, invites.c.revoked_at, CLOSED_AT)
    .join(invites, invites.c.id == raters.c.invite)
    .where(raters.c.id == bindparam("rater_id"))
)
_BY_TOKEN = (
    select(invites.c.id, invites.c.source, invites.c.revoked_at, raters.c.id.label("rater"), CLOSED_AT)
    .outerjoin(raters, raters.c.invite == invites.c.id)
    .where(invites.c.token_sha256 == bindparam("digest"))
)


def sha256_of(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def known_rater(t: Transaction, rater_id: RaterId) -> AnyRow:
    """Return a rater's row with ``revoked_at`` and ``study_closed_at``; raises ``NotFound``."""
    row = t.row(_RATER, rater_id=rater_id) if 0 < rater_id < _MOST_ID else None
    if row is None or row.revoked_at is not None:
        raise no_rater()
    return row


def no_rater() -> NotFound:
    """Return the error for a rater who is unknown or revoked, alike."""
    return NotFound("no such rater, or the invitation was revoked")


def refuse_closed(t: Transaction, closed_at: str | None) -> None:
    """Raise ``StudyClosed`` where the study was closed."""
    if closed_at is not None:
        raise StudyClosed(f"study {t.plan.name} was closed at {closed_at}: nothing is written any more")


def change(t: Transaction, rater_id: RaterId, **values: Any) -> None:
    """Change columns of a rater."""
    t.run(update(raters).where(raters.c.id == rater_id).values(**values))


# Invitations --------------------------------------------------------------------------------------


def new_tokens(count: int) -> list[str]:
    """Return tokens of 32 characters that are safe in a link."""
    return [secrets.token_urlsafe(_TOKEN_BYTES) for _ in range(count)]


def invite(t: Transaction, tokens: list[str], source: Source) -> None:
    """Keep invitations by the digests of their tokens."""
    refuse_closed(t, t.connection.execute(select(CLOSED_AT)).scalar())
    rows = [{"token_sha256": sha256_of(one), "source": source, "created_at": t.moment} for one in tokens]
    t.connection.execute(insert(invites), rows)


def revoke(t: Transaction, token_or_id: str | int) -> None:
    """Make an invitation worthless; the slot of its unfinished rater counts as left."""
    chosen = (
        invites.c.token_sha256 == sha256_of(token_or_id)
        if isinstance(token_or_id, str)
        else invites.c.id == (token_or_id if 0 < token_or_id < _MOST_ID else 0)
    )
    row = t.row(select(invites.c.id, CLOSED_AT).where(chosen))
    if row is None:
        raise NotFound("no such invitation")
    refuse_closed(t, row.study_closed_at)
    t.run(
        update(invites)
        .where(invites.c.id == row.id, invites.c.revoked_at.is_(None))
        .values(revoked_at=t.moment)
    )
    unfinished = [state for state in HOLDING if state != "finished"]
    t.run(
        update(raters)
        .where(raters.c.invite == row.id, raters.c.state.in_(unfinished), raters.c.lease_until > t.moment)
        .values(lease_until=t.moment)
    )


def all_invites(t: Transaction) -> list[InviteRow]:
    """Return the invitations in the order in which they were made."""
    query = (
        select(invites, raters.c.id.label("rater"), raters.c.state)
        .outerjoin(raters, raters.c.invite == invites.c.id)
        .order_by(invites.c.id)
    )
    return [
        InviteRow(row.id, row.source, row.created_at, row.revoked_at is not None, row.rater, row.state)
        for row in t.rows(query)
    ]


def entered(t: Transaction, token: str) -> tuple[bool, RaterId | None]:
    """Return whether the token is good, and its rater where there is one already."""
    row = t.row(_BY_TOKEN, digest=sha256_of(token))
    return (False, None) if row is None or row.revoked_at is not None else (True, row.rater)


def enter(t: Transaction, token: str) -> RaterId | None:
    """Return the rater of a token, made where there is none yet."""
    row = t.row(_BY_TOKEN, digest=sha256_of(token))
    if row is None or row.revoked_at is not None:
        return None
    if row.rater is not None:
        return RaterId(row.rater)
    refuse_closed(t, row.study_closed_at)
    made = t.connection.execute(
        insert(raters).values(invite=row.id, source=row.source, state="invited", entered_at=t.moment)
    )
    key = made.inserted_primary_key
    assert key is not None
    return RaterId(key[0])


# A rater's way ------------------------------------------------------------------------------------


def rater_row(t: Transaction, rater_id: RaterId) -> RaterRow:
    """Return a rater; raises ``NotFound``."""
    row = known_rater(t, rater_id)
    return RaterRow(
        id=row.id,
        state=row.state,
        source=row.source,
        pseudonym=row.pseudonym or "",
        locale=row.locale,
        slot=row.slot,
        paused=row.paused_at is not None,
        consent_sha256=row.consent_sha256,
        code=row.code,
        lease_until=row.lease_until,
        last_seen=row.last_seen,
    )


def consent(t: Transaction, rater_id: RaterId, consent_sha256: str, locale: str) -> RaterRow:
    """Record consent and take a slot; see ``StudyStore.consent``."""
    if not _DIGEST.fullmatch(consent_sha256):
        raise Invalid("consent is given to a text, named by its SHA-256")
    row = known_rater(t, rater_id)
    if row.state in HOLDING:
        return rater_row(t, rater_id)
    refuse_closed(t, row.study_closed_at)
    if row.state != "invited":
        raise NotOpen(f"this rater's part has ended: {row.state}")
    slot = _take_slot(t)
    number = t.number(select(func.count(raters.c.pseudonym))) + 1
    change(
        t,
        rater_id,
        state="consented",
        slot=slot,
        pseudonym=f"r{number:04d}",
        consent_sha256=consent_sha256,
        locale=checked_locale(locale),
        consented_at=t.moment,
        **t.lease,
    )
    columns = ("position", "kind", "task_id", "system", "other", "swapped")
    dealt = select(bindparam("rater_id", rater_id), *(slots.c[name] for name in columns))
    t.run(insert(assignments).from_select(["rater", *columns], dealt.where(slots.c.slot == slot)))
    return rater_row(t, rater_id)


def _take_slot(t: Transaction) -> int:
    """Return the lowest free slot, else that of the longest overdue rater, who expires."""
    held = set(t.connection.execute(select(raters.c.slot).where(raters.c.state.in_(HOLDING))).scalars())
    if len(held) < t.plan.raters:
        return next(slot for slot in range(1, t.plan.raters + 1) if slot not in held)
    overdue = (
        select(raters.c.id, raters.c.slot)
        .where(raters.c.state.in_(HOLDING), raters.c.state != "finished", raters.c.lease_until <= t.moment)
        .order_by(raters.c.lease_until, raters.c.id)
        .limit(1)
    )
    longest = t.row(overdue)
    if longest is None:
        raise StudyFull(f"all {t.plan.raters} places of study {t.plan.name} are taken")
    change(t, longest.id, state="expired", ended_at=t.moment)
    return int(longest.slot)


def checked_locale(locale: str) -> str:
    """Return the name of a language; raises ``Invalid``."""
    if not _LOCALE.fullmatch(locale):
        raise Invalid("a language is named by 1 to 20 letters, digits or dashes")
    return locale


def instructed(t: Transaction, rater_id: RaterId) -> None:
    """Record that the instructions were read."""
    row = known_rater(t, rater_id)
    refuse_closed(t, row.study_closed_at)
    if row.state in RATING:
        return
    if row.state != "consented":
        raise NotOpen(f"instructions are read after consent and before the end, not when {row.state}")
    change(t, rater_id, state="instructed", **t.lease)


def set_locale(t: Transaction, rater_id: RaterId, locale: str) -> None:
    """Keep a language; of an erased rater nothing is kept."""
    row = known_rater(t, rater_id)
    refuse_closed(t, row.study_closed_at)
    if row.state != "erased":
        change(t, rater_id, locale=checked_locale(locale))


def seen_long_ago(t: Transaction, row: AnyRow) -> bool:
    """Tell whether a rater's lease is due to be renewed: nobody saw the rater for a minute."""
    last = row.last_seen
    return last is None or abs(t.now - datetime.fromisoformat(last)) >= _SEEN_AGAIN


def needs_seeing(t: Transaction, rater_id: RaterId) -> bool:
    """Tell whether ``seen`` would change something."""
    row = known_rater(t, rater_id)
    working = row.state in HOLDING and row.state != "finished"
    return working and row.study_closed_at is None and seen_long_ago(t, row)


def seen(t: Transaction, rater_id: RaterId) -> None:
    """Renew the lease of who holds a slot and has not finished."""
    if needs_seeing(t, rater_id):
        change(t, rater_id, **t.lease)


def pause(t: Transaction, rater_id: RaterId) -> None:
    """Note a pause."""
    row = known_rater(t, rater_id)
    refuse_closed(t, row.study_closed_at)
    if row.state not in HOLDING or row.state == "finished":
        raise NotOpen(f"only who is at work can pause, not who is {row.state}")
    change(t, rater_id, paused_at=t.moment, **t.lease)


def new_code() -> str:
    """Return a completion code of 59 random bits, without letters that look alike."""
    letters = [secrets.choice(_CODE_LETTERS) for _ in range(_CODE_PARTS * _CODE_PART)]
    return "-".join("".join(letters[n : n + _CODE_PART]) for n in range(0, len(letters), _CODE_PART))


def withdraw(t: Transaction, rater_id: RaterId, erase: bool) -> bool:
    """End a rater's part; returns whether something was erased."""
    row = known_rater(t, rater_id)
    refuse_closed(t, row.study_closed_at)
    if row.state == "erased":
        return False
    if not erase:
        if row.state != "withdrawn":
            change(t, rater_id, state="withdrawn", ended_at=t.moment, paused_at=None)
        return False
    for table in PERSONAL:
        t.run(delete(table).where(table.c.rater == rater_id))
    kept = {"id", "invite", "source", "pseudonym", "consent_sha256"}
    bare = {column.name: None for column in raters.columns if column.name not in kept}
    change(t, rater_id, **{**bare, "state": "erased", "ended_at": t.moment})
    return True
