"""Opening the ledger: SQLite in the workspace, or PostgreSQL by ``COGUMI_DATABASE_URL``; migrations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DatabaseError, OperationalError

from cogumi.database import Fault, connect_engine, fault, reading_engine, reason, sqlite_url
from cogumi.database import writing as database_writing
from cogumi.errors import RunError
from cogumi.ledger.schema import HEAD_REVISION
from cogumi.workspace import DATABASE_URL_ENV, LEDGER_FILE

__all__ = ["current_revision", "migrate", "open_engine", "writing"]


def open_engine(workspace: Path, url: str | None = None) -> Engine:
    """Return an engine on a ledger of the newest schema, creating or migrating it where needed.

    Raises ``UsageError`` on a URL that SQLAlchemy cannot read, ``RunError`` when the database cannot be
    opened or is newer than this program. The URL itself is never shown: it may hold a password.
    """
    file = workspace / LEDGER_FILE
    own = url or os.environ.get(DATABASE_URL_ENV)
    # A workspace that this user may read only: what has been decided can be looked at all the same.
    locked = (
        own is None and file.is_file() and not (os.access(file, os.W_OK) and os.access(workspace, os.W_OK))
    )
    engine = reading_engine(file) if locked else connect_engine(own or sqlite_url(file), DATABASE_URL_ENV)
    where = f"{engine.dialect.name}" if own else f"{file}"
    try:
        if locked and current_revision(engine) != HEAD_REVISION:
            raise RunError(
                f"{file}: its schema is another version's, and it may not be written: chmod u+w it"
            )
        _ensure_schema(engine)
    except DatabaseError as error:
        raise RunError(f"cannot open the ledger ({where}): {reason(error)}; {_MEND[fault(error)]}") from None
    return engine


_MEND: dict[Fault, str] = {
    "full": "make room, or make it writable",
    "away": "see that the database is there and nobody holds it",
    "broken": "it is no ledger of ours: move it away, or take a copy of it that is whole",
    "other": "see that it is a ledger of ours",
}


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open the ledger's one write transaction; raises ``RunError`` where the database does not take it."""
    try:
        with database_writing(engine) as connection:
            yield connection
    except OperationalError as error:
        raise RunError(f"the ledger cannot be written: {reason(error)}; {_MEND[fault(error)]}") from error


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
