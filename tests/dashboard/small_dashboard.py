"""A small workspace: real items and evidence, verdicts of the real engine, no model and no training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from cogumi.digest import digest_of, file_sha256
from cogumi.evidence import Record
from cogumi.profile import Profile
from cogumi.store import Artifact
from cogumi.subjects import Subject, of_artifact
from cogumi.workspace import Workspace
from evals.measure import Measurer
from gates.models import tasks_of, teacher_subject
from gates.service import GateService

# pytest's importlib mode leaves test folders off the path.
sys.path.insert(0, str(Path(__file__).parents[1] / "reports"))

from small_run import START, Maker

RUN = "small-1"
"""The run with everything; touched last, so it is the one that is shown first."""
OLDER = "older-1"
"""A run that failed at its first step."""
TASKS = ("micro/math", "micro/reading")
MARKUP = "<script>alert(1)</script> **bold** [link](https://example.test) \u202eabc\x00 $x^2$ :material/home:"
"""A text that no page may take for anything but text; one output of q4 on micro/math holds it."""

_RATES = {"base 1": 0.55, "base 2": 0.97, "q8": 0.95, "q4": 0.9, "reference": 0.96}
_GATES = {"phase1": ("general", "stops"), "phase3": ("size", "retention")}


class SmallRun(Maker):
    """A maker whose evidence is on real items, so that the gates' own service decides on it."""

    def __init__(self, workspace: Workspace, run: str) -> None:
        super().__init__(workspace, run)
        self.measurer = Measurer(workspace, None)

    def answers(self, subject: Subject, rate: float, n: int | None = None) -> None:
        """Record the first ``n`` items (all by default) of each task, a share of ``rate`` of them right."""
        for task in tasks_of(self.profile, "general", self.workspace):
            measurement = self.measurer.measurement(subject, task)
            draw = np.random.Generator(np.random.PCG64(int(digest_of([subject.label, task.name])[7:15], 16)))
            right = draw.random(measurement.n_total) < rate
            records = [
                _record(position, item, bool(right[position]), subject.label)
                for position, item in enumerate(measurement.items.items[: n or measurement.n_total])
            ]
            facts = {"stack": {"backend": subject.backend}, "machine": {"cpu": "test"}}
            measurement.file.append(records, n_total=measurement.n_total, facts=facts)

    def decided(self, step: str, gate: str, artifact: Artifact, attempt: int, **more: Artifact) -> str:
        """Let the engine decide a gate on what is recorded; it and the step go into the ledger."""
        service = GateService(self.measurer, self.profile, self.run)
        baseline = of_artifact(more["baseline"], "base") if more else None
        found = service.verdict(gate, of_artifact(artifact, step), baseline, criteria=_GATES[gate])
        self.step(step, attempt, artifact, kind="gate", note=str(found.verdict))
        self.workspace.ledger.record_verdict(self.run, found.to_json())
        return str(found.verdict)


def _record(position: int, item: Any, right: bool, label: str) -> Record:
    output = str(item.target.get("answer", "right")) if right else f"not so {position}"
    if label == "q4" and position == 3:
        output = MARKUP
    return Record(
        position=position,
        item_id=item.id,
        domain=item.domain,
        score=float(right),
        finish_reason="stop",
        prompt_tokens=20,
        completion_tokens=10,
        seconds=0.02,
        cost_usd=0.0,
        prompt=item.prompt,
        output=output,
        details={},
    )


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Return time of change and digest of every file and folder below."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            file_sha256(path) if path.is_file() else "folder",
        )
        for path in [folder, *folder.rglob("*")]
    }


def profile() -> Profile:
    """Return the small run's profile: two micro tasks, a local teacher for gpt-4, two gates."""
    from small_run import PROFILE

    return Profile.model_validate({**PROFILE, "suites": {"general": list(TASKS)}})


def fill(folder: Path) -> None:
    """Make the workspace: a base that misses its gate and one that meets it, and two files cut from it."""
    workspace = Workspace(folder)
    older = Maker(workspace, OLDER)
    older.step("data", 1, None, status="failed", note="disk full while writing training.jsonl")
    older.end("failed", 5, "data: disk full while writing training.jsonl")
    run = SmallRun(workspace, RUN)
    run.clock = START + 1000
    _play(run)
    workspace.ledger.close()


def _play(run: SmallRun) -> None:
    data = run.artifact("dataset", 1200, rows=12)
    run.step("data", 1, data, seconds=4.0)
    run.calls("data", 0.0012, simulated=True, number=30)
    run.calls("data", 0.02, simulated=False, number=2)
    run.calls("data", None, simulated=False)
    reference = teacher_subject(run.profile, "stand-in")
    run.answers(reference, _RATES["reference"])
    looks = [{"step": 0, "held_out_loss": 6.6}, {"step": 150, "train_loss": 1.5, "held_out_loss": 1.1}]
    inputs = {"data": data.digest}
    facts: dict[str, Any] = {"parameters": 1_240_000, "looks": looks, "inputs": inputs}
    base = data
    for attempt in (1, 2):
        base = run.artifact("model", 300_000 + attempt, **facts, steps=attempt * 300)
        run.step("base", attempt, base, seconds=60.0 * attempt, gpus=1.0, gpu_hours=0.5 * attempt)
        # Only some items of the first: its scores have intervals.
        known = 40 if attempt == 1 else None
        run.answers(of_artifact(base, f"base {attempt}"), _RATES[f"base {attempt}"], known)
        run.decided("phase1", "phase1", base, attempt)
    files = {}
    for step, size, bits in (("q8", 90_000, 8.5), ("q4", 48_000, 4.8)):
        made = {"parameters": 1_240_000, "bits_per_weight": bits, "bytes_resident": size + 9_000}
        files[step] = run.artifact("gguf", size, inputs={"model": base.digest}, **made, bytes_download=size)
        run.step(step, 1, files[step], seconds=1.0)
        run.answers(of_artifact(files[step], step), _RATES[step], 60 if step == "q8" else None)
    verdict = run.decided("phase3", "phase3", files["q4"], 1, baseline=base)
    run.end("stopped", 1, f"gate phase3 says {verdict} on attempt 1")
