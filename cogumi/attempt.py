"""One stage at work in a run: begun in the ledger, then its result committed or its failure noted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cogumi.errors import BudgetError
from cogumi.gpu_cost import step_told
from cogumi.ledger import Ledger
from cogumi.profile import GpuPrice, StageStep, Step
from cogumi.stage import Settings, Stage, StageResult
from cogumi.store import Artifact
from cogumi.told import as_told, note_of
from cogumi.watching import Reporter
from cogumi.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Work:
    """What a step would do: everything that its key is the digest of, and which attempt it is."""

    step: StageStep
    stage: Stage[Any]
    settings: Settings
    inputs: Mapping[str, Artifact]
    made_by: Mapping[str, Any]
    key: str
    attempt: int


class Attempt:
    """The doing of one piece of work, from the moment it is told and noted as begun."""

    def __init__(self, work: Work, run: str, workspace: Workspace, reporter: Reporter, gpu: GpuPrice | None):
        self.work = work
        self.over = False
        """True once it is finished or has failed."""
        self._run = run
        self._workspace = workspace
        self._reporter = reporter
        self._gpu = gpu
        self._staging: Path | None = None
        self._start = time.monotonic()

    def begin(self, remark: str) -> None:
        """Note and tell that the work begins, with a remark for people."""
        work = self.work
        self._workspace.ledger.start_step(self._run, work.step.id, work.attempt, work.key, "stage")
        told = f"{work.stage.title} ({remark})" if remark else work.stage.title
        self._reporter.step(work.step, work.attempt, "start", told)
        self._staging = self._workspace.store.new_staging()
        self._start = time.monotonic()

    @property
    def begun(self) -> bool:
        """Tell whether the ledger has it as begun."""
        return self._staging is not None

    def check(self) -> None:
        """Let the stage look at its inputs before its first step."""
        if self.work.stage.check is not None:
            self.work.stage.check(self.work.inputs)

    @property
    def out(self) -> Path:
        """The empty folder that becomes the artifact."""
        assert self._staging is not None
        return self._staging / "payload"

    @property
    def scratch(self) -> Path:
        """The folder that belongs to this work for as long as it is not finished."""
        return self._workspace.scratch(self.work.key)

    def finish(self, result: StageResult) -> Artifact:
        """Make the artifact of what the stage left, and note it."""
        assert self._staging is not None
        work = self.work
        artifact = self._workspace.store.commit(
            self._staging,
            kind=result.kind,
            made_by=work.made_by,
            facts=result.facts,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        seconds = time.monotonic() - self._start
        self._workspace.ledger.end_step(
            self._run,
            work.step.id,
            work.attempt,
            status="done",
            artifact=artifact.digest,
            metrics={"seconds": seconds, **result.metrics},
        )
        # Checkpoints are of no use any more, and large: the artifact stands.
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.over = True
        made = f"{seconds:.1f} s, artifact {artifact.short}{step_told(result.metrics, self._gpu)}"
        self._reporter.step(work.step, work.attempt, "done", made)
        return artifact

    def fail(self, error: BaseException) -> BaseException:
        """Note and tell how the work ended; return the error as the user is told it."""
        self.over = True
        where = self._staging or self._workspace.root
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
        told = as_told(error, where)
        stopped = isinstance(error, BudgetError | KeyboardInterrupt)
        status, note = "stopped" if stopped else "failed", note_of(error, told)
        ended = (self._workspace.ledger, self._reporter, self._run)
        end_quietly(ended, self.work.step, self.work.attempt, status, note)
        self._reporter.step(self.work.step, self.work.attempt, status, note)
        return error if told is None else told


def end_quietly(
    place: tuple[Ledger, Reporter, str], step: Step, attempt: int, status: str, note: str
) -> None:
    """Note in the ledger how a step of a run ended, unless the ledger is what failed (full disk).

    Then the first error is the one to tell.
    """
    ledger, reporter, run = place
    try:
        ledger.end_step(run, step.id, attempt, status=status, note=note)
    except Exception as error:
        reporter.step(step, attempt, "failed", f"the ledger could not note it: {error}")
