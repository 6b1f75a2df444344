"""Pruning: zeros counted in the file, N:M group by group, OWL shares, damage against magnitude; bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from compress_models import LENGTH, SAMPLES, changed, inputs_of, linear_names, tensors, tiny, untied_in_bf16
from hypothesis import given
from hypothesis import strategies as st
from micro_stages import Updates, artifact, run_stage
from pydantic import ValidationError

from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact
from pipeline.compression.llmc import equal_batches
from pipeline.compression.prune import PRUNE, OwlSettings, PruneSettings
from pipeline.compression.sparsity import owl_targets, reachable


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, data: Artifact, model: Artifact) -> Artifact:
    settings = PruneSettings(samples=SAMPLES, max_length=LENGTH)
    return run_stage(PRUNE, settings, tmp_path_factory.mktemp("pruned"), {"model": model, "data": data})[1]


def prune(folder: Path, model: Artifact, data: Artifact, **settings: object) -> Artifact:
    wanted = PruneSettings.model_validate({"samples": SAMPLES, "max_length": LENGTH, **settings})
    return run_stage(PRUNE, wanted, folder, {"model": model, "data": data})[1]


def zeros(held: dict[str, object]) -> tuple[int, int]:
    linear = [held[name] for name in linear_names(held)]
    return sum(int((each == 0).sum()) for each in linear), sum(each.numel() for each in linear)  # type: ignore[attr-defined]


# What is left --------------------------------------------------------------------------------------------


def test_sparsegpt_reaches_the_plans_sparsity_and_touches_linear_layers_alone(
    model: Artifact, pruned: Artifact
) -> None:
    import torch

    before, after = tensors(model.path), tensors(pruned.path)
    nought, size = zeros(after)
    assert zeros(before)[0] == 0
    assert 0.65 <= nought / size < 0.652
    assert pruned.facts["pruned_weights"] == nought
    assert pruned.facts["linear_weights"] == size
    assert pruned.facts["metrics"]["sparsity"] == nought / size
    assert pruned.facts["sparsity_lowest"] <= nought / size <= pruned.facts["sparsity_highest"]
    assert after.keys() == before.keys()
    for name in before.keys() - set(linear_names(before)):
        assert torch.equal(before[name], after[name])
    assert pruned.facts["uninvertible_layers"] == 0
    for name in linear_names(after):
        assert not torch.signbit(after[name])[after[name] == 0].any(), "a zero is stored as +0"


def test_half_precision_stays_half(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    import torch

    from pipeline.compression.safetensors_export import export_safetensors

    (tmp_path / "half").mkdir()
    export_safetensors(model.path, tmp_path / "half", "bf16")
    made = prune(tmp_path, artifact(tmp_path / "half", "model"), data)
    held = tensors(made.path)
    assert {each.dtype for each in held.values()} == {torch.bfloat16}
    nought, size = zeros(held)
    assert 0.65 <= nought / size < 0.652
    rest = sum(each.numel() for each in held.values()) - size
    assert made.facts["bytes_sparse"] == 2 * (size - nought + rest) + size // 8


def test_a_zero_costs_one_bit(model: Artifact, pruned: Artifact) -> None:
    held = tensors(pruned.path)
    nought, size = zeros(held)
    rest = sum(each.numel() for each in held.values()) - size
    # Values of 4 bytes, a bit for each weight of the linear layers.
    assert pruned.facts["bytes_sparse"] == 4 * (size - nought + rest) + size // 8
    assert pruned.facts["metrics"]["pruned_bytes_download"] == pruned.facts["bytes_sparse"]
    assert pruned.facts["bytes"] == sum(file.stat().st_size for file in pruned.path.iterdir())


def test_it_is_read_as_a_model_with_its_tokenizer(model: Artifact, pruned: Artifact) -> None:
    from evals.backends.loading import load_model

    assert load_model(pruned.path).parameters == pruned.facts["parameters"]
    assert (pruned.path / "tokenizer.json").read_bytes() == (model.path / "tokenizer.json").read_bytes()


def test_equal_inputs_give_equal_bytes(
    tmp_path: Path, model: Artifact, data: Artifact, pruned: Artifact
) -> None:
    assert prune(tmp_path, model, data).digest == pruned.digest


@pytest.mark.parametrize(("structure", "of", "method"), [("2:4", 4, "sparsegpt"), ("4:8", 8, "wanda")])
def test_structure_holds_in_each_group(
    tmp_path: Path, model: Artifact, data: Artifact, structure: str, of: int, method: str
) -> None:
    held = tensors(prune(tmp_path, model, data, structure=structure, method=method).path)
    for name in linear_names(held):
        counted = (held[name].reshape(-1, of) == 0).sum(dim=1)
        assert counted.min() == counted.max() == of // 2


def test_sparsegpt_harms_the_outputs_less_than_magnitude(
    model: Artifact, pruned: Artifact, rows: list[list[int]]
) -> None:
    before, after = tensors(model.path), tensors(pruned.path)
    # The first layer's input is that of the dense model, since nothing before it is pruned.
    read = inputs_of(model.path, "model.layers.0.self_attn.q_proj", rows)
    for part in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{part}.weight"
        weight, kept = before[name], after[name]
        count = int((kept == 0).sum())
        limit = weight.abs().flatten().kthvalue(count).values
        by_magnitude = weight * (weight.abs() > limit)
        assert int((by_magnitude == 0).sum()) == count
        ours = (read @ (weight - kept).T).square().sum()
        theirs = (read @ (weight - by_magnitude).T).square().sum()
        assert ours < 0.95 * theirs


def test_layers_without_correction_are_counted(
    tmp_path: Path, model: Artifact, data: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fails(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("not positive-definite")

    monkeypatch.setattr(torch.linalg, "cholesky", fails)
    assert prune(tmp_path, model, data).facts["uninvertible_layers"] == 14


# OWL -----------------------------------------------------------------------------------------------------


def test_owl_shares_out_by_layer_and_keeps_the_whole(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    found = prune(tmp_path, model, data, owl={"outlier": 2.0, "spread": 0.05})
    nought, size = zeros(tensors(found.path))
    assert nought / size == pytest.approx(0.65, abs=0.002)
    shares = found.facts["sparsity_by_layer"]
    assert max(shares) - min(shares) == pytest.approx(0.1, abs=0.004)


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 10**6)), min_size=2, max_size=40),
    st.floats(0.3, 0.7),
    st.floats(0.01, 0.14),
)
def test_owl_targets_meet_the_target_over_all_weights(
    layers: list[tuple[int, int]], target: float, spread: float
) -> None:
    outliers, weights = [count / 1000 for count, _ in layers], [size for _, size in layers]
    found = owl_targets(outliers, weights, target, spread)
    mean = sum(share * size for share, size in zip(found, weights, strict=True)) / sum(weights)
    assert mean == pytest.approx(target)
    if min(outliers) < max(outliers):
        assert max(found) - min(found) == pytest.approx(2 * spread)
        assert found[outliers.index(max(outliers))] == min(found)


def test_owl_never_asks_for_what_a_layer_has_not() -> None:
    with pytest.raises(UsageError, match=r"owl\.spread: 0\.08 around a sparsity of 0\.95"):
        owl_targets([0.1, 0.2, 0.2], [1, 1, 1], 0.95, 0.08)


@pytest.mark.parametrize("target", [0.1, 0.29, 0.5, 0.65, 0.7, 0.95])
def test_wanda_is_asked_for_enough(target: float) -> None:
    columns = (576, 1536, 64)
    asked = reachable(target, columns)
    # As Wanda prunes: rounded down in each row.
    assert all(int(width * asked) >= target * width - 1e-9 for width in columns)
    assert asked < target + 1 / 64 + 1e-6


def test_wanda_reaches_the_sparsity(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    nought, size = zeros(tensors(prune(tmp_path, model, data, method="wanda").path))
    assert 0.65 <= nought / size < 0.67


# Heads, progress, silence --------------------------------------------------------------------------------


def test_an_untied_head_stays_whole(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    import torch

    folder = untied_in_bf16(model.path, tmp_path / "untied")
    found = prune(tmp_path, artifact(folder, "model"), data, method="wanda")
    held = tensors(found.path)
    assert torch.equal(held["lm_head.weight"], tensors(folder)["lm_head.weight"])
    assert {each.dtype for each in held.values()} == {torch.bfloat16}
    assert 0.65 <= zeros(held)[0] / zeros(held)[1] < 0.67


def test_it_tells_how_far_it_is_and_nothing_else(
    tmp_path: Path,
    model: Artifact,
    data: Artifact,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before, seen = dict(os.environ), Updates()
    inputs = {"model": model, "data": data}
    run_stage(PRUNE, PruneSettings(samples=SAMPLES, max_length=LENGTH), tmp_path / "w", inputs, progress=seen)
    assert [(done, total) for done, total, _ in seen.seen] == [(0, 3), (1, 3), (2, 3)]
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert dict(os.environ) == before


def test_llmcompressor_waits_until_a_stage_runs() -> None:
    code = (
        "import sys, pipeline.compression.prune, pipeline.compression.awq, pipeline.compression.gptq\n"
        "print({'torch', 'llmcompressor', 'compressed_tensors', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_batches_hold_rows_of_one_length() -> None:
    rows = [[1] * length for length in (3, 900, 3, 900, 900, 5000)]
    assert [[len(row) for row in batch] for batch in equal_batches(rows)] == [
        [3, 3],
        [900, 900],
        [900],
        [5000],
    ]


# Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"structure": "2:4", "sparsity": 0.65},
        {"structure": "2:4", "owl": {}},
        {"sparsity": 1.0},
        {"method": "magnitude"},
    ],
)
def test_settings_that_contradict(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PruneSettings.model_validate(wrong)


def test_data_too_short_for_the_second_moments(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    with pytest.raises(
        RunError, match=r"calibration data too short: \d+ tokens in 2 rows, and a layer has 128"
    ):
        prune(tmp_path, model, data, samples=2)


def test_a_quantised_model_is_no_input(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    folder = changed(model.path, tmp_path / "q", config={"quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(RunError, match=r"config\.json: the model is quantised already; name the dense one"):
        prune(tmp_path, artifact(folder, "model"), data)


def test_weights_that_are_not_finite_are_named(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weight = tensors(model.path)[name].clone()
    weight[3, 4] = float("nan")
    folder = changed(model.path, tmp_path / "nan", **{name.replace(".", "__"): weight})
    with pytest.raises(
        RunError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has values that are not finite"
    ):
        prune(tmp_path, artifact(folder, "model"), data)


def test_weights_that_overflow_while_pruning_are_told(
    tmp_path: Path, model: Artifact, data: Artifact
) -> None:
    # Finite weights whose products are not: SparseGPT would prune the whole layer and never say so.
    names = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("up", "down")]
    held = tensors(model.path)
    weights = {name.replace(".", "__"): held[name] * 1e20 for name in names}
    folder = changed(model.path, tmp_path / "inf", **weights)
    with pytest.raises(RunError, match="the model's logits are not finite"):
        prune(tmp_path, artifact(folder, "model"), data)


def test_widths_that_no_group_divides(tmp_path: Path, data: Artifact) -> None:
    odd = tiny(tmp_path / "odd", data, intermediate_size=92)
    with pytest.raises(RunError, match=r"down_proj has 92 columns, which structure 4:8 does not divide"):
        prune(tmp_path / "p", odd, data, structure="4:8")


def test_another_kind_of_model_is_told(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=700, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "g"
    )
    for file in model.path.glob("tokenizer*"):
        (tmp_path / "g" / file.name).write_bytes(file.read_bytes())
    template = "chat_template.jinja"
    (tmp_path / "g" / template).write_text((model.path / template).read_text())
    with pytest.raises(RunError, match=r"gpt2 is no dense decoder with linear layers under model\.layers"):
        prune(tmp_path, artifact(tmp_path / "g", "model"), data)


def test_owl_settings_are_strict() -> None:
    with pytest.raises(ValidationError):
        OwlSettings.model_validate({"lambda": 0.1})
