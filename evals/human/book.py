"""A study's open database: reading and writing in transactions, faults by name, and leaving no trace.

Writers of one process wait for each other at a lock of their own: SQLite lets waiting connections sleep and
try again, which is slow and unfair with many. Between processes ``BEGIN IMMEDIATE`` decides.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine, Executable, Row, select
from sqlalchemy import exc as database_errors

from cogumi.database import fault, reason, writing
from evals.human.errors import DiskFull, StudyError, Unavailable
from evals.human.plan import StudyPlan
from evals.human.schema import PERSONAL, study

T = TypeVar("T")
AnyRow: TypeAlias = Row[*tuple[Any, ...]]
"""A row of a query whose columns are known by name."""

POOL = 20
"""Connections kept open; a web server's threads take twice as many when they are all at work."""
_RETRY_S = 10.0
_PAUSE_S = 0.02
_SCRUB_WAIT_MS = 2_000
_SCRUB_AGAIN_S = 60.0


def moment(at: datetime) -> str:
    """Return a time as the database keeps it: UTC to the millisecond, of one length, so that it sorts."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction on a study, and the moment at which it began."""

    connection: Connection
    plan: StudyPlan
    now: datetime

    @property
    def moment(self) -> str:
        """The moment as the database keeps it."""
        return moment(self.now)

    @property
    def lease(self) -> dict[str, str]:
        """What a rater's row gets whenever the rater is seen."""
        until = self.now + timedelta(hours=self.plan.lease_hours)
        return {"last_seen": self.moment, "lease_until": moment(until)}

    def row(self, statement: Executable, **values: Any) -> AnyRow | None:
        """Return the one row of a query, or None."""
        return self.connection.execute(statement, values).one_or_none()

    def rows(self, statement: Executable, **values: Any) -> list[AnyRow]:
        """Return all rows of a query."""
        return list(self.connection.execute(statement, values))

    def number(self, statement: Executable, **values: Any) -> int:
        """Return the one number of a query; none is 0."""
        return int(self.connection.execute(statement, values).scalar() or 0)

    def counts(self, statement: Executable) -> dict[str, int]:
        """Return the counts that a query of (name, count) finds."""
        return {str(name): int(count) for name, count in self.rows(statement)}

    def run(self, statement: Executable, **values: Any) -> None:
        """Execute a statement that changes something."""
        self.connection.execute(statement, values)


class Book:
    """An engine on a study's database; safe for threads."""

    def __init__(
        self, engine: Engine, plan: StudyPlan, now: Callable[[], datetime], *, read_only: bool = False
    ) -> None:
        self._engine, self._plan, self._now, self._read_only = engine, plan, now, read_only
        self._turn = threading.Lock()
        self._closed_at: str | None = None
        self._scrub_from: float | None = None

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Return what ``work`` finds in one snapshot; raises ``Unavailable``."""
        try:
            with self._engine.connect() as connection:
                return work(Transaction(connection, self._plan, self._now()))
        except database_errors.DBAPIError as error:
            raise _trouble(error, writes=False) from None
        except database_errors.TimeoutError:
            raise _away("all its connections are at work") from None

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Return what ``work`` did once it is committed; on any exception nothing was done.

        ``work`` may be called again where another process held the database. Raises ``DiskFull``,
        ``Unavailable``.
        """
        if self._read_only:
            raise StudyError(f"study {self._plan.name} was opened for reading only")
        until = time.monotonic() + _RETRY_S
        while True:
            try:
                with self._turn, writing(self._engine) as connection:
                    # The time of the write, not of the waiting before it.
                    done = work(Transaction(connection, self._plan, self._now()))
                break
            except database_errors.DBAPIError as error:
                if not _busy(error) or time.monotonic() >= until:
                    raise _trouble(error, writes=True) from None
            except database_errors.TimeoutError:
                raise _away("all its connections are at work") from None
            time.sleep(_PAUSE_S)
        if self._scrub_from is not None and time.monotonic() >= self._scrub_from:
            self.scrub()
        return done

    def closed_at(self) -> str | None:
        """Return when the study was closed; asked of the database until it was."""
        if self._closed_at is None:
            self._closed_at = self.read(lambda t: t.connection.execute(select(study.c.closed_at)).scalar())
        return self._closed_at

    def scrub(self) -> None:
        """Leave no byte of deleted rows in the database's files.

        Deleted cells are overwritten at once (``secure_delete``), but copies stay in the write-ahead log,
        and may stay in a page's unused part. Where a reader of another process or a full disk is in the way,
        it is tried again after a later write and at the end.
        """
        with self._turn:
            done = self._scrub_sqlite() if self._engine.dialect.name == "sqlite" else self._scrub_postgresql()
        self._scrub_from = None if done else time.monotonic() + _SCRUB_AGAIN_S

    def _scrub_sqlite(self) -> bool:
        try:
            pooled = self._engine.raw_connection()
        except (database_errors.SQLAlchemyError, sqlite3.Error):
            return False
        # Not to the pool again: it waits less long than the others.
        pooled.detach()
        try:
            raw: Any = pooled.dbapi_connection
            raw.execute(f"PRAGMA busy_timeout={_SCRUB_WAIT_MS}")
            raw.execute("VACUUM")
            busy, *_ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
        except sqlite3.Error:
            return False
        finally:
            pooled.close()

    def _scrub_postgresql(self) -> bool:
        tables = ", ".join([*(table.name for table in PERSONAL), "raters"])
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(isolation_level="AUTOCOMMIT")
                connection.exec_driver_sql(f"SET lock_timeout = {_SCRUB_WAIT_MS}")
                try:
                    connection.exec_driver_sql(f"VACUUM (FULL) {tables}")
                finally:
                    connection.exec_driver_sql("RESET lock_timeout")
        except database_errors.SQLAlchemyError:
            return False
        return True

    def dispose(self) -> None:
        """Close the connections that are not in use."""
        if self._scrub_from is not None:
            self.scrub()
        self._engine.dispose()


def _busy(error: database_errors.DBAPIError) -> bool:
    # Only what SQLite says to have refused whole: of a PostgreSQL that went away, nobody knows what it kept.
    code = getattr(error.orig, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _trouble(error: database_errors.DBAPIError, *, writes: bool) -> Exception:
    """Return the study's own error for one of the database; a fault of the program stays what it is."""
    kind = fault(error)
    if kind == "full" and writes:
        return DiskFull(
            f"the study's database takes no write ({reason(error)}): nothing was stored; free space, then "
            "send it again"
        )
    if kind == "broken":
        return Unavailable(f"the study's database is damaged ({reason(error)}): restore it from a backup")
    return error if kind == "other" else _away(reason(error))


def _away(why: str) -> Unavailable:
    return Unavailable(f"the study's database does not answer ({why}): try again")
