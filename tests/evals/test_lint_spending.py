"""The check before a run spends: what it stops, what it lets through, and what it never asks the hub for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cogumi.errors import RunError
from cogumi.hub import NotHereError, hub_reachable, local_only
from cogumi.stage import Settings, Stage, StageResult
from evals.lint.spending import check_benchmarks, check_training, checked_stage
from evals.tasks import get_task
from evals.types import Item, Task

PLAN_ROW = {
    "question_id": "math_easy_0001",
    "domain": "math",
    "difficulty": "easy",
    "question": "What is the sum of the first ten odd numbers that are not prime?",
    "answer": "It is 274.",
    "reasoning": None,
}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def spoilt(data: Path, folder: Path, name: str, changed: Sequence[str]) -> Path:
    """Return a data folder with a benchmark's file replaced."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(changed) + "\n", encoding="utf-8")
    return folder


def check(data: Path | None, *names: str, told: list[str] | None = None) -> Any:
    def items(task: Task) -> Sequence[Item]:
        return task.items(data)

    remarks = told if told is not None else []
    return check_benchmarks([get_task(name) for name in names], items, remarks.append)


def test_real_benchmarks_pass_and_their_items_are_known(data_folder: Path) -> None:
    remarks: list[str] = []
    index = check(data_folder, "ifeval", "bfcl_simple", "bfcl_multiple", told=remarks)
    assert remarks == []
    # Of the 600 questions of BFCL's two categories 100 are asked again, about other functions.
    assert len(index) == 541 + 500


def test_what_is_not_here_is_skipped_and_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("socket.create_connection", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    assert len(check(tmp_path, "ifeval", "bfcl_simple")) == 0
    assert len(check(None, "ifeval")) == 0
    with local_only(), pytest.raises(NotHereError):
        hub_reachable()


def test_a_benchmark_that_repeats_its_rows_stops_the_run(data_folder: Path, tmp_path: Path) -> None:
    name = "ifeval/prompts.jsonl"
    rows = lines(data_folder / name)
    renamed = [json.dumps({**json.loads(row), "key": 9000 + n}) for n, row in enumerate(rows[:20])]
    message = r"prompts\.jsonl, line 542: duplicate: asks the same as line 1, and 19 more"
    with pytest.raises(RunError, match=message):
        check(spoilt(data_folder, tmp_path / "many", name, [*rows, *renamed]), "ifeval")
    # Published benchmarks repeat a question or two: that is told, and measured as they are.
    remarks: list[str] = []
    check(spoilt(data_folder, tmp_path / "one", name, [*rows, renamed[3]]), "ifeval", told=remarks)
    assert remarks == ["  benchmarks: 1 duplicate (`cogumi data lint` tells where); the run goes on"]


def test_a_row_that_is_there_twice_with_its_id_stops_the_run(data_folder: Path, tmp_path: Path) -> None:
    name = "ifeval/prompts.jsonl"
    rows = lines(data_folder / name)
    folder = spoilt(data_folder, tmp_path, name, [*rows, rows[7]])
    with pytest.raises(RunError, match=r"line 542: duplicate: asks the same as line 8 under the same id"):
        check(folder, "ifeval")


def test_a_broken_row_stops_the_run(data_folder: Path, tmp_path: Path) -> None:
    name = "ifeval/prompts.jsonl"
    rows = lines(data_folder / name)
    rows[4] = rows[4][:-9]
    with pytest.raises(RunError, match=r"prompts\.jsonl, line 5"):
        check(spoilt(data_folder, tmp_path, name, rows), "ifeval")


def test_one_benchmark_under_two_names_stops_the_run(data_folder: Path, tmp_path: Path) -> None:
    rows = lines(data_folder / "bfcl" / "BFCL_v4_simple_python.json")
    accepted = lines(data_folder / "bfcl" / "possible_answer_simple_python.json")
    folder = spoilt(data_folder, tmp_path, "bfcl/BFCL_v4_simple_python.json", rows)
    spoilt(data_folder, folder, "bfcl/possible_answer_simple_python.json", accepted)
    spoilt(data_folder, folder, "bfcl/BFCL_v4_multiple.json", rows)
    spoilt(data_folder, folder, "bfcl/possible_answer_multiple.json", accepted)
    with pytest.raises(RunError, match="under another's name"):
        check(folder, "bfcl_simple", "bfcl_multiple")


def test_training_rows_that_are_clean_pass(tmp_path: Path, data_folder: Path) -> None:
    path = tmp_path / "training.jsonl"
    path.write_text(json.dumps(PLAN_ROW) + "\n")
    check_training(path, check(data_folder, "ifeval", "micro/math"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"finish_reason": "length"}, "truncated: finish_reason is 'length'"),
        ({"answer": "<answer>It is"}, "truncated"),
        ({"answer": ""}, "empty_field"),
        ({"domain": "coding"}, "label"),
        ({"question_id": "math_easy_0002"}, "duplicate"),
    ],
)
def test_training_rows_that_are_broken_stop_it(tmp_path: Path, fault: dict[str, Any], message: str) -> None:
    path = tmp_path / "training.jsonl"
    other = PLAN_ROW if "question_id" in fault else {**PLAN_ROW, "question": "How high is Mont Blanc?"}
    path.write_text(json.dumps(other) + "\n" + json.dumps({**PLAN_ROW, **fault}) + "\n")
    with pytest.raises(RunError, match=rf"training data: .*training\.jsonl, line 2: {message}"):
        check_training(path, check(None))


def test_training_rows_that_hold_benchmark_items_stop_it(tmp_path: Path, data_folder: Path) -> None:
    prompt = json.loads(lines(data_folder / "ifeval" / "prompts.jsonl")[9])["prompt"]
    path = tmp_path / "training.jsonl"
    path.write_text(json.dumps({**PLAN_ROW, "question": f"Please do this: {prompt}"}) + "\n")
    check_training(path, check(None))
    with pytest.raises(RunError, match=r"line 1: leak: .*prompts\.jsonl:10"):
        check_training(path, check(data_folder, "ifeval"))


def test_of_generated_questions_only_the_measured_ones_are_leaks(tmp_path: Path) -> None:
    items = get_task("micro/math").items(None)
    path = tmp_path / "training.jsonl"
    path.write_text(json.dumps({**PLAN_ROW, "question": items[5].prompt}) + "\n")
    with pytest.raises(RunError, match=rf"leak: the question is that of micro/math, item {items[5].id}"):
        check_training(path, check(None, "micro/math"))
    check_training(path, check(None, "micro/reading"))


def test_a_stage_checks_its_data_before_its_first_step() -> None:
    ran: list[str] = []

    def run(config: Settings, context: Any) -> StageResult:
        ran.append(context.inputs["data"])
        return StageResult("model")

    def refuse(data: Any) -> None:
        raise RunError(f"{data} is spoilt")

    stage = Stage("training.test", 1, "test", Settings, run, inputs=("model", "data"))
    inputs: Any = {"data": "the file"}
    refusing = checked_stage(stage, refuse).check
    assert refusing is not None
    with pytest.raises(RunError, match="the file is spoilt"):
        refusing(inputs)
    assert checked_stage(stage, refuse).run is run
    other = Stage("compression.test", 1, "test", Settings, run, inputs=("model",))
    assert checked_stage(other, refuse) is other
