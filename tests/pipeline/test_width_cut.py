"""A narrower model out of a wider one: what stays, how it is written, what cannot be cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_stages import artifact, micro_data, run_stage
from pydantic import ValidationError

from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact
from evals.backends.gguf import GGUFBackend
from evals.backends.loading import load_model
from pipeline.compression.activations import column_moments
from pipeline.compression.gguf_write import export_gguf
from pipeline.compression.width_cut import WIDTH_CUT, WidthCutSettings
from pipeline.compression.width_scores import Widths, choose_widths
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings
from pipeline.training.sft import SFT, SftSettings

LAYERS, HIDDEN, MLP, HEADS, KV_HEADS, HEAD = 2, 96, 128, 6, 3, 16
SHAPE = MicroModelSettings(
    hidden_size=HIDDEN,
    layers=LAYERS,
    heads=HEADS,
    kv_heads=KV_HEADS,
    intermediate_size=MLP,
    vocab_size=400,
    initializer_range=0.1,
)
LOOK: dict[str, int] = {"samples": 16, "max_length": 60}
IDS = torch.arange(5, 60).unsqueeze(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return micro_data(tmp_path_factory.mktemp("width") / "data", per_cell=4)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, data: Artifact) -> Artifact:
    return run_stage(MICRO_MODEL, SHAPE, tmp_path_factory.mktemp("wide"), {"data": data})[1]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def changed(wide: Artifact, folder: Path, weights: dict[str, torch.Tensor], **config: Any) -> Artifact:
    """A copy of the model with these weights in the place of its own, and these keys in its configuration."""
    from safetensors.torch import save_file

    shutil.copytree(wide.path, folder)
    save_file({**tensors(wide.path), **weights}, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(written))
    return artifact(folder, "model")


def cut(model: Artifact, data: Artifact, folder: Path, **settings: Any) -> tuple[dict[str, Any], Artifact]:
    inputs = {"model": model, "data": data}
    result, made = run_stage(WIDTH_CUT, WidthCutSettings(**LOOK, **settings), folder, inputs)
    return dict(result.facts), made


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = load_model(folder).model(IDS).logits
    return found


def test_nothing_cut_is_the_same_model(wide: Artifact, data: Artifact, tmp_path: Path) -> None:
    facts, same = cut(wide, data, tmp_path, intermediate_size=MLP, kv_heads=KV_HEADS, hidden_size=HIDDEN)
    before, after = tensors(wide.path), tensors(same.path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads(same.file("config.json").read_text()) == json.loads(
        wide.file("config.json").read_text()
    )
    assert set(facts["kept_importance"].values()) == {1.0}


def idle_parts(wide: Artifact) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights in which a third of everything is dead, other parts in each layer, and what is alive."""
    drawn = torch.Generator().manual_seed(1)
    weights = {name: value.clone() for name, value in tensors(wide.path).items()}
    hidden = torch.randperm(HIDDEN, generator=drawn)[: HIDDEN // 3]
    weights["model.embed_tokens.weight"][:, hidden] = 0
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        weights[f"{at}.mlp.up_proj.weight"][torch.randperm(MLP, generator=drawn)[: MLP // 4]] = 0
        group = slice(layer * 2 * HEAD, (layer + 1) * 2 * HEAD)
        weights[f"{at}.self_attn.o_proj.weight"][:, group] = 0
        for name in ("mlp.down_proj", "self_attn.o_proj"):
            weights[f"{at}.{name}.weight"][hidden] = 0
        # Gains that differ, as after training: a cut must not count on ones.
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}.{name}.weight"] = torch.rand(HIDDEN, generator=drawn) + 0.5
    return weights, {"kept_kv_heads": [[1, 2], [0, 2]]}


@pytest.mark.parametrize("tied", [True, False])
def test_parts_that_carry_nothing_go_and_the_logits_stay(
    wide: Artifact, data: Artifact, tmp_path: Path, tied: bool
) -> None:
    weights, alive = idle_parts(wide)
    if not tied:
        drawn = torch.Generator().manual_seed(2)
        weights["lm_head.weight"] = torch.randn(400, HIDDEN, generator=drawn) / 10
    source = changed(wide, tmp_path / "source", weights, tie_word_embeddings=tied)
    settings = {"intermediate_size": 96, "kv_heads": 2, "hidden_size": 64}
    facts, narrow = cut(source, data, tmp_path / "a", **settings)
    assert facts["kept_kv_heads"] == alive["kept_kv_heads"]
    assert facts["kept_importance"] == {"mlp": 1.0, "heads": 1.0, "hidden": 1.0}
    before, after = logits(source.path), logits(narrow.path)
    assert float((before - after).abs().max()) < 1e-5 * float(before.abs().max())
    config = json.loads(narrow.file("config.json").read_text())
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert {key: config[key] for key in sizes} == sizes
    assert config["head_dim"] == HEAD
    model = load_model(narrow.path)
    assert model.parameters == facts["parameters"]
    assert facts["bytes"] == sum(entry["bytes"] for entry in narrow.manifest["files"].values())
    assert facts["source_widths"]["hidden_size"] == HIDDEN
    assert facts["row_multiple"] == 32
    assert ("lm_head.weight" in tensors(narrow.path)) is not tied
    assert cut(source, data, tmp_path / "b", **settings)[1].digest == narrow.digest


def test_what_stays_is_what_the_output_needs_most(wide: Artifact, data: Artifact) -> None:
    """Against the definition: the mean square of what each channel adds, from the activations themselves."""
    model = load_model(wide.path).model
    down, output = (model.model.layers[1].mlp.down_proj, model.model.layers[0].self_attn.o_proj)
    seen: dict[Any, torch.Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0][0]}))
        for module in (down, output)
    ]
    rows = [IDS[0].tolist()]
    with torch.inference_mode():
        model(IDS)
        added = {
            module: torch.stack(
                [
                    (seen[module][:, [column]] * module.weight[:, column]).square().sum()
                    for column in range(module.in_features)
                ]
            )
            for module in (down, output)
        }
    for hook in hooks:
        hook.remove()
    source = Widths(HIDDEN, MLP, HEADS, KV_HEADS, HEAD)
    choice = choose_widths(
        model,
        column_moments(model, rows, device="cpu"),
        source,
        Widths(HIDDEN, 40, 2, 1, HEAD),
    )
    assert choice.mlp[1].tolist() == sorted(added[down].topk(40).indices.tolist())
    groups = added[output].reshape(KV_HEADS, -1).sum(dim=1)
    assert choice.kv_heads[0].tolist() == [int(groups.argmax())]
    assert set(choice.gains.values()) == {1.0}


def test_a_norm_keeps_its_measure_when_channels_go(wide: Artifact, data: Artifact, tmp_path: Path) -> None:
    _, narrow = cut(wide, data, tmp_path, hidden_size=48, round_to=1)
    model, source = load_model(narrow.path).model, load_model(wide.path).model
    read: list[torch.Tensor] = []
    for loaded in (source, model):
        loaded.model.layers[0].self_attn.q_proj.register_forward_pre_hook(
            lambda _, inputs: read.append(inputs[0][0])
        )
        with torch.inference_mode():
            loaded(IDS)
    wide_columns, narrow_columns = (
        tensors(made.path)["model.embed_tokens.weight"].T for made in (wide, narrow)
    )
    kept = [
        next(i for i in range(HIDDEN) if torch.equal(wide_columns[i], column)) for column in narrow_columns
    ]
    ratio = float((read[1].square().sum() / read[0][:, kept].square().sum()).sqrt())
    assert ratio == pytest.approx(1.0, abs=0.05)


def test_the_narrow_model_is_exported_with_its_own_head_size(
    wide: Artifact, data: Artifact, tmp_path: Path
) -> None:
    _, narrow = cut(wide, data, tmp_path / "cut", hidden_size=72, intermediate_size=64, round_to=1)
    config = json.loads(narrow.file("config.json").read_text())
    assert config["hidden_size"] // config["num_attention_heads"] != config["head_dim"]
    export_gguf(narrow.path, tmp_path / "model.gguf", dtype="f32")
    backend = GGUFBackend(tmp_path / "model.gguf")
    wanted = logits(narrow.path)[0, -1]
    found = torch.from_numpy(backend.logits(IDS[0].tolist()))
    backend.close()
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-2


def test_a_narrow_student_is_healed_by_its_source(wide: Artifact, data: Artifact, tmp_path: Path) -> None:
    _, narrow = cut(wide, data, tmp_path / "cut", hidden_size=48, intermediate_size=64, round_to=1)
    settings = SftSettings(
        steps=6,
        batch_tokens=256,
        learning_rate=5e-3,
        held_out_share=0,
        eval_every=6,
        distill={"weight": 1.0},  # type: ignore[arg-type]
    )
    inputs = {"model": narrow, "data": data, "teacher": wide}
    result, healed = run_stage(SFT, settings, tmp_path / "healed", inputs)
    assert result.facts["last_train_loss"] < result.facts["first_train_loss"]
    assert json.loads(healed.file("config.json").read_text())["hidden_size"] == 48
    assert tensors(healed.path)["model.norm.weight"].shape == (48,)


def test_sizes_are_rounded_down_to_what_blocks_want(wide: Artifact, data: Artifact, tmp_path: Path) -> None:
    facts, _ = cut(wide, data, tmp_path, intermediate_size=100)
    assert (facts["intermediate_size"], facts["hidden_size"]) == (96, HIDDEN)


@pytest.mark.parametrize("bad", [{}, {"hidden_size": 0}, {"kv_heads": 1, "round_to": 48}, {"heads": 2}])
def test_settings_that_name_no_cut_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WidthCutSettings(**bad)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"intermediate_size": 160}, "intermediate_size: 160 is more than the model's 128"),
        ({"kv_heads": 4}, "kv_heads: 4 is more than the model's 3"),
        ({"hidden_size": 200}, "hidden_size: 200 is more than the model's 96"),
        ({"intermediate_size": 20}, "intermediate_size: 20 is less than round_to 32"),
        (
            {"hidden_size": 64},
            "hidden_size: 64 is no multiple of the 6 query heads that stay, as a Llama's configuration must "
            "have it; take kv_heads 1 or 2",
        ),
        ({"hidden_size": 64, "round_to": 1}, "take hidden_size 60 or 66, or kv_heads 1 or 2"),
    ],
)
def test_impossible_sizes_are_wrong_usage(
    wide: Artifact, data: Artifact, tmp_path: Path, settings: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(UsageError, match=wanted):
        cut(wide, data, tmp_path, **settings)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "only LlamaForCausalLM is cut in width, not Qwen3"),
        (
            {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8},
            "mixture of experts cannot be cut",
        ),
        ({"quantization_config": {"bits": 4}}, "only dense decoders"),
        ({"mlp_bias": True}, "biases in attention or MLP"),
        ({"hidden_size": None}, "hidden_size is missing or no number"),
    ],
)
def test_models_that_are_not_cut_are_named(
    wide: Artifact, data: Artifact, tmp_path: Path, config: dict[str, Any], wanted: str
) -> None:
    source = changed(wide, tmp_path / "source", {}, **config)
    with pytest.raises(RunError, match=rf"config\.json: .*{wanted}"):
        cut(source, data, tmp_path / "cut", intermediate_size=64)


def test_too_little_data_is_said_with_numbers(wide: Artifact, data: Artifact, tmp_path: Path) -> None:
    settings = WidthCutSettings(intermediate_size=64, samples=500)
    with pytest.raises(RunError, match=r"calibration data too short: .* 500 asked"):
        run_stage(WIDTH_CUT, settings, tmp_path, {"model": wide, "data": data})
