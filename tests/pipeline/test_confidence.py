"""Confidence of a small model's answers: asked, checked, scaled, kept over a kill, and read back."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro_stages import artifact, micro_data, run_stage
from pydantic import ValidationError

from cogumi.errors import RunError
from cogumi.store import Artifact
from evals.micro import solve
from pipeline.compression.confidence import (
    CONFIDENCE,
    Asked,
    ConfidenceSettings,
    calibrate,
    checkable,
    is_right,
)
from pipeline.training.data import Example, training_file
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings

SHAPE = MicroModelSettings(
    hidden_size=64, layers=1, heads=2, kv_heads=1, intermediate_size=64, vocab_size=500, context=96
)
ALL = ConfidenceSettings(held_out_share=1.0, max_tokens=12, bins=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Every domain but coding, which wants a sandbox."""
    folder = tmp_path_factory.mktemp("data")
    made = training_file(micro_data(folder / "all", per_cell=3))
    lines = [line for line in made.read_text().splitlines() if '"coding"' not in line]
    (folder / "few").mkdir()
    (folder / "few" / "training.jsonl").write_text("\n".join(lines) + "\n")
    return artifact(folder / "few", "dataset")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Artifact) -> Artifact:
    """A model that learnt some of the data."""
    import torch

    from evals.backends.loading import load_model, quiet_transformers
    from evals.backends.tokenization import save_tokenizer
    from pipeline.training.answer_loss import AnswerLoss
    from pipeline.training.chat import ChatEncoder
    from pipeline.training.data import read_examples
    from pipeline.training.packing import pack

    folder = tmp_path_factory.mktemp("model")
    blank = run_stage(MICRO_MODEL, SHAPE, folder / "blank", {"data": data})[1]
    loaded = load_model(blank.path)
    encoder = ChatEncoder(loaded.tokenizer, loaded.stop_ids, include_reasoning=False)
    batch = pack([encoder.encode(row) for row in read_examples(training_file(data))], torch.device("cpu"))
    loss = AnswerLoss(loaded.model)
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=6e-3)
    for _ in range(40):
        (loss(batch) / len(batch.targets)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with quiet_transformers():
        loaded.model.save_pretrained(folder / "trained")
        save_tokenizer(loaded.tokenizer, folder / "trained")
    return artifact(folder / "trained", "model")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, data: Artifact, model: Artifact) -> Artifact:
    return run_stage(CONFIDENCE, ALL, tmp_path_factory.mktemp("asked"), {"model": model, "data": data})[1]


def rows_of(found: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in found.file("answers.jsonl").read_text().splitlines()]


def test_confidence_is_that_of_the_answers_own_tokens(
    asked: Artifact, model: Artifact, data: Artifact
) -> None:
    """Against transformers alone: the ids that it generates, and the probabilities of those."""
    import torch

    from evals.backends.loading import load_model
    from pipeline.training.data import read_examples
    from pipeline.training.decoding import encode_questions

    loaded = load_model(model.path)
    prompts = encode_questions(loaded, {row.question_id: row for row in read_examples(training_file(data))})
    rows = rows_of(asked)
    assert len(rows) == len(prompts) == 42
    for row in rows[:8]:
        ids = torch.tensor([prompts[row["question_id"]]])
        with torch.inference_mode():
            whole = loaded.model.generate(
                ids, do_sample=False, max_new_tokens=12, eos_token_id=sorted(loaded.stop_ids), pad_token_id=0
            )
            logprobs = torch.log_softmax(loaded.model(whole).logits[0], dim=-1)
        new = whole[0, ids.shape[1] :]
        chosen = logprobs[ids.shape[1] - 1 : -1].gather(1, new[:, None])
        assert row["tokens"] == len(new)
        assert row["logprob"] == pytest.approx(float(chosen.mean()), abs=1e-4)
        assert row["confidence"] == pytest.approx(math.exp(row["logprob"]), abs=1e-6)


def test_right_answers_are_those_of_the_checks(asked: Artifact, data: Artifact) -> None:
    from pipeline.training.data import read_examples

    examples = {row.question_id: row for row in read_examples(training_file(data))}
    rows = rows_of(asked)
    for row in rows:
        assert row["correct"] == (row["stopped"] and is_right(examples[row["question_id"]], row["answer"]))
    assert 0 < sum(row["correct"] for row in rows) < len(rows)
    facts = asked.facts
    assert facts["items"] == len(rows)
    assert facts["accuracy"] == pytest.approx(np.mean([row["correct"] for row in rows]), abs=1e-6)
    assert facts["cut_answers"] == sum(not row["stopped"] for row in rows)
    assert facts["no_room_rows"] == facts["unchecked_rows"] == 0


def test_what_is_shipped_can_be_applied(asked: Artifact, model: Artifact, data: Artifact) -> None:
    from gates.calibration import Scaled, fit_platt

    shipped = json.loads(asked.file("calibration.json").read_text())
    assert shipped["fitted_on"] == {"model": model.digest, "data": data.digest, "items": 42}
    assert (shipped["method"], shipped["temperature"]) == ("platt", asked.facts["temperature"])
    rows = rows_of(asked)
    p = np.array([row["confidence"] for row in rows])
    y = np.array([float(row["correct"]) for row in rows])
    # Platt's targets pull the mean towards one half, by no more than one item each way.
    assert Scaled(*shipped["platt"])(p).mean() == pytest.approx(y.mean(), abs=2 / len(rows))
    assert shipped["platt"] == pytest.approx([fit_platt(p, y).slope, fit_platt(p, y).intercept], abs=1e-3)


def test_a_gate_reads_the_error_with_its_interval(asked: Artifact, tmp_path: Path) -> None:
    from cogumi.profile import load_profile
    from cogumi.subjects import judged
    from cogumi.workspace import Workspace
    from evals.measure import Measurer
    from gates.metrics import METRICS
    from gates.service import ProfileEvidence

    source = ProfileEvidence(
        Measurer(Workspace(tmp_path), None), load_profile("rehearsal"), judged(asked, "c")
    )
    assert "ece" in METRICS
    found = source.metric("ece", None, 0.05)
    assert 0 <= found.lower <= found.value <= found.upper <= 1
    assert found.n == 42
    assert "fitted and judged on different ones (2 folds)" in found.note


def test_the_same_again_and_after_a_kill(
    asked: Artifact, data: Artifact, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evals.backends.hf import HFBackend

    monkeypatch.setattr(HFBackend, "batch_size", property(lambda self: 16))
    generate, calls = HFBackend.generate, [0]

    def dies(self: HFBackend, *arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return generate(self, *arguments, **named)

    inputs = {"model": model, "data": data}
    monkeypatch.setattr(HFBackend, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        run_stage(CONFIDENCE, ALL, tmp_path / "killed", inputs)
    shutil.rmtree(tmp_path / "killed" / "out")
    again = run_stage(CONFIDENCE, ALL, tmp_path / "killed", inputs)[1]
    assert calls[0] == 3 + 1
    assert again.manifest["files"] == asked.manifest["files"]
    assert again.facts == asked.facts


def test_a_gguf_model_answers_too(data: Artifact, model: Artifact, asked: Artifact, tmp_path: Path) -> None:
    """The same weights through llama.cpp are as sure of the same answers, but for its arithmetic."""
    from pipeline.compression.gguf_export import GGUF

    settings = GGUF.settings.model_validate({"type": "F16", "dtype": "f16"})
    gguf = run_stage(GGUF, settings, tmp_path / "gguf", {"model": model})[1]
    few = ALL.model_copy(update={"items": 24})
    found = run_stage(CONFIDENCE, few, tmp_path / "asked", {"model": gguf, "data": data})[1]
    hf = {row["question_id"]: row for row in rows_of(asked)}
    rows = rows_of(found)
    same = [row for row in rows if row["answer"].strip() == hf[row["question_id"]]["answer"].strip()]
    assert len(rows) == 24
    assert len(same) > 20
    for row in same:
        assert row["logprob"] == pytest.approx(hf[row["question_id"]]["logprob"], abs=0.02)


# Without a model ----------------------------------------------------------------------------------


def answers(n: int, seed: int, slope: float) -> tuple[list[Asked], list[str]]:
    """Answers whose chance of being right is sigma(slope * logit of their confidence)."""
    rng = np.random.default_rng(seed)
    p = rng.beta(4, 1.5, size=n)
    odds = (p / (1 - p)) ** slope
    right = rng.random(n) < odds / (1 + odds)
    asked = [
        Asked(str(k), "", math.log(chance), 3, bool(hit), True)
        for k, (chance, hit) in enumerate(zip(p.tolist(), right.tolist(), strict=True))
    ]
    return asked, [f"question {k}" for k in range(n)]


def test_an_overconfident_model_is_mended_and_the_gate_can_tell() -> None:
    facts = calibrate(ConfidenceSettings(), *answers(3000, 1, 0.5), 0)
    assert facts["temperature"] == pytest.approx(2, rel=0.1)
    assert facts["calibration"]["none"]["ece"]["lower"] > 0.05
    assert facts["metrics"]["ece"]["upper"] < 0.05
    assert facts["calibration"]["temperature"]["ece"]["upper"] < 0.05
    assert facts["calibration"]["platt"]["log_loss"] < facts["calibration"]["none"]["log_loss"]
    table = facts["calibration"]["platt"]["reliability"]
    assert sum(row["n"] for row in table) == 3000
    assert [row["confidence"] for row in table] == sorted(row["confidence"] for row in table)


def test_the_method_is_the_profiles_choice() -> None:
    made = answers(200, 2, 0.5)
    found = {
        method: calibrate(ConfidenceSettings.model_validate({"method": method}), *made, 0)
        for method in ("temperature", "platt")
    }
    assert found["platt"]["calibration"] == found["temperature"]["calibration"]
    for method, facts in found.items():
        assert facts["metrics"]["ece"]["value"] == facts["calibration"][method]["ece"]["value"]


def test_equal_questions_share_a_fold_and_too_few_make_none() -> None:
    asked, questions = answers(40, 3, 1.0)
    with pytest.raises(RunError, match="1 different questions were answered, 2 folds need one each"):
        calibrate(ConfidenceSettings(), asked, ["the same?"] * 40, 0)
    assert calibrate(ConfidenceSettings(), asked, questions, 0)["items"] == 40


def example(question: str, answer: str) -> Example:
    return Example("q", "math", question, answer, None)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("Paris", True),
        (" paris. ", True),
        ("<thinking>Rome?</thinking><answer>Paris</answer>", True),
        ("<answer>Paris", True),
        ("Rome", False),
        ("<thinking>Paris</thinking><answer>Rome</answer>", False),
    ],
)
def test_an_answer_without_a_check_must_be_the_datas_own(said: str, right: bool) -> None:
    assert solve("What is the capital of France?") is None
    assert is_right(example("What is the capital of France?", "Paris"), said) is right


def write(folder: Path, rows: list[Mapping[str, str]]) -> Path:
    path = folder / "training.jsonl"
    path.write_text("".join(json.dumps({"domain": "math", **row}) + "\n" for row in rows))
    return path


def test_long_answers_are_left_out_and_too_few_are_an_error(tmp_path: Path) -> None:
    short = [{"question_id": f"s{k}", "question": f"Who is {k}?", "answer": "me"} for k in range(30)]
    long = [{"question_id": f"l{k}", "question": f"Why {k}?", "answer": "so " * 9} for k in range(5)]
    found, unchecked = checkable(write(tmp_path, [*short, *long]), ALL)
    assert (len(found), unchecked) == (30, 5)
    assert len(checkable(write(tmp_path, short), ALL.model_copy(update={"items": 21}))[0]) == 21
    with pytest.raises(RunError, match=r"training.jsonl: 7 held-out questions .* 20 are needed for 2 folds"):
        checkable(write(tmp_path, [*short[:7], *long]), ALL)


@pytest.mark.parametrize("bad", [{"folds": 1}, {"bins": 1}, {"alpha": 0.5}, {"items": 1}, {"method": "x"}])
def test_settings_are_strict(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ConfidenceSettings.model_validate(bad)
