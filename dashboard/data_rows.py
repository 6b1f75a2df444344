"""Rows of a data step's files: paged through and filtered by duckdb, and a bounded part of them linted.

A file is never loaded: duckdb reads it in pieces and hands over one page, with long texts cut there. Lint
keeps an index of what it reads, and so is given the first rows only.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError
from cogumi.store import disk_error
from dashboard.text import plain
from dashboard.view import Kept
from evals.lint.findings import Finding

if TYPE_CHECKING:
    import duckdb

    from dashboard.data_sets import DataStep

PAGE_ROWS = 20
LONGEST = 20_000
"""Characters of one text that a page is given."""
COLUMNS = ("question_id", "domain", "difficulty", "question", "answer", "reasoning", "model", "scores")
"""Columns of the plan's data files; each file has some of them."""
LINT_ROWS = 5_000
LINT_BYTES = 16_000_000
_TOLD_EACH = 20
"""Findings of one rule that are kept, as `cogumi data lint` prints them."""
_MEMORY = "256MB"
# Twenty viewers share one process: their questions wait for one another, and so does their lint.
_ASKING = threading.Semaphore(2)
_LINTING = threading.Lock()
_LONGEST_LINE = 16_000_000
_LONGEST_NEEDLE = 1_000
_MEND = "delete its folder in the store and run the step again"
# The id of a question names its cell, also in files of answers that have no such columns.
_ID = r"^(.*)_(easy|hard)_[0-9]+$"


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of rows that a step made; ``lines`` is the same rows as JSON lines, where there are any."""

    step: str
    name: str
    path: Path
    bytes: int
    """As its manifest has it."""
    lines: Path | None

    @property
    def label(self) -> str:
        """The name that a reader chooses it by."""
        return f"{self.step}: {self.name}"

    @property
    def is_parquet(self) -> bool:
        """Whether it is Parquet, and not JSON lines."""
        return self.path.suffix == ".parquet"

    def fault(self) -> str | None:
        """Say in one line that the file is gone or another size than it was made, or return None."""
        try:
            size = self.path.stat().st_size
        except OSError as error:
            return f"{self.name} of step {self.step} is not readable ({error.strerror}); run the step again."
        if size != self.bytes:
            return (
                f"{self.name} of step {self.step} has {size:,} bytes, {self.bytes:,} expected: it was "
                f"changed or cut short; {_MEND}."
            )
        return None


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rows are wanted; an empty string asks for all. ``text``: a plain substring, whatever its case."""

    domain: str = ""
    difficulty: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row; a text is cut at 20,000 characters, and ``lengths`` has what it was cut from.

    ``values``: by column, None where the file has no such column or the row no such field; all None for a row
    that cannot be read.
    """

    line: int
    values: Mapping[str, str | None]
    lengths: Mapping[str, int | None]

    @property
    def readable(self) -> bool:
        """Whether anything of it could be read."""
        return any(value is not None for value in self.values.values())


@dataclass(frozen=True, slots=True)
class Sample:
    """Up to 20 of the ``total`` rows that fit; ``unreadable`` counts rows that are no JSON object of ours."""

    total: int
    unreadable: int
    offset: int
    rows: tuple[SampleRow, ...]


@dataclass(frozen=True, slots=True)
class Linted:
    """What lint found in the first rows of a file."""

    rows: int
    whole: bool
    """Whether these are all rows."""
    counts: Mapping[str, int]
    """Findings by rule."""
    findings: tuple[Finding, ...]
    """The first 20 of each rule."""


def data_files(steps: tuple[DataStep, ...]) -> list[DataFile]:
    """Return the files of rows in the order of the steps; of a file in two forms the Parquet one."""
    found = []
    for step in steps:
        artifact = step.artifact
        sizes = {
            str(name): int(entry["bytes"])
            for name, entry in (artifact.manifest.get("files", {}).items() if artifact else ())
            # A name in a manifest is text that others wrote: it must stay inside the artifact.
            if Path(str(name)).name == name
            and isinstance(entry, Mapping)
            and isinstance(entry.get("bytes"), int)
        }
        for name, size in sorted(sizes.items()):
            stem, _, form = name.rpartition(".")
            twin = f"{stem}.jsonl"
            if artifact is None or not size or form not in ("jsonl", "parquet"):
                continue
            if form == "jsonl" and f"{stem}.parquet" in sizes:
                continue
            lines = artifact.path / twin if sizes.get(twin) else None
            found.append(DataFile(step.step, name, artifact.path / name, size, lines))
    return found


def cells_of(file: DataFile) -> tuple[list[str], list[str]]:
    """Return the domains and difficulties of a file's rows; raises ``RunError`` as ``sample``."""

    def make() -> tuple[list[str], list[str]]:
        source = f"SELECT DISTINCT {_DOMAIN}, {_DIFFICULTY} FROM {_source(file)} LIMIT 1000"
        rows = _ask(file, source, {})
        found = [sorted({str(row[place]) for row in rows if row[place]}) for place in (0, 1)]
        return found[0], found[1]

    return _CELLS.get(_state(file), make)


def sample(file: DataFile, filters: Filters, offset: int = 0) -> Sample:
    """Return a page of the rows that fit, in the file's order; behind the last one, the first page.

    Raises ``RunError`` naming the file where it is gone or broken.
    """
    where, values = _where(filters)
    total, unreadable = _counts(file, filters)
    offset = offset if 0 <= offset < total else 0
    texts = ", ".join(f"left({name}, {LONGEST}), length({name})" for name in COLUMNS)
    rows = _ask(
        file,
        f"SELECT line, {texts} FROM {_source(file)} {where} LIMIT {PAGE_ROWS} OFFSET $offset",
        {**values, "offset": offset},
    )
    return Sample(total, unreadable, offset, tuple(map(_row, rows)))


def row_at(file: DataFile, line: int) -> SampleRow | None:
    """Return the row of a line, counted from 1, None behind the last; raises ``RunError`` as ``sample``."""
    texts = ", ".join(f"left({name}, {LONGEST}), length({name})" for name in COLUMNS)
    rows = _ask(file, f"SELECT line, {texts} FROM {_source(file)} WHERE line = $line", {"line": line})
    return _row(rows[0]) if rows else None


def lint(file: DataFile) -> Linted:
    """Lint the first 5,000 rows, or 16 MB, of a file: every rule but leaks, which need the benchmarks.

    The rows are copied to the system's folder for temporary files, never into the workspace. Raises
    ``RunError`` for a file without JSON lines, and where it cannot be read or copied.
    """

    def make() -> Linted:
        with _LINTING:
            return _lint(file)

    return _LINTED.get(_state(file), make)


def _lint(file: DataFile) -> Linted:
    from evals.lint.linter import lint_files

    if file.lines is None:
        raise RunError(f"{file.name} has no JSON lines beside it; `cogumi data lint` reads it as it is")
    with tempfile.TemporaryDirectory(prefix="cogumi-lint-") as folder:
        part = Path(folder) / file.lines.name
        try:
            whole = _copy_head(file.lines, part)
        except OSError as error:
            raise disk_error(error, part) from error
        report = lint_files([str(part)])
    told: Counter[str] = Counter()
    kept = []
    for finding in report.findings:
        told[finding.rule] += 1
        if told[finding.rule] <= _TOLD_EACH:
            kept.append(finding)
    return Linted(report.rows, whole, report.counts, tuple(kept))


def _copy_head(source: Path, target: Path) -> bool:
    """Copy the first whole lines; tell whether these are all."""
    left = LINT_BYTES
    with source.open("rb") as lines, target.open("wb") as out:
        for _ in range(LINT_ROWS):
            line = lines.readline(left + 1)
            if len(line) > left:
                return False
            out.write(line)
            left -= len(line)
            if not line:
                return True
        return not lines.read(1)


# The query ------------------------------------------------------------------------------------------

_DOMAIN = f"coalesce(domain, regexp_extract(question_id, '{_ID}', 1))"
_DIFFICULTY = f"coalesce(difficulty, regexp_extract(question_id, '{_ID}', 2))"


def _where(filters: Filters) -> tuple[str, dict[str, Any]]:
    wanted, values = [], {}
    if filters.domain:
        wanted.append(f"{_DOMAIN} = $domain")
        values["domain"] = plain(filters.domain, longest=_LONGEST_NEEDLE)
    if filters.difficulty:
        wanted.append(f"{_DIFFICULTY} = $difficulty")
        values["difficulty"] = plain(filters.difficulty, longest=_LONGEST_NEEDLE)
    if filters.text:
        texts = ("question_id", "question", "answer", "reasoning")
        wanted.append("(" + " OR ".join(f"contains(lower({name}), $text)" for name in texts) + ")")
        # A lone surrogate is in no file that could be read.
        values["text"] = filters.text[:_LONGEST_NEEDLE].lower().encode("utf-8", "replace").decode("utf-8")
    return (f"WHERE {' AND '.join(wanted)}" if wanted else ""), values


def _counts(file: DataFile, filters: Filters) -> tuple[int, int]:
    """Return how many rows fit, and how many of the file's rows cannot be read."""

    def make() -> tuple[int, int]:
        where, values = _where(filters)
        fit = f"count(*) FILTER ({where})" if where else "count(*)"
        # A broken row of Parquet breaks the file; of JSON lines it is one row of NULLs.
        lost = "0" if file.is_parquet else f"count(*) FILTER (WHERE coalesce({', '.join(COLUMNS)}) IS NULL)"
        ((total, unreadable),) = _ask(file, f"SELECT {fit}, {lost} FROM {_source(file)}", values)
        return int(total), int(unreadable)

    return _COUNTED.get((*_state(file), filters), make)


def _source(file: DataFile) -> str:
    """Return the rows of a file with their line numbers; every column is text, NULL where it is not there.

    A row of JSON that is broken, or no object, comes as one of NULLs: the lines stay those of the file.
    """
    if file.is_parquet:
        import duckdb

        try:
            with _open() as connection:
                held = set(connection.read_parquet(str(file.path)).columns)
        except (duckdb.Error, UnicodeDecodeError, RuntimeError) as error:
            raise _broken(file, error) from error
        texts = [
            f'"{name}"::VARCHAR AS {name}' if name in held else f"NULL::VARCHAR AS {name}" for name in COLUMNS
        ]
        rows = "read_parquet($file, file_row_number=true)"
        return f"(SELECT file_row_number + 1 AS line, {', '.join(texts)} FROM {rows})"
    columns = ", ".join(f"{name}: 'VARCHAR'" for name in COLUMNS)
    rows = (
        f"read_json($file, format='newline_delimited', columns={{{columns}}}, ignore_errors=true, "
        f"maximum_object_size={_LONGEST_LINE})"
    )
    return f"(SELECT row_number() OVER () AS line, {', '.join(COLUMNS)} FROM {rows})"


def _ask(file: DataFile, query: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    import duckdb

    try:
        with _ASKING, _open() as connection:
            rows: list[tuple[Any, ...]] = connection.execute(
                query, {**values, "file": str(file.path)}
            ).fetchall()
    except (duckdb.Error, UnicodeDecodeError, RuntimeError) as error:
        # RuntimeError: what duckdb says of names that are no UTF-8.
        raise _broken(file, error) from error
    return rows


def _open() -> duckdb.DuckDBPyConnection:
    import duckdb

    # No temporary files: what does not fit into memory is refused, and nothing is written anywhere.
    settings: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1,
        "memory_limit": _MEMORY,
        "temp_directory": "",
        "autoinstall_known_extensions": False,
    }
    return duckdb.connect(config=settings)


def _broken(file: DataFile, error: Exception) -> RunError:
    import duckdb

    if isinstance(error, duckdb.OutOfMemoryException):
        return RunError(f"{file.name} of step {file.step} does not fit into {_MEMORY}: ask for fewer rows")
    fault = file.fault()
    said = " ".join(str(error).split())[:200]
    return RunError(fault or f"{file.name} of step {file.step} cannot be read as rows ({said}); {_MEND}")


def _row(values: tuple[Any, ...]) -> SampleRow:
    texts = dict(zip(COLUMNS, itertools.islice(values, 1, None, 2), strict=True))
    lengths = dict(zip(COLUMNS, itertools.islice(values, 2, None, 2), strict=True))
    return SampleRow(int(values[0]), texts, lengths)


def _state(file: DataFile) -> tuple[object, ...]:
    """Return what a cache is keyed by: the file as it lies."""
    try:
        found = file.path.stat()
    except OSError as error:
        raise RunError(file.fault() or f"{file.name}: {error.strerror}") from error
    return str(file.path), found.st_size, found.st_mtime_ns


_CELLS: Kept[tuple[list[str], list[str]]] = Kept(32)
_COUNTED: Kept[tuple[int, int]] = Kept(256)
_LINTED: Kept[Linted] = Kept(8)
