"""Working through a batch: in order, counted while it goes on, taken up again where a kill cut it off."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.local_teacher.state import TeacherState

_FLUSH_SECONDS = 0.5
"""How often finished answers go to the disk and the counts are told."""


@dataclass(frozen=True, slots=True)
class Worked:
    """One request of a batch, answered or not."""

    kind: str
    """What the provider counts it as: ``succeeded``, ``errored``, ``expired``."""
    row: dict[str, Any]
    """Its line of the result file."""
    entry: dict[str, Any] | None
    """Its line of the log; None where nothing was answered."""


@dataclass
class Outcome:
    """What became of a whole batch; rows are JSON texts, because a large batch has much in common."""

    rows: dict[str, list[str]] = field(default_factory=dict)
    """Kind to the lines of the result file, in order."""
    order: list[tuple[str, int]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, worked: Worked) -> None:
        """Take one more."""
        rows = self.rows.setdefault(worked.kind, [])
        self.order.append((worked.kind, len(rows)))
        rows.append(json.dumps(worked.row) + "\n")
        if worked.entry is not None:
            self.entries.append(worked.entry)

    def content(self, *kinds: str) -> bytes:
        """Return the lines of these kinds, or of all, in the order of the requests."""
        return "".join(self.rows[kind][at] for kind, at in self.order if not kinds or kind in kinds).encode()

    def counts(self) -> Counter[str]:
        """Return how many there are of each kind."""
        return Counter({kind: len(rows) for kind, rows in self.rows.items()})


def work(
    state: TeacherState,
    batch_id: str,
    requests: Iterator[dict[str, Any]],
    answer: Callable[[int, dict[str, Any]], Worked],
    tell: Callable[[Counter[str]], bool],
) -> Outcome | None:
    """Answer the requests of a batch in order, and those of an earlier process not again.

    ``tell`` gets the counts so far now and then; it returns False when the batch was cancelled, which gives
    None.
    """
    path = state.partial(batch_id)
    outcome = Outcome()
    earlier = _earlier(path)
    for worked in earlier:
        outcome.add(worked)
    told = time.monotonic()
    lines: list[str] = []
    with path.open("a", encoding="utf-8") as handle:
        try:
            for index, request in enumerate(requests):
                if index < len(earlier):
                    continue
                worked = answer(index, request)
                outcome.add(worked)
                lines.append(json.dumps([worked.kind, worked.row, worked.entry]) + "\n")
                if time.monotonic() - told > _FLUSH_SECONDS:
                    handle.write("".join(lines))
                    handle.flush()
                    lines.clear()
                    if not tell(outcome.counts()):
                        return None
                    told = time.monotonic()
        finally:
            handle.write("".join(lines))
    return outcome


def _earlier(path: Path) -> list[Worked]:
    # A kill can cut the last line short: that request is answered again, and its stump must go.
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as handle:
            handle.truncate(len(whole))
    return [Worked(*json.loads(line)) for line in whole.decode().split("\n") if line]
