"""Making a study's folder and database in one step, and opening them with a line for what is wrong."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, insert, inspect, select
from sqlalchemy.exc import DBAPIError

from cogumi.database import STUDY_LOCK, connect_engine, fault, reading_engine, reason, sqlite_url, writing
from cogumi.errors import RunError, UsageError
from cogumi.store import disk_error, sync_folder
from evals.human import design
from evals.human.book import POOL, moment
from evals.human.plan import PLAN_FILE, SCHEMA_VERSION, StudyPlan, write_plan
from evals.human.schema import metadata, slots, study

DATABASE_URL_ENV = "COGUMI_STUDY_DATABASE_URL"
DATABASE_FILE = "study.sqlite"
SECRET_FILE = "secret"
_SECRET_BYTES = 32


# Making -------------------------------------------------------------------------------------------


def create_study(folder: Path, plan: StudyPlan, url: str | None, now: datetime) -> None:
    """Make a study's folder with plan, secret and database; killed half-way, there is no study.

    Raises ``UsageError`` where one is there already or the URL does not fit, ``RunError`` where it cannot be
    written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _there_already(folder)
    url = _url(plan, url)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # One folder deeper than studies lie, so that nobody takes a half-made one for a study.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as staging:
            made = Path(staging) / "study"
            made.mkdir()
            _write_secret(made / SECRET_FILE)
            write_plan(plan, made)
            _make_database(made, plan, url, now)
            try:
                made.rename(folder)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise _there_already(folder) from None
                raise
            sync_folder(folder.parent)
    except OSError as error:
        raise disk_error(error, folder) from error


def _there_already(folder: Path) -> UsageError:
    what = "a study is there already" if (folder / PLAN_FILE).exists() else "something is there already"
    return UsageError(f"{folder}: {what}; choose another name")


def _write_secret(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(_SECRET_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _make_database(folder: Path, plan: StudyPlan, url: str | None, now: datetime) -> None:
    engine = _engine(folder, url)
    try:
        with writing(engine) as connection:
            if url is not None and inspect(connection).has_table(study.name):
                raise UsageError("that database holds a study already: give each study a database of its own")
            metadata.create_all(connection)
            connection.execute(
                insert(study),
                {
                    "id": 1,
                    "name": plan.name,
                    "plan_digest": plan.digest,
                    "schema_version": SCHEMA_VERSION,
                    "created_at": moment(now),
                },
            )
            connection.execute(insert(slots), _dealt(plan))
    except DBAPIError as error:
        if fault(error) == "full":
            raise RunError(f"disk full while making {folder.name}: free space and run again") from None
        raise RunError(f"cannot make the study's database ({reason(error)})") from None
    finally:
        engine.dispose()


def _dealt(plan: StudyPlan) -> list[dict[str, object]]:
    return [
        {
            "slot": slot,
            "position": one.position,
            "kind": one.kind,
            "task_id": one.task_id,
            "system": one.system,
            "other": one.other,
            "swapped": one.swapped,
        }
        for slot, sequence in enumerate(design.deal(plan), 1)
        for one in sequence
    ]


# Opening ------------------------------------------------------------------------------------------


def open_study(folder: Path, plan: StudyPlan, url: str | None, *, read_only: bool) -> Engine:
    """Return an engine on a study's database, which was looked at.

    Raises ``UsageError`` where no URL is given or one does not fit, ``RunError`` where the database is
    missing, broken, newer than this program, or another study's.
    """
    url = _url(plan, url)
    where = "the study's PostgreSQL database" if url else str(folder / DATABASE_FILE)
    if url is None and not (folder / DATABASE_FILE).is_file():
        raise RunError(f"{where}: missing, and with it all ratings; restore it from a backup")
    engine = _engine(folder, url, read_only=read_only)
    try:
        _check(engine, plan, where, whole=url is None and not read_only)
    except DBAPIError as error:
        engine.dispose()
        mend = "restore it from a backup" if fault(error) == "broken" else "nothing was changed"
        raise RunError(f"{where}: cannot be opened ({reason(error)}); {mend}") from None
    except BaseException:
        engine.dispose()
        raise
    return engine


def _check(engine: Engine, plan: StudyPlan, where: str, *, whole: bool) -> None:
    with engine.connect() as connection:
        if whole:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if found != "ok":
                raise RunError(f"{where}: damaged ({found}); restore it from a backup")
        known = inspect(connection).has_table(study.name)
        row = connection.execute(select(study)).one_or_none() if known else None
    if row is None:
        raise RunError(f"{where}: holds no study; restore it from a backup, or give the right one")
    if row.schema_version > SCHEMA_VERSION:
        raise RunError(
            f"{where}: schema {row.schema_version} is newer than this program's {SCHEMA_VERSION}: update it"
        )
    if (row.name, row.plan_digest) != (plan.name, plan.digest):
        raise RunError(
            f"{where}: belongs to another study ({row.name}, plan {row.plan_digest[:19]}) than {PLAN_FILE} "
            f"({plan.name}, plan {plan.digest[:19]}); put together what belongs together"
        )


def read_secret(folder: Path) -> bytes:
    """Return the study's secret; raises ``RunError`` where it is missing or none."""
    path = folder / SECRET_FILE
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({type(error).__name__}); restore it from a backup") from None
    if len(secret) != _SECRET_BYTES:
        raise RunError(f"{path}: {len(secret)} bytes instead of {_SECRET_BYTES}; restore it from a backup")
    return secret


def _engine(folder: Path, url: str | None, *, read_only: bool = False) -> Engine:
    if url is None:
        path = folder / DATABASE_FILE
        if read_only:
            return reading_engine(path)
        return connect_engine(sqlite_url(path), str(path), "secure_delete=ON", lock=STUDY_LOCK, pool=POOL)
    engine = connect_engine(url, DATABASE_URL_ENV, lock=STUDY_LOCK, pool=POOL)
    return engine.execution_options(postgresql_readonly=True) if read_only else engine


def _url(plan: StudyPlan, url: str | None) -> str | None:
    """Return the URL of a study in PostgreSQL, None of one in a file; raises ``UsageError``."""
    if plan.database == "sqlite":
        if url is not None:
            raise UsageError(f"study {plan.name} is kept in a file: leave the database URL out")
        return None
    url = url or os.environ.get(DATABASE_URL_ENV)
    if not url:
        raise UsageError(
            f"study {plan.name} is kept in PostgreSQL: give --database-url, or set {DATABASE_URL_ENV}"
        )
    if not url.startswith(("postgresql://", "postgresql+psycopg://")):
        raise UsageError(f"{DATABASE_URL_ENV}: a study's database URL begins with postgresql://")
    return url
