"""Which type each tensor takes under a cap of bytes: the least total cost that fits.

A cost is what a type is expected to add to the KL divergence, in nats per token; costs of tensors add up, as
they do to second order for independent errors. Lagrangian relaxation over the lower convex hull of each
tensor's choices, then single changes and pairs while they gain: close to the optimum of the knapsack, which
``tests/pipeline/test_allocation.py`` finds by trying all on small cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from cogumi.errors import InfeasibleError

_CHANGES = 50
"""Improvements after the relaxation: few are ever found, and each looks at all pairs."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One type for one tensor: its size and what it is expected to cost."""

    kind: str
    bytes: int
    cost: float


def allocate(costs: Mapping[str, list[Choice]], cap_bytes: int) -> dict[str, str]:
    """Return the kind of each tensor, all together within ``cap_bytes``, of the least cost found.

    Raises ``InfeasibleError`` with the arithmetic when the smallest choices do not fit. Equal inputs give
    equal results: ties go to the smaller type, then to the first name.
    """
    hulls = {name: _hull(choices) for name, choices in sorted(costs.items())}
    least = sum(hull[0].bytes for hull in hulls.values())
    if least > cap_bytes:
        raise InfeasibleError(
            f"the tensors take {least:,} bytes in the smallest of the given types, {cap_bytes:,} are "
            "allowed: raise bytes_at_most or allow a smaller type"
        )
    # Each step along a hull gains less per byte than the one before: take them in the order of their gain.
    steps = sorted(
        (
            (-(low.cost - high.cost) / (high.bytes - low.bytes), name, number)
            for name, hull in hulls.items()
            for number, (low, high) in enumerate(pairwise(hull), start=1)
        )
    )
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = cap_bytes - least
    for _, name, number in steps:
        wanted = hulls[name][number]
        # A step that does not fit closes its tensor: later ones of it are larger still.
        if chosen[name] is hulls[name][number - 1] and wanted.bytes - chosen[name].bytes <= left:
            left -= wanted.bytes - chosen[name].bytes
            chosen[name] = wanted
    _improve(
        {name: sorted(c, key=lambda x: (x.bytes, x.cost)) for name, c in sorted(costs.items())}, chosen, left
    )
    return {name: choice.kind for name, choice in chosen.items()}


def _hull(choices: list[Choice]) -> list[Choice]:
    """Return the choices that are best for some price of a byte, smallest first."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.bytes, c.cost, c.kind)):
        if hull and choice.cost >= hull[-1].cost:
            continue
        if hull and choice.bytes == hull[-1].bytes:
            continue
        while len(hull) > 1 and _gain(hull[-2], choice) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return hull


def _gain(low: Choice, high: Choice) -> float:
    return (low.cost - high.cost) / (high.bytes - low.bytes)


def _improve(costs: Mapping[str, list[Choice]], chosen: dict[str, Choice], left: int) -> None:
    """Change one tensor, or one up and another down, while the sum of costs falls."""
    for _ in range(_CHANGES):
        moves = [
            (choice.bytes - chosen[name].bytes, choice.cost - chosen[name].cost, name, choice)
            for name, choices in costs.items()
            for choice in choices
            if choice is not chosen[name]
        ]
        best: tuple[float, int, list[tuple[str, Choice]]] = (0.0, 0, [])
        for size, cost, name, choice in moves:
            if size <= left and cost < best[0]:
                best = (cost, size, [(name, choice)])
        ups = [move for move in moves if move[1] < 0 < move[0]]
        downs = [move for move in moves if move[0] < 0]
        for up_size, up_cost, up, up_choice in ups:
            for size, cost, name, choice in downs:
                if name != up and up_size + size <= left and up_cost + cost < best[0]:
                    best = (up_cost + cost, up_size + size, [(up, up_choice), (name, choice)])
        # Less than a rounding error is no gain, and could go round in a circle.
        if best[0] >= -1e-12 * sum(abs(choice.cost) for choice in chosen.values()):
            return
        left -= best[1]
        chosen.update(best[2])
