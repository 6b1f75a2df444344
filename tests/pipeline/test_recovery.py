"""Recovery adapters: they bring back what was lost, and what they stand beside keeps every byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_stages import artifact, run_stage
from pydantic import ValidationError
from recovery_inputs import make_data, make_model, prune

from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact
from cogumi.subjects import adapter_beside, of_artifact, resolve
from cogumi.workspace import Workspace
from pipeline.compression.adapter_training import rounded
from pipeline.compression.gguf_export import GGUF, GGUFSettings
from pipeline.compression.hardest import HARDEST, HardestSettings
from pipeline.compression.recovery import RECOVER, RecoverSettings, gain
from pipeline.compression.row_divergence import RowDivergence
from pipeline.training.data import Encoded
from pipeline.training.sft import SFT, LoraSettings, SftSettings

SETTINGS = RecoverSettings(
    rank=4,
    calibration_samples=30,
    steps=8,
    learning_rate=3e-3,
    batch_tokens=512,
    micro_batch_tokens=512,
    held_out_share=0.2,
    eval_every=4,
)
CLOSED = SETTINGS.model_copy(update={"steps": 0})
"""The closed form alone."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("recovery")
    data = make_data(folder / "data")
    first = make_model(folder / "first", data, initializer_range=0.06)
    settings = SftSettings(steps=24, batch_tokens=512, learning_rate=4e-3, held_out_share=0.2)
    model = run_stage(SFT, settings, folder / "model", {"model": first, "data": data})[1]
    return {"model": model, "compressed": prune(model, folder / "pruned"), "data": data}


@pytest.fixture(scope="module")
def recovered(
    inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Artifact, dict[str, Artifact]]:
    """The pruned model with an adapter trained on the rows that it lost most on."""
    folder = tmp_path_factory.mktemp("recovery")
    hard = HardestSettings(k=30, held_out_share=0.2)
    chosen = run_stage(HARDEST, hard, folder / "hardest", inputs)[1]
    used = {**inputs, "data": chosen}
    # The training split of those rows has fewer than 30 that calibration may take.
    settings = SETTINGS.model_copy(update={"calibration_samples": 20})
    return (*run_stage(RECOVER, settings, folder / "recovered", used), used)


@pytest.fixture(scope="module")
def quantised(inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("recovery") / "gguf"
    return run_stage(GGUF, GGUFSettings(type="Q4_0"), folder, {"model": inputs["model"]})[1]


def test_the_closed_form_helps_and_training_helps_further(
    recovered: tuple[Any, Artifact, dict[str, Artifact]],
) -> None:
    facts = recovered[0].facts
    told = facts["held_out"]
    assert told["before"]["kl"] > 1.1 * told["start"]["kl"] > 1.2 * told["after"]["kl"] > 0
    # Looks are at rows that hardest took along and nothing was trained on.
    assert [look["step"] for look in facts["training"]["looks"]] == [0, 4, 8]
    assert facts["training"]["looks"][0]["held_out_loss"] == pytest.approx(told["start"]["loss"], abs=1e-4)
    assert facts["start"]["layers"] == 14
    assert 0 < facts["start"]["error_left_mean"] < facts["start"]["error_left_most"]["share"] < 1


def test_gain_is_told_with_its_interval_and_what_it_is_of(
    recovered: tuple[Any, Artifact, dict[str, Artifact]],
) -> None:
    facts = recovered[0].facts
    found = facts["metrics"]["recovery_gain"]
    assert found["lower"] <= found["value"] <= found["upper"]
    assert found["n"] == facts["held_out"]["rows"] > 10
    assert "held-out rows" in found["note"]


def test_base_files_keep_every_byte_and_the_adapter_is_counted(
    recovered: tuple[Any, Artifact, dict[str, Artifact]],
) -> None:
    result, made, used = recovered
    before, after = used["compressed"].manifest["files"], made.manifest["files"]
    assert {name: after[name] for name in before} == before
    facts = result.facts
    adapter = after["adapter/adapter_model.safetensors"]["bytes"]
    assert facts["adapter"]["bytes"] == adapter
    assert facts["bytes_resident"] == after["model.safetensors"]["bytes"] + adapter
    assert facts["bytes_download"] == facts["bytes"] == made.bytes
    # Rank 4 in half precision: 2 bytes a weight of A and B, and a header.
    shapes = 4 * (2 * (64 + 64 + 64 + 32) + 3 * (64 + 96)) * 2
    assert facts["adapter"]["parameters"] == shapes
    assert 2 * shapes < adapter < 2 * shapes + 6000


def test_the_model_is_measured_with_its_adapter_beside_it(
    recovered: tuple[Any, Artifact, dict[str, Artifact]], tmp_path: Path
) -> None:
    from evals.backends.adapters import load_adapted
    from evals.backends.loading import load_model
    from pipeline.compression.recovery import _held_out
    from pipeline.compression.row_divergence import compared
    from pipeline.training.answer_loss import AnswerLoss

    _, made, used = recovered
    subject = of_artifact(made, "recovered")
    assert (subject.path, subject.base) == (made.path / "adapter", made.path)
    named = resolve(str(made.path), Workspace(tmp_path))
    assert (named.path, named.base) == (subject.path, subject.base)
    assert subject.digest == made.digest
    assert subject.path is not None
    assert subject.base is not None
    with_it = load_adapted(subject.base, subject.path).model
    without, dense = (load_model(path).model for path in (used["compressed"].path, used["model"].path))
    # What an evaluation loads is what the stage measured.
    rows = _held_out(SETTINGS, used["data"], used["model"])
    batches = compared(AnswerLoss(with_it), AnswerLoss(dense), rows, capacity=512)
    found = [each for batch in batches for each in batch]
    kl = sum(each.kl for each in found) / sum(each.tokens for each in found)
    assert kl == pytest.approx(recovered[0].facts["held_out"]["after"]["kl"], rel=1e-4)
    # The base inside it is the pruned one still, zeros and all: nothing was merged.
    inner = with_it.model.layers[0].mlp.down_proj.base_layer.weight
    assert torch.equal(inner, without.model.layers[0].mlp.down_proj.weight)
    assert float((inner == 0).float().mean()) > 0.55


def test_an_adapter_that_training_merged_is_not_applied_a_second_time(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    from pipeline.training.sft import SFT, LoraSettings, SftSettings

    settings = SftSettings(
        method="lora", lora=LoraSettings(rank=2, alpha=2), steps=2, learning_rate=1e-3, held_out_share=0.2
    )
    tuned = run_stage(SFT, settings, tmp_path / "tuned", {"model": inputs["model"], "data": inputs["data"]})[
        1
    ]
    assert "adapter/adapter_config.json" in tuned.manifest["files"]
    assert adapter_beside(tuned.path) is None
    assert of_artifact(tuned, "tuned").base is None


def test_a_second_run_gives_the_same_bytes_and_facts(
    recovered: tuple[Any, Artifact, dict[str, Artifact]], tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"calibration_samples": 20})
    result, made = run_stage(RECOVER, settings, tmp_path / "again", recovered[2])
    assert made.digest == recovered[1].digest
    assert result.facts == recovered[0].facts


# GGUF ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_gguf(
    inputs: dict[str, Artifact], quantised: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Artifact, Path]:
    """The quantised model with the closed form as its adapter, and the folder where that was made."""
    settings = CLOSED.model_copy(update={"adapter_dtype": "q8_0", "rank": 32})
    folder = tmp_path_factory.mktemp("recovery") / "made"
    return (*run_stage(RECOVER, settings, folder, {**inputs, "compressed": quantised}), folder)


def test_a_gguf_file_keeps_every_byte_and_gets_an_adapter(
    quantised: Artifact, with_gguf: tuple[Any, Artifact, Path]
) -> None:
    result, made, _ = with_gguf
    assert result.kind == "gguf"
    files = made.manifest["files"]
    assert set(files) == {"model.gguf", "adapter.gguf"}
    assert files["model.gguf"] == quantised.manifest["files"]["model.gguf"]
    facts = result.facts
    assert facts["bytes_resident"] == facts["bytes_download"] == made.bytes
    assert facts["adapter"]["bytes"] == files["adapter.gguf"]["bytes"]
    assert facts["held_out"]["after"]["kl"] < 0.5 * facts["held_out"]["before"]["kl"]
    assert facts["type"] == "Q4_0"
    share = facts["adapter"]["bytes"] / facts["adapter"]["parameters"]
    # Blocks of 34 bytes for 32 weights, and names and places of 28 tensors.
    assert share == pytest.approx(34 / 32, rel=0.1)


def test_what_is_measured_is_what_the_adapter_file_holds(with_gguf: tuple[Any, Artifact, Path]) -> None:
    import gguf
    import numpy as np
    from safetensors.torch import load_file

    _, made, folder = with_gguf
    start = load_file(folder / "scratch" / "start" / "adapter_model.safetensors")
    tensors = {each.name: each for each in gguf.GGUFReader(made.file("adapter.gguf")).tensors}
    for half, name in (("A", "lora_a"), ("B", "lora_b")):
        mine = rounded(start[f"base_model.model.model.layers.1.mlp.down_proj.lora_{half}.weight"], "q8_0")
        stored = tensors[f"blk.1.ffn_down.weight.{name}"]
        theirs = gguf.quants.dequantize(stored.data, stored.tensor_type)
        np.testing.assert_array_equal(theirs, mine.numpy())


# The figures --------------------------------------------------------------------------------------


def row(right: int, kl: float = 1.0) -> RowDivergence:
    return RowDivergence(kl, 4.0, 3.0, right, 10)


def test_gain_is_paired_and_of_the_mean_share() -> None:
    before = [row(5 + index % 3) for index in range(400)]
    after = [row(each.right + 1, kl=0.5) for each in before]
    facts = gain({"before": before, "after": after}, 0.05)
    found = facts["metrics"]["recovery_gain"]
    wanted = sum(each.right for each in after) / sum(each.right for each in before) - 1
    assert found["value"] == pytest.approx(wanted, abs=1e-6)
    assert 0.1 < found["lower"] < found["value"] < found["upper"]
    assert (facts["held_out"]["before"]["kl"], facts["held_out"]["after"]["kl"]) == (0.1, 0.05)
    assert facts["held_out"]["uncompressed"]["loss"] == 0.3


def test_a_model_that_gets_nothing_right_has_no_gain() -> None:
    facts = gain({"before": [row(0)] * 3, "after": [row(2)] * 3}, 0.05)
    assert facts["metrics"] == {}
    assert "no held-out token right" in facts["unmeasured"]["recovery_gain"]


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [{"start": "zero", "steps": 0}, {"early_stop": 2, "held_out_share": 0.0}, {"rank": 0}, {"start": "svd"}],
)
def test_settings_are_strict(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RecoverSettings(**bad)


@pytest.mark.parametrize(("kind", "dtype"), [("model", "q8_0"), ("gguf", "bf16")])
def test_a_precision_that_the_file_cannot_hold_is_refused(
    inputs: dict[str, Artifact], quantised: Artifact, tmp_path: Path, kind: str, dtype: Any
) -> None:
    compressed = quantised if kind == "gguf" else inputs["compressed"]
    settings = CLOSED.model_copy(update={"adapter_dtype": dtype})
    with pytest.raises(UsageError, match=f"adapter_dtype: {dtype} is none of a {kind}'s adapter"):
        run_stage(RECOVER, settings, tmp_path / "made", {**inputs, "compressed": compressed})


def test_a_second_adapter_is_refused(
    recovered: tuple[Any, Artifact, dict[str, Artifact]], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="has a recovery adapter already"):
        run_stage(RECOVER, CLOSED, tmp_path / "twice", {**recovered[2], "compressed": recovered[1]})


def test_a_teacher_with_another_tokenizer_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", inputs["data"], vocab_size=350)
    with pytest.raises(RunError, match="its tokenizer is not that of the model"):
        run_stage(RECOVER, CLOSED, tmp_path / "apart", {**inputs, "model": other})


def test_a_teacher_of_another_shape_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    from recovery_inputs import SHAPE

    from pipeline.training.micro_model import MICRO_MODEL

    shape = SHAPE.model_copy(update={"intermediate_size": 64})
    used = {"data": inputs["data"], "tokenizer_from": inputs["model"]}
    other = run_stage(MICRO_MODEL, shape, tmp_path / "other", used)[1]
    with pytest.raises(RunError, match="name the model that it was compressed from") as told:
        run_stage(RECOVER, CLOSED, tmp_path / "apart", {**inputs, "model": other})
    assert "\n" not in str(told.value)


def test_too_few_rows_for_the_closed_form_are_told(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    settings = CLOSED.model_copy(update={"calibration_samples": 5000})
    with pytest.raises(RunError, match="calibration data too short"):
        run_stage(RECOVER, settings, tmp_path / "short", inputs)


def test_an_adapter_of_another_base_does_not_load(
    recovered: tuple[Any, Artifact, dict[str, Artifact]], tmp_path: Path
) -> None:
    from evals.backends.adapters import load_adapted
    from evals.backends.loading import load_model
    from pipeline.training.fit import load_adapter, with_adapters

    _, made, used = recovered
    base = load_model(used["model"].path).model
    with pytest.raises(RunError, match="not an adapter of this model") as told:
        load_adapter(with_adapters(base, LoraSettings(rank=3, alpha=3), 0), made.path / "adapter")
    assert "\n" not in str(told.value)
    other = make_model(tmp_path / "other", used["data"], vocab_size=350)
    with pytest.raises(RunError, match="trained with another tokenizer than its base"):
        load_adapted(other.path, made.path / "adapter")
    # The same shapes and tokenizer: its weights alone tell the model before pruning from the one after.
    with pytest.raises(RunError, match=r"adapter: made for another model than .*, whose weights differ"):
        load_adapted(used["model"].path, made.path / "adapter")


def test_a_gguf_adapter_beside_another_file_does_not_load(
    inputs: dict[str, Artifact], with_gguf: tuple[Any, Artifact, Path], tmp_path: Path
) -> None:
    from evals.backends.gguf import GGUFBackend
    from pipeline.compression.fidelity import fidelity

    made = with_gguf[1].path
    GGUFBackend(made / "model.gguf", adapter=made / "adapter.gguf").close()
    # Of the same type and shapes, so that llama.cpp itself would take it.
    apart = make_model(tmp_path / "apart", inputs["data"], initializer_range=0.1)
    other = run_stage(GGUF, GGUFSettings(type="Q4_0"), tmp_path / "other", {"model": apart})[1].path
    shutil.copy(made / "adapter.gguf", other / "adapter.gguf")
    told = r"adapter\.gguf: made for another model than .*model\.gguf, whose weights differ; take both from"
    with pytest.raises(RunError, match=told):
        GGUFBackend(other / "model.gguf", adapter=other / "adapter.gguf")
    subject = resolve(str(other), Workspace(tmp_path))
    with pytest.raises(RunError, match=told):
        fidelity(subject, inputs["model"].path, [Encoded((1, 2, 3), 2)] * 2)


def test_an_adapter_too_large_for_its_precision_is_told(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from pipeline.compression.adapter_training import round_adapter

    save_file({"a.lora_A.weight": torch.full((2, 4), 1e6)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RunError, match=r"a\.lora_A\.weight is not finite in f16"):
        round_adapter(tmp_path, "f16")


def test_without_held_out_rows_the_gain_is_not_measured(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    settings = CLOSED.model_copy(update={"held_out_share": 0.0})
    result, made = run_stage(RECOVER, settings, tmp_path / "blind", inputs)
    assert "no held-out rows" in result.facts["unmeasured"]["recovery_gain"]
    assert json.loads((made.path / "adapter" / "cogumi.json").read_text())["beside"] is True


def test_a_download_that_was_packed_before_is_not_taken_along(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    folder = tmp_path / "packed"
    shutil.copytree(inputs["compressed"].path, folder)
    (folder / "download").mkdir()
    (folder / "download" / "manifest.json").write_text("{}")
    packed = artifact(folder, "model")
    settings = CLOSED.model_copy(update={"held_out_share": 0.0})
    _, made = run_stage(RECOVER, settings, tmp_path / "made", {**inputs, "compressed": packed})
    assert not any(name.startswith("download/") for name in made.manifest["files"])


# compressed-tensors -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compressed_tensors_folder_keeps_every_byte_and_is_measured_with_its_adapter(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    from evals.backends.adapters import load_adapted
    from pipeline.compression.awq import AWQ, AWQSettings

    quantised = run_stage(AWQ, AWQSettings(samples=20), tmp_path / "awq", inputs)[1]
    settings = CLOSED.model_copy(update={"rank": 16})
    used = {**inputs, "compressed": quantised}
    # AWQ has scaled the weights: they are compared with those of the model that has the same scales.
    with pytest.raises(RunError, match="folded: true"):
        run_stage(RECOVER, settings, tmp_path / "scaled", used)
    folded = AWQSettings(samples=20, folded=True)
    used["model"] = run_stage(AWQ, folded, tmp_path / "folded", inputs)[1]
    result, made = run_stage(RECOVER, settings, tmp_path / "made", used)
    before, after = quantised.manifest["files"], made.manifest["files"]
    assert {name: after[name] for name in before} == before
    assert result.facts["held_out"]["after"]["kl"] < result.facts["held_out"]["before"]["kl"]
    subject = of_artifact(made, "recovered")
    assert subject.base is not None
    assert subject.path is not None
    loaded = load_adapted(subject.base, subject.path).model
    # The dense view is another folder: the adapter says which one it belongs to.
    with pytest.raises(RunError, match="made for another model"):
        load_adapted(tmp_path / "made" / "scratch" / "dense", subject.path)
    anywhere = Path(shutil.copytree(subject.path, tmp_path / "adapter"))
    sidecar = json.loads((anywhere / "cogumi.json").read_text())
    del sidecar["base_sampled_sha256"]
    (anywhere / "cogumi.json").write_text(json.dumps(sidecar))
    dense = load_adapted(tmp_path / "made" / "scratch" / "dense", anywhere).model
    ids = torch.tensor([list(range(10, 40))])
    with torch.no_grad():
        found, wanted = (model(input_ids=ids).logits.float() for model in (loaded, dense))
    # The folder's own layers compute in half precision.
    assert float((found - wanted).square().mean()) < 1e-3 * float(wanted.square().mean())
