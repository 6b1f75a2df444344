"""Evidence: per-item records of one artifact on one task under one protocol, in Parquet, never rewritten.

A folder ``<artifact>/<task>/<protocol>`` holds ``meta.json`` and parts in the committed order of the items;
each part is written whole or not at all, so a kill loses at most the part that was not yet acknowledged.
When the last item is in, the parts are joined into one ``items.parquet``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogumi.digest import digest_of
from cogumi.errors import RunError
from cogumi.store import write_atomic

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_COLUMNS = (
    ("position", "int32"),
    ("item_id", "string"),
    ("domain", "string"),
    ("score", "float64"),
    ("finish_reason", "string"),
    ("prompt_tokens", "int32"),
    ("completion_tokens", "int32"),
    ("seconds", "float64"),
    ("cost_usd", "float64"),
    ("prompt", "string"),
    ("output", "string"),
    ("details", "string"),
)


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


class EvidenceFile:
    """The records of one key; created on first append."""

    def __init__(self, root: Path, key: EvidenceKey) -> None:
        self.key = key
        self.folder = (
            root
            / _slug(key.artifact.removeprefix("sha256:"))
            / _slug(key.task)
            / key.protocol_digest.removeprefix("sha256:")[:32]
        )

    @property
    def exists(self) -> bool:
        """Tell whether anything was measured under this key."""
        return (self.folder / "meta.json").is_file()

    def append(self, records: Sequence[Record], *, n_total: int, facts: Mapping[str, Any]) -> None:
        """Add the next records; they must continue at the position where the evidence ends.

        ``facts`` (software versions, peak memory) are kept in the part's own metadata. Raises ``RunError``
        on a full disk; what was appended before stays.
        """
        import io

        import pyarrow.parquet as pq

        start = self.count()
        expected = list(range(start, start + len(records)))
        if [record.position for record in records] != expected:
            raise ValueError(f"evidence continues at position {start}, got {records[0].position}")
        if not self.exists:
            meta = {
                "artifact": self.key.artifact,
                "task": self.key.task,
                "protocol": dict(self.key.protocol),
                "protocol_digest": self.key.protocol_digest,
                "n_total": n_total,
            }
            write_atomic(self.folder / "meta.json", json.dumps(meta, indent=2, sort_keys=True).encode())
        table = _table(records).replace_schema_metadata({"facts": json.dumps(dict(facts), sort_keys=True)})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        write_atomic(self.folder / f"part-{start:08d}.parquet", buffer.getvalue())
        if start + len(records) == n_total:
            self._join()

    def _join(self) -> None:
        import io

        import pyarrow.parquet as pq

        parts = self._files()
        facts = [self._facts(part) for part in parts]
        joined = self.table().replace_schema_metadata({"facts": json.dumps(facts[-1], sort_keys=True)})
        buffer = io.BytesIO()
        pq.write_table(joined, buffer, compression="zstd")
        write_atomic(self.folder / "items.parquet", buffer.getvalue())
        for part in parts:
            part.unlink()

    def _files(self) -> list[Path]:
        whole = self.folder / "items.parquet"
        return [whole] if whole.is_file() else sorted(self.folder.glob("part-*.parquet"))

    @staticmethod
    def _facts(path: Path) -> dict[str, Any]:
        import pyarrow.parquet as pq

        metadata = pq.read_schema(path).metadata or {}
        facts: dict[str, Any] = json.loads(metadata.get(b"facts", b"{}"))
        return facts

    def count(self) -> int:
        """Return how many items have been measured."""
        import pyarrow.parquet as pq

        total = 0
        for path in self._files():
            try:
                total += int(pq.read_metadata(path).num_rows)
            except (OSError, ValueError) as error:
                raise RunError(
                    f"{path}: broken evidence file ({error}); delete it to measure again"
                ) from error
        return total

    def facts(self) -> dict[str, Any]:
        """Return what is known of the software and machine that answered the last items."""
        files = self._files()
        return self._facts(files[-1]) if files else {}

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the records as an Arrow table in committed order; all columns, or those named."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = list(columns) if columns else [name for name, _ in _COLUMNS]
        tables = []
        for path in self._files():
            try:
                # Not read_table: it imports pandas, a third of a second for every verdict.
                with pq.ParquetFile(path) as file:
                    tables.append(file.read(columns=names).replace_schema_metadata(None))
            except (OSError, ValueError) as error:
                raise RunError(
                    f"{path}: broken evidence file ({error}); delete it to measure again"
                ) from error
        if not tables:
            fields = [(name, kind) for name, kind in _COLUMNS if name in names]
            return pa.schema(fields).empty_table()
        return pa.concat_tables(tables)

    def scores(self) -> np.ndarray:
        """Return the item scores measured so far, in committed order (float64, values in [0, 1])."""
        import numpy as np

        return np.asarray(self.table(["score"])["score"].to_numpy(), dtype=np.float64)


def list_evidence(root: Path) -> list[EvidenceFile]:
    """Return all evidence below a workspace's evidence folder, in a stable order."""
    found = []
    for meta in sorted(root.glob("*/*/*/meta.json")):
        try:
            document = json.loads(meta.read_text())
            key = EvidenceKey(document["artifact"], document["task"], document["protocol"])
        except (OSError, ValueError, KeyError) as error:
            raise RunError(
                f"{meta}: broken evidence ({error}); delete its folder to measure again"
            ) from error
        found.append(EvidenceFile(root, key))
    return found


def _slug(text: str) -> str:
    cleaned = "".join(char if char.isalnum() or char in "._-" else "-" for char in text)
    # Two names that differ only in replaced characters must not share a folder.
    return cleaned if cleaned == text else f"{cleaned}-{digest_of(text)[7:15]}"


def _table(records: Sequence[Record]) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name, _ in _COLUMNS}
    for record in records:
        for name, values in columns.items():
            value = getattr(record, name)
            values.append(json.dumps(dict(value), sort_keys=True) if name == "details" else value)
    return pa.table(columns, schema=pa.schema([(name, kind) for name, kind in _COLUMNS]))
