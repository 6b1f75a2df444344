"""Recorded evidence, read for a report: scores and speed of an artifact on a task. Measures nothing."""

from __future__ import annotations

import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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
_FILES = (".json", ".parquet")
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

    def __init__(self, workspace: Workspace, broken: list[str] | None = None) -> None:
        """List the evidence; ``broken`` as of ``list_evidence``."""
        self._files: dict[tuple[str, str], list[EvidenceFile]] = {}
        self._read: dict[tuple[str, str], list[Measured]] = {}
        for file in list_evidence(workspace.evidence, broken):
            self._files.setdefault((file.key.artifact, file.key.task), []).append(file)
        self._tasks: dict[str, list[str]] = {}
        for artifact, task in sorted(self._files):
            self._tasks.setdefault(artifact, []).append(task)

    def tasks(self, artifact: str) -> list[str]:
        """Return the tasks on which an artifact was measured."""
        return list(self._tasks.get(artifact, ()))

    def all(self, artifact: str, task: str) -> list[Measured]:
        """Return what is recorded under every protocol, that with the most items first."""
        key = (artifact, task)
        if key not in self._read:
            found = [_recorded(file) for file in self._files.get(key, [])]
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


# Reading ------------------------------------------------------------------------------------------

_State = tuple[tuple[str, int, int], ...]
_MOST_BYTES = 192 * 2**20
"""Of scores that stay in memory for the next report: 25 million items."""


class _Kept:
    """What was read of each measurement, for as long as its files stay as they were.

    While a run writes, a report that is made anew reads what is new, and not 2,000 files again.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[Path, tuple[_State, Measured]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, folder: Path, state: _State) -> Measured | None:
        with self._lock:
            known = self._found.get(folder)
            if known is None or known[0] != state:
                return None
            self._found.move_to_end(folder)
            return known[1]

    def put(self, folder: Path, state: _State, measured: Measured) -> None:
        with self._lock:
            before = self._found.pop(folder, None)
            self._bytes += measured.scores.nbytes - (before[1].scores.nbytes if before else 0)
            self._found[folder] = (state, measured)
            while self._bytes > _MOST_BYTES:
                self._bytes -= self._found.popitem(last=False)[1][1].scores.nbytes


_KEPT = _Kept()


def _recorded(file: EvidenceFile) -> Measured:
    state = _state(file.folder)
    known = _KEPT.get(file.folder, state)
    if known is None:
        known = _read(file)
        # Not what a writer changed meanwhile: then it is read again the next time.
        if state and _state(file.folder) == state:
            _KEPT.put(file.folder, state, known)
    return known


def _state(folder: Path) -> _State:
    """Return name, size and time of change of each file; nothing where one goes away meanwhile."""
    try:
        with os.scandir(folder) as entries:
            told = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(_FILES)]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in told))


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
    joined = np.concatenate(found)
    # Every report of this process is given the same array.
    joined.setflags(write=False)
    return joined
