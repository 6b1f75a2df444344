"""Evidence: per-item records of one artifact on one task under one protocol, in Parquet, never rewritten.

A folder ``<artifact>/<task>/<protocol>`` holds ``meta.json`` and parts, each a run of consecutive
positions of the committed order, named by its first. A part is written whole or not at all, so a kill loses
at most the part that was not yet acknowledged. When no item is missing the parts are joined into one
``items.parquet``.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cogumi.digest import digest_of
from cogumi.errors import RunError
from cogumi.evidence_parts import (
    COLUMNS,
    Part,
    Record,
    answers_of,
    check_part,
    naming,
    origins_of,
    read_part,
    schema,
    table_of,
)
from cogumi.store import disk_error, write_atomic

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Decoding", "EvidenceFile", "EvidenceKey", "Merged", "Record", "is_measured", "list_evidence"]

_T = TypeVar("_T")
_GROUP_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class EvidenceKey:
    """What a measurement is about: these three name it for ever."""

    artifact: str
    """Digest of the weights (or the name and snapshot of an API model)."""
    task: str
    protocol: Mapping[str, Any]
    """Everything that shapes a score: task version, family, decoding, limits, backend, items and order."""

    @property
    def protocol_digest(self) -> str:
        """Digest of the protocol document."""
        return digest_of(dict(self.protocol))


class EvidenceFile:
    """The records of one key; created on first append.

    Records may come in blocks from anywhere in the committed order (shards). What is read is always the
    prefix that is known without a gap; it grows when blocks meet.
    """

    def __init__(self, root: Path, key: EvidenceKey) -> None:
        self.key = key
        self.folder = _folder(root, key.artifact, key.task) / key.protocol_digest.removeprefix("sha256:")[:32]
        self._whole = self.folder / "items.parquet"
        self._rows_of: dict[tuple[str, int, int], int] = {}

    @property
    def exists(self) -> bool:
        """Tell whether anything was measured under this key."""
        return (self.folder / "meta.json").is_file()

    def append(self, records: Sequence[Record], *, n_total: int, facts: Mapping[str, Any]) -> None:
        """Add records of consecutive positions; those that are known already are kept as they are.

        ``facts`` (software versions, machine, peak memory) are kept in the part's own metadata. Several
        processes may append at once. Raises ``RunError`` on a full disk; what was appended before stays.
        """
        if not records:
            return
        first = records[0].position
        if [record.position for record in records] != list(range(first, first + len(records))):
            raise ValueError("evidence is appended in consecutive positions")
        if first < 0 or first + len(records) > n_total:
            raise ValueError(f"positions {first} to {records[-1].position} of {n_total} items")
        self._keep([(first, table_of(records), {"facts": json.dumps(dict(facts), sort_keys=True)})], n_total)

    def merge(self, other: EvidenceFile, item_ids: Sequence[str]) -> Merged:
        """Take the records of another workspace's file of the same key that are missing here.

        ``item_ids``: the task's item ids in committed order; every record must stand where they say. All of
        ``other`` is checked before anything is taken, and where both know an item ours stays. Raises
        ``RunError`` naming the broken part.
        """
        if not other.exists:
            return Merged(0, 0, 0)
        self._check_same_key(other.folder / "meta.json")
        theirs = other._steady(lambda: [(part, *read_part(part)) for part in other._parts()])
        for part, table, _ in theirs:
            check_part(part, table, item_ids)
        ours: dict[int, tuple[float, str]] = {}
        for part in self._steady(self._parts):
            ours |= answers_of(read_part(part)[0])
        found = {position: answer for _, table, _ in theirs for position, answer in answers_of(table).items()}
        known = found.keys() & ours.keys()
        differing = [position for position in known if found[position] != ours[position]]
        taken = self._keep([(part.start, table, about) for part, table, about in theirs], len(item_ids))
        return Merged(taken, len(known), len(differing))

    def _check_same_key(self, meta: Path) -> None:
        mine = {"artifact": self.key.artifact, "task": self.key.task, "protocol": dict(self.key.protocol)}
        try:
            theirs = json.loads(meta.read_text())
            same = all(theirs[name] == value for name, value in mine.items())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{meta}: broken evidence ({error}); delete its folder there") from error
        if not same:
            raise RunError(
                f"{meta}: it tells of another artifact or protocol than its folder; delete it there"
            )

    def _keep(self, blocks: Sequence[tuple[int, pa.Table, Mapping[str, str]]], n_total: int) -> int:
        """Write what is missing of (first position, rows, metadata) as parts; return how many rows."""
        kept = 0
        with self._writing():
            if not self.exists:
                meta = {
                    "artifact": self.key.artifact,
                    "task": self.key.task,
                    "protocol": dict(self.key.protocol),
                    "protocol_digest": self.key.protocol_digest,
                    "n_total": n_total,
                }
                write_atomic(self.folder / "meta.json", json.dumps(meta, indent=2, sort_keys=True).encode())
            for first, table, about in blocks:
                for start, stop in self.missing(first, first + table.num_rows):
                    self._write(f"part-{start:08d}.parquet", table.slice(start - first, stop - start), about)
                    kept += stop - start
            if not self._whole.is_file() and not self.missing(0, n_total):
                self._join()
        return kept

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Wait for the few milliseconds in which another process writes a part of this file."""
        path = self.folder / ".lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("a")
        except OSError as error:
            raise disk_error(error, path) from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _write(self, name: str, table: pa.Table, about: Mapping[str, str]) -> None:
        import io

        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        # Groups that a reader can pass over: one item of a million is then found without reading all of them.
        pq.write_table(
            table.replace_schema_metadata(dict(about)), buffer, compression="zstd", row_group_size=_GROUP_ROWS
        )
        write_atomic(self.folder / name, buffer.getvalue())

    def _join(self) -> None:
        parts = self._parts()
        about = {
            "facts": json.dumps(self.facts(), sort_keys=True),
            "origins": json.dumps(self.origins(), sort_keys=True),
        }
        self._write(self._whole.name, self._table(list(COLUMNS)), about)
        for part in parts:
            part.path.unlink()

    def _parts(self) -> list[Part]:
        """Return all parts in the committed order, also those behind a gap."""
        if self._whole.is_file():
            return [Part(self._whole, 0, self._rows(self._whole))]
        found = []
        for path in sorted(self.folder.glob("part-*.parquet")):
            number = path.stem.removeprefix("part-")
            if not number.isdigit():
                raise RunError(f"{path}: no evidence of ours is called so; delete it or move it away")
            found.append(Part(path, int(number), int(number) + self._rows(path)))
        return found

    def _prefix(self) -> list[tuple[Part, int]]:
        """Return the parts that are known without a gap, each with its rows to skip as double."""
        known, prefix = 0, []
        for part in self._parts():
            if part.start > known:
                break
            if part.stop > known:
                prefix.append((part, known - part.start))
                known = part.stop
        return prefix

    def _rows(self, path: Path) -> int:
        import pyarrow.parquet as pq

        state = path.stat()
        key = (path.name, state.st_size, state.st_mtime_ns)
        if key not in self._rows_of:
            with naming(path):
                self._rows_of[key] = int(pq.read_metadata(path).num_rows)
        return self._rows_of[key]

    def _steady(self, read: Callable[[], _T]) -> _T:
        """Read, and once more where another process joined the parts meanwhile."""
        try:
            return read()
        except FileNotFoundError:
            return read()

    def prefix(self) -> list[tuple[Part, int]]:
        """Return the files of the known prefix in committed order, each with its rows to skip as double.

        They may be joined into one by a writer while they are read: ask again for a file that is gone.
        """
        return self._steady(self._prefix)

    def count(self) -> int:
        """Return how many items are known, from the first of the committed order on, without a gap."""
        prefix = self._steady(self._prefix)
        return prefix[-1][0].stop if prefix else 0

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the runs (first, one past the last) of unknown positions from ``start`` to ``stop``."""
        runs, at = [], start
        for part in self._steady(self._parts):
            if part.start >= stop:
                break
            if part.start > at:
                runs.append((at, part.start))
            at = max(at, part.stop)
        if at < stop:
            runs.append((at, stop))
        return runs

    def facts(self) -> dict[str, Any]:
        """Return what is known of the software and machine that answered the last items."""

        def read() -> dict[str, Any]:
            prefix = self._prefix()
            last = read_part(prefix[-1][0], ["position"])[1] if prefix else {}
            facts: dict[str, Any] = json.loads(last.get("facts", "{}"))
            return facts

        return self._steady(read)

    def origins(self) -> list[dict[str, Any]]:
        """Return the distinct facts, but for peak memory, of all that answered: one where nothing changed."""

        def read() -> list[dict[str, Any]]:
            found: dict[str, dict[str, Any]] = {}
            for part, _ in self._prefix():
                for origin in origins_of(part):
                    found.setdefault(json.dumps(origin, sort_keys=True), origin)
            return list(found.values())

        return self._steady(read)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the known prefix as an Arrow table in committed order; all columns, or those named."""
        return self._steady(lambda: self._table(list(columns or COLUMNS)))

    def _table(self, names: Sequence[str]) -> pa.Table:
        import pyarrow as pa

        tables = [read_part(part, names)[0].slice(skip) for part, skip in self._prefix()]
        return pa.concat_tables(tables) if tables else schema(names).empty_table()

    def scores(self) -> np.ndarray:
        """Return the item scores measured so far, in committed order (float64, values in [0, 1])."""
        import numpy as np

        return np.asarray(self.table(["score"])["score"].to_numpy(), dtype=np.float64)

    def decoding(self, n: int | None = None) -> Decoding:
        """Return how many tokens the first ``n`` known items (all, by default) took, and how long."""
        table = self.table(["completion_tokens", "seconds"]).slice(0, n)
        return Decoding(
            table.num_rows,
            sum(table["completion_tokens"].to_pylist()),
            float(sum(table["seconds"].to_pylist())),
        )


@dataclass(frozen=True, slots=True)
class Decoding:
    """What answering cost: ``completion_tokens`` over ``items`` in ``seconds`` of wall time."""

    items: int
    completion_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Speed; None where no time was recorded."""
        return self.completion_tokens / self.seconds if self.seconds else None

    def __add__(self, other: Decoding) -> Decoding:
        """Return both together."""
        return Decoding(
            self.items + other.items,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did: records taken, and those known to both, of which ``differing`` in answer or score."""

    taken: int
    known: int
    differing: int


def is_measured(root: Path, artifact: str, task: str) -> bool:
    """Tell whether anything is recorded of an artifact on a task, under whatever protocol."""
    folder = _folder(root, artifact, task)
    return any(folder.glob("*/meta.json"))


def list_evidence(root: Path, broken: list[str] | None = None) -> list[EvidenceFile]:
    """Return all evidence below a workspace's evidence folder, in a stable order.

    Where one cannot be read, ``broken`` gets a line that names it, and the others are returned; without
    ``broken`` that line is raised as a ``RunError``.
    """
    found = []
    for meta in sorted(root.glob("*/*/*/meta.json")):
        try:
            document = json.loads(meta.read_text())
            key = EvidenceKey(document["artifact"], document["task"], document["protocol"])
            file = EvidenceFile(root, key)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            told = f"{meta}: broken evidence ({error}); delete its folder to measure again"
            if broken is None:
                raise RunError(told) from error
            broken.append(told)
            continue
        found.append(file)
    return found


def _folder(root: Path, artifact: str, task: str) -> Path:
    return root / _slug(artifact.removeprefix("sha256:")) / _slug(task)


@lru_cache(maxsize=4096)
def _slug(text: str) -> str:
    cleaned = "".join(char if char.isalnum() or char in "._-" else "-" for char in text)
    # Two names that differ only in replaced characters must not share a folder.
    return cleaned if cleaned == text else f"{cleaned}-{digest_of(text)[7:15]}"
