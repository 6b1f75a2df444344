"""Answers into the ledger in groups, and spending under its limit, for all the teachers of one asking.

A commit that survives a power cut takes milliseconds. One for every answer would bound the rate, so answers
that arrive within a short time share one, made beside the event loop. An answer counts, and is handed on,
only after its commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cogumi.errors import BudgetError
from cogumi.stage import CallRecord, Calls

_GATHER_SECONDS = 0.05
"""Answers within this time share a commit; a kill loses no more than these, and none of them has counted."""
_COMMIT_ROWS = 1000
_NOTHING = 1e-9
"""Dollars that a sum of floats may be off."""

OnRecorded = Callable[[], None]
OnStop = Callable[[BaseException], None]


class Recorder:
    """The ledger's side of an asking; use it inside one event loop."""

    def __init__(self, calls: Calls, on_stop: OnStop) -> None:
        self.calls = calls
        self._on_stop = on_stop
        self._reserved_usd = 0.0
        self._released = asyncio.Event()
        self._pending: list[tuple[CallRecord, float, OnRecorded]] = []
        self._task: asyncio.Task[None] | None = None

    async def reserve(self, expected_usd: float) -> None:
        """Hold the expected cost of a call until it is recorded.

        Waits while calls under way hold what it needs, since most end cheaper than expected; raises
        ``BudgetError`` when none is under way and the limit leaves too little.
        """
        if await self.affordable([expected_usd]) == 0:
            self.calls.check_budget(expected_usd)
        self._reserved_usd += expected_usd

    async def affordable(self, expected_usd: Sequence[float]) -> int:
        """Return how many of these calls, from the first on, the limit allows beside those under way.

        Waits while that is none and calls are under way.
        """
        while (count := self._fitting(expected_usd)) == 0 and self._reserved_usd > _NOTHING:
            self._released.clear()
            await self._released.wait()
        return count

    def _fitting(self, expected_usd: Sequence[float]) -> int:
        held = self._reserved_usd
        for count, usd in enumerate(expected_usd):
            held += usd
            try:
                self.calls.check_budget(held)
            except BudgetError:
                return count
        return len(expected_usd)

    def release(self, expected_usd: float) -> None:
        """Give back what was reserved."""
        self._reserved_usd -= expected_usd
        self._released.set()

    def put(self, record: CallRecord, reserved_usd: float, on_recorded: OnRecorded) -> None:
        """Take an answer; its reservation is released and ``on_recorded`` called once it is committed."""
        self._pending.append((record, reserved_usd, on_recorded))
        if self._task is None:
            self._task = asyncio.create_task(self._commit())

    async def record(self, records: Sequence[CallRecord]) -> None:
        """Commit many answers now; raises ``BudgetError`` after the last commit when the limit is reached."""
        spent_up: BudgetError | None = None
        for start in range(0, len(records), _COMMIT_ROWS):
            try:
                await asyncio.to_thread(self.calls.record, records[start : start + _COMMIT_ROWS])
            except BudgetError as error:
                spent_up = error
        if spent_up is not None:
            raise spent_up

    async def drained(self) -> None:
        """Return when everything that was taken is committed, or has failed."""
        while self._task is not None:
            await self._task

    async def _commit(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        while self._pending:
            group, self._pending = self._pending, []
            try:
                await self.record([record for record, _, _ in group])
            except BudgetError as error:
                # Raised after the commit: these answers count, the next ones are not asked.
                self._on_stop(error)
            except BaseException as error:
                # The loop would swallow it here: those who ask are stopped with it and raise it.
                self._task = None
                self._on_stop(error)
                return
            for _, reserved, on_recorded in group:
                self.release(reserved)
                on_recorded()
        self._task = None
