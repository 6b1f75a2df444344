"""The two questions that a verdict asks of the ledger, read without SQLAlchemy, whose import takes 0.4 s.

Only for the SQLite ledger of a workspace, and only for what it already knows: everything else, and every
write, goes through ``cogumi.ledger``.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from typing import Any

from cogumi.digest import digest_of
from cogumi.workspace import DATABASE_URL_ENV, LEDGER_FILE, Workspace


class QuickBook:
    """Attempt numbers and verdicts of a workspace; recorded ones are answered without loading the ledger."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def number(self, gate: str, items_digest: str, artifact: str) -> int:
        """Return which attempt on these items this artifact is, as ``Ledger.number`` does."""
        query = "SELECT number FROM gate_attempts WHERE gate = ? AND items_digest = ? AND artifact = ?"
        known = self._one(query, (gate, items_digest, artifact))
        return self._workspace.ledger.number(gate, items_digest, artifact) if known is None else int(known)

    def record_verdict(self, run: str, document: Mapping[str, Any]) -> None:
        """Keep a verdict document, as ``Ledger.record_verdict`` does, unless it is kept already."""
        digest = digest_of({"run": run, "document": document})
        if self._one("SELECT 1 FROM verdicts WHERE digest = ?", (digest,)) is None:
            self._workspace.ledger.record_verdict(run, document)

    def _one(self, query: str, values: tuple[str, ...]) -> Any:
        path = self._workspace.root / LEDGER_FILE
        if os.environ.get(DATABASE_URL_ENV) or not path.is_file():
            return None
        try:
            connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        except sqlite3.Error:
            # What is wrong with it, the ledger itself will tell.
            return None
        try:
            row = connection.execute(query, values).fetchone()
        except sqlite3.Error:
            return None
        finally:
            connection.close()
        return row[0] if row else None
