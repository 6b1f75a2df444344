"""A shallower model out of a deeper one: which layers stay, what they are called, what cannot be cut."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from micro_stages import Updates, artifact, micro_data, run_stage
from pydantic import ValidationError

from cogumi.digest import file_sha256
from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact
from pipeline.training import model_folder
from pipeline.training.depth_cut import DEPTH_CUT, DepthCutSettings, kept_layers
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings

SHAPE = MicroModelSettings(
    hidden_size=64, layers=5, heads=2, kv_heads=1, intermediate_size=64, vocab_size=400
)
SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("deep")
    data = micro_data(folder / "data", per_cell=4)
    return run_stage(MICRO_MODEL, SHAPE, folder / "model", {"data": data})[1]


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@given(st.integers(2, 80), st.data())
def test_even_choice_keeps_both_ends_and_no_layer_twice(depth: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, depth - 1))
    kept = kept_layers(DepthCutSettings(layers=count), depth)
    assert len(set(kept)) == count
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert count == 1 or kept[-1] == depth - 1
    gaps = [after - before for before, after in pairwise(kept)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_choices_by_hand() -> None:
    assert kept_layers(DepthCutSettings(layers=8), 32) == [0, 4, 9, 13, 18, 22, 27, 31]
    assert kept_layers(DepthCutSettings(layers=24, choice="last"), 32) == list(range(24))
    assert kept_layers(DepthCutSettings(keep=(0, 3)), 5) == [0, 3]


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"layers": 0},
        {"layers": 2, "keep": (1,)},
        {"keep": ()},
        {"keep": (2, 1)},
        {"keep": (1, 1)},
        {"keep": (-1,)},
        {"keep": (1,), "choice": "last"},
        {"layers": 2, "samples": 8},
        {"keep": (1,), "max_length": 64},
    ],
)
def test_settings_that_name_no_cut_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DepthCutSettings(**bad)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (DepthCutSettings(layers=5), "layers: 5 of 5 layers are no cut; keep at most 4"),
        (DepthCutSettings(layers=9, choice="last"), "layers: 9 of 5"),
        (DepthCutSettings(keep=(0, 1, 2, 3, 4)), "keep: 5 of 5"),
        (DepthCutSettings(keep=(0, 5)), "keep: no layer 5; the model has 0 to 4"),
    ],
)
def test_impossible_cuts_are_wrong_usage(
    deep: Artifact, tmp_path: Path, settings: DepthCutSettings, wanted: str
) -> None:
    with pytest.raises(UsageError, match=wanted):
        run_stage(DEPTH_CUT, settings, tmp_path, {"model": deep})


def test_cut_model_is_the_deep_one_without_those_layers(deep: Artifact, tmp_path: Path) -> None:
    import torch

    from evals.backends.loading import load_model

    result, cut = run_stage(DEPTH_CUT, DepthCutSettings(keep=(0, 2, 4)), tmp_path, {"model": deep})
    made, source = load_model(cut.path), load_model(deep.path)
    ids = torch.randint(0, 400, (1, 12), generator=torch.Generator().manual_seed(0))
    # The same layers taken out of the whole model by hand.
    source.model.model.layers = torch.nn.ModuleList([source.model.model.layers[i] for i in (0, 2, 4)])
    with torch.inference_mode():
        wanted = source.model(input_ids=ids, use_cache=False).logits
        assert torch.equal(made.model(input_ids=ids, use_cache=False).logits, wanted)
    config = json.loads(cut.file("config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["tie_word_embeddings"]
    assert "lm_head.weight" not in tensors(cut.path)
    facts = dict(result.facts)
    assert facts["parameters"] == made.parameters == sum(p.numel() for p in made.model.parameters())
    assert (facts["layers"], facts["source_layers"], facts["kept"]) == (3, 5, [0, 2, 4])
    assert facts["bytes"] == sum(entry["bytes"] for entry in cut.manifest["files"].values())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert file_sha256(cut.file(name)) == file_sha256(deep.file(name))
    assert made.tokenizer.chat_template == source.tokenizer.chat_template


def test_again_gives_the_same_bytes_and_progress_is_told(deep: Artifact, tmp_path: Path) -> None:
    updates = Updates()
    settings = DepthCutSettings(layers=2)
    first = run_stage(DEPTH_CUT, settings, tmp_path / "a", {"model": deep}, progress=updates)[1]
    assert run_stage(DEPTH_CUT, settings, tmp_path / "b", {"model": deep})[1].digest == first.digest
    done, total, _ = updates.seen[-1]
    assert done == total == len(tensors(first.path))


def test_shards_are_read_and_written(deep: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from evals.backends.loading import load_model

    whole = run_stage(DEPTH_CUT, DepthCutSettings(layers=3), tmp_path / "whole", {"model": deep})[1]
    load_model(deep.path).model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    shutil.copy(deep.file("tokenizer.json"), tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    # The weights a second time, as Mistral's folders have them.
    (tmp_path / "sharded" / "consolidated.safetensors").write_bytes(b"")
    monkeypatch.setattr(model_folder, "SHARD_BYTES", 100_000)
    source = artifact(tmp_path / "sharded", "model")
    cut = run_stage(DEPTH_CUT, DepthCutSettings(layers=3), tmp_path / "cut", {"model": source})[1]
    names = [name for name in cut.manifest["files"] if name.endswith(".safetensors")]
    assert len(names) > 1
    index = json.loads(cut.file("model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(cut.path).values())
    one, many = (load_model(folder).model.state_dict() for folder in (whole.path, cut.path))
    assert all(torch.equal(one[name], many[name]) for name in one.keys() | many.keys())


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral", "smollm3"])
def test_other_decoders_are_cut_with_their_lists_per_layer(kind: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from evals.backends.loading import load_model, quiet_transformers
    from pipeline.training.micro_model import train_tokenizer

    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 16}
    config = AutoConfig.for_model(kind, **SMALL, **special, tie_word_embeddings=kind == "qwen3")
    torch.manual_seed(0)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_config(config).eval()
        model.save_pretrained(tmp_path / "source")
    PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(iter(["a b"]), 300)).save_pretrained(
        tmp_path / "source"
    )
    source = artifact(tmp_path / "source", "model")
    cut = run_stage(DEPTH_CUT, DepthCutSettings(keep=(0, 3)), tmp_path / "cut", {"model": source})[1]
    made = load_model(cut.path).model
    ids = torch.arange(3, 40).unsqueeze(0)
    if kind == "smollm3":
        # Its fourth layer has no rotary positions: that follows the layer, not its new number.
        assert json.loads(cut.file("config.json").read_text())["no_rope_layers"] == [1, 0]
    for name in ("layer_types", "no_rope_layers"):
        if getattr(model.config, name, None):
            setattr(model.config, name, [getattr(model.config, name)[i] for i in (0, 3)])
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in (0, 3)])
    model.config.num_hidden_layers = 2
    with torch.inference_mode():
        wanted = model(input_ids=ids, use_cache=False).logits
        assert torch.equal(made(input_ids=ids, use_cache=False).logits, wanted)


def test_a_head_that_repeats_the_embeddings_is_left_out(deep: Artifact, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    broken = tmp_path / "source"
    shutil.copytree(deep.path, broken)
    held = tensors(broken)
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    save_file(held, broken / "model.safetensors", metadata={"format": "pt"})
    cut = run_stage(
        DEPTH_CUT, DepthCutSettings(layers=2), tmp_path / "cut", {"model": artifact(broken, "model")}
    )
    assert "lm_head.weight" not in tensors(cut[1].path)


def broken_copy(deep: Artifact, folder: Path, fault: str) -> Artifact:
    shutil.copytree(deep.path, folder)
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    if fault == "quantised":
        config["quantization_config"] = {"bits": 4}
    elif fault == "depth":
        config["num_hidden_layers"] = 7
    elif fault == "width":
        config["intermediate_size"] = 128
    elif fault == "short":
        weights.write_bytes(weights.read_bytes()[:-5000])
    elif fault == "none":
        weights.unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return artifact(folder, "model")


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        ("quantised", "config.json: only dense decoders"),
        ("depth", "5 layers under model.layers, config.json says 7"),
        ("width", "is not what llama wants"),
        ("short", "model.safetensors: cut short"),
        ("none", "model.safetensors: no such file"),
    ],
)
def test_folders_that_cannot_be_cut_are_named(
    deep: Artifact, tmp_path: Path, fault: str, wanted: str
) -> None:
    source = broken_copy(deep, tmp_path / "broken", fault)
    with pytest.raises(RunError, match=wanted):
        run_stage(DEPTH_CUT, DepthCutSettings(layers=2), tmp_path / "cut", {"model": source})
