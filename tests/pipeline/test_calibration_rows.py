"""Calibration rows: deterministic, in the chat template, never held out, and said to be too short."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from micro_stages import artifact, run_stage

from cogumi.errors import RunError
from cogumi.store import Artifact
from pipeline.compression.calibration_rows import HELD_OUT_SHARE, calibration_rows
from pipeline.training.data import is_held_out, read_examples, training_file
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Artifact) -> Path:
    settings = MicroModelSettings(hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=32)
    return run_stage(MICRO_MODEL, settings, tmp_path_factory.mktemp("model"), {"data": data})[1].path


def test_rows_are_whole_chats_in_an_order_of_the_seed(data: Artifact, model: Path) -> None:
    from transformers import AutoTokenizer

    rows = calibration_rows(data, model, samples=8, max_length=256, seed=1)
    assert rows == calibration_rows(data, model, samples=8, max_length=256, seed=1)
    assert rows != calibration_rows(data, model, samples=8, max_length=256, seed=2)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for text in map(tokenizer.decode, rows):
        assert text.startswith("<|begin_of_text|><|user|>")
        assert "<|assistant|>" in text
        assert text.endswith("<|eot_id|>")


def test_no_row_is_held_out(data: Artifact, model: Path) -> None:
    from transformers import AutoTokenizer

    examples = read_examples(training_file(data))
    held = {row.question for row in examples if is_held_out(row.question_id, HELD_OUT_SHARE)}
    kept = {row.question for row in examples if not is_held_out(row.question_id, HELD_OUT_SHARE)}
    assert held
    trained = len([row for row in examples if not is_held_out(row.question_id, HELD_OUT_SHARE)])
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = calibration_rows(data, model, samples=trained, max_length=256, seed=3)
    asked = {tokenizer.decode(row).split("<|user|>")[1].split("<|assistant|>")[0] for row in rows}
    assert asked == kept


def test_long_rows_are_cut(data: Artifact, model: Path, tmp_path: Path) -> None:
    whole = calibration_rows(data, model, samples=4, max_length=256, seed=1)
    assert calibration_rows(data, model, samples=4, max_length=5, seed=1) == [row[:5] for row in whole]
    shutil.copytree(model, tmp_path / "m")
    config = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 6}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    short = calibration_rows(data, tmp_path / "m", samples=4, max_length=99, seed=1)
    assert short == [row[:6] for row in whole]


def test_too_few_rows_or_tokens_are_told_with_numbers(data: Artifact, model: Path) -> None:
    with pytest.raises(RunError, match=r"calibration data too short: \d+ rows .* 4000 asked for"):
        calibration_rows(data, model, samples=4000, max_length=64, seed=1)
    with pytest.raises(
        RunError, match=r"calibration data too short: 15 tokens in 3 rows, at least 16 wanted"
    ):
        calibration_rows(data, model, samples=3, max_length=5, seed=1, min_tokens=16)


def test_a_folder_without_tokenizer_is_named(data: Artifact, model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    with pytest.raises(RunError, match=f"{tmp_path}: its tokenizer or configuration cannot be read"):
        calibration_rows(data, tmp_path, samples=1, max_length=8, seed=1)


def test_a_broken_row_is_named_by_its_line(model: Path, tmp_path: Path) -> None:
    good = {"question_id": "a", "domain": "x", "question": "q", "answer": "b"}
    (tmp_path / "training.jsonl").write_text(json.dumps(good) + "\n{}\n")
    with pytest.raises(RunError, match=r"training\.jsonl:2: 'question_id'"):
        calibration_rows(artifact(tmp_path, "dataset"), model, samples=1, max_length=8, seed=1)
