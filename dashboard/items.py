"""Items of recorded evidence: found, sorted, paged through and exported by duckdb, over the Parquet parts.

Nothing is loaded but what a page shows. Filters read only the columns that they name, and the long texts of a
page's rows are read last. What counts is the prefix that is known without a gap, as everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cogumi.errors import RunError
from cogumi.evidence import Decoding, EvidenceFile
from cogumi.evidence_parts import COLUMNS, naming

if TYPE_CHECKING:
    import duckdb

PAGE_ROWS = 50
PREVIEW = 160
"""Characters of a prompt or an output that a table shows."""
_MEMORY = "384MB"
_THREADS = min(4, os.cpu_count() or 1)
_LONGEST_TEXT = 1000
"""Characters of a text that is searched for."""

Verdict = Literal["", "right", "wrong", "partly"]
Change = Literal["", "differs", "lost", "gained"]
Sort = Literal["order", "id", "score", "tokens", "seconds", "difference"]

_VERDICTS = {"right": "i.score >= 1", "wrong": "i.score <= 0", "partly": "i.score > 0 AND i.score < 1"}
_CHANGES = {"differs": "i.score <> b.score", "lost": "i.score < b.score", "gained": "i.score > b.score"}
_KEYS = {
    "order": "i.position",
    "id": "i.item_id",
    "score": "i.score",
    "tokens": "i.completion_tokens",
    "seconds": "i.seconds",
    "difference": "i.score - b.score",
}
_TEXTS = ("prompt", "output", "details")
_SHORT = tuple(name for name in COLUMNS if name not in _TEXTS)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which items are wanted, and in which order; an empty string asks for all.

    ``text`` is a plain substring of prompt or output, whatever its case. ``change`` compares with the answers
    beside: scores differ, this one scored lower (lost), or higher (gained).
    """

    domain: str = ""
    verdict: Verdict = ""
    reason: str = ""
    text: str = ""
    change: Change = ""
    sort: Sort = "order"
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One item as one model answered it; texts may be cut to what was asked for."""

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
    details: str


@dataclass(frozen=True, slots=True)
class Page:
    """Up to ``PAGE_ROWS`` of the ``total`` items that fit, each with the answer beside it."""

    total: int
    offset: int
    rows: tuple[tuple[Answer, Answer | None], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item stands among those that fit: its rank from 1, and the ids of its neighbours."""

    rank: int
    previous: str | None
    following: str | None


Pair = tuple[Answer, Answer | None]
"""An item's answer, and the one beside it where there is one."""


class Items:
    """The known items of one measurement, and of another one on the same items beside it.

    Every method raises ``RunError``: naming the file where evidence is broken, and where a question needs
    more memory than the dashboard takes.
    """

    def __init__(self, file: EvidenceFile, beside: EvidenceFile | None = None) -> None:
        self._file = file
        self._beside = beside

    def page(self, filters: Filters, offset: int = 0) -> Page:
        """Return a page of the items that fit; of what lies behind the last one, the first page."""
        offset = max(0, offset)
        if filters.text and filters.sort == "order" and not offset:
            return self._first_page(filters)
        hit, values = _hits(filters, self._beside is not None)
        order = f"ORDER BY k {_direction(filters)}, position LIMIT {PAGE_ROWS} OFFSET $offset"
        found = self._ask(
            f"{hit} SELECT position, (SELECT count(*) FROM hit) FROM hit {order}",
            {**values, "offset": offset},
        )
        if not found and offset:
            return self.page(filters)
        total = int(found[0][1]) if found else 0
        return Page(total, offset, tuple(self.answers([int(row[0]) for row in found], PREVIEW)))

    def _first_page(self, filters: Filters) -> Page:
        """Return the first page of a search in the committed order, its texts taken as they are searched.

        They are in memory anyway then; to read them afterwards is to unpack a part of each row group again.
        """
        asked, values = _asked(filters, self._beside is not None)
        if not asked:
            return Page(0, 0, ())
        row = ", ".join(f"{name} := {_cut(f'i.{name}', PREVIEW)}" for name in COLUMNS)
        first = "arg_max" if filters.descending else "arg_min"
        top = f"{first}(struct_pack({row}), i.position, {PAGE_ROWS})"
        total, found = self._ask(f"SELECT count(*), {top} {asked}", values)[0]
        own = [Answer(**answer) for answer in found or ()]
        positions = [answer.position for answer in own]
        beside = self._answers("@beside", positions, PREVIEW) if positions and self._beside else {}
        return Page(int(total), 0, tuple((answer, beside.get(answer.position)) for answer in own))

    def count(self, filters: Filters) -> int:
        """Return how many items fit."""
        hit, values = _hits(filters, self._beside is not None)
        return int(self._ask(f"{hit} SELECT count(*) FROM hit", values)[0][0])

    def positions(self, filters: Filters, most: int) -> list[int]:
        """Return the positions of the first ``most`` items that fit, in the order asked for."""
        hit, values = _hits(filters, self._beside is not None)
        order = f"ORDER BY k {_direction(filters)}, position LIMIT $most"
        return [
            int(row[0])
            for row in self._ask(f"{hit} SELECT position FROM hit {order}", {**values, "most": most})
        ]

    def item(self, item_id: str) -> Pair | None:
        """Return one item whole, with the answer beside it; None where no known item has this id."""
        found = self._ask("SELECT position FROM @own WHERE item_id = $id LIMIT 1", {"id": _utf8(item_id)})
        return self.answers([int(found[0][0])], None)[0] if found else None

    def place(self, filters: Filters, position: int) -> Place | None:
        """Return where the item at a position stands among those that fit, or None where it does not."""
        hit, values = _hits(filters, self._beside is not None)
        ranked = (
            "SELECT position, row_number() OVER w AS rank, lag(position) OVER w AS before, "
            "lead(position) OVER w AS after FROM hit "
            f"WINDOW w AS (ORDER BY k {_direction(filters)}, position)"
        )
        found = self._ask(
            f"{hit} SELECT rank, before, after FROM ({ranked}) WHERE position = $position",
            {**values, "position": position},
        )
        if not found:
            return None
        rank, before, after = found[0]
        near = [at for at in (before, after) if at is not None]
        asked = "SELECT position, item_id FROM @own WHERE position IN (SELECT unnest($near))"
        ids = dict(self._ask(asked, {"near": near})) if near else {}
        return Place(int(rank), ids.get(before), ids.get(after))

    def tally(self, column: Literal["domain", "finish_reason"]) -> dict[str, int]:
        """Return how many known items have each value of a column, by name."""
        rows = self._ask(f"SELECT {column}, count(*) FROM @own GROUP BY ALL ORDER BY ALL", {})
        return {str(value): int(n) for value, n in rows if value}

    def decoding(self, n: int) -> Decoding:
        """Return what answering the first ``n`` items took."""
        sums = "count(*), sum(completion_tokens), sum(seconds)"
        items, tokens, seconds = self._ask(f"SELECT {sums} FROM @own WHERE position < $n", {"n": n})[0]
        return Decoding(int(items), int(tokens or 0), float(seconds or 0.0))

    def answers(self, positions: Sequence[int], longest: int | None) -> list[Pair]:
        """Return the known items at these positions, in this order; texts cut at ``longest`` characters."""
        if not positions:
            return []
        own = self._answers("@own", positions, longest)
        beside = self._answers("@beside", positions, longest) if self._beside is not None else {}
        return [(own[at], beside.get(at)) for at in positions if at in own]

    def _answers(self, source: str, positions: Sequence[int], longest: int | None) -> dict[int, Answer]:
        columns = [_cut(name, longest) for name in (*_SHORT, *_TEXTS)]
        # The bounds let whole row groups be passed over.
        wanted = "position BETWEEN $least AND $most AND position IN (SELECT unnest($positions))"
        rows = self._ask(
            f"SELECT {', '.join(columns)} FROM {source} WHERE {wanted}",
            {"positions": list(positions), "least": min(positions), "most": max(positions)},
        )
        return {int(row[0]): Answer(*row) for row in rows}

    def _ask(self, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a question; ``@own`` and ``@beside`` in it stand for the two measurements."""
        import duckdb

        try:
            try:
                return self._ask_once(sql, values)
            except (duckdb.IOException, FileNotFoundError):
                # A writer joined the parts meanwhile.
                return self._ask_once(sql, values)
        except duckdb.OutOfMemoryException as error:
            raise RunError(
                f"{self._file.key.task}: these items need more than {_MEMORY} of memory; narrow the filter"
            ) from error
        except (duckdb.Error, FileNotFoundError) as error:
            for file in (self._file, self._beside):
                if file is not None:
                    _name_broken(file)
            told = " ".join(str(error).split())[:200]
            raise RunError(f"{self._file.folder}: evidence that cannot be read ({told})") from error

    def _ask_once(self, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        found = dict(values)
        for name, file in (("own", self._file), ("beside", self._beside)):
            if file is not None and f"@{name}" in sql:
                source, files = _source(name, file)
                sql = sql.replace(f"@{name}", source)
                found |= files
        return _database().cursor().execute(sql, found).fetchall()


def _hits(filters: Filters, paired: bool) -> tuple[str, dict[str, Any]]:
    """Return the table ``hit(position, k)`` of the items that fit, by their sort key k, and its values."""
    asked, values = _asked(filters, paired)
    if not asked:
        return "WITH hit AS (SELECT 0 AS position, 0 AS k WHERE false)", {}
    columns = f"i.position AS position, {_KEYS[filters.sort]} AS k"
    return f"WITH hit AS MATERIALIZED (SELECT {columns} {asked})", values


def _asked(filters: Filters, paired: bool) -> tuple[str, dict[str, Any]]:
    """Return FROM and WHERE of the items i that fit, b beside them, and the values in it.

    Nothing where answers beside are asked about and there are none.
    """
    beside = bool(filters.change) or filters.sort == "difference"
    if beside and not paired:
        return "", {}
    source = "@own i JOIN @beside b ON i.position = b.position" if beside else "@own i"
    wanted, values = ["true"], dict[str, Any]()
    if filters.verdict:
        wanted.append(_VERDICTS[filters.verdict])
    if filters.change:
        wanted.append(_CHANGES[filters.change])
    for column, value in (("domain", filters.domain), ("finish_reason", filters.reason)):
        if value:
            wanted.append(f"i.{column} = ${column}")
            values[column] = _utf8(value)
    if filters.text:
        # An escaped pattern is a plain text, and twice as fast as lower() of both sides.
        wanted.append(
            "(regexp_matches(i.prompt, regexp_escape($text), 'i') "
            "OR regexp_matches(i.output, regexp_escape($text), 'i'))"
        )
        values["text"] = _utf8(filters.text)[:_LONGEST_TEXT]
    return f"FROM {source} WHERE {' AND '.join(wanted)}", values


def _cut(column: str, longest: int | None) -> str:
    """Return a column as SQL, a text cut at ``longest`` characters."""
    name = column.removeprefix("i.")
    return f"left({column}, {int(longest)})" if longest is not None and name in _TEXTS else column


def _source(name: str, file: EvidenceFile) -> tuple[str, dict[str, Any]]:
    """Return the rows of a file's known prefix as a subquery, and the paths that it reads."""
    whole: list[str] = []
    rest: list[tuple[str, int]] = []
    for part, skip in file.prefix():
        if skip:
            rest.append((_literal(str(part.path)), part.start + skip))
        else:
            whole.append(_literal(str(part.path)))
    if not whole:
        types = {"string": "VARCHAR", "int32": "INTEGER", "float64": "DOUBLE"}
        none = ", ".join(f"NULL::{types[kind]} AS {column}" for column, kind in COLUMNS.items())
        return f"(SELECT {none} WHERE false)", {}
    columns = ", ".join(COLUMNS)
    values: dict[str, Any] = {f"{name}_files": whole}
    asked = [f"SELECT {columns} FROM read_parquet(${name}_files)"]
    for number, (path, first) in enumerate(rest):
        values[f"{name}_{number}"] = [path]
        asked.append(f"SELECT {columns} FROM read_parquet(${name}_{number}) WHERE position >= {first}")
    return f"({' UNION ALL '.join(asked)})", values


def _name_broken(file: EvidenceFile) -> None:
    """Raise ``RunError`` for the first part of a file that cannot be read, if there is one."""
    try:
        for part, _ in file.prefix():
            with naming(part.path):
                _read_through(part.path)
    except FileNotFoundError as error:
        raise RunError(f"{file.folder}: evidence that is gone; reload the page") from error


def _read_through(path: Path) -> None:
    """Read all of a part, a little at a time; raises ``ValueError`` where it is broken or lacks a column."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as opened:
        missing = sorted(set(COLUMNS) - set(opened.schema_arrow.names))
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        for _ in opened.iter_batches(batch_size=1024):
            continue


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """Return the one database of this process, which holds nothing; each question takes a cursor of it."""
    import duckdb

    return duckdb.connect(
        ":memory:",
        config={
            "memory_limit": _MEMORY,
            "threads": _THREADS,
            # Neither a file beside the program nor a download: what does not fit into memory is refused.
            "temp_directory": "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "preserve_insertion_order": False,
        },
    )


def _direction(filters: Filters) -> str:
    return "DESC NULLS LAST" if filters.descending else "ASC NULLS LAST"


def _literal(path: str) -> str:
    """Return a path as a pattern that matches it alone."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in path)


def _utf8(text: str) -> str:
    """Replace what UTF-8 cannot hold: no stored text has it."""
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
