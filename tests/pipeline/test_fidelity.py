from __future__ import annotations

import errno
import json
import math
import shutil
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro_stages import Updates, artifact, micro_data, run_stage

from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact
from cogumi.subjects import Subject, of_artifact
from evals.backends.adapters import write_sidecar
from pipeline.compression.fidelity import (
    RowFidelity,
    fidelity,
    mean_bounds,
    row_fidelities,
    summarise,
)
from pipeline.compression.fidelity_stage import FIDELITY, FidelitySettings, held_out_rows
from pipeline.compression.gguf_export import GGUF, GGUFSettings
from pipeline.training.data import Encoded, is_held_out, read_examples
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings

HOW = FidelitySettings(rows=8, held_out_share=0.3)


@dataclass(frozen=True)
class Made:
    data: Artifact
    model: Artifact
    ggufs: dict[str, Artifact]
    rows: list[Encoded]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("fidelity")
    data = micro_data(folder / "data", per_cell=4)
    shape = MicroModelSettings(
        hidden_size=64,
        layers=1,
        heads=2,
        kv_heads=1,
        intermediate_size=64,
        vocab_size=400,
        initializer_range=0.12,
    )
    model = run_stage(MICRO_MODEL, shape, folder / "model", {"data": data})[1]
    ggufs = {
        name: run_stage(GGUF, GGUFSettings(type=name), folder / name, {"model": model})[1]
        for name in ("f32", "Q8_0", "Q4_0")
    }
    return Made(data, model, ggufs, held_out_rows(data, model.path, HOW)[1])


def subject(made: Artifact) -> Subject:
    return of_artifact(made, "candidate")


def test_the_figures_are_those_of_the_definition(made: Made, tmp_path: Path) -> None:
    import torch

    from evals.backends.loading import load_model

    shaken = Path(shutil.copytree(made.model.path, tmp_path / "shaken"))
    dense, other = (load_model(made.model.path, dtype="fp32").model for _ in range(2))
    torch.manual_seed(0)
    for parameter in other.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    other.save_pretrained(shaken)
    kl, loss, dense_loss, same, tokens = 0.0, 0.0, 0.0, 0, 0
    with torch.no_grad():
        for row in made.rows:
            ids = torch.tensor([row.ids])
            p, q = (torch.log_softmax(m(ids).logits[0].double(), -1)[:-1] for m in (dense, other))
            for place in range(row.answer_start, len(row.ids)):
                a, b = p[place - 1], q[place - 1]
                kl += float((a.exp() * (a - b)).sum())
                loss, dense_loss = loss - float(b[row.ids[place]]), dense_loss - float(a[row.ids[place]])
                same, tokens = same + int(a.argmax() == b.argmax()), tokens + 1
    found = fidelity(subject(artifact(shaken, "model")), made.model.path, made.rows, scratch=tmp_path)
    assert (found.tokens, found.rows) == (tokens, len(made.rows))
    assert found.kl == pytest.approx(kl / tokens, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(loss / tokens), rel=1e-4)
    assert found.baseline_perplexity == pytest.approx(math.exp(dense_loss / tokens), rel=1e-4)
    assert found.top1_agreement == pytest.approx(same / tokens)
    assert 0 < found.kl_lower < found.kl < found.kl_upper


def test_fewer_bits_are_further_away_and_the_model_itself_is_not_away_at_all(
    made: Made, tmp_path: Path
) -> None:
    found = {
        name: fidelity(subject(gguf), made.model.path, made.rows, scratch=tmp_path)
        for name, gguf in made.ggufs.items()
    }
    itself = fidelity(subject(made.model), made.model.path, made.rows, scratch=tmp_path)
    assert itself.kl == itself.kl_upper == 0
    assert itself.top1_agreement == 1
    assert itself.perplexity == itself.baseline_perplexity
    # Another runtime, the same weights: what is left is its order of summation.
    assert found["f32"].kl < 1e-5
    assert found["f32"].kl < found["Q8_0"].kl < found["Q4_0"].kl
    # The dense model was read once for all of them.
    assert len(list(tmp_path.glob("baseline-*.f32"))) == 1


def test_an_adapter_beside_a_model_is_part_of_it_and_a_merged_one_is_not(made: Made, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from evals.backends.loading import load_model
    from pipeline.compression.gguf_adapter import export_adapter

    folder = Path(shutil.copytree(made.model.path, tmp_path / "model"))
    adapted = get_peft_model(
        load_model(folder, dtype="fp32").model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    )
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder / "adapter")
    write_sidecar(folder / "adapter", base="sha256:0", base_folder=folder, beside=folder)
    beside = fidelity(subject(artifact(folder, "model")), made.model.path, made.rows)
    assert beside.kl > 1e-3
    # The same adapter in llama.cpp, beside the same weights.
    config = json.loads((folder / "config.json").read_text())
    shutil.copy(made.ggufs["f32"].path / "model.gguf", tmp_path / "model.gguf")
    export_adapter(folder / "adapter", config, tmp_path / "adapter.gguf", dtype="f32")
    gguf = Subject("gguf", "sha256:1", "gguf", tmp_path / "model.gguf")
    assert fidelity(gguf, made.model.path, made.rows).kl == pytest.approx(beside.kl, rel=0.01)
    (tmp_path / "adapter.gguf").write_bytes(b"GGUF")
    with pytest.raises(RunError, match=r"adapter\.gguf: cut short, or an adapter of another model"):
        fidelity(gguf, made.model.path, made.rows)
    write_sidecar(folder / "adapter", base="sha256:0", base_folder=folder)
    assert fidelity(subject(artifact(folder, "model")), made.model.path, made.rows).kl == 0


def test_the_interval_holds_the_mean_of_all_rows_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    runs, missed = 2000, [0, 0]
    for _ in range(runs):
        tokens = rng.integers(5, 80, 128).astype(float)
        # Skewed, and alike within a row: as divergences are.
        sums = tokens * rng.lognormal(-4, 0.8, 128)
        lower, upper = mean_bounds(sums, tokens, 0.05)
        truth = math.exp(-4 + 0.8**2 / 2)
        missed[0] += lower > truth
        missed[1] += upper < truth
    # Skew costs the upper bound some of its 5 %: 8 % at 128 rows, as the docstring says.
    assert 0 < missed[0] / runs < 0.05
    assert 0 < missed[1] / runs < 0.09


def test_a_row_weighs_by_its_tokens() -> None:
    row = RowFidelity(kl=0.0, loss=0.0, baseline_loss=0.0, same=0, tokens=3)
    found = summarise([replace(row, kl=1.0, tokens=1), row, replace(row, tokens=4)])
    assert found.kl == 1 / 8


# The stage ------------------------------------------------------------------------------------------


def test_the_stage_gives_metrics_that_a_gate_reads(made: Made, tmp_path: Path) -> None:
    from gates.service import ProfileEvidence

    updates = Updates()
    inputs = {"model": made.ggufs["Q4_0"], "baseline": made.model, "data": made.data}
    result, left = run_stage(FIDELITY, HOW, tmp_path / "one", inputs, progress=updates)
    evidence = ProfileEvidence(None, None, Subject("f", "sha256:2", "data", facts=left.facts))  # type: ignore[arg-type]
    kl = evidence.metric("kl", None, 0.05)
    assert (kl.value, kl.lower, kl.upper) == tuple(
        result.facts["metrics"]["kl"][name] for name in ("value", "lower", "upper")
    )
    assert kl.n == 8
    assert result.facts["fidelity"]["kl"] == kl.value
    assert result.facts["model"] == made.ggufs["Q4_0"].digest
    assert result.facts["bytes_resident"] == made.ggufs["Q4_0"].facts["bytes_resident"]
    # A share of the score that is kept is another thing, and not claimed.
    assert not [name for name in result.facts["metrics"] if "retention" in name]
    assert updates.seen[-1][:2] == (8, 8)
    rows = [json.loads(line) for line in (left.path / "rows.jsonl").read_text().splitlines()]
    assert sum(row["kl"] for row in rows) / sum(row["tokens"] for row in rows) == pytest.approx(kl.value)
    again = run_stage(FIDELITY, HOW, tmp_path / "two", inputs)[1]
    assert again.digest == left.digest


def test_only_held_out_rows_are_read_the_same_ones_whatever_their_order(made: Made, tmp_path: Path) -> None:
    names, rows, _ = held_out_rows(made.data, made.model.path, HOW)
    assert all(is_held_out(name, HOW.held_out_share) for name in names)
    assert len(set(names)) == len(rows) == 8
    lines = (made.data.path / "training_complete.jsonl").read_text().splitlines(keepends=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "training_complete.jsonl").write_text("".join(reversed(lines)))
    assert held_out_rows(artifact(other, "dataset"), made.model.path, HOW)[0] == names
    # Longer rows are left out and counted, and never cut.
    longest = max(len(row.ids) for row in rows)
    kept, shorter, left_out = held_out_rows(
        made.data, made.model.path, HOW.model_copy(update={"max_length": longest - 1, "rows": 10_000})
    )
    everything = read_examples(made.data.path / "training_complete.jsonl")
    assert len(kept) + left_out == sum(is_held_out(e.question_id, 0.3) for e in everything)
    assert left_out > 0
    assert max(len(row.ids) for row in shorter) < longest
    # Nor is a row read beyond the context of the model.
    short = Path(shutil.copytree(made.model.path, tmp_path / "short"))
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": longest - 1}))
    assert max(len(row.ids) for row in held_out_rows(made.data, short, HOW)[1]) < longest


# Bad input ------------------------------------------------------------------------------------------


def test_too_few_rows(made: Made) -> None:
    with pytest.raises(RunError, match=r"0 held-out rows of at most 3 tokens .* \(\d+ are longer\)"):
        held_out_rows(made.data, made.model.path, FidelitySettings(max_length=3, held_out_share=0.3))
    with pytest.raises(RunError, match="no held-out row"):
        fidelity(subject(made.model), made.model.path, [])
    with pytest.raises(RunError, match="row 1: no question before its answer"):
        fidelity(subject(made.model), made.model.path, [Encoded((1, 2), 0)])
    with pytest.raises(RunError, match="an interval wants two or more"):
        mean_bounds([1.0], [1], 0.05)


def test_another_vocabulary(made: Made, tmp_path: Path) -> None:
    shape = MicroModelSettings(
        hidden_size=64, layers=1, heads=2, kv_heads=1, intermediate_size=64, vocab_size=380
    )
    other = run_stage(MICRO_MODEL, shape, tmp_path / "other", {"data": made.data})[1]
    rows = [Encoded((1, 2, 3, 4), 2), Encoded((1, 2, 5), 1)]
    with pytest.raises(RunError, match=r"candidate: a vocabulary of 380 tokens, .* has 400"):
        fidelity(subject(other), made.model.path, rows)


def test_weights_that_are_not_finite(made: Made, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(made.model.path, tmp_path / "broken"))
    tensors: dict[str, Any] = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match="candidate: its logits on row 1 are not finite"):
        fidelity(subject(artifact(broken, "model")), made.model.path, made.rows)
    with pytest.raises(RunError, match="dense model's logits on row 1 are not finite"):
        fidelity(subject(made.model), broken, made.rows, scratch=tmp_path)
    assert not list(tmp_path.glob("*baseline*"))


def test_a_gguf_cut_short_and_an_endpoint(made: Made, tmp_path: Path) -> None:
    whole = (made.ggufs["Q8_0"].path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"model\.gguf: cut short or not a GGUF model"):
        fidelity(Subject("x", "sha256:1", "gguf", tmp_path / "model.gguf"), made.model.path, made.rows)
    with pytest.raises(UsageError, match="gpt: openai shows no logits"):
        fidelity(Subject("gpt", "sha256:1", "openai"), made.model.path, made.rows)


def test_a_quantised_file_is_no_baseline(made: Made, tmp_path: Path) -> None:
    inputs = {"model": made.model, "baseline": made.ggufs["f32"], "data": made.data}
    with pytest.raises(RunError, match="baseline: a gguf; name the dense model"):
        run_stage(FIDELITY, HOW, tmp_path / "w", inputs)


def test_a_full_disk_is_one_line_before_and_while_writing(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
        with pytest.raises(RunError, match=r"disk full: .* take 0\.0 GB in .*; lower rows or max_length"):
            list(row_fidelities(subject(made.model), made.model.path, made.rows, scratch=tmp_path))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(RunError, match=r"disk full while writing .*baseline"):
        list(row_fidelities(subject(made.model), made.model.path, made.rows, scratch=tmp_path))
    assert not list(tmp_path.iterdir())
