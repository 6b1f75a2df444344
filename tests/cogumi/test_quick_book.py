from __future__ import annotations

from pathlib import Path

import pytest

from cogumi.errors import RunError
from cogumi.ledger import Ledger
from cogumi.quick_book import QuickBook
from cogumi.workspace import Workspace

DOCUMENT = {"gate": "phase1", "artifact": "sha256:1", "attempt": 1, "verdict": "FAIL", "criteria": []}


def test_it_is_the_ledgers_own_book(tmp_path: Path) -> None:
    book = QuickBook(Workspace(tmp_path))
    assert book.number("g", "items", "a") == 1
    ledger = Ledger(tmp_path)
    assert ledger.number("g", "items", "b") == 2
    assert [book.number("g", "items", name) for name in "abc"] == [1, 2, 3]
    assert ledger.number("g", "items", "c") == 3


def test_what_is_recorded_needs_no_ledger(tmp_path: Path) -> None:
    QuickBook(Workspace(tmp_path)).number("g", "items", "a")
    QuickBook(Workspace(tmp_path)).record_verdict("r", DOCUMENT)
    again = Workspace(tmp_path)
    assert QuickBook(again).number("g", "items", "a") == 1
    QuickBook(again).record_verdict("r", DOCUMENT)
    assert "ledger" not in again.__dict__
    assert len(Ledger(tmp_path).verdicts("r")) == 1


def test_a_broken_ledger_is_told_by_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"no database at all, though long enough to be one" * 99)
    with pytest.raises(RunError, match="cannot open the ledger"):
        QuickBook(Workspace(tmp_path)).number("g", "items", "a")
