"""Who watches a run: its judge, its reporter, and what is seen of a stage at work: time, money, replays."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cogumi.errors import BudgetError
from cogumi.gpu_cost import gpu_usd
from cogumi.ledger import LedgerCalls
from cogumi.profile import GateStep, GpuPrice, MeasureStep, Step
from cogumi.stage import CallRecord, OpenBatch, Progress
from cogumi.store import Artifact
from cogumi.units import money


class Judge(Protocol):
    """What measures and decides; the runner knows neither suites nor statistics."""

    def measure(self, artifact: Artifact, step: MeasureStep) -> Mapping[str, Any]:
        """Measure an artifact on the step's suite and return a summary for the ledger."""
        ...

    def decide(self, step: GateStep, artifact: Artifact, baseline: Artifact | None) -> Mapping[str, Any]:
        """Return the gate's verdict document (the JSON of the contract)."""
        ...


class Reporter(Protocol):
    """Who is told how the run goes."""

    def step(self, step: Step, attempt: int, state: str, note: str) -> None:
        """A step changed state: ``start``, ``done``, ``reused``, ``failed``."""
        ...

    def progress(self, step: Step) -> Progress:
        """Return the progress of a stage that is about to run."""
        ...

    def verdict(self, step: GateStep, document: Mapping[str, Any], again: str | None) -> None:
        """A gate was decided; ``again`` says which stage is tried again, if one is."""
        ...


class WatchedCalls(LedgerCalls):
    """The ledger's memory of paid calls, which also sees when this process begins to ask."""

    asking = False
    """False while all that was wanted stood in the ledger: a resumed stage first walks through that."""
    unpriced = 0
    """Answers of this process whose price nobody knows: they are in no sum of dollars."""

    def record(self, records: Sequence[CallRecord]) -> None:
        """Commit the answers, as ``LedgerCalls.record`` does."""
        # Counted first: the limit is told by an error after the commit.
        self.unpriced += sum(record.cost_usd is None for record in records)
        super().record(records)

    def check_budget(self, expected_usd: float) -> None:
        """Check what is about to be asked, as ``LedgerCalls.check_budget`` does."""
        self.asking = True
        super().check_budget(expected_usd)

    def open_batches(self, provider: str) -> list[OpenBatch]:
        """Return the batches under way; to wait for one is work of this process."""
        found = super().open_batches(provider)
        self.asking = self.asking or bool(found)
        return found


class WatchedProgress:
    """A progress that adds what was spent, and ends the run when its time is over."""

    def __init__(
        self,
        inner: Progress,
        deadline: float | None,
        step: str,
        calls: WatchedCalls | None,
        gpu: GpuPrice | None = None,
    ) -> None:
        self._inner = inner
        self._gpu = gpu
        self._deadline = deadline
        self._step = step
        self._calls = calls
        self._done = 0
        self._unit: object = None
        self._replayed = 0

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """Pass the progress on, or raise ``BudgetError`` when the run's time limit has passed.

        A stage that asks teachers also tells ``spent`` and ``replayed``, the units that the ledger had; one
        that tells its ``gpu_seconds`` also tells ``gpu_usd``, where the profile has a price.
        """
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise BudgetError(f"time limit reached in {self._step} at {done} of {total}; run again to go on")
        if "gpu_seconds" in facts:
            cost = gpu_usd(float(facts["gpu_seconds"]) / 3600, self._gpu)
            if cost is not None:
                facts["gpu_usd"] = cost
        if self._calls is None:
            self._inner.update(done, total, **facts)
            return
        self._count(done, facts.get("unit"), self._calls.asking)
        told: dict[str, float | int | str] = {"replayed": self._replayed}
        told["spent"] = money(*self._calls.spent_usd())
        if self._calls.unpriced:
            told["answers_of_unknown_price"] = self._calls.unpriced
        self._inner.update(done, total, **{**told, **facts})

    def _count(self, done: int, unit: object, asking: bool) -> None:
        if not asking:
            self._replayed = done
        elif unit != self._unit or done < self._done:
            self._replayed = 0
        self._done, self._unit = done, unit
