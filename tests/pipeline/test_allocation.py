from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogumi.errors import InfeasibleError
from pipeline.compression.allocation import Choice, allocate

NAMES = ("a", "b", "c", "d")


def best(costs: dict[str, list[Choice]], cap: int) -> float:
    """The least cost of all combinations."""
    fitting = [
        sum(choice.cost for choice in picks)
        for picks in itertools.product(*costs.values())
        if sum(choice.bytes for choice in picks) <= cap
    ]
    return min(fitting)


def total(costs: dict[str, list[Choice]], kinds: dict[str, str]) -> tuple[int, float]:
    picks = [next(c for c in costs[name] if c.kind == kind) for name, kind in kinds.items()]
    return sum(c.bytes for c in picks), sum(c.cost for c in picks)


choices = st.lists(
    st.tuples(st.integers(1, 60), st.floats(0.01, 10)),
    min_size=1,
    max_size=4,
    unique_by=lambda entry: entry[0],
).map(lambda entries: [Choice(f"k{size}", size, cost) for size, cost in entries])


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(NAMES, choices)), st.integers(0, 200))
def test_fits_and_comes_near_the_best(costs: dict[str, list[Choice]], spare: int) -> None:
    cap = sum(min(c.bytes for c in entries) for entries in costs.values()) + spare
    size, cost = total(costs, allocate(costs, cap))
    assert size <= cap
    # Away from the optimum by less than what one tensor can change: the bound of the relaxation.
    step = max(max(c.cost for c in entries) - min(c.cost for c in entries) for entries in costs.values())
    assert best(costs, cap) <= cost + 1e-9
    assert cost <= best(costs, cap) + step + 1e-9


def test_real_sizes_are_allocated_optimally() -> None:
    sizes = {"q2_0": 9, "q4_0": 18, "q5_0": 22, "q8_0": 34}
    # Each bit fewer costs four times as much; tensors matter unequally.
    costs = {
        name: [Choice(kind, size * 10, weight * 4.0 ** (-size / 4)) for kind, size in sizes.items()]
        for name, weight in zip(NAMES, (1.0, 3.0, 10.0, 200.0), strict=True)
    }
    for cap in range(360, 1400, 40):
        size, cost = total(costs, allocate(costs, cap))
        assert size <= cap
        assert cost <= best(costs, cap) * 1.02
    assert set(allocate(costs, 1360).values()) == {"q8_0"}
    assert allocate(costs, 500)["d"] > allocate(costs, 500)["a"]


def test_a_larger_choice_that_is_worse_is_never_taken() -> None:
    costs = {"a": [Choice("small", 10, 1.0), Choice("large", 20, 2.0)]}
    assert allocate(costs, 100) == {"a": "small"}


def test_too_small_a_cap_is_told_with_the_arithmetic() -> None:
    costs = {"a": [Choice("q4_0", 100, 1.0)], "b": [Choice("q4_0", 50, 1.0)]}
    with pytest.raises(InfeasibleError, match="take 150 bytes in the smallest of the given types, 149 are"):
        allocate(costs, 149)
