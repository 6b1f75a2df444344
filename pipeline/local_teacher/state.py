"""What the local teacher remembers on disk: files, batches and every request that it answered.

A batch outlives the process that holds it, as at a real provider; the log of answered requests is the
truth that a client's ledger is compared with. Not covered: expiry of files, several accounts.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cogumi.digest import digest_of
from cogumi.store import write_atomic


def short_digest(value: Any) -> str:
    """Return 24 hex digits that equal values share, for ids."""
    return digest_of(value).removeprefix("sha256:")[:24]


class TeacherState:
    """The state folder of a local teacher; safe to use from several threads of one process."""

    def __init__(self, root: Path) -> None:
        self._files = root / "files"
        self._batches = root / "batches"
        self._log = root / "answered.jsonl"
        for folder in (self._files, self._batches):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._received: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._ids: list[str] = []
        self._times = array("d")
        self._sums: dict[str, Counter[str]] = {name: Counter() for name in ("endpoint", "model", "batch")}
        self._tokens: Counter[str] = Counter()
        self._prefixes: dict[tuple[str, str], str] = {}
        for line in self._whole_lines():
            self._remember(json.loads(line))
        # Held open and written without a buffer: what is logged is with the system, whatever ends us.
        self._log_file = self._log.open("ab", buffering=0)
        self._records: dict[str, dict[str, Any]] = {}
        for path in self._batches.glob("*.json"):
            self._records[path.stem] = json.loads(path.read_text())

    # Files ----------------------------------------------------------------------------------------

    def save_file(self, content: bytes, *, filename: str, purpose: str) -> dict[str, Any]:
        """Keep a file and return what the provider says about it."""
        file = {
            "id": f"file-{short_digest([filename, purpose, hashlib.sha256(content).hexdigest()])}",
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        write_atomic(self._files / f"{file['id']}.data", content)
        write_atomic(self._files / f"{file['id']}.json", json.dumps(file).encode())
        return file

    def file(self, file_id: str) -> dict[str, Any] | None:
        """Return what is known about a file, or None."""
        return _read_json(self._files, file_id)

    def content(self, file_id: str) -> bytes:
        """Return a file's bytes; the file must exist."""
        return (self._files / f"{file_id}.data").read_bytes()

    # Batches --------------------------------------------------------------------------------------

    def new_batch_id(self, prefix: str, content: Any) -> str:
        """Return an id for a batch: the same content submitted again gets the next number."""
        stem = f"{prefix}_{short_digest(content)}"
        number = 1
        while f"{stem}{number:02d}" in self._records:
            number += 1
        return f"{stem}{number:02d}"

    def save_batch(self, batch: Mapping[str, Any]) -> None:
        """Keep a batch's record, replacing an older one of the same id."""
        write_atomic(self._batches / f"{batch['id']}.json", json.dumps(batch).encode())
        self._records[batch["id"]] = dict(batch)

    def count_batch(self, batch_id: str, counts: Mapping[str, int]) -> None:
        """Tell how far a batch is, until its record is saved again; a restart counts anew."""
        self._records[batch_id] = {**self._records[batch_id], "counts": dict(counts)}

    def batch(self, batch_id: str) -> dict[str, Any] | None:
        """Return a copy of a batch's record, or None."""
        found = self._records.get(batch_id)
        return None if found is None else dict(found)

    def batches(self, provider: str) -> list[dict[str, Any]]:
        """Return a provider's batches, the newest first."""
        mine = [dict(batch) for batch in list(self._records.values()) if batch["provider"] == provider]
        return sorted(mine, key=lambda batch: (-float(batch["created"]), str(batch["id"])))

    def partial(self, batch_id: str) -> Path:
        """Return where the answers of an unfinished batch are kept until it ends."""
        return self._batches / f"{batch_id}.partial.jsonl"

    # Counting -------------------------------------------------------------------------------------

    def received(self, endpoint: str) -> None:
        """Count a request that came in, answered or not."""
        with self._lock:
            self._received[endpoint] += 1

    def fault(self, name: str) -> None:
        """Count an injected fault."""
        with self._lock:
            self._faults[name] += 1

    def answered(self, entries: Iterable[dict[str, Any]]) -> None:
        """Log answered requests before they are sent: {id, endpoint, model, batch, input, output, prefix}.

        Each gets ``at``, the time in seconds since 1970, so that one paid before a client's death can be told
        from one that the client asked again.
        """
        now = time.time()
        kept = [{**entry, "at": now} for entry in entries]
        text = "".join(json.dumps(entry) + "\n" for entry in kept).encode()
        with self._lock:
            while text:
                text = text[self._log_file.write(text) :]
            for entry in kept:
                self._remember(entry)

    def has_answered_batch(self, batch_id: str) -> bool:
        """Tell whether the log holds this batch already (a kill came after logging, before its end)."""
        return batch_id in self._sums["batch"]

    def writes_cache(self, model: str, prefix: str, request_id: str) -> bool:
        """Tell whether this request pays for writing the prefix to the cache: the first one does.

        The same request asked again pays again, so that a request's bill does not depend on its history.
        """
        with self._lock:
            return self._prefixes.setdefault((model, prefix), request_id) == request_id

    def counters(self, *, ids: bool) -> dict[str, Any]:
        """Return the counts of everything that was answered; on request its ids and times, in order."""
        with self._lock:
            document: dict[str, Any] = {
                "answered": len(self._ids),
                **{f"by_{name}": dict(counts) for name, counts in self._sums.items()},
                "input_tokens": self._tokens["input"],
                "output_tokens": self._tokens["output"],
                "received": dict(self._received),
                "faults": dict(self._faults),
            }
            if ids:
                document |= {"ids": list(self._ids), "at": self._times.tolist()}
        return document

    def _remember(self, entry: dict[str, Any]) -> None:
        self._ids.append(entry["id"])
        self._times.append(entry["at"])
        for name, counts in self._sums.items():
            if entry[name]:
                counts[entry[name]] += 1
        for name in ("input", "output"):
            self._tokens[name] += entry[name]
        if entry.get("prefix"):
            self._prefixes.setdefault((entry["model"], entry["prefix"]), entry["id"])

    def _whole_lines(self) -> list[str]:
        # A kill can cut the last line short: that answer never left, so the stump is removed.
        if not self._log.is_file():
            return []
        text = self._log.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_atomic(self._log, whole.encode())
        return whole.splitlines()


def _read_json(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{Path(name).name}.json"
    if not path.is_file():
        return None
    value: dict[str, Any] = json.loads(path.read_text())
    return value
