"""What a run does at this moment, from the traces that it leaves: ledger, checkpoints, journals, evidence.

A stage tells its progress to its own terminal only, so this is as exact as what it has put on the disk.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cogumi.errors import CogumiError
from cogumi.evidence import EvidenceFile, EvidenceKey
from cogumi.ledger import StepRow
from cogumi.profile import GateStep, MeasureStep, Profile, StageStep, Step
from cogumi.steps import merge
from cogumi.workspace import Workspace
from reports.quality import suites_of

# Bounds on what one look reads: a page looks every few seconds.
_MOST_ENTRIES = 2000
_MOST_BYTES = 4 * 2**20
_MOST_TASKS = 64
# Seconds by which a file's time may lag behind the clock: the kernel stamps once a tick (10 ms at 100 Hz).
_CLOCK_SLACK = 0.02


@dataclass(frozen=True, slots=True)
class Running:
    """One step that the ledger has as running; ``done`` and ``total`` are None where no trace says them."""

    step: str
    plan: str
    kind: str
    attempt: int
    seconds: float
    """Since this attempt was begun, or begun again."""
    done: int | None = None
    total: int | None = None
    told: str = ""
    """What is done, in words: ``checkpoint at step 120 of 600, loss 0.31``."""
    silent: float | None = None
    """Seconds since its last trace on the disk; None where it has left none."""


def running_now(
    workspace: Workspace,
    profile: Profile,
    steps: Sequence[StepRow],
    calls: Mapping[str, int],
    planned_calls: Mapping[str, int],
) -> list[Running]:
    """Return the steps that run, those begun first before the others.

    ``calls``: answers in the ledger by step; ``planned_calls``: those that the plan expects.
    """
    plan = {step.id: step for step in profile.steps}
    return [
        _looked_at(workspace, profile, row, plan.get(row.step), steps, (calls, planned_calls))
        for row in steps
        if row.status == "running"
    ]


def _looked_at(
    workspace: Workspace,
    profile: Profile,
    row: StepRow,
    step: Step | None,
    steps: Sequence[StepRow],
    calls: tuple[Mapping[str, int], Mapping[str, int]],
) -> Running:
    base = Running(row.step, step.plan if step else "", row.kind, row.attempt, time.time() - row.started_at)
    try:
        if isinstance(step, StageStep):
            return _stage(workspace, base, row, step, calls)
        if isinstance(step, MeasureStep | GateStep):
            return _measuring(workspace, profile, base, row, step, steps)
    except (OSError, CogumiError):
        # What is looked at may go at this very moment, when the step ends.
        return base
    return base


# Stages -------------------------------------------------------------------------------------------


def _stage(
    workspace: Workspace,
    base: Running,
    row: StepRow,
    step: StageStep,
    calls: tuple[Mapping[str, int], Mapping[str, int]],
) -> Running:
    scratch = workspace.root / "scratch" / row.key.removeprefix("sha256:")
    files = list(_files(scratch))
    latest = max((changed for _, _, changed in files), default=None)
    silent = max(0.0, time.time() - latest) if latest is not None else None
    found = _checkpoint(files, row, step) or _asked(row.step, calls) or _journals(files)
    done, total, told = found or (None, None, "")
    return replace(base, done=done, total=total, told=told, silent=silent)


def _files(folder: Path) -> Iterator[tuple[Path, int, float]]:
    """Yield path, bytes and time of change of the files below a folder, some two thousand at most."""
    seen = 0
    for root, _, names in os.walk(folder):
        for name in names:
            seen += 1
            if seen > _MOST_ENTRIES:
                return
            path = Path(root) / name
            try:
                state = path.stat()
            except OSError:
                continue
            yield path, state.st_size, state.st_mtime


_Found = tuple[int | None, int | None, str]


def _checkpoint(files: Sequence[tuple[Path, int, float]], row: StepRow, step: StageStep) -> _Found | None:
    """Read the counters of the newest checkpoint, without its tensors."""
    states = [
        (changed, path)
        for path, size, changed in files
        if path.name == "state.json" and path.parent.name.startswith("step-") and size <= _MOST_BYTES
    ]
    if not states:
        return None
    try:
        state = json.loads(max(states)[1].read_text(encoding="utf-8"))
        done = int(state["step"])
        loss = state.get("last_loss")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    total = _steps_of(step, row.attempt)
    told = f"checkpoint at step {done:,}" + (f" of {total:,}" if total else "")
    if isinstance(loss, int | float):
        told += f", loss {loss:.3g}"
    return done, total, told


def _steps_of(step: StageStep, attempt: int) -> int | None:
    """Return how many optimizer steps the profile asks for, where it says so in steps."""
    settings = step.settings
    if step.attempts:
        settings = merge(settings, step.attempts[min(attempt, len(step.attempts)) - 1])
    steps = settings.get("steps")
    return steps if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0 else None


def _asked(step: str, calls: tuple[Mapping[str, int], Mapping[str, int]]) -> _Found | None:
    answered, planned = calls[0].get(step, 0), calls[1].get(step)
    if not answered and not planned:
        return None
    expected = f", the plan expects {planned:,}" if planned else ""
    return answered, planned or None, f"{answered:,} answers of teachers in the ledger{expected}"


def _journals(files: Sequence[tuple[Path, int, float]]) -> _Found | None:
    found = [(path, size) for path, size, _ in files if path.suffix == ".jsonl"]
    if not found:
        return None
    if sum(size for _, size in found) > _MOST_BYTES:
        return None, None, f"{sum(size for _, size in found) / 1e6:,.0f} MB of entries kept so far"
    lines = 0
    for path, _ in found:
        try:
            lines += path.read_bytes().count(b"\n")
        except OSError:
            continue
    return lines, None, f"{lines:,} entries kept so far"


# Measuring ----------------------------------------------------------------------------------------


def _measuring(
    workspace: Workspace,
    profile: Profile,
    base: Running,
    row: StepRow,
    step: MeasureStep | GateStep,
    steps: Sequence[StepRow],
) -> Running:
    """Count the items of the measured artifact that were committed since the step began."""
    name = step.measure if isinstance(step, MeasureStep) else step.artifact
    made = [each.artifact for each in steps if each.step == name and each.status == "done" and each.artifact]
    if not made:
        return base
    limit = step.limit if isinstance(step, MeasureStep) else None
    folder = workspace.evidence / str(made[-1]).removeprefix("sha256:")
    done = total = tasks = 0
    latest = 0.0
    for meta in _metas(folder):
        changed = meta.parent.stat().st_mtime
        if changed < row.started_at - _CLOCK_SLACK:
            continue
        about = json.loads(meta.read_text(encoding="utf-8"))
        key = EvidenceKey(about["artifact"], about["task"], about["protocol"])
        of = int(about["n_total"]) if limit is None else min(limit, int(about["n_total"]))
        done += min(EvidenceFile(workspace.evidence, key).count(), of)
        total += of
        tasks += 1
        latest = max(latest, changed)
    if not tasks:
        return base
    suite = step.suite if isinstance(step, MeasureStep) else None
    wanted = next((len(each.tasks) for each in suites_of(profile) if each.name == suite), None)
    silent = max(0.0, time.time() - latest)
    told = f"{done:,} of {total:,} items in {tasks} {'task' if tasks == 1 else 'tasks'}"
    if wanted is not None and tasks < wanted:
        # The items of tasks that have not begun are not known here, so there is no share of the whole.
        return replace(base, told=f"{told} of {wanted}", silent=silent)
    return replace(base, done=done, total=total, told=told, silent=silent)


def _metas(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/meta.json"))[:_MOST_TASKS]
