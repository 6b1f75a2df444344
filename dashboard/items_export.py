"""The items that fit a filter as a file: CSV for a spreadsheet, Parquet for the rest. Both are bounded."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any, Literal

from dashboard.items import Answer, Filters, Items, Pair

MOST_ROWS = 100_000
MOST_BYTES = 32 * 1024**2
"""Bytes of text of a file, so that a server's memory is enough however many viewers save one."""
# Rows of a file that is being made take several times its size; whoever comes third waits.
_AT_ONCE = threading.Semaphore(2)
_CHUNK = 1_000
# A cell of a spreadsheet holds no more (support.microsoft.com, "Excel specifications and limits").
_LONGEST_CELL = 32_767
# What a spreadsheet takes for a formula (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_OWN = tuple(field.name for field in fields(Answer))
_BESIDE = ("score", "finish_reason", "output")

Form = Literal["csv", "parquet"]


def export(items: Items, filters: Filters, form: Form) -> bytes:
    """Return the first ``MOST_ROWS`` items that fit, as far as their texts come to ``MOST_BYTES``.

    Rows stand in committed order; ``beside_…`` columns hold the answer beside. A file that is cut says so: a
    Parquet file in its metadata (``cut``), a CSV in its last row. CSV cells that begin like a formula get an
    apostrophe, and are cut at 32,767 characters. Raises ``RunError`` on broken evidence.
    """
    with _AT_ONCE:
        return _export(items, filters, form)


def _export(items: Items, filters: Filters, form: Form) -> bytes:
    total = items.count(filters)
    positions = sorted(items.positions(filters, MOST_ROWS))
    rows: list[Pair] = []
    size = 0
    for pair in _read(items, positions):
        size += _size(pair)
        if size > MOST_BYTES and rows:
            break
        rows.append(pair)
    cut = f"cut: {len(rows):,} of {total:,} items" if len(rows) < total else ""
    return (_csv if form == "csv" else _parquet)([_row(pair) for pair in rows], cut)


def _read(items: Items, positions: list[int]) -> Iterator[Pair]:
    """Yield the items a chunk at a time: no more of them are in memory than are kept."""
    for start in range(0, len(positions), _CHUNK):
        yield from items.answers(positions[start : start + _CHUNK], None)


def _size(pair: Pair) -> int:
    own, beside = pair
    return len(own.prompt) + len(own.output) + (len(beside.output) if beside else 0) + 200


def _row(pair: Pair) -> dict[str, Any]:
    own, beside = pair
    told: dict[str, Any] = asdict(own)
    return told | {f"beside_{name}": getattr(beside, name) if beside else None for name in _BESIDE}


def _columns() -> list[str]:
    return [*_OWN, *(f"beside_{name}" for name in _BESIDE)]


def _csv(rows: list[dict[str, Any]], cut: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_columns())
    for row in rows:
        writer.writerow([_cell(row[name]) for name in _columns()])
    if cut:
        writer.writerow([cut])
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # A NUL ends the file for many readers.
    shown = value[:_LONGEST_CELL].replace("\0", "\u2400")
    return f"'{shown}"[:_LONGEST_CELL] if shown.startswith(_FORMULA) else shown


def _parquet(rows: list[dict[str, Any]], cut: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cogumi.evidence_parts import COLUMNS

    types = [(name, COLUMNS[name.removeprefix("beside_")]) for name in _columns()]
    table = pa.table({name: [row[name] for row in rows] for name in _columns()}, schema=pa.schema(types))
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"cut": cut} if cut else {}), buffer, compression="zstd")
    return buffer.getvalue()
