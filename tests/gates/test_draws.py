"""The committed sequences of suites with several tasks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates import draws

sizes = st.lists(st.integers(1, 30), min_size=2, max_size=4)
seeds = st.integers(0, 2**63)


@given(sizes, seeds)
def test_pooled_takes_every_item_once_in_each_committed_order(counts: list[int], seed: int) -> None:
    found = draws.pooled(counts, seed)
    assert found.n_total == sum(counts)
    for k, count in enumerate(counts):
        assert found.position[found.task == k].tolist() == list(range(count))


@given(sizes, seeds)
def test_with_replacement_new_items_come_in_the_committed_order(counts: list[int], seed: int) -> None:
    found = draws.weighted(counts, [1.0] * len(counts), seed, population=False)
    assert found.n_total is None
    for k, count in enumerate(counts):
        position = found.position[found.task == k]
        highest = np.maximum.accumulate(np.concatenate([[-1], position]))
        assert ((position <= highest[:-1] + 1) & (position < count)).all()


@given(sizes, seeds)
def test_population_draws_take_new_items_until_a_task_ends(counts: list[int], seed: int) -> None:
    found = draws.weighted(counts, [1.0] * len(counts), seed, population=True)
    assert found.usable(counts) == len(found.task)
    for k in range(len(counts)):
        position = found.position[found.task == k]
        assert position.tolist() == list(range(len(position)))


@given(sizes, seeds, st.integers(0, 40))
def test_items_behind_draws_make_them_usable(counts: list[int], seed: int, wanted: int) -> None:
    found = draws.weighted(counts, [1.0] * len(counts), seed, population=False)
    wanted = min(wanted, len(found.task))
    needed = found.items_behind(wanted, len(counts))
    assert found.usable(needed) >= wanted


def test_items_are_drawn_uniformly_given_a_random_committed_order() -> None:
    """Positions of a random order hold any item alike, so draws must repeat as uniform ones do.

    Of two draws from 4 items the second repeats the first with chance 1/4.
    """
    repeats = [draws.weighted([4], [1.0], seed, population=False).position[1] == 0 for seed in range(2000)]
    assert np.mean(repeats) == pytest.approx(0.25, abs=0.04)  # 4 standard errors


def test_tasks_are_drawn_by_weight() -> None:
    found = draws.weighted([2000, 2000], [3.0, 1.0], 1, population=False)
    assert np.mean(found.task == 0) == pytest.approx(0.75, abs=0.02)


def test_the_sequence_is_fixed_by_the_committed_orders() -> None:
    seed = draws.seed_of(["sha256:a", "sha256:b"])
    assert seed == draws.seed_of(["sha256:a", "sha256:b"]) != draws.seed_of(["sha256:b", "sha256:a"])
