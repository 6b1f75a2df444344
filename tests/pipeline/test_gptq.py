"""GPTQ: few values in each group, less damage than rounding, the packed bytes counted; bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from compress_models import LENGTH, SAMPLES, inputs_of, linear_names, tensors
from micro_stages import run_stage

from cogumi.errors import RunError
from cogumi.store import Artifact
from pipeline.compression.gptq import GPTQ, GPTQSettings

GROUP = 32


def quantise(folder: Path, model: Artifact, data: Artifact, **settings: object) -> Artifact:
    wanted = GPTQSettings.model_validate(
        {"samples": SAMPLES, "max_length": LENGTH, "group_size": GROUP, **settings}
    )
    return run_stage(GPTQ, wanted, folder, {"model": model, "data": data})[1]


@pytest.mark.parametrize("bits", [2, 3])
def test_values_lie_on_the_grid_of_their_group(
    tmp_path: Path, model: Artifact, data: Artifact, bits: int
) -> None:
    import torch

    before, after = tensors(model.path), tensors(quantise(tmp_path, model, data, bits=bits).path)
    assert after.keys() == before.keys()
    for name, weight in after.items():
        if name not in linear_names(after):
            assert torch.equal(weight, before[name])
            continue
        levels = [len(set(group.tolist())) for group in weight.reshape(-1, GROUP)]
        assert 1 < max(levels) <= 2**bits


def test_outputs_are_harmed_less_than_by_rounding(
    tmp_path: Path, model: Artifact, data: Artifact, rows: list[list[int]]
) -> None:
    before, after = tensors(model.path), tensors(quantise(tmp_path, model, data, bits=3).path)
    read = inputs_of(model.path, "model.layers.0.self_attn.q_proj", rows)
    ours = theirs = 0.0
    for part in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{part}.weight"
        groups = before[name].reshape(-1, GROUP)
        # The same grid: 8 levels between the least and the largest, zero among them.
        low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
        step = (high - low) / 7
        zero = (-low / step).round()
        rounded = ((groups / step + zero).round().clamp(0, 7) - zero) * step
        ours += float((read @ (before[name] - after[name]).T).square().sum())
        theirs += float((read @ (before[name] - rounded.reshape(before[name].shape)).T).square().sum())
    assert ours < 0.9 * theirs


def test_packed_bytes_are_counted_by_hand(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    found = quantise(tmp_path, model, data, bits=2, symmetric=True)
    held = tensors(found.path)
    linear = sum(held[name].numel() for name in linear_names(held))
    table = held["model.embed_tokens.weight"]
    norms = sum(weight.numel() for name, weight in held.items() if "norm" in name)
    codes = linear // 4 + 2 * linear // GROUP
    assert found.facts["bytes_packed"] == codes + 2 * (table.numel() + norms)
    assert found.facts["bytes_packed_8bit"] == codes + table.numel() + 2 * table.shape[0] + 2 * norms
    assert found.facts["group_size"] == GROUP
    assert found.facts["uninvertible_layers"] == 0


def test_layers_that_were_only_rounded_are_counted(
    tmp_path: Path, model: Artifact, data: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fails(*_: object, out: tuple[torch.Tensor, torch.Tensor], **__: object) -> None:
        out[1].fill_(1)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", fails)
    assert quantise(tmp_path, model, data).facts["uninvertible_layers"] == 14


def test_data_too_short_for_the_second_moments(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    with pytest.raises(
        RunError, match=r"calibration data too short: \d+ tokens in 2 rows, and a layer has 128"
    ):
        quantise(tmp_path, model, data, samples=2)


def test_a_group_that_does_not_divide(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    with pytest.raises(RunError, match="q_proj has 64 columns, which a group of 128 does not divide"):
        quantise(tmp_path, model, data, group_size=128)
