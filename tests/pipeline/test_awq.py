"""AWQ: packed folders that load, folded folders that compute the same, bits layer by layer; bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compress_models import LENGTH, SAMPLES, changed, linear_names, logits, tensors, tiny, untied_in_bf16
from micro_stages import artifact, run_stage
from pydantic import ValidationError

from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact
from evals.backends.loading import load_model
from pipeline.compression.awq import AWQ, AWQSettings, awq_folder
from pipeline.compression.llmc import load_dense, save_dense
from pipeline.compression.weight_grid import bits_of_layers, config_groups, packed_bytes

GRID = 4


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, data: Artifact, model: Artifact) -> Artifact:
    settings, folder = (
        AWQSettings(samples=SAMPLES, max_length=LENGTH, grid=GRID),
        tmp_path_factory.mktemp("packed"),
    )
    return run_stage(AWQ, settings, folder, {"model": model, "data": data})[1]


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory, data: Artifact, model: Artifact) -> Artifact:
    return quantise(tmp_path_factory.mktemp("folded"), model, data, folded=True)


def quantise(folder: Path, model: Artifact, data: Artifact, **settings: object) -> Artifact:
    wanted = AWQSettings.model_validate({"samples": SAMPLES, "max_length": LENGTH, "grid": GRID, **settings})
    return run_stage(AWQ, wanted, folder, {"model": model, "data": data})[1]


def divergence(dense: Path, other: Path, rows: list[list[int]]) -> float:
    import torch.nn.functional as functional

    ours, theirs = (logits(folder, rows).log_softmax(-1) for folder in (other, dense))
    return float(functional.kl_div(ours, theirs, log_target=True, reduction="batchmean"))


# Packed --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_a_packed_folder_loads_and_says_nearly_the_same(
    model: Artifact, packed: Artifact, rows: list[list[int]], capfd: pytest.CaptureFixture[str]
) -> None:
    kl = divergence(model.path, packed.path, rows)
    assert 0 < kl < 0.1
    layer = load_model(packed.path).model.get_submodule("model.layers.0.mlp.up_proj")
    assert tuple(layer.weight.shape) == (128, 64)
    assert capfd.readouterr() == ("", "")


def test_a_packed_folder_is_what_vllm_reads(packed: Artifact) -> None:
    config = json.loads((packed.path / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "pack-quantized"
    group = config["config_groups"]["group_0"]
    weights = group["weights"]
    assert (group["targets"], config["ignore"]) == (["Linear"], ["lm_head"])
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (4, 64, False)
    held = tensors(packed.path)
    assert held["model.layers.0.mlp.down_proj.weight_packed"].shape == (64, 128 // 8)
    assert held["model.layers.0.mlp.down_proj.weight_scale"].shape == (64, 128 // 64)
    assert not linear_names(held)


def test_a_packed_folder_holds_its_tokenizer_and_no_recipe(model: Artifact, packed: Artifact) -> None:
    names = {path.name for path in packed.path.iterdir()}
    assert names == {path.name for path in model.path.iterdir()}
    assert (packed.path / "tokenizer.json").read_bytes() == (model.path / "tokenizer.json").read_bytes()


def test_facts_tell_bytes_groups_and_bits(packed: Artifact) -> None:
    size = sum(path.stat().st_size for path in packed.path.iterdir())
    assert packed.facts["bytes"] == packed.facts["metrics"]["awq_bytes_download"] == size
    assert packed.facts["group_size"] == 64
    assert packed.facts["layers_by_bits"]["q_proj at 4"] == 2
    assert packed.facts["metrics"]["bits_per_weight"] == 8 * size / packed.facts["parameters"]


def test_equal_inputs_give_equal_bytes(
    tmp_path: Path, model: Artifact, data: Artifact, packed: Artifact, capfd: pytest.CaptureFixture[str]
) -> None:
    assert quantise(tmp_path, model, data).digest == packed.digest
    assert capfd.readouterr() == ("", "")


def test_other_bits_for_some_layers(
    tmp_path: Path, model: Artifact, data: Artifact, packed: Artifact, rows: list[list[int]]
) -> None:
    layers = {"*.down_proj": 8, "model.layers.0.self_attn.*": 16}
    found = quantise(tmp_path, model, data, layers=layers, role="draft")
    held = tensors(found.path)
    assert held["model.layers.1.mlp.down_proj.weight_packed"].shape == (64, 128 // 4)
    assert held["model.layers.1.mlp.up_proj.weight_packed"].shape == (128, 64 // 8)
    assert sorted(linear_names(held)) == [f"model.layers.0.self_attn.{part}_proj.weight" for part in "koqv"]
    assert found.facts["layers_by_bits"]["down_proj at 8"] == 2
    assert found.facts["layers_by_bits"]["o_proj at 16"] == 1
    assert found.facts["metrics"].keys() == {"draft_awq_bytes_download", "bits_per_weight"}
    assert divergence(model.path, found.path, rows) < divergence(model.path, packed.path, rows)


def test_an_untied_head_is_left_as_it_is(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    import torch

    folder = untied_in_bf16(model.path, tmp_path / "untied")
    held = tensors(quantise(tmp_path, artifact(folder, "model"), data).path)
    assert torch.equal(held["lm_head.weight"], tensors(folder)["lm_head.weight"])
    assert held["model.layers.0.mlp.up_proj.weight_scale"].dtype == torch.bfloat16
    assert "lm_head.weight" not in tensors(model.path)


# Folded --------------------------------------------------------------------------------------------------


def test_a_folded_model_is_dense_and_computes_the_same(
    model: Artifact, folded: Artifact, rows: list[list[int]]
) -> None:
    import torch

    before, after = tensors(model.path), tensors(folded.path)
    assert after.keys() == before.keys()
    assert all(after[name].shape == before[name].shape for name in before)
    # It was scaled: the same function by other weights.
    assert not torch.allclose(
        after["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"]
    )
    wide = logits(model.path, rows)
    assert (logits(folded.path, rows) - wide).abs().max() < 1e-3 < wide.abs().max()
    assert "quantization_config" not in json.loads((folded.path / "config.json").read_text())
    assert folded.facts["metrics"] == {}


def test_rounding_harms_a_folded_model_less(
    tmp_path: Path, model: Artifact, folded: Artifact, rows: list[list[int]]
) -> None:
    harm = {}
    for name, folder in (("plain", model.path), ("folded", folded.path)):
        held = tensors(folder)
        rounded = {each.replace(".", "__"): _rounded(held[each]) for each in linear_names(held)}
        harm[name] = divergence(model.path, changed(folder, tmp_path / name, **rounded), rows)
    assert harm["folded"] < harm["plain"]


def _rounded(weight: object) -> object:
    """To the nearest of 16 levels between the least and the largest of each group of 64."""
    groups = weight.reshape(-1, 64)  # type: ignore[attr-defined]
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    step = (high - low) / 15
    return (((groups - low) / step).round() * step + low).reshape(weight.shape)  # type: ignore[attr-defined]


# Bits and bytes ------------------------------------------------------------------------------------------

NAMES = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1)
    for part in (
        *(f"self_attn.{each}_proj" for each in "qkvo"),
        *(f"mlp.{each}_proj" for each in ("gate", "up", "down")),
    )
]


def test_the_last_pattern_that_fits_counts() -> None:
    found = bits_of_layers(NAMES, 4, {"*.down_proj": 8, "model.layers.1.*": 16})
    assert found["model.layers.0.mlp.down_proj"] == 8
    assert found["model.layers.1.mlp.down_proj"] == 16
    assert found["model.layers.0.mlp.up_proj"] == 4
    groups = config_groups(found, 32, symmetric=False)
    assert [len(group["targets"]) for group in groups.values()] == [6, 1]
    assert [group["weights"]["symmetric"] for group in groups.values()] == [False, True]


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        ({"*.fc1": 8}, r"no linear layer is called '\*\.fc1'; one is model\.layers\.0\.self_attn\.q_proj"),
        ({"*.v_proj": 8}, "q_proj, k_proj, v_proj of layer 0 are run as one"),
        ({"model.layers.1.mlp.up_proj": 16}, "gate_proj, up_proj of layer 1 are run as one"),
        ({"*": 16}, "nothing to quantise"),
    ],
)
def test_layers_that_cannot_be(patterns: dict[str, int], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        bits_of_layers(NAMES, 4, patterns)


def test_packed_bytes_count_codes_scales_and_zero_points() -> None:
    # 1,024 codes of 3 bits; 8 groups with 16 bits of scale, and 3 of zero point.
    assert packed_bytes(1024, 3, 128, symmetric=True) == 384 + 16
    assert packed_bytes(1024, 3, 128, symmetric=False) == 384 + 19


# Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"layers": {"*.up_proj": 5}}, {"group_size": 100}, {"bits": 4}])
def test_settings_that_are_not_offered(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AWQSettings.model_validate(wrong)


def test_widths_that_no_group_divides(tmp_path: Path, data: Artifact, rows: list[list[int]]) -> None:
    odd = tiny(tmp_path / "odd", data, intermediate_size=112)
    told = "down_proj has 112 columns, which none of the groups 128, 64 and 32 divides"
    with pytest.raises(RunError, match=told):
        awq_folder(odd.path, rows, tmp_path, AWQSettings())
    with pytest.raises(RunError, match="q_proj has 64 columns, which a group of 128 does not divide"):
        awq_folder(odd.path, rows, tmp_path, AWQSettings(group_size=128))


def test_data_too_short(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    with pytest.raises(RunError, match=r"calibration data too short: \d+ rows .*, 2000 asked for"):
        quantise(tmp_path, model, data, samples=2000)
    with pytest.raises(RunError, match="calibration data too short: no rows"):
        awq_folder(model.path, [], tmp_path, AWQSettings())


def test_a_packed_model_is_no_input(tmp_path: Path, packed: Artifact, data: Artifact) -> None:
    with pytest.raises(RunError, match=r"config\.json: the model is quantised already; name the dense one"):
        quantise(tmp_path, packed, data)


def test_a_full_disk_is_one_line(tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from transformers import PreTrainedModel

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(RunError, match=f"disk full while writing {tmp_path}"):
        save_dense(load_dense(model.path), model.path, tmp_path)
