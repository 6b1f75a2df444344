"""The ledger's memory of paid calls, and the spending limit of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, update

from cogumi.errors import BudgetError
from cogumi.ledger.book import Ledger
from cogumi.ledger.database import writing
from cogumi.ledger.schema import batches, calls
from cogumi.stage import CallRecord, OpenBatch

# SQLite's default limit on bound variables is 32,766 (sqlite.org/limits.html); stay far below it.
_CHUNK = 5000


class LedgerCalls:
    """``cogumi.stage.Calls`` on the ledger, for one step of one run."""

    def __init__(self, ledger: Ledger, run: str, step: str, max_usd: float | None) -> None:
        self._ledger = ledger
        self._run = run
        self._step = step
        self._max_usd = max_usd
        # Summed once and then kept up to date here: a run's lock lets no other process pay for this run.
        self._spent: tuple[float, float] | None = None

    def recorded(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return ``{key: response}`` for those keys whose response is already in the ledger."""
        with self._ledger.engine.connect() as connection:
            return _responses(connection, keys)

    def known(self, keys: Sequence[str]) -> set[str]:
        """Return those of the keys whose response is already in the ledger."""
        with self._ledger.engine.connect() as connection:
            return _known(connection, keys)

    def record(self, records: Sequence[CallRecord]) -> None:
        """Commit responses in one transaction, then raise ``BudgetError`` if the limit is reached."""
        now = time.time()
        with writing(self._ledger.engine) as connection:
            # Asked inside the transaction: another run may be paying for the same call.
            known = _known(connection, [record.key for record in records])
            fresh = {record.key: record for record in records if record.key not in known}
            rows = [
                {
                    "key": record.key,
                    "run": self._run,
                    "step": self._step,
                    "provider": record.provider,
                    "model": record.model,
                    "response": dict(record.response),
                    "input_tokens": record.input_tokens,
                    "output_tokens": record.output_tokens,
                    "cost_usd": record.cost_usd,
                    "simulated": record.simulated,
                    "batch_id": record.batch_id,
                    "created_at": now,
                }
                for record in fresh.values()
            ]
            if rows:
                connection.execute(insert(calls), rows)
        if self._spent is not None:
            paid = {False: 0.0, True: 0.0}
            for record in fresh.values():
                paid[record.simulated] += record.cost_usd or 0.0
            self._spent = (self._spent[0] + paid[False], self._spent[1] + paid[True])
        self.check_budget(0.0)

    def spent_usd(self) -> tuple[float, float]:
        """Return (real, simulated) dollars of the run so far."""
        if self._spent is None:
            self._spent = self._ledger.spent(self._run)
        return self._spent

    def check_budget(self, expected_usd: float) -> None:
        """Raise ``BudgetError`` when ``expected_usd`` more would pass the spending limit of the run."""
        if self._max_usd is None:
            return
        spent = sum(self.spent_usd())
        if spent + expected_usd > self._max_usd:
            raise BudgetError(
                f"spending limit ${self._max_usd:.4f} reached at {self._step}: ${spent:.4f} spent, "
                f"${expected_usd:.4f} more expected; everything paid for is kept, raise --max-cost to go on"
            )

    def open_batches(self, provider: str) -> list[OpenBatch]:
        """Return the batches that were submitted to a provider and not collected yet, the oldest first."""
        query = (
            select(batches.c.key, batches.c.batch_id, batches.c.requests)
            .where((batches.c.provider == provider) & (batches.c.status == "open"))
            .order_by(batches.c.created_at, batches.c.key)
        )
        with self._ledger.engine.connect() as connection:
            return [
                OpenBatch(row.key, row.batch_id, tuple(row.requests or ()))
                for row in connection.execute(query)
            ]

    def save_batch(self, provider: str, batch: OpenBatch) -> None:
        """Remember a batch under way, so that a restart collects it and does not pay again."""
        values = {
            "provider": provider,
            "batch_id": batch.batch_id,
            "status": "open",
            "created_at": time.time(),
            "requests": list(batch.requests),
        }
        with writing(self._ledger.engine) as connection:
            changed = connection.execute(update(batches).where(batches.c.key == batch.key).values(values))
            if changed.rowcount == 0:
                connection.execute(insert(batches).values(key=batch.key, run=self._run, **values))

    def close_batch(self, key: str) -> None:
        """Mark a batch as collected; its responses were recorded before."""
        with writing(self._ledger.engine) as connection:
            # The list of its calls has served its purpose: each of them is a row of its own now.
            values = {"status": "collected", "requests": []}
            connection.execute(update(batches).where(batches.c.key == key).values(values))


def _responses(connection: Connection, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(keys), _CHUNK):
        query = select(calls.c.key, calls.c.response).where(calls.c.key.in_(keys[start : start + _CHUNK]))
        found.update((row.key, row.response) for row in connection.execute(query))
    return found


def _known(connection: Connection, keys: Sequence[str]) -> set[str]:
    known: set[str] = set()
    for start in range(0, len(keys), _CHUNK):
        query = select(calls.c.key).where(calls.c.key.in_(keys[start : start + _CHUNK]))
        known.update(connection.execute(query).scalars())
    return known
