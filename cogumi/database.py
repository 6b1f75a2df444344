"""SQLite that keeps what it acknowledged, or PostgreSQL by URL: engines, write transactions, faults told.

Used by the ledger and by human-evaluation studies. In SQLite: WAL, so that others read while one writes;
``synchronous=FULL``, so that an acknowledged commit survives power loss; and write transactions that begin
with ``BEGIN IMMEDIATE``. PostgreSQL has its like in an advisory lock, one number for each kind of book.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from cogumi.errors import UsageError

LEDGER_LOCK = 0x636F67756D69
"""The ledger's advisory lock ("cogumi"); they share one space of numbers in a database."""
STUDY_LOCK = 0x7374756479
"""A study's ("study")."""

_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON")

Fault = Literal["full", "away", "broken", "other"]
"""Why a database did not do it: no room or no writing, no answer, not a database, none of these."""


def sqlite_url(path: Path) -> str:
    """Return the URL of an SQLite file."""
    return f"sqlite:///{path}"


def connect_engine(url: str, setting: str, *pragmas: str, lock: int = LEDGER_LOCK, pool: int = 5) -> Engine:
    """Return an engine on ``sqlite:///FILE`` or ``postgresql://…``, with further pragmas of SQLite.

    ``setting`` names where the URL came from. Raises ``UsageError`` on one that SQLAlchemy cannot read; the
    URL is never shown: it may hold a password. ``lock`` is what write transactions hold in PostgreSQL.
    """
    if url.startswith("postgresql://"):
        url = "postgresql+psycopg://" + url.removeprefix("postgresql://")
    try:
        engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"), pool_size=pool)
    except Exception as error:
        raise UsageError(
            f"{setting}: no usable database URL ({type(error).__name__}); "
            "give sqlite:///FILE or postgresql://USER@HOST/NAME (extra: pip install 'cogumi[postgresql]')"
        ) from None
    engine.update_execution_options(cogumi_lock=lock)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _with_pragmas(*_PRAGMAS, *pragmas))
        event.listen(engine, "begin", _sqlite_begin)
    return engine


def reading_engine(path: Path) -> Engine:
    """Return an engine that only reads an SQLite file, and makes none beside it.

    In WAL mode SQLite wants a ``-shm`` file even of a reader. Where a writer is at work, or left its WAL
    behind, it is there; else the file is read as it lies (``immutable``: sqlite.org/uri.html).
    """

    def connect() -> sqlite3.Connection:
        wal = path.with_name(f"{path.name}-wal").exists()
        how = "mode=ro" if wal else "immutable=1"
        return sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True, check_same_thread=False)

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    event.listen(engine, "connect", _with_pragmas("query_only=ON", "busy_timeout=2000"))
    event.listen(engine, "begin", _sqlite_begin)
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open the database's one write transaction: commits at the end, rolls back on an exception."""
    with (
        engine.connect() as plain,
        plain.execution_options(cogumi_write=True) as connection,
        connection.begin(),
    ):
        if engine.dialect.name == "postgresql":
            # What BEGIN IMMEDIATE is to SQLite: whoever reads and then writes, migrations too, waits here.
            lock = connection.get_execution_options()["cogumi_lock"]
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
        yield connection


def _sqlite_begin(connection: Connection) -> None:
    # A transaction that reads and then writes must hold the write lock from its start: SQLite refuses to
    # upgrade a read snapshot that another writer has overtaken.
    write = connection.get_execution_options().get("cogumi_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _with_pragmas(*pragmas: str) -> Any:
    def prepare(connection: Any, _record: Any) -> None:
        # The driver's own implicit transactions leave DDL outside; with None, ours hold for migrations too.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return prepare


def reason(error: DBAPIError) -> str:
    """Return what the database said, in one line without the statement and its values."""
    return str(error.orig).splitlines()[0] if error.orig and str(error.orig) else type(error).__name__


def fault(error: DBAPIError) -> Fault:
    """Tell what kind of trouble an error of the database is."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        # The low byte is the kind (sqlite.org/rescode.html): an I/O error is what a quota's limit looks like.
        kinds: dict[int, Fault] = {
            sqlite3.SQLITE_FULL: "full",
            sqlite3.SQLITE_IOERR: "full",
            sqlite3.SQLITE_READONLY: "full",
            sqlite3.SQLITE_CANTOPEN: "away",
            sqlite3.SQLITE_BUSY: "away",
            sqlite3.SQLITE_LOCKED: "away",
            sqlite3.SQLITE_NOTADB: "broken",
            sqlite3.SQLITE_CORRUPT: "broken",
        }
        return kinds.get(code & 0xFF, "other")
    state = str(getattr(error.orig, "sqlstate", None) or "")
    # PostgreSQL's classes: 53 insufficient resources (53100 disk full), 25006 read-only, 08 and 57 gone.
    if state in ("53100", "53200", "25006"):
        return "full"
    if state[:2] in ("08", "53", "55", "57") or (not state and error.connection_invalidated):
        return "away"
    return "away" if type(error.orig).__name__ == "OperationalError" else "other"
