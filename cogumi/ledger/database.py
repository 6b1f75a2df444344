"""Opening the ledger: SQLite in the workspace, or PostgreSQL by ``COGUMI_DATABASE_URL``; migrations."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DatabaseError

from cogumi.database import connect_engine, reason, sqlite_url, writing
from cogumi.errors import RunError
from cogumi.ledger.schema import HEAD_REVISION
from cogumi.workspace import DATABASE_URL_ENV, LEDGER_FILE

__all__ = ["current_revision", "migrate", "open_engine", "writing"]


def open_engine(workspace: Path, url: str | None = None) -> Engine:
    """Return an engine on a ledger of the newest schema, creating or migrating it where needed.

    Raises ``UsageError`` on a URL that SQLAlchemy cannot read, ``RunError`` when the database cannot be
    opened or is newer than this program. The URL itself is never shown: it may hold a password.
    """
    url = url or os.environ.get(DATABASE_URL_ENV) or sqlite_url(workspace / LEDGER_FILE)
    engine = connect_engine(url, DATABASE_URL_ENV)
    try:
        _ensure_schema(engine)
    except DatabaseError as error:
        raise RunError(f"cannot open the ledger ({engine.dialect.name}): {reason(error)}") from None
    return engine


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
