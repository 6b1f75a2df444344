"""Which rows are chosen: against each row read alone, and never one that is held out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from micro_stages import artifact, run_stage
from recovery_inputs import make_data, make_model, prune

from cogumi.errors import RunError
from cogumi.store import Artifact
from pipeline.compression.hardest import HARDEST, HELD_OUT, OUTPUT, HardestSettings, choose
from pipeline.training.data import is_held_out, read_examples, training_file

SETTINGS = HardestSettings(k=12, replay=0.25, held_out_share=0.2, batch_tokens=300)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("hardest")
    data = make_data(folder / "data")
    model = make_model(folder / "model", data)
    return {"model": model, "compressed": prune(model, folder / "pruned"), "data": data}


@pytest.fixture(scope="module")
def chosen(inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Artifact]:
    return run_stage(HARDEST, SETTINGS, tmp_path_factory.mktemp("hardest") / "chosen", inputs)


def alone(inputs: dict[str, Artifact]) -> dict[str, float]:
    """Return each training row's KL per answer token, row by row through the models' own forward pass."""
    import torch

    from evals.backends.loading import load_model
    from pipeline.compression.calibration_rows import chat_encoder

    dense, sparse = (load_model(inputs[name].path).model for name in ("model", "compressed"))
    encoder = chat_encoder(inputs["model"].path)
    found = {}
    for example in read_examples(training_file(inputs["data"])):
        if is_held_out(example.question_id, SETTINGS.held_out_share):
            continue
        row = encoder.encode(example)
        with torch.no_grad():
            p, q = (
                model(input_ids=torch.tensor([row.ids])).logits[0, row.answer_start - 1 : -1].log_softmax(-1)
                for model in (dense, sparse)
            )
        found[example.question_id] = float((p.exp() * (p - q)).sum(-1).mean())
    return found


def test_the_hardest_rows_are_those_of_each_row_read_alone(
    inputs: dict[str, Artifact], chosen: tuple[Any, Artifact]
) -> None:
    scores = alone(inputs)
    order = sorted(scores, key=lambda name: -scores[name])
    written = [each.question_id for each in read_examples(chosen[1].file(OUTPUT))]
    assert set(order[:12]) <= set(written)
    assert len(written) == len(set(written)) == 16
    facts = chosen[0].facts
    assert (facts["rows"], facts["hardest_rows"], facts["replayed_rows"]) == (16, 12, 4)
    assert facts["candidates"] == len(scores)
    assert facts["scores"]["mean"] == pytest.approx(sum(scores.values()) / len(scores), rel=1e-4)
    hardest = sum(scores[name] for name in order[:12]) / 12
    assert facts["hardest_scores"]["mean"] == pytest.approx(hardest, rel=1e-4)


def test_no_held_out_row_is_chosen_and_all_are_taken_along(
    inputs: dict[str, Artifact], chosen: tuple[Any, Artifact]
) -> None:
    everything = [each.question_id for each in read_examples(training_file(inputs["data"]))]
    held_out = [name for name in everything if is_held_out(name, SETTINGS.held_out_share)]
    assert held_out
    assert [each.question_id for each in read_examples(chosen[1].file(HELD_OUT))] == held_out
    assert not set(held_out) & {each.question_id for each in read_examples(training_file(chosen[1]))}
    assert chosen[0].facts["held_out_chosen"] == 0


def test_rows_are_written_as_they_stood(inputs: dict[str, Artifact], chosen: tuple[Any, Artifact]) -> None:
    lines = training_file(inputs["data"]).read_text().splitlines()
    written = chosen[1].file(OUTPUT).read_text().splitlines()
    # In their order, too.
    assert [line for line in lines if line in set(written)] == written


class KilledError(BaseException):
    """Stands for a kill: no handler of the stage may catch it."""


def test_a_killed_run_ends_with_the_same_bytes(
    inputs: dict[str, Artifact], chosen: tuple[Any, Artifact], tmp_path: Path
) -> None:
    class Kills:
        def update(self, done: int, total: int, **facts: float | int | str) -> None:
            if done > total / 2:
                raise KilledError

    folder = tmp_path / "again"
    with pytest.raises(KilledError):
        run_stage(HARDEST, SETTINGS, folder, inputs, progress=Kills())
    kept = len((folder / "scratch" / "rows.jsonl").read_text().splitlines())
    assert kept > 1
    (folder / "out").rmdir()
    result, made = run_stage(HARDEST, SETTINGS, folder, inputs)
    assert made.digest == chosen[1].digest
    assert result.facts == chosen[0].facts


def test_the_rise_of_the_loss_is_another_order(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"score": "loss", "replay": 0.0, "candidates": 40})
    result, _ = run_stage(HARDEST, settings, tmp_path / "loss", inputs)
    facts = result.facts
    assert (facts["rows"], facts["replayed_rows"], facts["candidates"]) == (12, 0, 40)
    # Random answers rise and fall; a divergence could not be below zero.
    assert facts["scores"]["p10"] < 0 < facts["hardest_scores"]["mean"]


@given(
    scores=st.lists(st.floats(-10, 10), min_size=1, max_size=60),
    k=st.integers(1, 70),
    replay=st.floats(0, 0.9),
)
def test_choice_is_disjoint_and_takes_the_largest(scores: list[float], k: int, replay: float) -> None:
    hardest, replayed = choose(scores, k, replay, random.Random(0))
    rest = set(range(len(scores))) - set(hardest)
    assert len(hardest) == min(k, len(scores))
    assert set(replayed) <= rest
    assert len(set(replayed)) == len(replayed)
    assert len(replayed) == min(len(rest), round(len(hardest) * replay / (1 - replay)))
    if rest:
        assert min(scores[index] for index in hardest) >= max(scores[index] for index in rest)


# Bad input ----------------------------------------------------------------------------------------


def test_no_row_that_is_short_enough_is_one_line(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_length": 3})
    with pytest.raises(RunError, match=r"no rows left to choose from: \d+ are held out, \d+ longer than 3"):
        run_stage(HARDEST, settings, tmp_path / "short", inputs)


def test_a_model_with_another_tokenizer_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", inputs["data"], vocab_size=350)
    with pytest.raises(RunError, match="its tokenizer is not that of the model"):
        run_stage(HARDEST, SETTINGS, tmp_path / "apart", {**inputs, "compressed": other})


def test_a_broken_model_is_told(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(inputs["compressed"].path, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match="not finite") as told:
        run_stage(HARDEST, SETTINGS, tmp_path / "nan", {**inputs, "compressed": artifact(folder, "model")})
    assert "\n" not in str(told.value)


def test_a_broken_row_is_named_with_its_line(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = training_file(inputs["data"]).read_text().splitlines()
    rows[4] = json.dumps({**json.loads(rows[4]), "answer": ""})
    (folder / "training.jsonl").write_text("\n".join(rows))
    with pytest.raises(RunError, match=r"training\.jsonl:5: 'answer'"):
        run_stage(HARDEST, SETTINGS, tmp_path / "bad", {**inputs, "data": artifact(folder, "dataset")})
