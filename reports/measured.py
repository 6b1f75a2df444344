"""Recorded evidence, read for a report: scores and speed of an artifact on a task. Measures nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cogumi.errors import RunError
from cogumi.evidence import EvidenceFile, list_evidence
from cogumi.evidence_parts import COLUMNS, read_part
from cogumi.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

_ARROW = {"float64": "double"}
"""Types that Arrow calls by another name than numpy."""
_COLUMNS = ("score", "finish_reason", "completion_tokens", "seconds")


@dataclass(frozen=True, slots=True)
class Measured:
    """What is recorded of one artifact on one task under one protocol; ``scores`` in committed order."""

    task: str
    n_total: int
    protocol: Mapping[str, Any]
    protocol_digest: str
    scores: npt.NDArray[np.float64]
    truncated: int
    errors: int
    tokens: int
    seconds: float
    stack: Mapping[str, str]

    @property
    def n(self) -> int:
        """How many items are recorded."""
        return len(self.scores)

    @property
    def items(self) -> tuple[str, str]:
        """Digests of the items and of their order: scores are paired only where both are equal."""
        return str(self.protocol.get("items")), str(self.protocol.get("order"))

    @property
    def family(self) -> str:
        """The protocol family."""
        return str(self.protocol.get("family", ""))


class EvidenceIndex:
    """All evidence of a workspace, found by artifact and task; files are read when they are asked for."""

    def __init__(self, workspace: Workspace) -> None:
        self._files: dict[tuple[str, str], list[EvidenceFile]] = {}
        self._read: dict[tuple[str, str], list[Measured]] = {}
        for file in list_evidence(workspace.evidence):
            self._files.setdefault((file.key.artifact, file.key.task), []).append(file)

    def tasks(self, artifact: str) -> list[str]:
        """Return the tasks on which an artifact was measured."""
        return sorted(task for owner, task in self._files if owner == artifact)

    def all(self, artifact: str, task: str) -> list[Measured]:
        """Return what is recorded under every protocol, that with the most items first."""
        key = (artifact, task)
        if key not in self._read:
            found = [_read(file) for file in self._files.get(key, [])]
            self._read[key] = sorted(found, key=lambda one: (-one.n, one.protocol_digest))
        return self._read[key]

    def best(self, artifact: str, task: str) -> Measured | None:
        """Return what is recorded under the protocol with the most items, or None."""
        found = self.all(artifact, task)
        return found[0] if found and found[0].n else None

    def answered(self, task: str, backend: str) -> list[Measured]:
        """Return evidence on a task whose answers came from ``backend``, whatever the artifact."""
        owners = [owner for owner, name in self._files if name == task]
        found = [one for owner in owners for one in self.all(owner, task)]
        return [one for one in found if one.protocol.get("backend") == backend and one.n]


def _read(file: EvidenceFile) -> Measured:
    meta = file.folder / "meta.json"
    try:
        n_total = int(json.loads(meta.read_text())["n_total"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{meta}: broken evidence ({error}); delete its folder to measure again") from error
    parts, stack = _parts(file)
    reasons = _counts([table["finish_reason"] for table in parts])
    scores, tokens, seconds = (
        _joined(parts, name, file) for name in ("score", "completion_tokens", "seconds")
    )
    return Measured(
        task=file.key.task,
        n_total=n_total,
        protocol=file.key.protocol,
        protocol_digest=file.key.protocol_digest,
        scores=scores,
        truncated=reasons.get("length", 0),
        errors=reasons.get("error", 0),
        tokens=int(tokens.sum(dtype=np.int64)),
        # The exact sum: the same whether the items stand in one file or in several.
        seconds=math.fsum(seconds.tolist()),
        stack=stack,
    )


def _parts(file: EvidenceFile) -> tuple[list[pa.Table], Mapping[str, str]]:
    """Return the known prefix in pieces, and the stack that answered its last items; each file read once."""
    try:
        found = [(*read_part(part, _COLUMNS), skip) for part, skip in file.prefix()]
    except FileNotFoundError:
        # A writer joined the parts meanwhile: now there is one file.
        found = [(*read_part(part, _COLUMNS), skip) for part, skip in file.prefix()]
    facts = json.loads(found[-1][1].get("facts", "{}")) if found else {}
    return [table.slice(skip) for table, _, skip in found], facts.get("stack", {})


def _counts(columns: list[pa.ChunkedArray]) -> dict[str, int]:
    """Return how often each text stands in columns."""
    import pyarrow.compute as pc

    counts: dict[str, int] = {}
    for column in columns:
        for entry in pc.value_counts(column).to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return counts


def _joined(tables: list[pa.Table], name: str, file: EvidenceFile) -> npt.NDArray[Any]:
    """Return a column of numbers of tables one after another as one array (rows,)."""
    dtype = np.dtype(COLUMNS[name])
    found = [np.empty(0, dtype)]
    for chunk in (chunk for table in tables for chunk in table[name].chunks if len(chunk)):
        if chunk.null_count or str(chunk.type) not in (str(dtype), _ARROW.get(str(dtype))):
            raise RunError(
                f"{file.folder}: broken evidence (column {name} has cells that are no {COLUMNS[name]}); "
                "delete the folder to measure again"
            )
        # Not to_numpy: it imports pandas, a third of a second for every report.
        cells = np.frombuffer(chunk.buffers()[1], dtype)
        found.append(cells[chunk.offset : chunk.offset + len(chunk)])
    return np.concatenate(found)
