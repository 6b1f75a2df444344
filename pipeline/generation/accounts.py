"""What became of the calls and questions of a cell, and what its teacher still yields."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.generation.records import Cell

MOST_TAKEN = 8
"""Repeated questions that a prompt names."""
_QUOTED_CHARS = 100


@dataclass
class CellAccount:
    """The calls and questions of one cell; ``recent`` holds (offered, new) of its last calls, in order."""

    calls: int = 0
    unusable_calls: int = 0
    """Answers that were cut short, or no list of questions."""
    refused_calls: int = 0
    """Answers that the teacher or its provider refused."""
    offered: int = 0
    """Questions that were looked at."""
    accepted: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    leaks: int = 0
    too_long: int = 0
    surplus: int = 0
    """Questions that came when the cell was full already, and were not looked at."""
    recent: list[tuple[int, int]] = field(default_factory=list)

    @staticmethod
    def of(document: Mapping[str, Any]) -> CellAccount:
        """Rebuild an account from ``document()``."""
        recent = [(offered, new) for offered, new in document["recent"]]
        return CellAccount(**{**document, "recent": recent})

    def document(self) -> dict[str, Any]:
        """Return everything, for the writer that goes on from here."""
        return asdict(self)

    def counts(self) -> dict[str, int]:
        """Return the sums, for people."""
        return {name: value for name, value in asdict(self).items() if name != "recent"}

    def took(self, offered: int, new: int, window: int) -> None:
        """Remember one call among the last ``window``."""
        self.recent = [*self.recent, (offered, new)][-window:]

    @property
    def recent_offered(self) -> int:
        """Questions that the last calls offered."""
        return sum(offered for offered, _ in self.recent)

    @property
    def recent_new(self) -> int:
        """Questions of the last calls that were new."""
        return sum(new for _, new in self.recent)

    @property
    def recent_yield(self) -> float:
        """Share of new ones among what the last calls offered; 0 where they offered nothing."""
        return self.recent_new / self.recent_offered if self.recent_offered else 0.0

    def calls_for(self, missing: int) -> int | None:
        """Return how many calls bring so many new questions at the recent yield; None where none does."""
        return math.ceil(missing * len(self.recent) / self.recent_new) if self.recent_new else None

    def text(self) -> str:
        """Return the sums as one clause of an error."""
        return (
            f"{self.accepted:,} new of {self.offered:,} offered in {self.calls:,} calls "
            f"({self.duplicates:,} duplicates, {self.near_duplicates:,} near duplicates, {self.leaks:,} held "
            f"out, {self.too_long:,} too long; {self.unusable_calls:,} unusable and {self.refused_calls:,} "
            "refused answers)"
        )


def saturation_account(
    short: Mapping[Cell, tuple[int, int]],
    accounts: Mapping[Cell, CellAccount],
    repeated: Mapping[Cell, Sequence[tuple[str, int]]],
    full: int,
) -> str:
    """Return the account of the cells that could not be filled; its first line is the summary.

    ``short``: (questions it has, questions wanted) of each such cell. ``repeated``: the questions that came
    again most often, with how often. ``full``: the number of cells that are full.
    """
    names = ", ".join(map(str, short))
    lines = [
        f"the question writer saturated in {len(short)} of {len(short) + full} cells: {names}; what was "
        "paid is in the ledger and is not paid again"
    ]
    for cell, (has, wanted) in short.items():
        account = accounts[cell]
        lines.append(f"  {cell} has {has:,} of {wanted:,}: {account.text()}")
        lines.append(
            f"    its last {len(account.recent):,} calls gave {account.recent_new:,} new of "
            f"{account.recent_offered:,} offered ({account.recent_yield:.1%}); "
            f"{_needed(account, wanted - has)}"
        )
        lines += [f"    {times:,} times again: {_quoted(text)}" for text, times in repeated[cell]]
    lines.append(
        "  mend: lower the quota of the cell, name another teacher for its domain, or allow more calls "
        "(writer: max_calls_per_cell, saturation_yield)"
    )
    return "\n".join(lines)


def most_repeated(repeats: Counter[int], texts: Sequence[str], most: int) -> list[tuple[str, int]]:
    """Return the questions that came again most often, with how often; the earlier of equals first."""
    ranked = sorted(repeats.items(), key=lambda pair: (-pair[1], pair[0]))[:most]
    return [(texts[number], times) for number, times in ranked]


def _needed(account: CellAccount, missing: int) -> str:
    calls = account.calls_for(missing)
    if calls is None:
        return f"the {missing:,} that it lacks are not to be had at this yield"
    return f"at this yield the {missing:,} that it lacks take about {calls:,} calls more"


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= _QUOTED_CHARS else line[: _QUOTED_CHARS - 1] + "…")
