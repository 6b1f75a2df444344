"""Careless raters, by rules that were written down before the first rating.

A rater is left out on two independent flags. None of them looks at the level of the scored ratings: who finds
everything bad, or everything good, is a rater like any other. False alarms of single flags on honest raters
are 0.02 to 4 % each (research note on people, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cogumi.verdict import Verdict
from gates.people_rows import Rows, counted

PLANTED_AT_LEAST = 7
REPEAT_DIFFERS_BY = 4
LEAST_SECONDS = 3.0
FLAGS_TO_EXCLUDE = 2

RULES = {
    "planted": f"a planted bad answer rated {PLANTED_AT_LEAST} or more",
    "no variance": "every scored rating the same",
    "too fast": f"median time an item below {LEAST_SECONDS:g} s, or a third of the pilot's tenth percentile",
    "repeat": f"an item shown again rated {REPEAT_DIFFERS_BY} or more points away",
}
"""The rules by name, as the report tells them."""


@dataclass(frozen=True, slots=True)
class Flagged:
    """A rater with at least one flag; ``excluded`` with two."""

    rater: str
    flags: tuple[str, ...]

    @property
    def excluded(self) -> bool:
        """Whether the rules leave the rater out."""
        return len(self.flags) >= FLAGS_TO_EXCLUDE


def least_seconds(plan: Any) -> float:
    """Return the median time an item below which a rater is too fast."""
    pilot = plan.pilot_p10_seconds
    return LEAST_SECONDS if pilot is None else max(LEAST_SECONDS, pilot / 3)


def side_of_bar(lower: float | None, upper: float | None, bar: float) -> Verdict:
    """Return what two one-sided bounds say of a bar; a bound that is None is infinitely far."""
    if lower is not None and lower > bar:
        return Verdict.PASS
    if upper is not None and upper < bar:
        return Verdict.FAIL
    return Verdict.UNDECIDED


def flagged(rows: Rows, plan: Any) -> list[Flagged]:
    """Return the finished raters who have a flag, sorted by name.

    A time that nobody knows flags nobody: a browser without scripts is no careless rater.
    """
    scored, least = counted(rows, plan.subject), least_seconds(plan)
    planted, repeats = rows.of_kind("planted"), rows.of_kind("repeat")
    found = []
    for name in sorted(set(scored.rater.tolist())):
        mine = scored.where(np.asarray(scored.rater == name, dtype=bool))
        flags = []
        if (planted.score[planted.rater == name] >= PLANTED_AT_LEAST).any():
            flags.append("planted")
        if len(mine) > 1 and len(np.unique(mine.score)) == 1:
            flags.append("no variance")
        known = mine.seconds[~np.isnan(mine.seconds)]
        if len(known) and float(np.median(known)) < least:
            flags.append("too fast")
        again = repeats.where(np.asarray(repeats.rater == name, dtype=bool))
        first = dict(zip(mine.task.tolist(), mine.score.tolist(), strict=True))
        if any(
            abs(score - first[task]) >= REPEAT_DIFFERS_BY
            for task, score in zip(again.task.tolist(), again.score.tolist(), strict=True)
            if task in first
        ):
            flags.append("repeat")
        if flags:
            found.append(Flagged(name, tuple(flags)))
    return found
