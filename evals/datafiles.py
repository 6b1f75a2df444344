"""Reading benchmark rows: from the data folder first, then from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cogumi.errors import RunError
from cogumi.hub import hub_reachable


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file of objects; raises ``RunError`` naming the file and the first broken line."""
    rows = []
    try:
        with path.open(encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
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


def benchmark_rows(
    data: Path | None, file: str, hub_name: str, split: str
) -> tuple[list[dict[str, Any]], str]:
    """Return a benchmark's rows and where they came from.

    Raises ``RunError`` when the folder lacks the file, or when there is no folder and no hub.
    """
    if data is not None:
        path = data / file
        if not path.is_file():
            raise RunError(f"{path}: no such benchmark file; --data names the folder that holds {file}")
        return read_jsonl(path), str(path)
    if not hub_reachable():
        raise RunError(
            f"{file}: give a folder that holds it with --data or COGUMI_DATA; the hub does not answer"
        )
    try:
        from datasets import load_dataset

        return [dict(row) for row in load_dataset(hub_name, split=split)], f"{hub_name}:{split}"
    except ImportError:
        raise RunError(f"{file}: give --data FOLDER, or pip install 'cogumi[all]' to use the hub") from None
    except Exception as error:
        raise RunError(
            f"{hub_name}: not to be had from the hub ({type(error).__name__}); "
            f"give a folder that holds {file} with --data or COGUMI_DATA"
        ) from None
