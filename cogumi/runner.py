"""The runner: walks the steps of a profile, resumes after a kill, tries harder while a gate says no.

The walk is a replay. Every step has a key, the digest of what it would do; a step whose key is finished in
the ledger is not done again. So a resumed run starts at the first step, passes what is finished in
milliseconds, meets the same verdicts, and goes on where the last process died.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cogumi.digest import digest_of
from cogumi.errors import BudgetError, CogumiError, UsageError, nearest
from cogumi.profile import GateStep, MeasureStep, Profile, StageStep, Step
from cogumi.stage import Settings, Stage, StageContext, TeacherConfig
from cogumi.steps import check_stages, feeding, named_in, settings_of
from cogumi.store import Artifact
from cogumi.told import as_told, note_of
from cogumi.verdict import Verdict
from cogumi.watching import Judge, Reporter, WatchedCalls, WatchedProgress
from cogumi.workspace import Workspace

_AGAIN = (Verdict.FAIL, Verdict.UNDECIDED)
_INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line may ask of a run."""

    until: str | None = None
    start: str | None = None
    only: tuple[str, ...] = ()
    """Stages to run alone, in the profile's order; what they need must be finished in this run."""
    mode: str | None = None
    """How the stages of ``only`` ask, in place of their setting ``mode``."""
    max_usd: float | None = None
    max_minutes: float | None = None
    data: Path | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    exit_code: int
    status: str
    """``done``, ``stopped`` (by a gate or a limit) or ``failed``."""
    note: str


@dataclass
class _Walk:
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    attempt: dict[str, int] = field(default_factory=dict)
    """Which settings each stage with attempts uses now, counted from 1."""
    keys: dict[str, list[str]] = field(default_factory=dict)
    """Distinct keys that each step had in this walk; their place is the attempt shown in the ledger."""


class UnfinishedError(UsageError):
    """A stage was asked for alone, and one that it needs has not finished in this run."""

    def __init__(self, step: StageStep, run: str) -> None:
        super().__init__(f"{step.id} has not finished in run {run} with the settings of this profile")
        self.step = step


class Runner:
    """Runs one profile under one name in one workspace."""

    def __init__(
        self,
        workspace: Workspace,
        profile: Profile,
        name: str,
        stages: Mapping[str, Stage[Any]],
        judge: Judge,
        reporter: Reporter,
        teachers: Callable[[], Mapping[str, TeacherConfig]],
    ) -> None:
        self.workspace = workspace
        self.ledger = workspace.ledger
        self.profile = profile
        self.name = name
        self.stages = stages
        self.judge = judge
        self.reporter = reporter
        self.teachers = teachers
        check_stages(profile, stages)

    def run(self, options: RunOptions, accepted: Sequence[str] = ()) -> Outcome:
        """Walk the steps until the end, a gate, an error or a limit; the ledger always says which.

        Raises ``UnfinishedError`` when stages are asked for alone and lack what they are made from.
        """
        for name in (options.until, options.start, *options.only):
            self._known_step(name)
        with self.workspace.lock(f"run-{self.name}"):
            try:
                return self._run(options, accepted)
            except Exception as error:
                # The ledger itself may be what cannot be written.
                told = as_told(error, self.workspace.root)
                if told is None or told is error:
                    raise
                raise told from error

    def _run(self, options: RunOptions, accepted: Sequence[str]) -> Outcome:
        walk = self._made_so_far(options.only)
        self.workspace.store.sweep()
        if options.only and all(name in walk.artifacts for name in options.only):
            # Nothing is done, so what the ledger says of the run stays as it is.
            return self._alone(walk, options, None)
        if options.only and (row := self.ledger.run(self.name)):
            accepted = row["accepted_infeasible"]
        document = self.profile.model_dump(mode="json")
        self.ledger.start_run(self.name, self.profile.profile, document, accepted)
        try:
            outcome = self._walk(walk, options)
        except CogumiError as error:
            status = "stopped" if isinstance(error, BudgetError) else "failed"
            outcome = Outcome(error.exit_code, status, str(error))
        except KeyboardInterrupt:
            self.ledger.end_run(self.name, "stopped", _INTERRUPTED, "interrupted")
            raise
        self.ledger.end_run(self.name, outcome.status, outcome.exit_code, outcome.note)
        return outcome

    def made(self, only: Sequence[str]) -> dict[str, Artifact]:
        """Return those of these stages that this run has finished, by name.

        Raises ``UnfinishedError`` when a stage that they are made from has not finished.
        """
        artifacts = self._made_so_far(only).artifacts
        return {name: artifacts[name] for name in only if name in artifacts}

    def _known_step(self, name: str | None) -> None:
        known = [step.id for step in self.profile.steps]
        if name is not None and name not in known:
            raise UsageError(f"profile {self.profile.profile} has no step {name!r}{nearest(name, known)}")

    def _walk(self, walk: _Walk, options: RunOptions) -> Outcome:
        steps = self.profile.steps
        minutes = options.max_minutes or self.profile.limits.max_minutes
        deadline = time.monotonic() + 60 * minutes if minutes else None
        if options.only:
            return self._alone(walk, options, deadline)
        index = self._skip_to(options.start, walk) if options.start else 0
        while index < len(steps):
            step = steps[index]
            if deadline is not None and time.monotonic() > deadline:
                raise BudgetError(
                    f"time limit of {minutes:g} minutes reached before {step.id}; run again to go on"
                )
            if isinstance(step, StageStep):
                walk.artifacts[step.id] = self._stage(step, walk, options, deadline)
            elif isinstance(step, MeasureStep):
                self._measure(step, walk)
            else:
                document = self._gate(step, walk)
                verdict = Verdict(document["verdict"])
                retry = self._retry_index(step, verdict, walk)
                self.reporter.verdict(step, document, steps[retry].id if retry is not None else None)
                if retry is not None:
                    index = retry
                    continue
                if verdict is not Verdict.PASS:
                    note = f"gate {step.gate} says {verdict} on attempt {document['attempt']}"
                    return Outcome(verdict.exit_code, "stopped", note)
            if step.id == options.until:
                return Outcome(0, "done", f"ended after {step.id}, as asked")
            index += 1
        return Outcome(0, "done", "every step ran and no gate stopped it")

    def _skip_to(self, start: str, walk: _Walk) -> int:
        """Take the artifacts of all steps before ``start`` from the ledger; return the index of ``start``."""
        latest = self.ledger.latest_done(self.name)
        for index, step in enumerate(self.profile.steps):
            if step.id == start:
                return index
            if isinstance(step, StageStep):
                row = latest.get(step.id)
                if row is None or row.artifact is None or not self.workspace.store.has(row.artifact):
                    raise UsageError(
                        f"--from {start}: the earlier step {step.id} has not finished in this run"
                    )
                walk.artifacts[step.id] = self.workspace.store.get(row.artifact)
        raise UsageError(f"no step {start!r}")

    # Stages alone -----------------------------------------------------------------------------------

    def _alone(self, walk: _Walk, options: RunOptions, deadline: float | None) -> Outcome:
        for step in self.profile.steps:
            if not isinstance(step, StageStep) or step.id not in options.only:
                continue
            if step.id in walk.artifacts:
                self.reporter.step(step, 1, "reused", "finished before")
                self._publish(step, walk.artifacts[step.id])
            else:
                walk.artifacts[step.id] = self._stage(step, walk, options, deadline)
        return Outcome(0, "done", f"ended after {', '.join(options.only)}, as asked")

    def _made_so_far(self, only: Sequence[str]) -> _Walk:
        """Take from the ledger what these stages need, and those of them that are finished already."""
        walk = _Walk()
        for step in feeding(self.profile, only):
            found = None
            if all(source in walk.artifacts for source in step.inputs.values()):
                found = self._made(step, walk)
            if found is not None:
                walk.artifacts[step.id] = found
            elif step.id not in only:
                raise UnfinishedError(step, self.name)
        return walk

    def _made(self, step: StageStep, walk: _Walk) -> Artifact | None:
        """Return what this run made of a step last, if it is what the profile asks for today."""
        stage = self.stages[step.uses]
        inputs = {name: walk.artifacts[source] for name, source in sorted(step.inputs.items())}
        wanted = [
            _work(self._made_by(stage, settings_of(step, stage, attempt), inputs))
            for attempt in range(1, max(1, len(step.attempts)) + 1)
        ]
        for row in reversed(self.ledger.steps(self.name)):
            if row.step == step.id and row.status == "done" and row.artifact:
                if not self.workspace.store.has(row.artifact):
                    continue
                artifact = self.workspace.store.get(row.artifact)
                if _work(artifact.manifest["made_by"]) in wanted:
                    return artifact
        return None

    def _retry_index(self, step: GateStep, verdict: Verdict, walk: _Walk) -> int | None:
        if verdict not in _AGAIN or step.retry is None:
            return None
        for index, candidate in enumerate(self.profile.steps):
            if isinstance(candidate, StageStep) and candidate.id == step.retry:
                used = walk.attempt.get(candidate.id, 1)
                if used >= max(1, len(candidate.attempts)):
                    return None
                walk.attempt[candidate.id] = used + 1
                return index
        return None

    # One step -------------------------------------------------------------------------------------

    def _row(self, walk: _Walk, step: Step, key: str) -> int:
        keys = walk.keys.setdefault(step.id, [])
        if key not in keys:
            keys.append(key)
        return keys.index(key) + 1

    def _stage(self, step: StageStep, walk: _Walk, options: RunOptions, deadline: float | None) -> Artifact:
        stage = self.stages[step.uses]
        settings = settings_of(step, stage, walk.attempt.get(step.id, 1))
        if options.mode is not None and "mode" in stage.settings.model_fields:
            settings = settings.model_copy(update={"mode": options.mode})
        inputs = {name: walk.artifacts[source] for name, source in sorted(step.inputs.items())}
        made_by = self._made_by(stage, settings, inputs)
        key = digest_of(made_by)
        attempt = self._row(walk, step, key)
        known = self.ledger.finished(key)
        if known and known.artifact and self.workspace.store.has(known.artifact):
            artifact = self.workspace.store.get(known.artifact)
            self._note_reused(step, attempt, key, "stage", known.run, artifact.digest, known.metrics)
        else:
            artifact = self._execute(step, stage, settings, inputs, made_by, attempt, options, deadline)
        self._publish(step, artifact)
        return artifact

    def _publish(self, step: StageStep, artifact: Artifact) -> None:
        for file, target in step.files.items():
            self.workspace.publish(artifact.file(file), target)

    def _note_reused(
        self, step: Step, attempt: int, key: str, kind: str, origin: str, artifact: str | None, metrics: Any
    ) -> None:
        mine = {(row.step, row.attempt): row for row in self.ledger.steps(self.name)}
        row = mine.get((step.id, attempt))
        if row is None or row.key != key or row.status != "done":
            self.ledger.start_step(self.name, step.id, attempt, key, kind)
            self.ledger.end_step(
                self.name,
                step.id,
                attempt,
                status="done",
                artifact=artifact,
                note="" if origin == self.name else f"the same work was done in run {origin}",
                metrics=metrics,
            )
        self.reporter.step(step, attempt, "reused", "finished before")

    def _made_by(
        self, stage: Stage[Any], settings: Settings, inputs: Mapping[str, Artifact]
    ) -> dict[str, Any]:
        used = sorted(
            {name for field_name in stage.teachers for name in named_in(getattr(settings, field_name))}
        )
        teachers: dict[str, Any] = {}
        for name in used:
            if name not in self.profile.teachers:
                raise UsageError(
                    f"{stage.name}: no teacher {name!r}{nearest(name, sorted(self.profile.teachers))}"
                )
            teachers[name] = self.profile.teacher_identity(name)
        return {
            "stage": stage.name,
            "version": stage.version,
            "settings": settings.model_dump(mode="json"),
            "inputs": {name: artifact.digest for name, artifact in inputs.items()},
            "teachers": teachers,
            "seed": self.profile.seed,
        }

    def _execute(
        self,
        step: StageStep,
        stage: Stage[Any],
        settings: Settings,
        inputs: Mapping[str, Artifact],
        made_by: Mapping[str, Any],
        attempt: int,
        options: RunOptions,
        deadline: float | None,
    ) -> Artifact:
        key = digest_of(made_by)
        self.ledger.start_step(self.name, step.id, attempt, key, "stage")
        self.reporter.step(step, attempt, "start", stage.title)
        staging = self.workspace.store.new_staging()
        limit = options.max_usd if options.max_usd is not None else self.profile.limits.max_usd
        calls = WatchedCalls(self.ledger, self.name, step.id, limit)
        asked = calls if stage.teachers else None
        start = time.monotonic()
        try:
            context = StageContext(
                inputs=inputs,
                out=staging / "payload",
                scratch=self.workspace.scratch(key),
                seed=self.profile.seed,
                progress=WatchedProgress(self.reporter.progress(step), deadline, step.id, asked),
                calls=calls,
                teachers=self.teachers() if stage.teachers else {},
                data=options.data,
            )
            result = stage.run(settings, context)
            artifact = self.workspace.store.commit(
                staging,
                kind=result.kind,
                made_by=made_by,
                facts=result.facts,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            told = as_told(error, staging)
            stopped = isinstance(error, BudgetError | KeyboardInterrupt)
            status, note = "stopped" if stopped else "failed", note_of(error, told)
            self._end_quietly(step, attempt, status, note)
            self.reporter.step(step, attempt, status, note)
            if told is None or told is error:
                raise
            raise told from error
        seconds = time.monotonic() - start
        self.ledger.end_step(
            self.name,
            step.id,
            attempt,
            status="done",
            artifact=artifact.digest,
            metrics={"seconds": seconds, **result.metrics},
        )
        self.reporter.step(step, attempt, "done", f"{seconds:.1f} s, artifact {artifact.short}")
        return artifact

    def _end_quietly(self, step: Step, attempt: int, status: str, note: str) -> None:
        # The ledger may be what failed (full disk): then the first error is the one to tell.
        try:
            self.ledger.end_step(self.name, step.id, attempt, status=status, note=note)
        except Exception as error:
            self.reporter.step(step, attempt, "failed", f"the ledger could not note it: {error}")

    def _measure(self, step: MeasureStep, walk: _Walk) -> None:
        artifact = walk.artifacts[step.measure]
        key = digest_of({"measure": artifact.digest, "suite": step.suite, "limit": step.limit})
        attempt = self._row(walk, step, key)
        start = time.monotonic()
        self.ledger.start_step(self.name, step.id, attempt, key, "measure")
        self.reporter.step(step, attempt, "start", f"{step.suite} on {step.measure}")
        summary = self._judged(step, attempt, lambda: self.judge.measure(artifact, step))
        metrics = {"seconds": time.monotonic() - start, **summary}
        self.ledger.end_step(
            self.name, step.id, attempt, status="done", artifact=artifact.digest, metrics=metrics
        )
        self.reporter.step(step, attempt, "done", str(summary.get("note", "")))

    def _gate(self, step: GateStep, walk: _Walk) -> Mapping[str, Any]:
        artifact = walk.artifacts[step.artifact]
        baseline = walk.artifacts[step.baseline] if step.baseline else None
        key = digest_of(
            {
                "gate": step.gate,
                "artifact": artifact.digest,
                "baseline": baseline.digest if baseline else None,
            }
        )
        attempt = self._row(walk, step, key)
        start = time.monotonic()
        self.ledger.start_step(self.name, step.id, attempt, key, "gate")
        self.reporter.step(step, attempt, "start", f"gate {step.gate} on {step.artifact}")
        document = self._judged(step, attempt, lambda: self.judge.decide(step, artifact, baseline))
        self.ledger.record_verdict(self.name, document)
        self.ledger.end_step(
            self.name,
            step.id,
            attempt,
            status="done",
            artifact=artifact.digest,
            note=str(document["verdict"]),
            metrics={"seconds": time.monotonic() - start},
        )
        return document

    def _judged(self, step: Step, attempt: int, work: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        try:
            return work()
        except BaseException as error:
            told = as_told(error, self.workspace.root)
            self._end_quietly(step, attempt, "failed", note_of(error, told))
            if told is None or told is error:
                raise
            raise told from error


def _work(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was to be made, without how its teachers were asked: the answers are the same."""
    settings = {name: value for name, value in made_by["settings"].items() if name != "mode"}
    return {**made_by, "settings": settings}
