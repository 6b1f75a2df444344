"""What the local teacher remembers on disk: files, batches and every request that it answered.

A batch outlives the process that holds it, as at a real provider; the log of answered requests is the
truth that a client's ledger is compared with. Not covered: expiry of files, several accounts.
"""

from __future__ import annotations

import json
import threading
import time
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
        self._answered: list[dict[str, Any]] = []
        self._prefixes: dict[tuple[str, str], str] = {}
        for line in self._whole_lines():
            self._remember(json.loads(line))

    # Files ----------------------------------------------------------------------------------------

    def save_file(self, content: bytes, *, filename: str, purpose: str) -> dict[str, Any]:
        """Keep a file and return what the provider says about it."""
        file = {
            "id": f"file-{short_digest([filename, purpose, content.decode('utf-8', 'replace')])}",
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
        while (self._batches / f"{stem}{number:02d}.json").exists():
            number += 1
        return f"{stem}{number:02d}"

    def save_batch(self, batch: Mapping[str, Any]) -> None:
        """Keep a batch's record, replacing an older one of the same id."""
        write_atomic(self._batches / f"{batch['id']}.json", json.dumps(batch).encode())

    def batch(self, batch_id: str) -> dict[str, Any] | None:
        """Return a batch's record, or None."""
        return _read_json(self._batches, batch_id)

    def batches(self, provider: str) -> list[dict[str, Any]]:
        """Return a provider's batches, the newest first."""
        found = [json.loads(path.read_text()) for path in self._batches.glob("*.json")]
        mine = [batch for batch in found if batch["provider"] == provider]
        return sorted(mine, key=lambda batch: (-float(batch["created"]), str(batch["id"])))

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
        """Log answered requests before they are sent: {id, endpoint, model, batch, input, output, prefix}."""
        kept = list(entries)
        with self._lock:
            with self._log.open("a", encoding="utf-8") as handle:
                handle.write("".join(json.dumps(entry) + "\n" for entry in kept))
            for entry in kept:
                self._remember(entry)

    def has_answered_batch(self, batch_id: str) -> bool:
        """Tell whether the log holds this batch already (a kill came after logging, before its end)."""
        return any(entry["batch"] == batch_id for entry in self._answered)

    def writes_cache(self, model: str, prefix: str, request_id: str) -> bool:
        """Tell whether this request pays for writing the prefix to the cache: the first one does.

        The same request asked again pays again, so that a request's bill does not depend on its history.
        """
        with self._lock:
            return self._prefixes.setdefault((model, prefix), request_id) == request_id

    def counters(self, *, ids: bool) -> dict[str, Any]:
        """Return the counts of everything that was answered, and its ids in order on request."""
        with self._lock:
            entries = list(self._answered)
            document: dict[str, Any] = {
                "answered": len(entries),
                "by_endpoint": dict(Counter(entry["endpoint"] for entry in entries)),
                "by_model": dict(Counter(entry["model"] for entry in entries)),
                "by_batch": dict(Counter(entry["batch"] for entry in entries if entry["batch"])),
                "input_tokens": sum(entry["input"] for entry in entries),
                "output_tokens": sum(entry["output"] for entry in entries),
                "received": dict(self._received),
                "faults": dict(self._faults),
            }
        if ids:
            document["ids"] = [entry["id"] for entry in entries]
        return document

    def _remember(self, entry: dict[str, Any]) -> None:
        self._answered.append(entry)
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
