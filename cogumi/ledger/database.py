"""Opening the ledger: SQLite in the workspace, or PostgreSQL by ``COGUMI_DATABASE_URL``; migrations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DatabaseError, OperationalError

from cogumi.errors import RunError, UsageError
from cogumi.ledger.schema import HEAD_REVISION
from cogumi.workspace import DATABASE_URL_ENV, LEDGER_FILE

_WRITE_LOCK = 0x636F67756D69  # "cogumi": advisory locks share one space of numbers in a database


def open_engine(workspace: Path, url: str | None = None) -> Engine:
    """Return an engine on a ledger of the newest schema, creating or migrating it where needed.

    Raises ``UsageError`` on a URL that SQLAlchemy cannot read, ``RunError`` when the database cannot be
    opened or is newer than this program. The URL itself is never shown: it may hold a password.
    """
    url = url or os.environ.get(DATABASE_URL_ENV) or f"sqlite:///{workspace / LEDGER_FILE}"
    if url.startswith("postgresql://"):
        url = "postgresql+psycopg://" + url.removeprefix("postgresql://")
    try:
        engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    except Exception as error:
        raise UsageError(
            f"{DATABASE_URL_ENV}: no usable database URL ({type(error).__name__}); "
            "give sqlite:///FILE or postgresql://USER@HOST/NAME (extra: pip install 'cogumi[postgresql]')"
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _sqlite_pragmas)
        event.listen(engine, "begin", _sqlite_begin)
    try:
        _ensure_schema(engine)
    except (OperationalError, DatabaseError) as error:
        reason = str(error.orig).splitlines()[0] if error.orig else type(error).__name__
        raise RunError(f"cannot open the ledger ({engine.dialect.name}): {reason}") from None
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
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _WRITE_LOCK})
        yield connection


def _sqlite_begin(connection: Connection) -> None:
    # A transaction that reads and then writes must hold the write lock from its start: SQLite refuses to
    # upgrade a read snapshot that another writer has overtaken.
    write = connection.get_execution_options().get("cogumi_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _sqlite_pragmas(connection: Any, _record: Any) -> None:
    # The driver's own implicit transactions leave DDL outside; with None, ours above hold for migrations too.
    connection.isolation_level = None
    cursor = connection.cursor()
    # WAL lets the dashboard read while a run writes; FULL makes an acknowledged commit survive power loss.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def current_revision(engine: Engine) -> str | None:
    """Return the schema's alembic revision, or None for an empty database."""
    with engine.connect() as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _ensure_schema(engine: Engine) -> None:
    revision = current_revision(engine)
    if revision == HEAD_REVISION:
        return
    if revision is not None and revision > HEAD_REVISION:
        raise RunError(
            f"the ledger's schema {revision} is newer than this program's {HEAD_REVISION}: update cogumi"
        )
    migrate(engine)


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
    with writing(engine) as connection:
        if _revision(connection) == HEAD_REVISION:
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
