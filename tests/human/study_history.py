"""What raters asked and were told, and a check of it against the database afterwards.

The form is Jepsen's: every submission is noted before it is sent (``invoke``) and gets one of three ends.
``ok``: the server said that it is stored. ``fail``: it said that it is not. ``unknown``: no answer came, and
the rater walked away. One rater rates an item in one thread, so an item is a register with one writer: its
stored submissions must be those acknowledged, in order, and none else but unknown ones.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

End = Literal["invoke", "ok", "fail", "unknown"]
Item = tuple[int, int]
"""Rater id and position."""


@dataclass(slots=True)
class Op:
    """One submission; ``seen`` is the revision that the server named in its answer."""

    item: Item
    key: str
    score: int
    shown: int
    """The revision that the page showed."""
    end: End = "invoke"
    sends: int = 0
    seen: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """One row of the database's submissions."""

    item: Item
    key: str
    score: int
    revision: int


class History:
    """Submissions in the order in which each rater made them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ops: list[Op] = []
        self.acknowledged = 0

    def invoke(self, op: Op) -> Op:
        with self._lock:
            self.ops.append(op)
        return op

    def end(self, op: Op, end: End, seen: int | None = None, why: str = "") -> None:
        with self._lock:
            op.end, op.seen, op.why = end, seen, why
            self.acknowledged += end == "ok"

    def counts(self) -> dict[End, int]:
        counts: dict[End, int] = defaultdict(int)
        for op in self.ops:
            counts[op.end] += 1
        return counts


def violations(history: History, kept: Iterable[Kept], current: dict[Item, tuple[int, int]]) -> list[str]:
    """Say what is lost, doubled, changed or out of order, one line each.

    Args:
        kept: every row of the append-only submissions.
        current: (score, revision) of each item as the rating stands.
    """
    found = []
    rows: dict[Item, list[Kept]] = defaultdict(list)
    for row in kept:
        rows[row.item].append(row)
    ops: dict[Item, list[Op]] = defaultdict(list)
    for op in history.ops:
        ops[op.item].append(op)
    for item in rows.keys() | ops.keys() | current.keys():
        found += [f"{item}: {line}" for line in _of_item(ops[item], rows[item], current.get(item))]
    return found


def _of_item(ops: list[Op], rows: list[Kept], current: tuple[int, int] | None) -> list[str]:
    found = []
    rows = sorted(rows, key=lambda row: row.revision)
    order = {op.key: at for at, op in enumerate(ops)}
    by_key = {op.key: op for op in ops}
    keys = [row.key for row in rows]
    found += [f"key {key} stored {keys.count(key)} times" for key in {*keys} if keys.count(key) > 1]
    found += (
        [f"revisions {[r.revision for r in rows]}"]
        if [r.revision for r in rows] != [*range(1, len(rows) + 1)]
        else []
    )
    for row in rows:
        op = by_key.get(row.key)
        if op is None:
            found.append(f"stored {row.key}, which nobody sent")
        elif op.end == "fail":
            found.append(f"stored {row.key}, which was refused: {op.why}")
        elif (op.score, op.shown + 1) != (row.score, row.revision):
            found.append(f"sent {op.score} at {op.shown}, stored {row.score} as {row.revision}")
        elif op.seen is not None and op.seen != row.revision:
            found.append(f"told revision {op.seen}, stored {row.revision}")
    found += [f"acknowledged {op.key} is lost" for op in ops if op.end == "ok" and op.key not in keys]
    known = [order[key] for key in keys if key in order]
    if known != sorted(known):
        found.append(f"stored in the order {known}")
    wanted = (rows[-1].score, rows[-1].revision) if rows else None
    if current != wanted:
        found.append(f"the rating is {current}, its last submission {wanted}")
    return found
