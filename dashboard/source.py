"""The workspace as the dashboard opens it: nothing here writes, migrates or makes a file.

In WAL mode SQLite wants a ``-shm`` file beside the database even of a reader. Where a writer is at work, or
left its WAL behind, that file is there and is used. Else no one has the ledger open, and it is read as it
lies (``immutable``: sqlite.org/uri.html), so that looking at a finished run leaves its folder as it was. A
writer that starts in those milliseconds can at worst spoil one drawing of a page; the next one sees its WAL.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Never
from urllib.parse import quote

from sqlalchemy import Engine, NullPool, RowMapping, create_engine, event, select
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from cogumi.errors import RunError, UsageError
from cogumi.ledger import Ledger
from cogumi.ledger.schema import HEAD_REVISION, metadata, runs
from cogumi.workspace import DATABASE_URL_ENV, LEDGER_FILE, Workspace
from dashboard.evidence_state import evidence_state, stat_of

_WAIT_S = 2.0
"""How long a page waits for a locked ledger before it says so."""

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")

State = tuple[object, ...]
"""What a cache is keyed by: equal states, equal content."""


class ReadOnlyWorkspace(Workspace):
    """A workspace that is only read; what would change it raises ``RunError``. Need not exist."""

    @cached_property
    def ledger(self) -> ReadOnlyLedger:
        """The ledger; one without runs where there is none yet."""
        return ReadOnlyLedger(self.root)

    @property
    def exists(self) -> bool:
        """Tell whether the folder is there."""
        return self.root.is_dir()

    def create(self) -> None:
        """Refuse: the dashboard makes no workspace."""
        self._refuse()

    def scratch(self, key: str) -> Path:
        """Return where a step's scratch folder would be, whether or not it is there."""
        return self.root / "scratch" / key.removeprefix("sha256:")

    def publish(self, file: Path, name: str) -> None:
        """Refuse."""
        self._refuse()

    def lock(self, name: str) -> Never:
        """Refuse: a lock is a file."""
        self._refuse()

    @cached_property
    def evidence_state(self) -> State:
        """The state of evidence, store and references when first asked for: a later change is another one.

        Caches are keyed by it, and it must be older than what they hold: ask before anything is read.
        """
        return evidence_state(str(self.evidence), (str(self.store.objects), str(self.root / "references")))

    def _refuse(self) -> Never:
        raise RunError("the dashboard only reads the workspace")


class ReadOnlyLedger(Ledger):
    """A ledger that is only read, of whatever schema: what an older one lacks is unknown."""

    def __init__(self, workspace: Path, url: str | None = None) -> None:
        url = url or os.environ.get(DATABASE_URL_ENV) or f"sqlite:///{workspace / LEDGER_FILE}"
        self.engine = _engine(url)
        self._file = _sqlite_file(url)

    def close(self) -> None:
        """Release the database (its engine is shared and goes on)."""

    def run_rows(self) -> Sequence[RowMapping]:
        """Return name, profile's name, status and note of all runs, the one touched last first."""
        columns = (runs.c.name, runs.c.profile_name, runs.c.status, runs.c.note)
        query = select(*columns).order_by(runs.c.updated_at.desc(), runs.c.name)
        with self.engine.connect() as connection:
            return connection.execute(query).mappings().all()

    def revision(self) -> str | None:
        """Return the schema's revision, or None where there is no ledger yet."""
        with self.engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        return None if found is None else str(found)

    def warning(self) -> str | None:
        """Say in one line how the ledger's schema differs from this program's, or return None."""
        revision = self.revision()
        if revision is None or revision == HEAD_REVISION:
            return None
        if revision < HEAD_REVISION:
            return (
                f"This ledger has the older schema {revision} (this program: {HEAD_REVISION}). What it does "
                "not know is shown as unknown; the next `cogumi run` brings it up to date."
            )
        return (
            f"This ledger has the schema {revision}, newer than this program's {HEAD_REVISION}: update "
            "cogumi. Until then some of what is shown may be missing or out of date."
        )

    def state(self) -> State:
        """Return a value that is another one after every commit."""
        if self._file is not None:
            return tuple(stat_of(f"{self._file}{tail}") for tail in ("", "-wal", "-journal"))
        with self.engine.connect() as connection:
            # Moves on with every transaction that wrote anything (postgresql.org/docs: pg_current_snapshot).
            return (connection.exec_driver_sql("SELECT pg_current_snapshot()::text").scalar(),)


@lru_cache(maxsize=16)
def _engine(url: str) -> Engine:
    file = _sqlite_file(url)
    settings: dict[str, Any] = {"poolclass": NullPool, "json_deserializer": _json}
    if file is not None:
        engine = create_engine("sqlite://", creator=_SqliteOpener(file), **settings)
    else:
        if url.startswith("postgresql://"):
            url = "postgresql+psycopg://" + url.removeprefix("postgresql://")
        try:
            engine = create_engine(url, connect_args={"connect_timeout": 5}, **settings)
        except Exception as error:
            raise _no_url(error) from None
        event.listen(engine, "connect", _postgresql_reads_only)
    event.listen(engine, "begin", _refuse_writing)
    event.listen(engine, "handle_error", _one_line)
    return engine


def _sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite URL, or None for another database."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise _no_url(error) from None
    if parsed.get_backend_name() != "sqlite":
        return None
    if not parsed.database or parsed.database == ":memory:":
        raise UsageError(f"{DATABASE_URL_ENV}: a dashboard needs a ledger in a file")
    return Path(parsed.database).absolute()


def _no_url(error: Exception) -> UsageError:
    # The URL itself is never shown: it may hold a password.
    return UsageError(f"{DATABASE_URL_ENV}: no usable database URL ({type(error).__name__})")


@dataclass(frozen=True, slots=True)
class _SqliteOpener:
    """Opens one connection that can only read; a file that is not there reads as an empty ledger."""

    file: Path

    def __call__(self) -> sqlite3.Connection:
        try:
            present = self.file.is_file() and self.file.stat().st_size > 0
            # An empty ledger needs no file: all its tables are the empty views below.
            name = self._name() if present else ":memory:"
        except OSError as error:
            raise RunError(f"cannot read the ledger {self.file}: {error.strerror}") from error
        # Streamlit draws each rerun in a thread of its own; NullPool keeps a connection in one of them.
        connection = sqlite3.connect(name, uri=True, timeout=_WAIT_S, check_same_thread=False)
        try:
            connection.isolation_level = None
            _stand_in(connection, _columns_in_sqlite(connection))
            connection.execute("PRAGMA query_only=ON")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _name(self) -> str:
        name = f"file:{quote(str(self.file))}?mode=ro"
        wal, shm, journal = (Path(f"{self.file}{tail}") for tail in ("-wal", "-shm", "-journal"))
        idle = not stat_of(str(wal))[0] and not shm.exists() and not journal.exists()
        return f"{name}&immutable=1" if idle and self._is_wal() else name

    def _is_wal(self) -> bool:
        # The file's read version, 2 for WAL (sqlite.org/fileformat.html, 1.3.3). A database with a rollback
        # journal needs no file of its readers, and is locked while it is written.
        with self.file.open("rb") as handle:
            return handle.read(20)[18:20] == b"\x02\x02"


def _columns_in_sqlite(connection: sqlite3.Connection) -> dict[str, set[str]]:
    query = "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'"
    found: dict[str, set[str]] = {}
    for table, column in connection.execute(query):
        found.setdefault(table, set()).add(column)
    return found


def _postgresql_reads_only(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_schema = ANY (current_schemas(false))"
        )
        found: dict[str, set[str]] = {}
        for table, column in cursor.fetchall():
            found.setdefault(table, set()).add(column)
        _stand_in(cursor, found)
        # The views above live in this session alone; from here on it cannot write at all.
        cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    connection.commit()


def _stand_in(cursor: Any, found: dict[str, set[str]]) -> None:
    """Hide tables that lack columns of this version behind temporary views in which those are unknown."""
    wanted = {table.name: [column.name for column in table.columns] for table in metadata.sorted_tables}
    wanted["alembic_version"] = ["version_num"]
    for table, columns in wanted.items():
        known = found.get(table, set())
        if known.issuperset(columns):
            continue
        shown = ", ".join(name if name in known else f"NULL AS {name}" for name in columns)
        schema = "main" if isinstance(cursor, sqlite3.Connection) else "public"
        source = f"FROM {schema}.{table}" if known else "WHERE 1 = 0"
        cursor.execute(f"CREATE TEMPORARY VIEW {table} AS SELECT {shown} {source}")


def _refuse_writing(connection: Any) -> None:
    if connection.get_execution_options().get("cogumi_write", False):
        raise RunError("the dashboard only reads the ledger")
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN")


def _json(read: str | bytes) -> Any:
    text = read if isinstance(read, str) else read.decode()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RunError(f"the ledger holds a row that is broken ({error})") from error
    if _HALF_PAIR.search(text):
        # Half a surrogate pair, which JSON may spell out, is no text to a browser, pandas or Arrow.
        found = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    return found


def _one_line(context: ExceptionContext) -> BaseException | None:
    """Turn what a database says into the one line that a page shows."""
    error = context.original_exception
    if isinstance(error, RunError) or not isinstance(context.sqlalchemy_exception, DBAPIError):
        return None
    said = " ".join(str(error).split()) or type(error).__name__
    if "locked" in said or "busy" in said:
        return RunError("the ledger is locked by another program; reload the page to read it again")
    if "malformed" in said or "not a database" in said:
        return RunError(
            f"the ledger is damaged ({said}); reload the page; if it stays so, restore the file from a copy"
        )
    if "unable to open" in said or "readonly" in said:
        return RunError(
            f"cannot read the ledger ({said}): its folder may not be written and a killed run left changes "
            "beside it; copy the workspace to a folder of your own"
        )
    return RunError(f"cannot read the ledger ({context.dialect.name}): {said[:200]}")
