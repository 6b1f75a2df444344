"""The study's tables, in SQLite and PostgreSQL alike; times are UTC in ISO 8601, which sorts as text."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from evals.human.rows import HOLDING

metadata = MetaData()

_SOURCE = "source IN ('human', 'simulated')"
_ANSWER = (
    "(score IS NULL OR score BETWEEN 1 AND 10) "
    "AND (preference IS NULL OR preference IN ('left', 'right', 'tie'))"
)
_ONE_ANSWER = f"(score IS NULL) <> (preference IS NULL) AND {_ANSWER}"
_HOLDS = text(f"state IN ({', '.join(repr(state) for state in HOLDING)})")


def _moment(name: str, nullable: bool = True) -> Column[str]:
    return Column(name, String(32), nullable=nullable)


study = Table(
    "study",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    Column("name", String(80), nullable=False),
    Column("plan_digest", String(80), nullable=False),
    Column("schema_version", Integer, nullable=False),
    Column("admin_sha256", String(64)),
    _moment("created_at", nullable=False),
    _moment("closed_at"),
)

slots = Table(
    "slots",
    metadata,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(10), nullable=False),
    Column("task_id", String(200), nullable=False),
    Column("system", String(200), nullable=False),
    Column("other", String(200)),
    Column("swapped", Boolean, nullable=False),
)
"""What each slot's rater will see, dealt when the study is made."""

invites = Table(
    "invites",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token_sha256", String(64), nullable=False, unique=True),
    Column("source", String(10), CheckConstraint(_SOURCE), nullable=False),
    _moment("created_at", nullable=False),
    _moment("revoked_at"),
)

raters = Table(
    "raters",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("invite", Integer, ForeignKey("invites.id"), nullable=False, unique=True),
    Column("source", String(10), CheckConstraint(_SOURCE), nullable=False),
    Column("state", String(12), nullable=False),
    Column("pseudonym", String(12), unique=True),
    Column("slot", Integer),
    Column("locale", String(20)),
    Column("consent_sha256", String(64)),
    Column("code", String(40)),
    _moment("entered_at"),
    _moment("consented_at"),
    _moment("finished_at"),
    _moment("ended_at"),
    _moment("paused_at"),
    _moment("last_seen"),
    _moment("lease_until"),
    # What the transactions keep anyway: two raters never hold one slot.
    Index("one_rater_a_slot", "slot", unique=True, sqlite_where=_HOLDS, postgresql_where=_HOLDS),
)

assignments = Table(
    "assignments",
    metadata,
    Column("rater", Integer, ForeignKey("raters.id"), primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(10), nullable=False),
    Column("task_id", String(200), nullable=False),
    Column("system", String(200), nullable=False),
    Column("other", String(200)),
    Column("swapped", Boolean, nullable=False),
    _moment("shown_at"),
    UniqueConstraint("rater", "kind", "task_id", name="one_task_a_rater"),
)

_POSITION = ("rater", "position")


def _of_assignment() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(_POSITION, ("assignments.rater", "assignments.position"))


def _answer() -> list[Column[object]]:
    return [
        Column("score", Integer),
        Column("preference", String(5)),
        Column("comment", Text, nullable=False),
        Column("flag", Boolean, nullable=False),
        Column("focus_ms", BigInteger, nullable=False),
    ]


ratings = Table(
    "ratings",
    metadata,
    Column("rater", Integer, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("source", String(10), CheckConstraint(_SOURCE), nullable=False),
    *_answer(),
    Column("revision", Integer, CheckConstraint("revision >= 1"), nullable=False),
    _moment("first_at", nullable=False),
    _moment("submitted_at", nullable=False),
    _of_assignment(),
    CheckConstraint(_ONE_ANSWER, name="one_answer"),
)
"""The answer that counts, one a position."""

submissions = Table(
    "submissions",
    metadata,
    Column("rater", Integer, primary_key=True, autoincrement=False),
    Column("key", String(100), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("source", String(10), CheckConstraint(_SOURCE), nullable=False),
    *_answer(),
    Column("revision", Integer, nullable=False),
    _moment("submitted_at", nullable=False),
    _of_assignment(),
    UniqueConstraint("rater", "position", "revision", name="one_submission_a_revision"),
    CheckConstraint(_ONE_ANSWER, name="one_submitted_answer"),
)
"""Every submission, never changed; its key makes sending it again harmless."""

drafts = Table(
    "drafts",
    metadata,
    Column("rater", Integer, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("client_seq", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    *_answer(),
    _moment("saved_at", nullable=False),
    _of_assignment(),
    CheckConstraint(_ANSWER, name="a_draft_answer"),
)

PERSONAL = (drafts, submissions, ratings, assignments)
"""What erasure removes of a rater, in this order."""
