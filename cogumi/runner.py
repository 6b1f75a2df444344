"""The runner: walks the steps of a profile, resumes after a kill, tries harder while a gate says no.

The walk is a replay. Every step has a key, the digest of what it would do; a step whose key is finished in
the ledger is not done again. So a resumed run starts at the first step, passes what is finished in
milliseconds, meets the same verdicts, and goes on where the last process died.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cogumi.attempt import Attempt, Work, end_quietly
from cogumi.beside import do_beside, wanted_beside, why_not_beside
from cogumi.digest import digest_of
from cogumi.errors import BudgetError, CogumiError, UsageError, nearest
from cogumi.ledger import StepRow
from cogumi.profile import GateStep, MeasureStep, Profile, StageStep, Step
from cogumi.stage import Settings, Stage, StageContext, TeacherConfig
from cogumi.steps import check_stages, feeding, named_in, settings_of, step_named
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
    """A step's id, a stage's name or family, or a number of the plan: the last such step and the first."""
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
    told: list[str] = field(default_factory=list)
    """What gates said that did not stop the run all the same."""


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
        options = replace(
            options,
            until=None if options.until is None else step_named(self.profile, options.until, last=True),
            start=None if options.start is None else step_named(self.profile, options.start, last=False),
            only=tuple(step_named(self.profile, name, last=True) for name in options.only),
        )
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
        self._refuse_another_profile()
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

    def _refuse_another_profile(self) -> None:
        """Raise where the run has a profile of another name: its verdicts would stand under ours."""
        row = self.ledger.run(self.name)
        if row is not None and row["profile_name"] != self.profile.profile:
            raise UsageError(
                f"run {self.name} has the profile {row['profile_name']}, not {self.profile.profile}; "
                "give this one a name of its own: --run NAME"
            )

    def made(self, only: Sequence[str]) -> dict[str, Artifact]:
        """Return those of these stages that this run has finished, by name.

        Raises ``UnfinishedError`` when a stage that they are made from has not finished.
        """
        artifacts = self._made_so_far(only).artifacts
        return {name: artifacts[name] for name in only if name in artifacts}

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
                retry = self._retry_index(step, document, walk)
                self.reporter.verdict(step, document, steps[retry].id if retry is not None else None)
                if retry is not None:
                    index = retry
                    continue
                if document.get("only_simulated_raters"):
                    # Of a rehearsal's people, who cannot decide anything: told, not counted.
                    walk.told.append(f"gate {step.gate} is UNDECIDED, as its raters are simulated")
                elif verdict is not Verdict.PASS:
                    note = f"gate {step.gate} says {verdict} on attempt {document['attempt']}"
                    return Outcome(verdict.exit_code, "stopped", note)
            if step.id == options.until:
                return Outcome(0, "done", "; ".join([f"ended after {step.id}, as asked", *walk.told]))
            index += 1
        return Outcome(0, "done", "; ".join(["every step ran and no gate stopped it", *walk.told]))

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

    def _retry_index(self, step: GateStep, document: Mapping[str, Any], walk: _Walk) -> int | None:
        """Return the stage to try harder, if one can: simulated raters never decide, whatever it makes."""
        if document["verdict"] not in _AGAIN or document.get("only_simulated_raters") or step.retry is None:
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
        work = self._work(step, walk, options)
        known = self._known(work)
        if known is not None and known.artifact is not None:
            artifact = self.workspace.store.get(known.artifact)
            self._note_reused(work, known)
        else:
            others, why = self._beside(work, walk, options)
            artifact = self._execute([work, *others], why, options, deadline)
        self._publish(step, artifact)
        return artifact

    def _work(self, step: StageStep, walk: _Walk, options: RunOptions) -> Work:
        stage = self.stages[step.uses]
        settings = settings_of(step, stage, walk.attempt.get(step.id, 1))
        if options.mode is not None and "mode" in stage.settings.model_fields:
            settings = settings.model_copy(update={"mode": options.mode})
        inputs = {name: walk.artifacts[source] for name, source in sorted(step.inputs.items())}
        made_by = self._made_by(stage, settings, inputs)
        key = digest_of(made_by)
        return Work(step, stage, settings, inputs, made_by, key, self._row(walk, step, key))

    def _known(self, work: Work) -> StepRow | None:
        known = self.ledger.finished(work.key)
        return known if known and known.artifact and self.workspace.store.has(known.artifact) else None

    def _beside(self, work: Work, walk: _Walk, options: RunOptions) -> tuple[list[Work], str]:
        """Return what is to be done beside this work, or why what the profile wants there is not."""
        steps = [] if options.only else wanted_beside(self.profile, work.step, options.until)
        steps = [step for step in steps if step.id not in walk.artifacts]
        why = why_not_beside(steps, walk.artifacts) if steps else ""
        others = [] if why else [self._work(step, walk, options) for step in steps]
        return [other for other in others if self._known(other) is None], why

    def _publish(self, step: StageStep, artifact: Artifact) -> None:
        for file, target in step.files.items():
            self.workspace.publish(artifact.file(file), target)

    def _note_reused(self, work: Work, known: StepRow) -> None:
        step, attempt = work.step, work.attempt
        mine = {(row.step, row.attempt): row for row in self.ledger.steps(self.name)}
        row = mine.get((step.id, attempt))
        if row is None or row.key != work.key or row.status != "done":
            self.ledger.start_step(self.name, step.id, attempt, work.key, "stage")
            self.ledger.end_step(
                self.name,
                step.id,
                attempt,
                status="done",
                artifact=known.artifact,
                note="" if known.run == self.name else f"the same work was done in run {known.run}",
                metrics=known.metrics,
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
        outside = stage.outside(settings, self.workspace) if stage.outside else None
        return ({"outside": outside} if outside else {}) | {
            "stage": stage.name,
            "version": stage.version,
            "settings": settings.model_dump(mode="json"),
            "inputs": {name: artifact.digest for name, artifact in inputs.items()},
            "teachers": teachers,
            "seed": self.profile.seed,
        }

    def _execute(
        self, works: Sequence[Work], remark: str, options: RunOptions, deadline: float | None
    ) -> Artifact:
        """Do the first piece of work, the others beside it; return its artifact."""
        gpu = self.profile.gpu
        attempts = [Attempt(work, self.name, self.workspace, self.reporter, gpu) for work in works]

        def shown(step: StageStep, asked: WatchedCalls | None = None) -> WatchedProgress:
            return WatchedProgress(self.reporter.progress(step), deadline, step.id, asked, gpu)

        if len(attempts) > 1:
            return do_beside(attempts, self.workspace, options.data, shown)[0]
        attempt, work = attempts[0], works[0]
        limit = options.max_usd if options.max_usd is not None else self.profile.limits.max_usd
        calls = WatchedCalls(self.ledger, self.name, work.step.id, limit)
        asks = bool(work.stage.teachers)
        try:
            attempt.begin(remark)
            attempt.check()
            context = StageContext(
                inputs=work.inputs,
                out=attempt.out,
                scratch=attempt.scratch,
                seed=self.profile.seed,
                progress=shown(work.step, calls if asks else None),
                calls=calls,
                teachers=self.teachers() if asks else {},
                data=options.data,
            )
            return attempt.finish(work.stage.run(work.settings, context))
        except BaseException as error:
            told = attempt.fail(error)
            if told is error:
                raise
            raise told from error

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
            place = (self.ledger, self.reporter, self.name)
            end_quietly(place, step, attempt, "failed", note_of(error, told))
            if told is None or told is error:
                raise
            raise told from error


def _work(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was to be made, without how its teachers were asked: the answers are the same."""
    settings = {name: value for name, value in made_by["settings"].items() if name != "mode"}
    return {**made_by, "settings": settings}
