"""Who sees what in which order: Williams squares where every rater sees every task, else a dealt pool.

A Williams square of even order holds every item once in each row and at each position, and every ordered pair
of neighbours once; of odd order a square and its mirror image do together (Williams 1949, Aust. J. Sci. Res.
2, 149). A larger pool is dealt like decks of cards, so that all tasks are rated equally often.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from evals.human.plan import PLANTED, StudyPlan, StudyTask
from evals.human.rows import Assignment, Kind

if TYPE_CHECKING:
    import numpy as np

__all__ = ["PRACTICE", "Assignment", "Balance", "balance", "deal"]

PRACTICE = "practice"
"""What stands for the system of a practice item."""
_UNDISTURBED = 3
"""Scored items before the first planted or repeated one."""
_REPEAT_AFTER = 5
"""Items from the first showing of an answer to its repetition, at least."""
_ORDERS_TRIED = 8
_ALIKE = 5
"""Among so many answers of the most similar length the wrong one of a planted item is drawn."""


@dataclass(frozen=True, slots=True)
class Balance:
    """How even a dealt design is, over its scored items; each pair is (fewest, most)."""

    tasks: int
    raters: int
    ratings_per_task: tuple[int, int]
    ratings_per_position: tuple[int, int]
    """How often one task stands at one position, over all tasks and positions."""
    followings: tuple[int, int]
    """How often one task directly follows another, over all ordered pairs."""
    pairs_left: tuple[int, int]
    """Pairs that show the subject left, right."""


@dataclass(frozen=True, slots=True)
class _Item:
    """An item before it has its position."""

    kind: Kind
    task_id: str
    system: str
    other: str | None = None
    swapped: bool = False


def deal(plan: StudyPlan) -> list[tuple[Assignment, ...]]:
    """Return the sequence of every slot, drawn from the plan's seed: equal plans, equal sequences.

    Practice first, then the scored items with planted and repeated ones among them from the fourth on, pairs
    at the end. A planted answer stands on a task that the rater does not score, where the pool has one.
    """
    rng = random.Random(plan.seed)
    names = [task.task_id for task in plan.tasks]
    rng.shuffle(names)
    if len(names) == plan.items:
        orders = [[names[at] for at in row] for row in _williams_rows(plan.items, plan.raters, rng)]
    else:
        orders = _even_orders(_dealt(names, plan.items, plan.raters, rng), names, plan)
    planting = _Planting(plan, rng)
    pairs = _pairs(plan, rng)
    sequences = []
    for order, paired in zip(orders, pairs, strict=True):
        middle = [_Item("scored", name, plan.subject) for name in order]
        for item in planting.items(order):
            middle.insert(rng.randint(_UNDISTURBED, len(middle)), item)
        _repeat(middle, plan.repeats, rng)
        practice = [_Item("practice", f"practice-{n}", PRACTICE) for n in range(1, plan.practice + 1)]
        sequences.append(_numbered([*practice, *middle, *paired]))
    return sequences


def _numbered(items: Sequence[_Item]) -> tuple[Assignment, ...]:
    return tuple(
        Assignment(position, item.kind, item.task_id, item.system, item.other, item.swapped)
        for position, item in enumerate(items, start=1)
    )


# Scored items -------------------------------------------------------------------------------------


def _williams_rows(n: int, raters: int, rng: random.Random) -> list[list[int]]:
    """Return ``raters`` rows of Williams squares over 0 to n - 1, each equally often but for the last."""
    first = [(at + 1) // 2 if at % 2 else (n - at // 2) % n for at in range(n)]
    square = [[(one + shift) % n for one in first] for shift in range(n)]
    if n % 2:
        square += [row[::-1] for row in square]
    rows: list[list[int]] = []
    while len(rows) < raters:
        rng.shuffle(square)
        rows += square
    return rows[:raters]


def _dealt(names: Sequence[str], hand: int, raters: int, rng: random.Random) -> list[list[str]]:
    """Deal hands from shuffled decks, none with a name twice; over all hands names differ by one at most."""
    deck: list[str] = []
    hands = []
    for _ in range(raters):
        held: list[str] = []
        while len(held) < hand:
            if not deck:
                deck = list(names)
                rng.shuffle(deck)
            # What is in the hand already stays in the deck, for the next one.
            at = next(place for place, name in enumerate(deck) if name not in held)
            held.append(deck.pop(at))
        hands.append(held)
    return hands


def _even_orders(hands: list[list[str]], names: Sequence[str], plan: StudyPlan) -> list[list[str]]:
    """Order each hand so that tasks stand equally often at each position and seldom follow the same task.

    Hand by hand: positions by the assignment of least cost, the most even so far; among several such orders
    the one whose neighbours have met least.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    numbers = {name: at for at, name in enumerate(names)}
    stood = np.zeros((len(names), plan.items))
    met = np.zeros((len(names), len(names)), dtype=np.int32)
    noise = np.random.default_rng(plan.seed)
    tried = _ORDERS_TRIED if plan.items <= 50 else 1
    orders = []
    for held in hands:
        hand = np.array([numbers[name] for name in held])
        best: tuple[int, np.ndarray] | None = None
        for _ in range(tried):
            # Squares, so that the rarest place is taken first; noise decides among equals alone.
            cost = (stood[hand] + 1) ** 2 + noise.random((plan.items, plan.items)) / (2 * plan.items)
            order = hand[np.argsort(linear_sum_assignment(cost)[1])]
            neighbours = int((met[order[:-1], order[1:]] ** 2).sum())
            if best is None or neighbours < best[0]:
                best = neighbours, order
        assert best is not None
        order = best[1]
        stood[order, np.arange(plan.items)] += 1
        met[order[:-1], order[1:]] += 1
        orders.append([names[at] for at in order])
    return orders


# What else a rater sees ---------------------------------------------------------------------------


@dataclass
class _Planting:
    """Bad answers, spread evenly over the tasks that can have one."""

    plan: StudyPlan
    rng: random.Random
    used: Counter[str] = field(default_factory=Counter)

    def items(self, scored: Sequence[str]) -> list[_Item]:
        """Return the planted items of a rater who scores these tasks."""
        known = set(scored)
        order = list(self.plan.tasks)
        self.rng.shuffle(order)
        # A bad answer that was written as one is surely bad; a prompt that is new gives nothing away.
        used = self.used
        order.sort(key=lambda one: (one.bad_answer is None, one.task_id in known, used[one.task_id]))
        chosen = order[: self.plan.planted]
        self.used.update(task.task_id for task in chosen)
        return [_Item("planted", task.task_id, PLANTED, self._elsewhere(task)) for task in chosen]

    def _elsewhere(self, task: StudyTask) -> str | None:
        """Return the task whose answer stands in for a bad one, None where the task has its own."""
        if task.bad_answer is not None:
            return None
        subject = self.plan.subject
        others = [
            one
            for one in self.plan.tasks
            if one.task_id != task.task_id and one.answers[subject] != task.answers[subject]
        ]
        others = others or [one for one in self.plan.tasks if one.task_id != task.task_id]
        others = [one for one in others if one.domain != task.domain] or others
        length = len(task.answers[subject])
        others.sort(key=lambda one: abs(len(one.answers[subject]) - length))
        return self.rng.choice(others[:_ALIKE]).task_id


def _repeat(items: list[_Item], repeats: int, rng: random.Random) -> None:
    """Show that many scored answers once more, five items or more after the first time."""
    shown: set[str] = set()
    for _ in range(repeats):
        last = len(items) - _REPEAT_AFTER
        sources = [
            at
            for at, item in enumerate(items[: last + 1])
            if item.kind == "scored" and item.task_id not in shown
        ]
        source = rng.choice(sources)
        again = items[source]
        shown.add(again.task_id)
        place = rng.randint(max(_UNDISTURBED, source + _REPEAT_AFTER), len(items))
        items.insert(place, _Item("repeat", again.task_id, again.system))


def _pairs(plan: StudyPlan, rng: random.Random) -> Iterator[list[_Item]]:
    """Yield each rater's pairs: tasks equally often, the subject as often left as right."""
    if not plan.pairs:
        yield from ([] for _ in range(plan.raters))
        return
    names = [task.task_id for task in plan.paired]
    right: Counter[str] = Counter()
    """By task, showings with the subject on the right less those with it on the left."""
    for held in _dealt(names, plan.pairs, plan.raters, rng):
        items, lean = [], 0
        for name in held:
            # First the task evens itself out, then the rater, then the coin falls.
            tilt = right[name] or lean
            swapped = tilt < 0 if tilt else rng.random() < 0.5
            right[name] += 1 if swapped else -1
            lean += 1 if swapped else -1
            items.append(_Item("pair", name, plan.subject, plan.reference, swapped))
        yield items


def balance(sequences: list[tuple[Assignment, ...]]) -> Balance:
    """Measure how even the scored items of dealt sequences are."""
    scored = [[one.task_id for one in sequence if one.kind == "scored"] for sequence in sequences]
    names = sorted({name for row in scored for name in row})
    length = max(map(len, scored), default=0)
    ratings = Counter(name for row in scored for name in row)
    places = Counter((name, at) for row in scored for at, name in enumerate(row))
    followed = Counter(two for row in scored for two in pairwise(row))
    pairs = [one.swapped for sequence in sequences for one in sequence if one.kind == "pair"]
    ordered = len(names) * (len(names) - 1)
    return Balance(
        tasks=len(names),
        raters=len(sequences),
        ratings_per_task=_range(ratings, len(names)),
        ratings_per_position=_range(places, len(names) * length),
        followings=_range(followed, ordered),
        pairs_left=(pairs.count(False), pairs.count(True)),
    )


def _range(counts: Counter[Any], cells: int) -> tuple[int, int]:
    """Return the fewest and most of so many cells; those that were not counted are empty."""
    return (min(counts.values(), default=0) if len(counts) == cells else 0, max(counts.values(), default=0))
