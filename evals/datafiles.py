"""Reading benchmark rows: from the data folder first, then from the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from cogumi.errors import RunError
from cogumi.hub import hub_reachable

_noted: ContextVar[list[Path] | None] = ContextVar("noted", default=None)


@contextmanager
def noting_files() -> Iterator[list[Path]]:
    """Give the list of the benchmark files that are read within it, in order, as it grows."""
    files: list[Path] = []
    outer = _noted.get()
    token = _noted.set(files)
    try:
        yield files
    finally:
        _noted.reset(token)
        if outer is not None:
            outer += [path for path in files if path not in outer]


def note_file(path: Path) -> None:
    """Tell that a benchmark file is read; what reads one without the functions here calls this."""
    files = _noted.get()
    if files is not None and path not in files:
        files.append(path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file of objects; raises ``RunError`` naming the file and the first broken line."""
    note_file(path)
    rows = []
    try:
        with path.open(encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise RunError(f"{path}, line {number}: not JSON ({error}); mend or remove it") from None
                if not isinstance(row, dict):
                    raise RunError(
                        f"{path}, line {number}: an object is expected, found {type(row).__name__}"
                    )
                rows.append(row)
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from None
    return rows


def require(row: dict[str, Any], columns: tuple[str, ...], path: Path | str, number: int) -> None:
    """Raise ``RunError`` unless the row has all the columns."""
    missing = [name for name in columns if name not in row]
    if missing:
        found = ", ".join(sorted(row))
        raise RunError(f"{path}, row {number}: no column {missing[0]!r} (found: {found})")


def standard_files(folder: str, split: str) -> tuple[str, ...]:
    """Return where a split is looked for in the data folder: JSONL, or Parquet parts as the hub has them."""
    return tuple(f"{folder}/{name}" for name in (f"{split}.jsonl", f"{split}*.parquet"))


def benchmark_rows(
    data: Path | None,
    files: str | Sequence[str],
    hub_name: str,
    split: str,
    *,
    config: str | None = None,
) -> tuple[list[dict[str, Any]], str]:
    """Return a benchmark's rows and where they came from: the data folder, else the hub.

    ``files``: patterns relative to the data folder; the files that the first fitting one finds are read one
    after another. Raises ``RunError`` when neither the folder nor the hub has the rows, or a file is broken.
    """
    patterns = [files] if isinstance(files, str) else list(files)
    for pattern in patterns if data is not None else ():
        assert data is not None
        found = sorted(data.glob(pattern))
        if found:
            rows = [row for path in found for row in _read_rows(path)]
            return rows, str(found[0]) if len(found) == 1 else str(data / pattern)
    looked = f"{data / patterns[0]}: no such benchmark file" if data is not None else patterns[0]
    mend = f"give the folder that holds {patterns[0]} with --data or COGUMI_DATA"
    if not hub_reachable():
        raise RunError(f"{looked}; {mend}; the hub ({hub_name}) does not answer")
    try:
        from datasets import load_dataset

        loaded = load_dataset(hub_name, config, split=split)
        return [dict(row) for row in loaded], f"{hub_name}:{split}"
    except ImportError:
        raise RunError(f"{looked}; {mend}, or pip install 'cogumi[all]' to use the hub") from None
    except Exception as error:
        raise RunError(
            f"{looked}; {hub_name} is not to be had from the hub ({type(error).__name__}); {mend}"
        ) from None


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        return _read_csv(path)
    if path.suffix != ".parquet":
        return read_jsonl(path)
    import pyarrow.parquet as pq

    note_file(path)
    try:
        with pq.ParquetFile(path) as file:
            rows: list[dict[str, Any]] = file.read().to_pylist()
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cut short or not Parquet ({str(error).splitlines()[0][:120]})") from None
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """Read a CSV file whose first row names the columns; every value is text."""
    note_file(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, restval=None)
            rows: list[dict[str, Any]] = []
            for row in reader:
                if None in row or None in row.values():
                    raise RunError(
                        f"{path}, line {reader.line_num}: {len(reader.fieldnames or ())} cells wanted"
                    )
                rows.append(dict(row))
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (csv.Error, OSError) as error:
        raise RunError(f"{path}: not readable as CSV ({error})") from None
    return rows
