"""GGUF files tensor by tensor, read back as model folders, and the stage that rounds with compensation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from micro_stages import Updates, artifact, micro_data, run_stage
from pydantic import ValidationError

from cogumi.errors import InfeasibleError, RunError
from cogumi.store import Artifact
from evals.backends.gguf import GGUFBackend
from evals.backends.loading import load_model
from evals.types import Prompt
from pipeline.compression.dense import dense_from_gguf, gguf_name, hf_name
from pipeline.compression.ggml import quantize
from pipeline.compression.gguf_export import export_gguf
from pipeline.compression.gguf_tensors import GGUFFile, file_bytes, write_gguf
from pipeline.compression.grid import GRID, GridSettings
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings

QUICK: dict[str, Any] = {"samples": 12, "max_length": 96, "passes": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return micro_data(tmp_path_factory.mktemp("grid") / "data", per_cell=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Artifact) -> Artifact:
    folder = tmp_path_factory.mktemp("grid")
    shape = MicroModelSettings(
        hidden_size=64,
        layers=2,
        heads=4,
        kv_heads=2,
        intermediate_size=256,
        vocab_size=320,
        # Untrained, but with weights large enough that the logits differ.
        initializer_range=0.2,
    )
    return run_stage(MICRO_MODEL, shape, folder / "start", {"data": data})[1]


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory, model: Artifact) -> Path:
    path = tmp_path_factory.mktemp("grid") / "f32.gguf"
    export_gguf(model.path, path, dtype="f32")
    return path


def matrices(source: GGUFFile) -> list[str]:
    return [info.name for info in source.tensors.values() if len(info.shape) > 1]


def plain(floats: Path, out: Path, kind: str) -> Path:
    source = GGUFFile(floats)
    write_gguf(
        source, out, dict.fromkeys(matrices(source), kind), lambda name: quantize(source.values(name), kind)
    )
    return out


def relative_error(gguf: Path, folder: Path, text: str) -> float:
    loaded, backend = load_model(folder, dtype="fp32"), GGUFBackend(gguf)
    ids = backend.encode(Prompt.user(text))
    with torch.inference_mode():
        wanted = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
    found = backend.logits(ids)
    backend.close()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_f32_goes_there_and_back_unchanged(model: Artifact, floats: Path, tmp_path: Path) -> None:
    dense_from_gguf(floats, model.path, tmp_path / "dense")
    before = load_model(model.path, dtype="fp32").model.state_dict()
    after = load_model(tmp_path / "dense", dtype="fp32").model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


# llama.cpp rounds activations to 8 bits beside quantised weights: hundredths of the logits' range.
@pytest.mark.parametrize(
    ("kind", "within"), [("f16", 2e-3), ("q4_0", 5e-2), ("q2_0", 5e-2), ("iq4_nl", 5e-2)]
)
def test_llama_cpp_and_transformers_agree(
    model: Artifact, floats: Path, tmp_path: Path, kind: str, within: float
) -> None:
    gguf = plain(floats, tmp_path / "model.gguf", kind)
    assert (
        abs(
            gguf.stat().st_size
            - file_bytes(GGUFFile(floats), dict.fromkeys(matrices(GGUFFile(floats)), kind))
        )
        < 300
    )
    dense_from_gguf(gguf, model.path, tmp_path / "dense")
    assert relative_error(gguf, tmp_path / "dense", "What is 7 plus 5?") < within
    if kind == "q2_0":
        # The comparison can fail: the weights before rounding give other logits.
        assert relative_error(gguf, model.path, "What is 7 plus 5?") > 2 * within


def test_names_are_inverse() -> None:
    for name in ("token_embd.weight", "output.weight", "blk.11.ffn_down.weight", "blk.0.attn_q.weight"):
        module = hf_name(name)
        assert module is not None
        assert gguf_name(module) == name
    assert hf_name("rope_freqs.weight") is None


def test_broken_files_are_one_line(model: Artifact, floats: Path, tmp_path: Path) -> None:
    raw = floats.read_bytes()
    # Cut in the header, in the metadata, in the list of tensors and in the values.
    for size in (10, 200, len(raw) // 20, len(raw) - 100):
        (tmp_path / "cut.gguf").write_bytes(raw[:size])
        with pytest.raises(RunError, match=r"cut.gguf: cut short"):
            dense_from_gguf(tmp_path / "cut.gguf", model.path, tmp_path / "out")
    (tmp_path / "old.gguf").write_bytes(raw[:4] + b"\x01" + raw[5:])
    with pytest.raises(RunError, match=r"old.gguf: GGUF version 1; versions 2 and 3 are read"):
        GGUFFile(tmp_path / "old.gguf")
    (tmp_path / "other.gguf").write_bytes(b"PK" + raw[2:])
    with pytest.raises(RunError, match=r"other.gguf: not a GGUF file"):
        GGUFFile(tmp_path / "other.gguf")
    assert not (tmp_path / "out").exists()


def test_another_models_file_is_refused(model: Artifact, floats: Path, tmp_path: Path) -> None:
    like = tmp_path / "like"
    shutil.copytree(model.path, like)
    config = json.loads((like / "config.json").read_text())
    (like / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(RunError, match=r"has no tensor for model.layers.2"):
        dense_from_gguf(floats, like, tmp_path / "out")
    (like / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(RunError, match=r"the model's model.layers.0.mlp"):
        dense_from_gguf(floats, like, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["like"]


def kl(model: Path, other: Path) -> float:
    """Mean divergence of the next token over a text, nats."""
    first, second = load_model(model, dtype="fp32"), load_model(other, dtype="fp32")
    text = " ".join(f"Mia has {number} hats. Who has the hat?" for number in range(9))
    ids = torch.tensor([first.tokenizer(text).input_ids])
    with torch.inference_mode():
        p = first.model(input_ids=ids).logits[0].log_softmax(-1)
        q = second.model(input_ids=ids).logits[0].log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_stage_beats_plain_rounding_at_equal_bytes(
    model: Artifact, data: Artifact, floats: Path, tmp_path: Path
) -> None:
    inputs = {"model": model, "data": data}
    result, made = run_stage(GRID, GridSettings(type="q2_0", **QUICK), tmp_path / "ours", inputs)
    assert result.kind == "gguf"
    assert result.facts["bytes_resident"] == made.file("model.gguf").stat().st_size
    assert result.facts["tensor_kinds"] == {"q2_0": 15}
    assert 2.25 <= result.facts["bits_per_weight"] < 2.6
    assert result.facts["expected_kl"] < 0.5 * result.facts["expected_kl_plain"]
    theirs = plain(floats, tmp_path / "plain.gguf", "q2_0")
    assert made.bytes <= theirs.stat().st_size + 100
    dense_from_gguf(made.file("model.gguf"), model.path, tmp_path / "a")
    dense_from_gguf(theirs, model.path, tmp_path / "b")
    assert kl(model.path, tmp_path / "a") < 0.6 * kl(model.path, tmp_path / "b")
    assert relative_error(made.file("model.gguf"), tmp_path / "a", "What is 7 plus 5?") < 5e-2
    assert not list((tmp_path / "ours" / "scratch").glob("*.gguf"))


def test_cap_of_bytes_is_kept_and_a_kill_resumes(model: Artifact, data: Artifact, tmp_path: Path) -> None:
    class Killed(Updates):
        def update(self, done: int, total: int, **facts: Any) -> None:
            super().update(done, total, **facts)
            if facts["finished"] == "block 0":
                raise KeyboardInterrupt

    inputs = {"model": model, "data": data}
    settings = GridSettings(bytes_at_most=64_000, kinds=("q2_0", "q4_0"), **QUICK)
    result, made = run_stage(GRID, settings, tmp_path / "whole", inputs)
    assert 57_000 < made.bytes <= 64_000
    assert len(result.facts["tensor_kinds"]) > 1
    with pytest.raises(KeyboardInterrupt):
        run_stage(GRID, settings, tmp_path / "killed", inputs, progress=Killed())
    shutil.rmtree(tmp_path / "killed" / "out")
    seen = Updates()
    again = run_stage(GRID, settings, tmp_path / "killed", inputs, progress=seen)[1]
    assert again.digest == made.digest
    assert [facts["finished"] for _, _, facts in seen.seen] == ["block 0", "block 1", "head"]


def test_what_cannot_be_is_told_before_any_work(model: Artifact, data: Artifact, tmp_path: Path) -> None:
    inputs, seen = {"model": model, "data": data}, Updates()
    with pytest.raises(
        InfeasibleError, match=r"bytes_at_most = 30,000: the file takes .* in the smallest of"
    ):
        run_stage(GRID, GridSettings(bytes_at_most=30_000), tmp_path / "a", inputs, progress=seen)
    with pytest.raises(RunError, match="rows of 64 weights take none of q4_K"):
        run_stage(
            GRID, GridSettings(bytes_at_most=90_000, kinds=("q4_K",)), tmp_path / "b", inputs, progress=seen
        )
    with pytest.raises(RunError, match="calibration data too short"):
        run_stage(GRID, GridSettings(type="q4_0", samples=9999), tmp_path / "c", inputs, progress=seen)
    assert seen.seen == []
    with pytest.raises(ValidationError, match="either type or bytes_at_most"):
        GridSettings()


def test_rows_that_do_not_fit_take_the_next_larger_type(
    model: Artifact, data: Artifact, tmp_path: Path
) -> None:
    result, _ = run_stage(
        GRID,
        GridSettings(type="q4_K", embedding_kind="q8_0", **QUICK),
        tmp_path / "k",
        {"model": model, "data": data},
    )
    # Rows of 64 take no block of 256: only the two down projections are Q4_K, iq4_nl has the same bits.
    assert result.facts["tensor_kinds"] == {"iq4_nl": 12, "q4_K": 2, "q8_0": 1}


def test_untied_head_is_rounded_by_what_it_reads(model: Artifact, data: Artifact, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    folder = tmp_path / "untied"
    untied = LlamaForCausalLM.from_pretrained(model.path, tie_word_embeddings=False)
    with torch.no_grad():
        untied.lm_head.weight.copy_(untied.model.embed_tokens.weight * 1.5)
    shutil.copytree(model.path, folder)
    untied.save_pretrained(folder)
    inputs = {"model": artifact(folder, "model"), "data": data}
    result, made = run_stage(GRID, GridSettings(type="q4_0", **QUICK), tmp_path / "q", inputs)
    assert result.facts["tensor_kinds"] == {"q4_0": 16}
    dense_from_gguf(made.file("model.gguf"), folder, tmp_path / "dense")
    assert relative_error(made.file("model.gguf"), tmp_path / "dense", "What is 7 plus 5?") < 5e-2
