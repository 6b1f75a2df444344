"""Weights counted from a config.json, where it is looked for, and what a profile may say of its models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_shapes import SMOLLM2

from cogumi.errors import RunError, UsageError
from cogumi.model_config import ModelConfig, find_config, read_config
from cogumi.profile import load_profile, parse_profile


def configs() -> dict[str, ModelConfig]:
    """The shapes that come with the profiles, and SmolLM2-135M."""
    models = [model for name in ("llama-3.1-8b", "llama-3.2-1b") for model in load_profile(name).models]
    found = {model.name: model.config for model in models if model.config is not None}
    return {**found, "SmolLM2-135M": ModelConfig.model_validate(SMOLLM2)}


@pytest.mark.parametrize(
    ("name", "parameters", "embedding", "linear"),
    [
        ("Llama-3.1-8B-Instruct", 8_030_261_248, 1_050_673_152, 6_979_321_856),
        # 67,584 of them are norms.
        ("Llama-3.2-1B-Instruct", 1_235_814_400, 262_668_288, 973_078_528),
        ("TinyLlama-1.1B-Chat-v1.0", 1_100_048_384, 131_072_000, 968_884_224),
        ("SmolLM2-135M", 134_515_008, 28_311_552, 106_168_320),
    ],
)
def test_weights_are_counted_exactly(name: str, parameters: int, embedding: int, linear: int) -> None:
    config = configs()[name]
    assert config.parameters == parameters
    assert (config.embedding_parameters, config.linear_parameters) == (embedding, linear)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 24, "num_key_value_heads": 1},
        {"num_key_value_heads": None},
    ],
)
def test_the_count_is_that_of_transformers(more: dict[str, Any]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "tie_word_embeddings": False,
        **more,
    }
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape))
    found = ModelConfig.model_validate(shape)
    assert found.parameters == sum(each.numel() for each in model.parameters())
    linear = [each for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)]
    counted = sum(each.weight.numel() for each in linear)
    head = 0 if found.tie_word_embeddings else found.matrix_parameters
    assert found.linear_parameters == counted - (head or model.lm_head.weight.numel())
    width = found.head_dim or 16
    heads = found.num_key_value_heads or 4
    assert found.cache_bytes_per_token() == 2 * 3 * heads * width * 2


def test_a_config_is_read_from_a_file_a_folder_or_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {**SMOLLM2, "architectures": ["LlamaForCausalLM"], "head_dim": None, "rope_theta": 1e5}
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text(json.dumps(written))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    names = (str(snapshot / "config.json"), str(snapshot), "some/model")
    assert {find_config(name).parameters for name in names} == {134_515_008}
    model = {"name": "m", "source": "s", "config": str(snapshot)}
    profile = parse_profile({"profile": "p", "title": "t", "models": [model]}, "p")
    assert profile.models[0].parameters == 134_515_008
    # It stands in place from then on: what the ledger keeps needs no file.
    kept = json.loads(json.dumps(profile.model_dump(mode="json")))
    (snapshot / "config.json").unlink()
    assert parse_profile(kept, "p").models == profile.models


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("{", RunError, "config.json: not readable as JSON"),
        ("[]", RunError, "a JSON object wanted, found a list"),
        ("{}", UsageError, "config.json: hidden_size: Field required"),
        (json.dumps({**SMOLLM2, "model_type": "qwen3_moe"}), UsageError, "model_type qwen3_moe: weights are"),
        (json.dumps({**SMOLLM2, "model_type": None}), UsageError, "model_type unknown: weights are counted"),
        (json.dumps({**SMOLLM2, "hidden_size": 577}), UsageError, "hidden_size is no multiple"),
        (json.dumps({**SMOLLM2, "vocab_size": -1}), UsageError, "vocab_size: Input should be greater"),
    ],
)
def test_a_config_that_cannot_be_counted_is_one_clear_line(
    tmp_path: Path, text: str, error: type[Exception], told: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(error, match=told) as found:
        read_config(tmp_path / "config.json")
    assert "\n" not in str(found.value)


BASE: dict[str, Any] = {"name": "m", "source": "s"}
COUNTS = {"parameters": 10, "embedding_parameters": 2}


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (BASE, "the key models.0.parameters is missing"),
        ({**BASE, "config": "nobody/nothing"}, "config nobody/nothing: no such file, and no model of that"),
        ({**BASE, "config": SMOLLM2, "parameters": 135_000_000}, "parameters is 135000000, but the config"),
        ({**BASE, "config": {**SMOLLM2, "layers": 3}}, "layers"),
        ({**BASE, **COUNTS, "targets": [{"criterion": "phase3"}]}, "targets.0.criterion"),
        (
            {**BASE, **COUNTS, "targets": [{"criterion": "a/b", "bits": 4.5, "coded": True}]},
            "coded: bits mus",
        ),
        ({**BASE, **COUNTS, "targets": [{"criterion": "a/b", "together_with": ["x"]}]}, "no model is called"),
        ({**BASE, **COUNTS, "serving": {"card": "T5"}}, r"no card 'T5' \(did you mean 'T4'"),
        ({**BASE, **COUNTS, "serving": {"card": "T4", "draft": "n"}}, r"no model is called 'n'"),
    ],
)
def test_a_planned_model_is_strict(model: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as found:
        parse_profile({"profile": "p", "title": "t", "models": [model]}, "p")
    assert "\n" not in str(found.value)
