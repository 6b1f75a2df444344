"""Which models no other one beats in all that is looked at, and which of them their items do not tell apart.

The rules: a point's value is the statistic that its bounds bracket; points with equal values both stay; a
point that lacks a value never enters; the order is fixed by the values and then by the names. It is
``gates.frontier`` for any objectives: its three standings, its two questions, and among bytes and divergence
its answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gates.frontier import Standing

Better = Literal["less", "more"]


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its bounds; one that is exactly known is its own bounds."""

    value: float
    lower: float
    upper: float

    @classmethod
    def exactly(cls, value: float) -> Value:
        """Return a number without chance in it: bytes, or a score over all items."""
        return cls(value, value, value)

    @property
    def exact(self) -> bool:
        """Tell whether there is no chance in it."""
        return self.lower == self.upper

    def overlaps(self, other: Value) -> bool:
        """Tell whether the bounds of the two have a point in common."""
        return self.lower <= other.upper and other.lower <= self.upper


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model by name, with its values in the order of the objectives; None where one is unknown."""

    name: str
    values: tuple[Value | None, ...]

    @property
    def known(self) -> bool:
        """Tell whether it has all values, and so may enter."""
        return None not in self.values


def beats(one: Candidate, other: Candidate, better: Sequence[Better], *, surely: bool = False) -> bool:
    """Tell whether ``one`` is no worse in every objective, and better in at least one.

    ``surely``: also if each number lay at that end of its bounds which speaks most against it. One that lacks
    a value beats none, and none beats it.
    """
    differs = False
    for mine, its, way in zip(one.values, other.values, better, strict=True):
        if mine is None or its is None:
            return False
        ours, theirs = _ends(mine, its, way) if surely else (_loss(mine.value, way), _loss(its.value, way))
        if ours > theirs:
            return False
        differs = differs or ours < theirs
    return differs


def _loss(value: float, way: Better) -> float:
    return value if way == "less" else -value


def _ends(mine: Value, its: Value, way: Better) -> tuple[float, float]:
    return (mine.upper, its.lower) if way == "less" else (-mine.lower, -its.upper)


def standings(candidates: Sequence[Candidate], better: Sequence[Better]) -> list[Standing | None]:
    """Return how each candidate stands, in their order; None for one that lacks a value.

    ``best``: none beats it as measured. ``behind``: one does, whatever their bounds leave open. Else these
    items do not tell.
    """
    known = [one for one in candidates if one.known]
    found: list[Standing | None] = []
    for one in candidates:
        if not one.known:
            found.append(None)
        elif not any(beats(other, one, better) for other in known):
            found.append("best")
        elif any(beats(other, one, better, surely=True) for other in known):
            found.append("behind")
        else:
            found.append("not told apart")
    return found


def front(candidates: Iterable[Candidate], better: Sequence[Better]) -> list[Candidate]:
    """Return the candidates that none beats as measured: by the first objective best first, then the next,
    then by name.
    """
    entered = list(candidates)
    found = [
        one for one, standing in zip(entered, standings(entered, better), strict=True) if standing == "best"
    ]
    return sorted(found, key=lambda one: (_losses(one, better), one.name))


def _losses(one: Candidate, better: Sequence[Better]) -> list[float]:
    known = zip(one.values, better, strict=True)
    return [_loss(value.value, way) for value, way in known if value is not None]


def tie_groups(values: Mapping[str, Value]) -> list[tuple[str, ...]]:
    """Return the sets of two and more names that a chain of overlapping bounds joins, highest value first.

    Neighbours in a set are not told apart; its ends may be.
    """
    found: list[list[str]] = []
    # By where the bounds begin, so that whatever meets a chain meets it before the chain has ended.
    reach = float("-inf")
    for name, value in sorted(values.items(), key=lambda item: (item[1].lower, item[0])):
        if found and value.lower <= reach:
            found[-1].append(name)
        else:
            found.append([name])
            reach = float("-inf")
        reach = max(reach, value.upper)

    def order(name: str) -> tuple[float, str]:
        return -values[name].value, name

    groups = [tuple(sorted(names, key=order)) for names in found if len(names) > 1]
    return sorted(groups, key=lambda names: order(names[0]))
