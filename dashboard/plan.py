"""What `cogumi plan` says of a run's profile: asked once per profile, in a process and a folder of its own.

The estimate stands in the pipeline, which no page may import; the command is its door. It runs beside the
page, so a page never waits for it, and away from the workspace, so nothing of it can be written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogumi.verdict import Verdict
from cogumi.workspace import DATABASE_URL_ENV, WORKSPACE_ENV

_MOST_KEPT = 16
_TIMEOUT_S = 120.0
_ANSWERED = (0, Verdict.INFEASIBLE.exit_code)

_LOCK = threading.Lock()
_ASKED: OrderedDict[str, Future[Plan]] = OrderedDict()


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the plan expects of one step; dollars are None where a price is unknown, hours without a GPU."""

    step: str
    calls: int
    usd: float | None
    usd_low: float | None
    usd_high: float | None
    simulated: bool
    gpu_hours: float | None
    gpu_hours_low: float | None
    gpu_hours_high: float | None
    gpu_usd: float | None
    says: str
    """The owner's figure, in his words."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A profile's plan; ``why`` says in one line why there is none."""

    why: str = ""
    steps: Mapping[str, StepPlan] = field(default_factory=dict)
    infeasible: Mapping[str, str] = field(default_factory=dict)
    """``{GATE/CRITERION: the arithmetic}`` of targets that nothing can meet."""

    def usd(self, *, simulated: bool) -> tuple[float | None, float | None, float | None]:
        """Return low, expected and high dollars of all steps; None where there is no such step or price."""
        asked = [step for step in self.steps.values() if step.simulated is simulated and step.calls]
        low = _sum([step.usd_low for step in asked])
        return low, _sum([step.usd for step in asked]), _sum([step.usd_high for step in asked])

    def gpu_hours(self) -> tuple[float | None, float | None, float | None]:
        """Return low, expected and high GPU hours of all steps that have an estimate."""
        found = [step for step in self.steps.values() if step.gpu_hours is not None]
        return (
            _sum([step.gpu_hours_low for step in found]),
            _sum([step.gpu_hours for step in found]),
            _sum([step.gpu_hours_high for step in found]),
        )


def plan_of(profile: Mapping[str, Any], digest: str) -> Future[Plan]:
    """Return the plan of a recorded profile, under way or done; ``digest`` names the profile.

    A profile is asked about once in this process; the last sixteen are kept.
    """
    with _LOCK:
        found = _ASKED.get(digest)
        if found is None:
            found = Future()
            _ASKED[digest] = found
            while len(_ASKED) > _MOST_KEPT:
                _ASKED.popitem(last=False)
            threading.Thread(target=_answer, args=(found, dict(profile)), daemon=True).start()
        else:
            _ASKED.move_to_end(digest)
    return found


def _answer(future: Future[Plan], profile: Mapping[str, Any]) -> None:
    try:
        future.set_result(ask(profile))
    except Exception as error:
        future.set_result(Plan(why=f"cogumi plan did not answer ({type(error).__name__}: {error})"))


def ask(profile: Mapping[str, Any]) -> Plan:
    """Run `cogumi plan` on a profile document and wait; what goes wrong is told in ``Plan.why``."""
    with tempfile.TemporaryDirectory(prefix="cogumi-plan-") as folder:
        file = Path(folder) / "profile.yaml"
        # JSON is YAML.
        file.write_text(json.dumps(profile), encoding="utf-8")
        away = str(Path(folder) / "workspace")
        environment = {name: value for name, value in os.environ.items() if name != DATABASE_URL_ENV}
        # A page causes no traffic: what is not on this machine is left unchecked.
        environment |= {WORKSPACE_ENV: away, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        command = [sys.executable, "-m", "cogumi", "plan", "--json", "--profile", str(file)]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                check=False,
                timeout=_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return Plan(why=f"cogumi plan did not answer in {_TIMEOUT_S:.0f} s")
        if done.returncode not in _ANSWERED:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            told = lines[-1] if lines else f"exit {done.returncode}"
            return Plan(why=told.replace(str(file), "of this run"))
    return read(json.loads(done.stdout))


def read(document: Mapping[str, Any]) -> Plan:
    """Return the plan that `cogumi plan --json` printed."""
    steps = {
        row["step"]: StepPlan(
            step=row["step"],
            calls=row["calls"],
            usd=row["usd"],
            usd_low=row["usd_low"],
            usd_high=row["usd_high"],
            simulated=row["simulated"],
            # The estimate has 0 hours where it knows of no GPU.
            gpu_hours=row["gpu_hours"] or None,
            gpu_hours_low=row["gpu_hours_low"] or None,
            gpu_hours_high=row["gpu_hours_high"] or None,
            gpu_usd=row["gpu_usd"],
            says=row["plan_says"],
        )
        for row in document["steps"]
    }
    return Plan(steps=steps, infeasible=dict(document["infeasible"]))


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
