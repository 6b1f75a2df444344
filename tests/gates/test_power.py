"""The plan: how many items, tokens and money a verdict will take."""

from __future__ import annotations

import numpy as np
import pytest
from gate_memory import GENERAL, STOPS, Attempts, Memory, gate, per_item, published

from gates.power import ItemCost, plan_gate, plan_items
from gates.suites import Pair, Rule

RULE = Rule(0.88, 0.05, "benchmark", "mean_of", None)


def pair(score: float, n: int) -> Pair:
    return Pair("gsm8k", np.zeros(0), n, n, "sha256:order", published(score, margin=0.0, n=n))


@pytest.mark.parametrize(("ratio", "most"), [(0.80, 205), (0.95, 225), (1.00, 98)])
def test_median_items_are_those_of_the_design(ratio: float, most: int) -> None:
    """The design's figures for N = 541 against a published 0.86; 200 runs move a median by a few percent."""
    (row,) = plan_items([pair(0.86, 541)], RULE, ratios=[ratio], runs=200)
    assert row.median_items <= most * 1.1
    assert (row.fails if ratio < 0.88 else row.passes) > 0.9


def test_the_plan_is_reproducible_and_leaves_out_the_impossible() -> None:
    first = plan_items([pair(0.9, 200)], RULE, ratios=[0.7, 1.2], runs=20)
    assert first == plan_items([pair(0.9, 200)], RULE, ratios=[0.7, 1.2], runs=20)
    assert [row.ratio for row in first] == [0.7]


def test_plan_of_a_gate_prices_the_median() -> None:
    y = np.random.default_rng(1).permutation([1.0] * 75 + [0.0] * 25)
    source = Memory({"ifeval": np.zeros(100)}, {"ifeval": per_item(y)})
    spec = gate(
        GENERAL, STOPS, {"id": "kept", "retention": {"suite": "general", "baseline": "base"}, "margin": 0.02}
    )
    rows, unplanned = plan_gate(
        spec, source, Attempts(), cost=ItemCost(tokens=300, usd=0.01), ratios=[0.4, 1.2], runs=20
    )
    assert [(row.criterion, row.ratio) for row in rows] == [("general", 0.4), ("general", 1.2)]
    assert rows[0].tokens == rows[0].median_items * 300
    assert rows[0].usd == pytest.approx(rows[0].median_items * 0.01)
    assert rows[0].median_items < 60
    assert list(unplanned) == ["kept"]
    assert source.asked == []


def test_plan_of_a_retention_fills_up_a_baseline_measured_in_part() -> None:
    source = Memory({"ifeval": np.zeros(100)}, baselines={"ifeval": np.ones(100)}, baseline_measured=10)
    spec = gate({"id": "kept", "retention": {"suite": "general", "baseline": "base"}, "margin": 0.1})
    rows, unplanned = plan_gate(spec, source, Attempts(), ratios=[0.5, 1.0], runs=10)
    assert unplanned == {}
    assert [(row.fails, row.passes) for row in rows] == [(1.0, 0.0), (0.0, 1.0)]
