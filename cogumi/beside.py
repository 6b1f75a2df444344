"""Stages side by side: each in a process of its own, with accelerators of its own.

The run's process alone writes ledger and store; a stage's process reads its inputs and fills its folder, so a
stage that asks teachers cannot go beside another. When one fails the others go on to their ends, and are not
done again; a limit or an interrupt ends all of them. ``python -m cogumi.beside`` is such a process.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogumi.attempt import Attempt
from cogumi.devices import devices, shared_out
from cogumi.errors import CogumiError
from cogumi.ledger import LedgerCalls
from cogumi.profile import Profile, StageStep
from cogumi.stage import Progress, StageContext, StageResult
from cogumi.store import Artifact
from cogumi.workers import Worker, serve, watch
from cogumi.workspace import Workspace

Shown = Callable[[StageStep], Progress]
"""Gives the progress of a step as it is shown now; asked again whenever another step was told of."""


def wanted_beside(profile: Profile, step: StageStep, until: str | None) -> list[StageStep]:
    """Return the steps that the profile wants beside this one, those after ``until`` left out."""
    found: list[StageStep] = []
    for other in profile.steps:
        if isinstance(other, StageStep) and other.beside == step.id:
            found.append(other)
        if other.id == until:
            break
    return found


def why_not_beside(steps: Sequence[StageStep], made: Mapping[str, Artifact]) -> str:
    """Say why these steps go one after another and not beside the one before; empty where they may.

    Loads torch, which counts the accelerators, once all inputs are there.
    """
    for step in steps:
        for source in step.inputs.values():
            if source not in made:
                return f"{step.id} goes after it: {source} is not made yet"
    count = len(devices())
    if count > len(steps):
        return ""
    names = " and ".join(step.id for step in steps)
    return f"{names} after it: {count} of the {len(steps) + 1} accelerators that side by side takes"


def do_beside(
    attempts: Sequence[Attempt], workspace: Workspace, data: Path | None, shown: Shown
) -> list[Artifact]:
    """Do pieces of work side by side; return their artifacts in the same order.

    Raises the error of the first that failed once all have ended, and what a progress raises at once.
    """
    workers: dict[str, Worker] = {}
    made: dict[str, Artifact] = {}
    errors: dict[str, BaseException] = {}
    names = [attempt.work.step.id for attempt in attempts]
    try:
        for attempt, share in zip(attempts, shared_out(devices(), len(attempts)), strict=True):
            name = attempt.work.step.id
            attempt.begin(f"beside {names[0]}" if name != names[0] else "")
            try:
                workers[name] = _started(attempt, workspace, data, share)
            except CogumiError as error:
                errors[name] = attempt.fail(error)
        board = _Board([attempt.work.step for attempt in attempts], shown)
        for told in watch(list(workers.values())):
            for worker, message in told:
                board.update(worker.name, *message["progress"], **message["facts"])
            for attempt in attempts:
                if attempt.over:
                    continue
                ended = workers[attempt.work.step.id]
                if ended.error is not None:
                    errors[ended.name] = attempt.fail(ended.error)
                elif ended.done:
                    made[ended.name] = _finished(attempt, ended)
                else:
                    continue
                board.left(ended.name)
            if all(attempt.over for attempt in attempts):
                break
    except BaseException as error:
        for worker in workers.values():
            worker.stop()
        failed = [attempt.fail(error) for attempt in attempts if attempt.begun and not attempt.over]
        if failed and failed[0] is not error:
            raise failed[0] from error
        raise
    finally:
        for worker in workers.values():
            worker.stop()
    for name in names:
        if name in errors:
            raise errors[name]
    return [made[name] for name in names]


def _started(attempt: Attempt, workspace: Workspace, data: Path | None, share: dict[str, str]) -> Worker:
    work = attempt.work
    attempt.check()
    task = {
        "run": _name_of(work.stage.run),
        "settings_class": _name_of(work.stage.settings),
        "settings": work.settings.model_dump(mode="json"),
        "inputs": {name: artifact.digest for name, artifact in work.inputs.items()},
        "workspace": str(workspace.root),
        "step": work.step.id,
        "out": str(attempt.out),
        "scratch": str(attempt.scratch),
        "seed": work.made_by["seed"],
        "data": str(data) if data else None,
    }
    log = attempt.scratch / "beside.log"
    return Worker(work.step.id, "cogumi.beside", task, log=log, environment=share)


def _finished(attempt: Attempt, worker: Worker) -> Artifact:
    found = worker.result
    return attempt.finish(StageResult(found["kind"], found["facts"], found["metrics"]))


class _Board:
    """The progress of stages side by side on one line: one's own, with a few words on the others."""

    def __init__(self, steps: Sequence[StageStep], shown: Shown) -> None:
        self._steps = {step.id: step for step in steps}
        self._shown = shown
        self._leads = ""
        self._line: Progress | None = None
        self._last: dict[str, tuple[int, int, dict[str, Any]]] = {}

    def update(self, name: str, done: int, total: int, **facts: float | int | str) -> None:
        """Show what one stage told; raises what the progress of the line raises."""
        self._last[name] = (done, total, facts)
        leads, *others = [step for step in self._steps if step in self._last]
        if self._line is None or leads != self._leads:
            self._leads, self._line = leads, self._shown(self._steps[leads])
        done, total, told = self._last[leads]
        beside = ", ".join(_briefly(other, *self._last[other]) for other in others)
        self._line.update(done, total, **{**told, **({"beside": beside} if beside else {})})

    def left(self, name: str) -> None:
        """Show the others without this one, on a line of their own."""
        del self._steps[name]
        self._last.pop(name, None)
        self._line = None


def _briefly(name: str, done: int, total: int, facts: Mapping[str, Any]) -> str:
    loss = f" loss {facts['loss']:.3g}" if isinstance(facts.get("loss"), float) else ""
    return f"{name} {done:,}/{total:,}{loss}"


def _name_of(found: Any) -> str:
    return f"{found.__module__}:{found.__qualname__}"


def _named(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _do(task: Any, progress: Progress) -> Any:
    """Run one stage as the task says; return its result as JSON."""
    workspace = Workspace(Path(task["workspace"]))
    context = StageContext(
        inputs={name: workspace.store.get(digest) for name, digest in task["inputs"].items()},
        out=Path(task["out"]),
        scratch=Path(task["scratch"]),
        seed=task["seed"],
        progress=progress,
        calls=LedgerCalls(workspace.ledger, "", task["step"], 0.0),
        teachers={},
        data=Path(task["data"]) if task["data"] else None,
    )
    settings = _named(task["settings_class"]).model_validate(task["settings"])
    result: StageResult = _named(task["run"])(settings, context)
    return {"kind": result.kind, "facts": dict(result.facts), "metrics": dict(result.metrics)}


if __name__ == "__main__":
    sys.exit(serve(_do))
