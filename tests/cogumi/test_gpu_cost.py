"""GPU hours and their cost in ``cogumi status``: of all attempts, not of another run, unknown as unknown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cogumi.gpu_cost import UNKNOWN
from cogumi.profile import GateStep, MeasureStep, Step, parse_profile
from cogumi.runner import Runner, RunOptions
from cogumi.stage import Progress, Settings, Stage, StageContext, StageResult
from cogumi.store import Artifact
from cogumi.workspace import Workspace

GPU = {"name": "H100 SXM", "usd_per_hour": 2.0, "source": "test"}
STEPS = [
    {"id": "data", "uses": "generation.merge"},
    {"id": "base", "plan": "1.6", "uses": "training.sft"},
    {"id": "draft", "plan": "1.7", "uses": "training.sft"},
]


def made(folder: Path, gpu: dict[str, Any] | None) -> None:
    ledger = Workspace(folder).ledger
    document = {"profile": "p", "title": "t", "steps": STEPS, "gpu": gpu}
    ledger.start_run("r", "p", document, ())
    rows: list[tuple[str, int, str, dict[str, float]]] = [
        ("data", 1, "", {"seconds": 5.0}),
        ("base", 1, "", {"seconds": 1800.0, "gpus": 2.0}),
        ("base", 2, "", {"seconds": 60.0, "gpus": 2.0, "gpu_hours": 3.0}),
        ("draft", 1, "the same work was done in run other", {"seconds": 3600.0, "gpus": 1.0}),
    ]
    for step, attempt, note, metrics in rows:
        ledger.start_step("r", step, attempt, f"{step}{attempt}", "stage")
        ledger.end_step("r", step, attempt, status="done", artifact="sha256:abc", note=note, metrics=metrics)
    ledger.close()


def test_status_tells_gpu_hours_and_their_cost(cogumi: Any, tmp_path: Path) -> None:
    made(tmp_path / ".cogumi", GPU)
    found = cogumi("status", "--json").json
    assert [(row["step"], row["gpu_hours"], row["gpu_usd"]) for row in found["steps"]] == [
        ("data", None, None),
        ("base", pytest.approx(4.0), pytest.approx(8.0)),
        ("draft", None, None),
    ]
    assert (found["gpu_hours"], found["gpu_usd"]) == (pytest.approx(4.0), pytest.approx(8.0))
    lines = cogumi("status").out.splitlines()
    assert next(line for line in lines if " base " in line).endswith("attempt 2, 4 GPU hours, $8.00")
    assert lines[-1] == "  GPU time: 4 GPU hours, $8.00"


@pytest.mark.parametrize("gpu", [None, {"name": "H100 SXM", "source": "test"}])
def test_an_unknown_price_is_told_as_unknown(cogumi: Any, tmp_path: Path, gpu: dict[str, Any] | None) -> None:
    made(tmp_path / ".cogumi", gpu)
    found = cogumi("status", "--json").json
    assert (found["gpu_hours"], found["gpu_usd"]) == (pytest.approx(4.0), None)
    assert f"4 GPU hours, {UNKNOWN}" in cogumi("status").out


def test_a_run_without_gpus_says_nothing_of_them(cogumi: Any, tmp_path: Path) -> None:
    ledger = Workspace(tmp_path / ".cogumi").ledger
    ledger.start_run("r", "p", {"profile": "p", "title": "t", "steps": STEPS[:1], "gpu": GPU}, ())
    ledger.close()
    assert "GPU" not in cogumi("status").out
    assert cogumi("status", "--json").json["gpu_hours"] is None


class Told:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []
        self.facts: dict[str, Any] = {}

    def step(self, step: Step, attempt: int, state: str, note: str) -> None:
        self.notes.append((state, note))

    def progress(self, step: Step) -> Progress:
        return self

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        self.facts = facts

    def verdict(self, step: GateStep, document: Mapping[str, Any], again: str | None) -> None:
        raise AssertionError("this profile has no gate")


class NoJudge:
    def measure(self, artifact: Artifact, step: MeasureStep) -> Mapping[str, Any]:
        raise AssertionError("nothing is measured")

    def decide(self, step: GateStep, artifact: Artifact, baseline: Artifact | None) -> Mapping[str, Any]:
        raise AssertionError("nothing is decided")


def test_a_run_tells_the_cost_live_and_at_the_end_of_the_step(tmp_path: Path) -> None:
    def run(settings: Settings, context: StageContext) -> StageResult:
        context.progress.update(1, 2, gpu_seconds=900.0)
        (context.out / "model").write_text("weights")
        return StageResult("model", metrics={"seconds": 1.0, "gpus": 1.0, "gpu_hours": 0.25})

    stage = Stage("training.made_up", 1, "train", Settings, run)
    document = {"profile": "p", "title": "t", "gpu": GPU, "steps": [{"id": "base", "uses": stage.name}]}
    told = Told()
    profile = parse_profile(document, "test")
    runner = Runner(Workspace(tmp_path), profile, "r", {stage.name: stage}, NoJudge(), told, dict)
    assert runner.run(RunOptions()).exit_code == 0
    assert told.facts == {"gpu_seconds": 900.0, "gpu_usd": 0.5}
    state, note = told.notes[-1]
    assert state == "done"
    assert note.endswith(", 0.25 GPU hours, $0.5000")
