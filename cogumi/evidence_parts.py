"""The files behind evidence: runs of records in Parquet, each with its own metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError

if TYPE_CHECKING:
    import pyarrow as pa

# What a part's own metadata may hold: the facts of its last items, and those of all, where they differ.
_ABOUT = ("facts", "origins")
_FOR_THREADS = 65_536
COLUMNS = {
    "position": "int32",
    "item_id": "string",
    "domain": "string",
    "score": "float64",
    "finish_reason": "string",
    "prompt_tokens": "int32",
    "completion_tokens": "int32",
    "seconds": "float64",
    "cost_usd": "float64",
    "prompt": "string",
    "output": "string",
    "details": "string",
}
"""Names and Arrow types of what a part holds of each item."""


@dataclass(frozen=True, slots=True)
class Record:
    """One answered and scored item; ``seconds`` is the wall time attributed to it."""

    position: int
    item_id: str
    domain: str
    score: float
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    cost_usd: float
    prompt: str
    output: str
    details: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Part:
    """A file with the records of positions ``start`` to ``stop`` (exclusive)."""

    path: Path
    start: int
    stop: int


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in any error of reading it, but for its absence."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: broken evidence file ({error}); delete it to measure again") from error


def schema(names: Sequence[str]) -> pa.Schema:
    """Return the Arrow schema of these columns."""
    import pyarrow as pa

    return pa.schema([(name, COLUMNS[name]) for name in names])


def read_part(part: Part, columns: Sequence[str] | None = None) -> tuple[pa.Table, dict[str, str]]:
    """Return a part's rows, all columns or those named, and its own metadata; ``RunError`` names it."""
    import pyarrow.parquet as pq

    names = list(columns or COLUMNS)
    # Not read_table: it imports pandas, a third of a second for every verdict.
    with naming(part.path), pq.ParquetFile(part.path, pre_buffer=False) as file:
        metadata = file.schema_arrow.metadata or {}
        missing = sorted(set(names) - set(file.schema_arrow.names))
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        # Waking threads takes longer than to read a few thousand rows, and a report reads 2,000 files.
        many = file.metadata.num_rows > _FOR_THREADS
        table = file.read(columns=names, use_threads=many).replace_schema_metadata(None).select(names)
    return table, {name: metadata[name.encode()].decode() for name in _ABOUT if name.encode() in metadata}


def origins_of(part: Part) -> list[dict[str, Any]]:
    """Return the distinct facts, but for peak memory, under which a part's items were answered."""
    about = read_part(part, ["position"])[1]
    with naming(part.path):
        if "origins" in about:
            origins: list[dict[str, Any]] = json.loads(about["origins"])
            return origins
        facts = json.loads(about.get("facts", "{}"))
    return [{name: value for name, value in facts.items() if name != "peak_rss_bytes"}]


def answers_of(table: pa.Table) -> dict[int, tuple[float, str]]:
    """Return (score, output) of each position."""
    columns = (table[name].to_pylist() for name in ("position", "score", "output"))
    return {position: (score, output) for position, score, output in zip(*columns, strict=True)}


def check_part(part: Part, table: pa.Table, item_ids: Sequence[str]) -> None:
    """Raise ``RunError`` where a part of another workspace cannot be evidence on these items."""
    rows = zip(*(table[name].to_pylist() for name in ("position", "item_id", "score")), strict=True)
    for expected, (position, item_id, score) in enumerate(rows, start=part.start):
        if position != expected or position >= len(item_ids):
            why = f"position {position} where {expected} of {len(item_ids)} belongs"
        elif item_id != item_ids[position]:
            why = f"position {position} is item {item_id!r}, here it is {item_ids[position]!r}"
        elif not 0 <= score <= 1:
            why = f"the score {score} at position {position} is not in [0, 1]"
        else:
            continue
        raise RunError(f"{part.path}: broken evidence file ({why}); nothing was taken, delete it there")


def table_of(records: Sequence[Record]) -> pa.Table:
    """Return records as an Arrow table with all columns."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for record in records:
        for name, values in columns.items():
            value = getattr(record, name)
            values.append(json.dumps(dict(value), sort_keys=True) if name == "details" else value)
    return pa.table(columns, schema=schema(list(COLUMNS)))
