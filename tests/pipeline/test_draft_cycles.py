"""Cycles of speculative decoding, and the bounds of a rate over prompts: arithmetic without a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.training.acceptance import AcceptanceSettings, cycles_of, share_bounds


@pytest.mark.parametrize("bad", [{"k": 0}, {"held_out_share": 0}, {"alpha": 0.5}, {"prompts": 1}])
def test_acceptance_settings_are_strict(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AcceptanceSettings(**bad)


def test_cycles_by_hand() -> None:
    hit, miss = True, False
    found = cycles_of([hit] * 3 + [miss] + [hit] * 9, 5)
    # 3 of 5, the correction; 5 of 5, one more; 3 of 3 at the end.
    assert (found.cycles, found.drafted, found.accepted) == (3, 13, 11)
    assert cycles_of([], 5).cycles == 0
    assert (cycles_of([miss] * 4, 5).cycles, cycles_of([miss] * 4, 5).drafted) == (4, 5 - 1 + 3 + 2 + 1)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 8))
def test_cycles_cover_every_token_once(matches: list[bool], k: int) -> None:
    found = cycles_of(matches, k)
    # A cycle's tokens are those accepted and one of the base's own, which the last need not have.
    assert found.accepted + found.cycles - 1 <= len(matches) <= found.accepted + found.cycles
    assert found.accepted <= min(found.drafted, sum(matches))
    assert found.drafted <= k * found.cycles


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=60))
def test_bounds_hold_the_share_within_0_and_1(counts: list[tuple[int, int]]) -> None:
    parts, wholes = [a for a, _ in counts], [a + b for a, b in counts]
    if not sum(wholes):
        return
    value, lower, upper = share_bounds(parts, wholes, 0.05)
    assert value == pytest.approx(sum(parts) / sum(wholes))
    assert 0 <= lower <= value <= upper <= 1


def test_bounds_are_wrong_no_more_often_than_alpha_though_prompts_differ() -> None:
    rng = np.random.default_rng(5)
    below = above = 0
    for _ in range(200):
        sizes = rng.integers(1, 40, size=80)
        # Easy prompts and hard ones, the long ones harder: the ratio of sums is no mean of ratios.
        chance = np.where(rng.random(80) < 0.5, 0.9, 0.5) - 0.2 * (sizes > 20)
        parts = rng.binomial(sizes, chance)
        _, lower, upper = share_bounds(parts.tolist(), sizes.tolist(), 0.05)
        # E[parts] / E[wholes] of this law, exactly.
        truth = 0.7 - 0.2 * (sum(range(21, 40)) / sum(range(1, 40)))
        below, above = below + (upper < truth), above + (lower > truth)
    assert below <= 10
    assert above <= 10


def test_bounds_close_in_with_more_prompts() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for prompts in (50, 500):
        sizes = rng.integers(5, 30, size=prompts)
        _, lower, upper = share_bounds(rng.binomial(sizes, 0.8).tolist(), sizes.tolist(), 0.05)
        widths.append(upper - lower)
    assert widths[1] < widths[0] / 3
