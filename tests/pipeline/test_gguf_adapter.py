"""LoRA adapters in GGUF: the same function in llama.cpp as peft computes, beside a model and never merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro_stages import artifact, run_stage
from tiny_llama import tiny_llama

from cogumi.errors import RunError, UsageError
from cogumi.subjects import gguf_adapter, of_artifact, resolve
from cogumi.workspace import Workspace
from evals.backends import open_backend
from evals.backends.gguf import GGUFBackend
from evals.types import Prompt
from pipeline.compression.gguf_adapter import export_adapter
from pipeline.compression.gguf_export import GGUF, GGUFSettings, export_gguf
from pipeline.compression.gguf_write import llama_config

IDS = [5, 9, 30, 77, 12, 50, 41, 8]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("adapted") / "base", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def base_gguf(base: Path) -> Path:
    out = base.parent / "base.gguf"
    export_gguf(base, out, dtype="f32")
    return out


def adapter_of(base: Path, folder: Path, **settings: Any) -> np.ndarray:
    """Save a random LoRA adapter, and return what transformers with peft says after ``IDS``."""
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model

    from evals.backends.loading import load_model

    torch.manual_seed(3)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **settings})
    model = get_peft_model(load_model(base, dtype="fp32").model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    with warnings.catch_warnings():
        # peft warns that it also saves the head that an adapter is on.
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    with torch.inference_mode():
        logits: np.ndarray = model(input_ids=torch.tensor([IDS])).logits[0, -1].numpy()
    return logits


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, "f32"),
        ({}, "f16"),
        ({"use_rslora": True, "r": 32}, "q8_0"),
        ({"use_rslora": True}, "f16"),
        ({"target_modules": ["q_proj", "k_proj", "lm_head"], "lora_alpha": 1}, "f16"),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 20}, "use_rslora": True}, "f16"),
    ],
)
def test_logits_are_those_of_peft(
    base: Path, base_gguf: Path, tmp_path: Path, settings: dict[str, Any], dtype: Any
) -> None:
    wanted = adapter_of(base, tmp_path / "adapter", **settings)
    out = tmp_path / "adapter.gguf"
    summary = export_adapter(tmp_path / "adapter", llama_config(base), out, dtype=dtype)
    plain, backend = GGUFBackend(base_gguf), GGUFBackend(base_gguf, adapter=out)
    # Eight bits for each factor; the other types lose less than llama.cpp's own arithmetic.
    assert difference(backend.logits(IDS), wanted) < (0.1 if dtype == "q8_0" else 1e-2)
    assert difference(plain.logits(IDS), wanted) > 0.15
    # The scorer has a context of its own, which needs the adapter as well.
    scored = backend._scoring().next_token_logprobs(IDS, 1)[0]
    logits = backend.logits(IDS)
    np.testing.assert_allclose(
        scored, logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()), atol=1e-3
    )
    assert summary.bytes == out.stat().st_size
    assert summary.rank == settings.get("r", 4)
    assert summary.layers == (5 if "target_modules" in settings else 14)
    assert backend.stack["adapter"] == "lora"
    plain.close()
    backend.close()


def test_metadata_is_llama_cpps_own(base: Path, tmp_path: Path) -> None:
    import gguf

    adapter_of(base, tmp_path / "adapter", use_rslora=True)
    export_adapter(tmp_path / "adapter", llama_config(base), tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["general.architecture"] == "llama"
    # llama.cpp divides by the rank, rsLoRA by its root: 6 / √4 = 12 / 4.
    assert fields["adapter.lora.alpha"] == 12
    shapes = {tensor.name: list(tensor.shape) for tensor in reader.tensors}
    assert shapes["blk.0.ffn_down.weight.lora_a"] == [96, 4]
    assert shapes["blk.0.ffn_down.weight.lora_b"] == [4, 64]


def test_an_adapter_beside_a_model_is_always_used(base: Path, tmp_path: Path) -> None:
    wanted = adapter_of(base, tmp_path / "peft")
    inputs = {"model": artifact(base, "model"), "adapter": artifact(tmp_path / "peft", "adapter")}
    result, made = run_stage(GGUF, GGUFSettings(type="F16"), tmp_path / "with", inputs)
    alone = run_stage(GGUF, GGUFSettings(type="F16"), tmp_path / "alone", {"model": inputs["model"]})[1]
    assert sorted(made.manifest["files"]) == ["adapter.gguf", "model.gguf"]
    assert made.manifest["files"]["model.gguf"] == alone.manifest["files"]["model.gguf"]
    assert result.facts["bytes_resident"] == result.facts["bytes_download"] == made.bytes > alone.bytes
    assert result.facts["adapter"]["rank"] == 4
    subject = of_artifact(made, "it")
    assert (subject.path, subject.facts["bytes"]) == (made.path / "model.gguf", made.bytes)
    assert subject.path is not None
    assert gguf_adapter(subject.path) == made.path / "adapter.gguf"
    workspace = Workspace(tmp_path / "workspace")
    workspace.create()
    named = resolve(str(made.path), workspace)
    assert named.facts["bytes"] == made.bytes
    assert named.digest == resolve(str(subject.path), workspace).digest
    assert named.digest != resolve(str(alone.path), workspace).digest
    for opened in (open_backend(subject.path, backend="gguf"), open_backend(made.path)):
        assert isinstance(opened, GGUFBackend)
        assert difference(opened.logits(IDS), wanted) < 1e-2
        assert opened.generate([Prompt.user("Say a")], max_tokens=3)[0].completion_tokens > 0
        opened.close()
    with pytest.raises(UsageError, match=r"its adapter adapter\.gguf runs in the gguf backend alone"):
        open_backend(subject.path, backend="hf")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"peft_type": "LOHA"}, "a LOHA adapter; only LoRA"),
        ({"use_dora": True}, "'use_dora' has no counterpart"),
        ({"bias": "all"}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save' has no counterpart"),
    ],
)
def test_other_adapters_are_refused(base: Path, tmp_path: Path, change: dict[str, Any], wanted: str) -> None:
    adapter_of(base, tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=wanted):
        export_adapter(tmp_path / "adapter", llama_config(base), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_an_adapter_of_another_base_is_refused(base: Path, base_gguf: Path, tmp_path: Path) -> None:
    adapter_of(base, tmp_path / "adapter")
    other = {**llama_config(base), "intermediate_size": 128}
    with pytest.raises(RunError, match=r"down_proj is for a layer of \(64, 96\), the base has \(64, 128\)"):
        export_adapter(tmp_path / "adapter", other, tmp_path / "a.gguf")
    tied = {**llama_config(base), "tie_word_embeddings": True}
    adapter_of(base, tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(RunError, match="lm_head has no place in a GGUF adapter"):
        export_adapter(tmp_path / "head", tied, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()
    with pytest.raises(
        RunError, match=r"base.gguf: not a LoRA adapter in GGUF for .*base.gguf \(.*general.type"
    ):
        GGUFBackend(base_gguf, adapter=base_gguf)


def test_a_broken_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    adapter_of(base, tmp_path / "adapter", target_modules=["q_proj"])
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(RunError, match=r"adapter_model.safetensors: missing, cut short or not safetensors"):
        export_adapter(tmp_path / "adapter", llama_config(base), tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
