"""Sizes and speeds by arithmetic: weights, entropies, recipes, tiers, and what a plan says of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from model_shapes import SMOLLM2

from cogumi.bandwidth import (
    CARDS,
    bytes_per_token,
    cache_speedup,
    context_for_cache_speedup,
    draft_share_for,
    speculative_speedup,
    tokens_per_cycle,
    tokens_per_second,
)
from cogumi.feasibility import (
    check_size,
    check_targets,
    check_tiers,
    energy_lost,
    least_bytes,
    mask_entropy_bits,
)
from cogumi.planned_model import CODED_BITS, PlannedModel
from cogumi.profile import load_profile
from cogumi.speed_check import check_speeds
from gates.spec import load_gate

Command = Callable[..., Any]
TIERS = {"S": 540e6, "M": 890e6, "L": 5e9}


def planned(profile: str, name: str) -> PlannedModel:
    return next(model for model in load_profile(profile).models if model.name == name)


EIGHT = planned("llama-3.1-8b", "Llama-3.1-8B-Instruct")
TINY = planned("llama-3.1-8b", "TinyLlama-1.1B-Chat-v1.0")
ONE = planned("llama-3.2-1b", "Llama-3.2-1B-Instruct")


# Arithmetic ---------------------------------------------------------------------------------------


def test_the_mask_and_the_embeddings_of_the_8b() -> None:
    found = check_size(EIGHT)
    assert found.mask_bytes is not None
    assert round(found.mask_bytes / 1e6) == 815
    assert (round(found.embedding_bytes_4 / 1e6), round(found.embedding_bytes_4_5 / 1e6)) == (525, 591)
    assert not found.feasible
    assert found.why.endswith("the target is 540 MB (0.54 bits a weight)")
    assert found.cache_bytes_per_token == 131_072
    shares = {0.5: 872, 0.6: 847, 0.7: 769, 0.8: 630, 0.9: 409}
    for share, megabytes in shares.items():
        assert round(mask_entropy_bits(share) * 6_979_321_856 / 8e6) == megabytes


def test_a_mask_costs_its_entropy() -> None:
    """Against the best possible code of a random mask: the count of such masks, by Stirling's exact form."""
    n, sparsity = 20_000, 0.65
    ones = round(n * (1 - sparsity))
    bits = (math.lgamma(n + 1) - math.lgamma(ones + 1) - math.lgamma(n - ones + 1)) / math.log(2)
    assert bits / n == pytest.approx(mask_entropy_bits(sparsity), rel=1e-3)


def lloyd_max_error(bits: int) -> float:
    """Return the least mean squared error of so many bits on a Gaussian, by Lloyd's iteration."""
    from statistics import NormalDist

    normal = NormalDist()
    levels = np.linspace(-2.5, 2.5, 2**bits)
    for _ in range(600):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        inside = np.diff([normal.cdf(edge) for edge in edges])
        levels = -np.diff([0.0 if np.isinf(edge) else normal.pdf(edge) for edge in edges]) / inside
    return float(1 - (inside * levels**2).sum())


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_code_for_the_error_of_so_many_bits(bits: int) -> None:
    error = lloyd_max_error(bits)
    assert CODED_BITS[bits] == pytest.approx(math.log2(1 / error) / 2, abs=2e-3)
    # No code of that rate loses less: Shannon's function and ours are inverse.
    assert energy_lost(CODED_BITS[bits]) == pytest.approx(error, rel=5e-3)


@given(st.floats(0.1, 16), st.floats(0.1, 16))
def test_more_bits_lose_less(one: float, other: float) -> None:
    if one < other:
        assert energy_lost(one) > energy_lost(other)
    assert energy_lost(one + 1) == pytest.approx(energy_lost(one) / 4)


def bars_of(profile: str) -> dict[str, float]:
    names = load_profile(profile).gate_names()
    return {f"{name}/{one.id}": one.bar for name in names for one in load_gate(name).criteria}


def test_every_size_of_the_plan_against_its_recipe() -> None:
    found = {row.criterion: row for row in check_targets([EIGHT, TINY], bars_of("llama-3.1-8b"))}
    told = {name: (round(row.bits_per_weight, 2), row.feasible) for name, row in found.items()}
    assert told == {
        "phase3/size": (0.54, False),
        "phase3/resident": (0.65, False),
        "phase3-steps/pruned_size": (3.49, True),
        "phase3-steps/awq_size": (1.20, False),
        "phase3-steps/zstd_size": (0.52, False),
        "phase3-steps/draft_awq_size": (3.64, False),
        "phase3-steps/draft_resident": (2.55, False),
        "phase3-steps/draft_size": (1.02, False),
        "phase1-draft/draft_size": (7.27, False),
        "phase7/size": (0.78, False),
    }
    # Mask, kept weights and embeddings at 4 bits.
    awq = found["phase3-steps/awq_size"]
    assert awq.least_bytes == math.ceil(
        (mask_entropy_bits(0.65) + 0.35 * 4) * 6_979_321_856 / 8 + 1_050_673_152 / 2
    )
    assert awq.why == (
        "815 MB 65% mask + 1.22 GB for the 35% kept + 525 MB for embedding and head at 4 bits: 2.56 GB"
    )
    lost = {name: round(100 * row.energy_lost) for name, row in found.items()}
    assert (lost["phase3/size"], lost["phase3-steps/awq_size"], lost["phase3-steps/draft_size"]) == (
        47,
        19,
        24,
    )
    system = found["phase7/size"]
    assert system.least_bytes == pytest.approx(815e6 + 0.35 * 6_979e6 * 3.359 / 8 + 441e6 + 462e6, rel=1e-3)
    assert system.model == "Llama-3.1-8B-Instruct + TinyLlama-1.1B-Chat-v1.0"


def test_without_a_recipe_nothing_is_ruled_out() -> None:
    for row in check_targets(load_profile("llama-3.2-1b").models, bars_of("llama-3.2-1b")):
        assert row.feasible
        assert row.least_bytes is None
    assert least_bytes([ONE], "phase3/size", 540e6) is None
    assert least_bytes([EIGHT], "phase4/code_size", 5e7) is None


def test_tiers_leave_bits_and_name_the_largest_format() -> None:
    told = {
        (model.name, row.tier): (round(row.bits_per_weight, 2), row.format)
        for model in (EIGHT, ONE)
        for row in check_tiers(model, TIERS)
    }
    assert told == {
        ("Llama-3.1-8B-Instruct", "S"): (0.54, None),
        ("Llama-3.1-8B-Instruct", "M"): (0.89, None),
        ("Llama-3.1-8B-Instruct", "L"): (4.98, "Q4_K_M"),
        ("Llama-3.2-1B-Instruct", "S"): (3.50, "IQ2_M"),
        ("Llama-3.2-1B-Instruct", "M"): (5.76, "Q4_K_M"),
        ("Llama-3.2-1B-Instruct", "L"): (32.37, "BF16"),
    }
    small = check_tiers(ONE, TIERS)[0]
    assert small.note == "3.5 bits a weight are 541 MB: 0.1 % over"


def test_sizes_of_formats_are_those_of_real_files() -> None:
    """Llama-3.1-8B's own table in llama.cpp gives Q4_K_M 4.8944 bits a weight; the 1B's file has 808 MB."""
    by_name = {row.format: row.format_bytes for row in check_tiers(EIGHT, TIERS)}
    assert 8 * (by_name["Q4_K_M"] or 0) / EIGHT.parameters == pytest.approx(4.8944, abs=2e-3)
    assert next(row for row in check_tiers(ONE, TIERS) if row.tier == "M").format_bytes == pytest.approx(
        808e6, rel=0.012
    )


def test_rows_that_are_no_multiple_of_256_take_blocks_of_32() -> None:
    model = PlannedModel.model_validate({"name": "m", "source": "s", "config": SMOLLM2})
    (row,) = check_tiers(model, {"tiny": 92e6})
    assert row.format == "Q4_0"
    (row,) = check_tiers(model, {"tinier": 80e6})
    assert row.format is None


# Speed --------------------------------------------------------------------------------------------


def test_speculation_by_hand() -> None:
    assert tokens_per_cycle(5, 0.75) == pytest.approx(3.288, abs=1e-3)
    assert tokens_per_cycle(5, 1) == 6
    share = TINY.parameters / EIGHT.parameters
    assert speculative_speedup(5, 0.75, share) == pytest.approx(1.95, abs=0.005)
    assert draft_share_for(3, 5, 0.75) == pytest.approx(0.0192, abs=1e-4)
    assert speculative_speedup(5, 0.75, draft_share_for(3, 5, 0.75)) == pytest.approx(3)
    assert draft_share_for(4, 5, 0.75) < 0


def test_tokens_of_a_cycle_are_those_of_a_simulated_one() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random((200_000, 5)) < 0.75
    accepted = np.where(hits.all(axis=1), 5, hits.argmin(axis=1))
    assert tokens_per_cycle(5, 0.75) == pytest.approx(1 + accepted.mean(), rel=5e-3)


def test_the_cache_gains_little_at_chat_lengths() -> None:
    assert cache_speedup(4.92e9, 2048 * 131_072) == pytest.approx(1.04, abs=0.005)
    wanted = context_for_cache_speedup(1.5, 4.92e9, 131_072)
    assert wanted == pytest.approx(30_000, rel=0.01)
    assert cache_speedup(4.92e9, (wanted or 0) * 131_072) == pytest.approx(1.5)
    assert context_for_cache_speedup(4, 4.92e9, 131_072) is None


def test_a_t4_reads_so_much_for_135_tokens_a_second() -> None:
    assert bytes_per_token("T4", 135) == pytest.approx(2.37e9, rel=1e-3)
    assert tokens_per_second("T4", 2.37e9) == pytest.approx(135, rel=1e-3)
    assert all(100e9 < speed < 10e12 for speed in CARDS.values())


def test_speeds_of_the_plan() -> None:
    asked = {
        "phase2/speculative_speedup": ("speculative_speedup", 3.0),
        "phase2/cache_speedup": ("kv_int4_speedup", 1.5),
        "phase2/cache_speed": ("kv_int4_tokens_per_second", 135.0),
        "plain": ("tokens_per_second", 90.0),
        "phase2/acceptance": ("acceptance_rate", 0.75),
    }
    found = {row.criterion: row for row in check_speeds([EIGHT, TINY], asked)}
    assert list(found) == [name for name in asked if name != "phase2/acceptance"]
    assert not found["phase2/speculative_speedup"].reached
    assert found["phase2/speculative_speedup"].why == (
        "5 drafted at 75% are 3.29 tokens a cycle: 1.95 x at best with TinyLlama-1.1B-Chat-v1.0, 13.7% of "
        "the base; 3 x needs a draft of 1.9%"
    )
    assert not found["phase2/cache_speedup"].reached
    assert (
        "131 kB a token: at 2,048 tokens of context 4 bits give 1.04 x at"
        in found["phase2/cache_speedup"].why
    )
    assert "135 tokens a second may read 2.37 GB each" in found["phase2/cache_speed"].why
    plain, drafted = found["plain"].best, found["phase2/cache_speed"].best
    assert not found["plain"].reached
    assert drafted == pytest.approx(1.951 * plain, rel=1e-3)
    assert check_speeds([TINY], asked) == []


# What the commands say ----------------------------------------------------------------------------


def test_the_plan_names_every_impossible_target(cogumi: Command) -> None:
    code, out, _ = cogumi("plan", "--profile", "llama-3.1-8b", "--json")
    document = json.loads(out)
    impossible = {row["criterion"] for row in document["targets"] if not row["feasible"]}
    assert code == 4
    assert len(impossible) == 9
    assert impossible <= set(document["infeasible"])
    rows = {row["criterion"]: row for row in document["gates"]}
    for name in impossible:
        assert not rows[name]["feasible"]
        assert rows[name]["why"]
    assert [row["model"] for row in document["sizes"]] == [EIGHT.name, TINY.name]
    assert document["ceilings"][0]["tokens_per_second"]["T4"] == pytest.approx(69.3, abs=0.1)
    text = cogumi("plan", "--profile", "llama-3.1-8b").out
    for name in impossible:
        assert f"\n  {name}" in text
    assert "1.2 GB           1.20   19 %  INFEASIBLE: 815 MB 65% mask" in text


def test_the_1b_has_no_impossible_size_and_is_just_over_tier_s(cogumi: Command) -> None:
    code, out, _ = cogumi("plan", "--profile", "llama-3.2-1b")
    assert code == 0
    assert "INFEASIBLE" not in out
    assert "3.50  IQ2_M, 509 MB; 3.5 bits a weight are 541 MB: 0.1 % over" in out


def test_a_gate_without_an_artifact_says_the_same(cogumi: Command) -> None:
    code, out, _ = cogumi("gate", "phase3-steps", "--profile", "llama-3.1-8b", "--json")
    notes = {row["id"]: row["note"] for row in json.loads(out)["criteria"] if row["verdict"] == "INFEASIBLE"}
    assert code == 4
    assert sorted(notes) == ["awq_size", "draft_awq_size", "draft_resident", "draft_size", "zstd_size"]
    assert notes["awq_size"].startswith("at best 2,561,613,101, the bar is 1,200,000,000; 815 MB 65% mask")


def test_a_run_is_refused_until_every_impossible_target_is_named(cogumi: Command, tmp_path: Path) -> None:
    document = {
        "profile": "two",
        "title": "t",
        "gates": ["phase3-steps"],
        "models": [
            {
                "name": "m",
                "source": "s",
                "config": SMOLLM2,
                "targets": [
                    {"criterion": "phase3-steps/awq_size", "bits": 4},
                    {"criterion": "phase3-steps/draft_size", "bits": 16},
                ],
            },
            {
                "name": "n",
                "source": "s",
                "config": {**SMOLLM2, "hidden_size": 5760},
                "targets": [{"criterion": "phase3-steps/zstd_size", "bits": 4, "coded": True}],
            },
        ],
        "steps": [{"id": "x", "uses": "models.pretrained", "settings": {"model": "nobody/nothing"}}],
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(document))
    code, _, told = cogumi("run", "--profile", "two.yaml")
    assert code == 4
    assert "phase3-steps/zstd_size cannot be met: at best" in told
    first = ("run", "--profile", "two.yaml", "--accept-infeasible", "phase3-steps/zstd_size")
    code, _, told = cogumi(*first)
    assert code == 4
    assert "phase3-steps/draft_size cannot be met" in told
    code, _, told = cogumi(*first, "--accept-infeasible", "phase3-steps/awq_size")
    assert (code, "no such infeasible target" in told) == (2, True)


@pytest.mark.parametrize(
    ("criterion", "told"),
    [
        ("phase3/sise", "models.m: gate phase3 has no criterion 'sise' (did you mean 'size'?)"),
        ("phase3/retention", "models.m: phase3/retention does not limit bytes"),
        ("phase33/size", "phase33"),
    ],
)
def test_a_target_must_be_a_limit_of_bytes(
    cogumi: Command, tmp_path: Path, criterion: str, told: str
) -> None:
    model = {"name": "m", "source": "s", "config": SMOLLM2, "targets": [{"criterion": criterion}]}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"profile": "p", "title": "t", "models": [model]}))
    code, _, found = cogumi("plan", "--profile", "p.yaml")
    assert code == 2
    assert told in found
