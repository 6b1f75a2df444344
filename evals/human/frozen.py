"""What closing a study writes, and everybody else reads: the ratings in Parquet, and their seal."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cogumi.errors import RunError
from cogumi.store import write_atomic
from cogumi.strict_yaml import explain
from evals.human.plan import PLAN_FILE, SCHEMA_VERSION, StudyPlan, study_folder, write_plan

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "frozen"
RATINGS_FILE = "ratings.parquet"
STUDY_FILE = "study.json"
COLUMNS = {
    "rater": "string",
    "source": "string",
    "rater_state": "string",
    "slot": "int32",
    "position": "int32",
    "kind": "string",
    "task_id": "string",
    "domain": "string",
    "system": "string",
    "score": "int8",
    "preference": "string",
    "focus_ms": "int64",
    "wall_ms": "int64",
    "revisions": "int32",
    "comment": "string",
    "flag": "bool",
    "locale": "string",
}
"""Names and Arrow types. ``score`` is null for a pair, ``preference`` (subject, reference, tie) for the rest;
``wall_ms`` from the first showing to the first submission, null where times were left out."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A closed study, checked against its seal."""

    plan: StudyPlan
    counts: Mapping[str, int]
    """invited, started, consented, finished, withdrawn, erased, expired, simulated."""
    consents: Mapping[str, int]
    """Raters by the SHA-256 of the consent text that they agreed to."""
    table: pa.Table
    """``COLUMNS``, one row a submitted rating, practice left out, sorted by slot, position and rater."""
    digest: str
    """``sha256:<hex>`` of the ratings file."""
    closed_at: str | None
    """UTC; None where times were left out."""
    folder: Path
    """The study's folder, which holds ``frozen/``."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What stands beside the ratings: who took part, and when it ended."""

    counts: Mapping[str, int]
    consents: Mapping[str, int]
    closed_at: str | None


# Reading ------------------------------------------------------------------------------------------


def read_frozen(folder: Path) -> Frozen:
    """Read and verify the closed study in a study's folder (or an artifact's payload).

    Raises ``RunError`` with one line: not closed, a file missing, broken, changed since, or newer.
    """
    path = folder / FOLDER / STUDY_FILE
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{folder}: no closed study there; `cogumi humaneval close` closes one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path, str(error).splitlines()[0]) from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int):
        raise _broken(path, "it has no schema_version")
    if version > SCHEMA_VERSION:
        raise RunError(f"{path}: schema {version} is newer than this program's {SCHEMA_VERSION}: update it")
    try:
        plan = StudyPlan.model_validate_json(json.dumps(document["plan"]))
        sealed, closed_at = str(document["ratings_sha256"]), document["closed_at"]
        counts = {str(name): int(count) for name, count in document["counts"].items()}
        consents = {str(name): int(count) for name, count in document["consent_sha256"].items()}
    except ValidationError as error:
        raise _broken(path, explain(error, StudyPlan)) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken(path, f"{type(error).__name__}: {error}") from None
    if document.get("plan_digest") != plan.digest:
        raise _broken(path, "the plan was changed since it was closed")
    table = _read_ratings(folder / FOLDER / RATINGS_FILE, sealed)
    return Frozen(plan, counts, consents, table, sealed, closed_at, folder)


def _read_ratings(path: Path, sealed: str) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = path.read_bytes()
    except OSError as error:
        raise _broken(path, error.strerror or str(error)) from None
    if _digest(data) != sealed:
        raise _broken(path, f"its SHA-256 is not the one in {STUDY_FILE}: it was changed since")
    try:
        # Not read_table: its threads may outlive a command that ends at once, and it imports pandas.
        with pq.ParquetFile(io.BytesIO(data), pre_buffer=False) as file:
            table = file.read(use_threads=False)
    except pa.ArrowException as error:
        raise _broken(path, str(error).splitlines()[0]) from None
    if not table.schema.equals(_schema()):
        raise _broken(path, "its columns are not those of a study's ratings")
    return table


def _broken(path: Path, why: str) -> RunError:
    return RunError(
        f"{path}: broken ({why}); restore it, or delete {FOLDER}/ and run `cogumi humaneval close`, which "
        "writes it again from the study's database"
    )


def find_frozen(workspace_root: Path, study: str) -> Frozen | None:
    """Return the closed study of this name in a workspace; None where there is none or it is still open."""
    folder = study_folder(workspace_root, study)
    return read_frozen(folder) if (folder / FOLDER / STUDY_FILE).exists() else None


def study_state(workspace_root: Path, study: str) -> str | None:
    """Tell ``open`` or ``closed`` of a workspace's study from its files alone; None where there is none."""
    folder = study_folder(workspace_root, study)
    if (folder / FOLDER / STUDY_FILE).exists():
        return "closed"
    return "open" if (folder / PLAN_FILE).exists() else None


# Writing ------------------------------------------------------------------------------------------


def write_frozen(folder: Path, plan: StudyPlan, rows: Sequence[Mapping[str, Any]], seal: Seal) -> Frozen:
    """Write ``frozen/`` into a study's folder and return it as it reads; the seal is written last.

    Args:
        rows: ``COLUMNS`` of every rating, in the order in which they are to stand.

    Raises ``RunError`` where it cannot be written.
    """
    import pyarrow as pa

    _write(folder, plan, pa.Table.from_pylist(list(rows), schema=_schema()), seal)
    return read_frozen(folder)


def write_timeless(frozen: Frozen, folder: Path) -> None:
    """Write plan.json and ``frozen/`` below ``folder`` without a time in them: equal ratings, equal bytes."""
    import pyarrow as pa

    table = frozen.table
    nothing = pa.nulls(table.num_rows, _schema().field("wall_ms").type)
    table = table.set_column(table.column_names.index("wall_ms"), "wall_ms", nothing)
    write_plan(frozen.plan, folder)
    _write(folder, frozen.plan, table.cast(_schema()), Seal(frozen.counts, frozen.consents, None))


def _write(folder: Path, plan: StudyPlan, table: pa.Table, seal: Seal) -> None:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    ratings = buffer.getvalue()
    document = {
        "schema_version": SCHEMA_VERSION,
        "plan": plan.model_dump(mode="json"),
        "plan_digest": plan.digest,
        "ratings_sha256": _digest(ratings),
        "closed_at": seal.closed_at,
        "counts": dict(seal.counts),
        "consent_sha256": dict(sorted(seal.consents.items())),
    }
    write_atomic(folder / FOLDER / RATINGS_FILE, ratings)
    text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    write_atomic(folder / FOLDER / STUDY_FILE, text.encode())


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {"string": pa.string(), "bool": pa.bool_(), "int8": pa.int8(), "int32": pa.int32()}
    types["int64"] = pa.int64()
    return pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
