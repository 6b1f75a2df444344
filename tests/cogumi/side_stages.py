"""Stages of a few lines that can meet each other, for test_parallel_steps: importable by other processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogumi.errors import InfeasibleError
from cogumi.profile import GateStep, MeasureStep, Profile, Step, parse_profile
from cogumi.runner import Outcome, Runner, RunOptions
from cogumi.stage import Progress, Settings, Stage, StageContext, StageResult
from cogumi.store import Artifact
from cogumi.workspace import Workspace

STEPS = 5


class SideSettings(Settings):
    text: str
    wait_for: str = ""
    """Text of a stage that must be seen at work while this one is."""


def side(settings: SideSettings, context: StageContext) -> StageResult:
    """Count to 5, keeping count in scratch; what is to go wrong is told by files in the folder of data."""
    assert context.data is not None
    place = context.data
    (place / f"{settings.text}.pid").write_text(str(os.getpid()))
    count = context.scratch / "count"
    met = _meet(place, settings)
    begun = int(count.read_text()) if count.exists() else 0
    for number in range(begun, STEPS):
        count.write_text(str(number + 1))
        context.progress.update(number + 1, STEPS, loss=1.0 / (number + 1))
        time.sleep(0.02)
        if (place / f"{settings.text}.breaks").exists():
            raise InfeasibleError(f"{settings.text} cannot be met")
        if (place / f"{settings.text}.dies").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        while (place / f"{settings.text}.waits").exists():
            context.progress.update(number + 1, STEPS)
            time.sleep(0.05)
    (context.out / "text").write_text(settings.text)
    return StageResult("model", {"text": settings.text}, {"met": met, "begun": begun, "pid": os.getpid()})


def _meet(place: Path, settings: SideSettings) -> bool:
    (place / f"{settings.text}.here").touch()
    end = time.monotonic() + 20
    while settings.wait_for and not (place / f"{settings.wait_for}.here").exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return bool(settings.wait_for)


def first(settings: SideSettings, context: StageContext) -> StageResult:
    (context.out / "text").write_text(settings.text)
    return StageResult("dataset", {"text": settings.text})


STAGES: dict[str, Stage[Any]] = {
    "side.first": Stage("side.first", 1, "first", SideSettings, first),
    "side.train": Stage("side.train", 1, "train", SideSettings, side, inputs=("data",)),
    "side.heal": Stage("side.heal", 1, "heal", SideSettings, side, inputs=("data",), optional_inputs=("of",)),
    "side.asks": Stage("side.asks", 1, "ask", SideSettings, side, inputs=("data",), teachers=("text",)),
}


class AlwaysPass:
    def measure(self, artifact: Artifact, step: MeasureStep) -> Mapping[str, Any]:
        return {"note": ""}

    def decide(self, step: GateStep, artifact: Artifact, baseline: Artifact | None) -> Mapping[str, Any]:
        verdict = "PASS" if artifact.facts["text"].endswith("!") else "FAIL"
        attempt = 2 if verdict == "PASS" else 1
        document = {"gate": step.gate, "artifact": artifact.digest, "verdict": verdict, "attempt": attempt}
        return {**document, "criteria": []}


class Told:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str, str]] = []
        self.facts: list[tuple[str, dict[str, Any]]] = []

    def step(self, step: Step, attempt: int, state: str, note: str) -> None:
        self.steps.append((step.id, state, note))

    def progress(self, step: Step) -> Progress:
        told = self

        class Line:
            def update(self, done: int, total: int, **facts: float | int | str) -> None:
                told.facts.append((step.id, facts))

        return Line()

    def verdict(self, step: GateStep, document: Mapping[str, Any], again: str | None) -> None:
        pass


def profile(meet: bool = True, **draft: Any) -> Profile:
    steps = [
        {"id": "data", "uses": "side.first", "settings": {"text": "data"}},
        {
            "id": "base",
            "uses": "side.train",
            "inputs": {"data": "data"},
            "settings": {"text": "base", "wait_for": "draft" if meet else ""},
            "attempts": [{}, {"text": "base!", "wait_for": ""}],
        },
        {
            "id": "draft",
            "uses": "side.train",
            "inputs": {"data": "data"},
            "settings": {"text": "draft", "wait_for": "base" if meet else ""},
            "beside": "base",
            **draft,
        },
        {"id": "gate", "gate": "phase1", "artifact": "base", "retry": "base"},
    ]
    return parse_profile({"profile": "p", "title": "t", "steps": steps}, "test")


def go(root: Path, chosen: Profile, **options: Any) -> tuple[Outcome, Told, Workspace]:
    """Run the profile in ``root/ws``; the stages meet in ``root/data``."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    told, workspace = Told(), Workspace(root / "ws")
    runner = Runner(workspace, chosen, "r", STAGES, AlwaysPass(), told, dict)
    return runner.run(RunOptions(data=root / "data", **options)), told, workspace
