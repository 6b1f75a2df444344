"""Two measured models on the same items, from what is recorded, by the engine of ``cogumi compare``.

Nothing is measured. Answers are paired item by item, so what stands in another order, is over other items or
under another protocol family is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cogumi.errors import CogumiError
from cogumi.evidence import Decoding
from dashboard.catalogue import Catalogue, mismatch
from dashboard.items import Items
from dashboard.recorded import Stored
from gates.comparable import differing, distinct, speeds_differ_by, stacks_changed
from gates.compare import MacroScore, PairedTask, SuiteComparison, compare_tasks, macro_score


@dataclass(frozen=True, slots=True)
class TaskPair:
    """Measurements of one task by both, alike in items, order and family; ``n`` items are known of both."""

    task: str
    a: Stored
    b: Stored
    n: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A task that cannot be compared, and why."""

    task: str
    why: str


@dataclass(frozen=True, slots=True)
class Compared:
    """B beside A on the tasks of a suite; ``of`` holds the tasks that could be paired, or is None.

    Scores and differences are over the items that both know. ``whole``: no task is missing, so that the
    suite's own numbers mean the suite. Speeds in tokens per second over the same items, their ratio only
    where ``speed_note`` is empty.
    """

    pairs: tuple[TaskPair, ...]
    refused: tuple[Refused, ...]
    of: SuiteComparison | None
    score_a: MacroScore | None
    score_b: MacroScore | None
    speed_a: float | None
    speed_b: float | None
    speed_ratio: float | None
    speed_note: str
    notes: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Tell whether every task of the suite is compared."""
        return self.of is not None and not self.refused


def compare(known: Catalogue, a: str, b: str, tasks: Sequence[str]) -> Compared:
    """Compare two artifacts (digests) on the tasks of a suite; broken evidence refuses its task alone."""
    pairs: list[TaskPair] = []
    scores: list[tuple[np.ndarray, np.ndarray]] = []
    refused: list[Refused] = []
    for task in tasks:
        try:
            pair = _pair(known, a, b, task)
            if isinstance(pair, TaskPair):
                scores.append((pair.a.file.scores()[: pair.n], pair.b.file.scores()[: pair.n]))
                pairs.append(pair)
            else:
                refused.append(pair)
        except CogumiError as error:
            refused.append(Refused(task, str(error)))
    if not pairs:
        return Compared((), tuple(refused), None, None, None, None, None, None, "", ())
    totals = [pair.a.n_total for pair in pairs]
    both = zip(pairs, scores, strict=True)
    compared = compare_tasks([_paired(pair, of_a, of_b) for pair, (of_a, of_b) in both])
    bounds_a, bounds_b = (
        macro_score([(of_both[side], n) for of_both, n in zip(scores, totals, strict=True)])
        for side in (0, 1)
    )
    speed_a, speed_b = _speed([(one.a, one.n) for one in pairs]), _speed([(one.b, one.n) for one in pairs])
    origins_a, origins_b = (
        distinct(origin for pair in pairs for origin in getattr(pair, side).file.origins()) for side in "ab"
    )
    why = speeds_differ_by(origins_a, origins_b) or ""
    return Compared(
        pairs=tuple(pairs),
        refused=tuple(refused),
        of=compared,
        score_a=bounds_a,
        score_b=bounds_b,
        speed_a=speed_a,
        speed_b=speed_b,
        speed_ratio=speed_b / speed_a if not why and speed_a and speed_b else None,
        speed_note=why,
        notes=tuple(_notes(pairs, [stacks_changed(origins_a), stacks_changed(origins_b)])),
    )


def _pair(known: Catalogue, a: str, b: str, task: str) -> TaskPair | Refused:
    """Return the two measurements of a task with the most common items; of one protocol where possible."""
    ours, theirs = known.of(a, task), known.of(b, task)
    if not ours or not theirs:
        missing = "either of them" if not ours and not theirs else "A" if not ours else "B"
        return Refused(task, f"not measured of {missing}")
    reasons = []
    best: TaskPair | None = None
    for one in ours:
        for other in theirs:
            why = mismatch(one, other)
            if why:
                reasons.append(why)
                continue
            pair = TaskPair(task, one, other, min(one.file.count(), other.file.count()))
            if best is None or _rank(pair) > _rank(best):
                best = pair
    if best is None:
        return Refused(task, "; ".join(dict.fromkeys(reasons)))
    return best if best.n else Refused(task, "no item is known of both")


def _rank(pair: TaskPair) -> tuple[int, bool]:
    return pair.n, pair.a.file.key.protocol_digest == pair.b.file.key.protocol_digest


def _paired(pair: TaskPair, a: np.ndarray, b: np.ndarray) -> PairedTask:
    # The seed of `cogumi compare`: the same p-values stand in both.
    digits = pair.a.told("order").removeprefix("sha256:")[:16]
    try:
        seed = int(digits, 16)
    except ValueError:
        seed = 0
    return PairedTask(task=pair.task, a=a, b=b, n_total=pair.a.n_total, seed=seed)


def _speed(measured: Sequence[tuple[Stored, int]]) -> float | None:
    total = sum((Items(one.file).decoding(n) for one, n in measured), Decoding(0, 0, 0.0))
    return total.tokens_per_second or None


def _notes(pairs: Sequence[TaskPair], changed: Sequence[Sequence[str]]) -> list[str]:
    notes = []
    names = {
        name
        for pair in pairs
        for name in differing([dict(pair.a.file.key.protocol), dict(pair.b.file.key.protocol)])
    }
    if names:
        runtimes = " and ".join(dict.fromkeys([pairs[0].a.told("backend"), pairs[0].b.told("backend")]))
        notes.append(
            f"protocols differ in {', '.join(sorted(names))} ({runtimes}): the difference is of model and "
            "runtime together"
        )
    for name, what in zip(("A", "B"), changed, strict=True):
        if what:
            notes.append(f"{name} was answered under more than one stack: {', '.join(what)}")
    if any(pair.n < pair.a.n_total for pair in pairs):
        notes.append("not all items are known of both: the intervals allow for those that are missing")
    return notes
