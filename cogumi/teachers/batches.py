"""Asking through a provider's batch interface, at its discount, so that no kill makes us pay twice.

A batch is named by the digest of the keys that it asks. That name goes into the ledger before the
submission and to the provider with it. After a kill the ledger says that a submission was under way, and
the provider is searched for a batch of that name before anything is submitted again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from cogumi.digest import digest_of
from cogumi.errors import BudgetError, RunError
from cogumi.teachers.client import OnProgress, TeacherClient
from cogumi.teachers.pricing import expected_usd
from cogumi.teachers.types import BatchItem, BatchTicket, Reply, TeacherRequest

_UNDER_WAY = "submitting:"
_CLOCK_SKEW_SECONDS = 600.0
_ROUNDS = 6
"""Batches that one set of requests gets: an expired or failed part is submitted again this often."""

Part = dict[str, TeacherRequest]


async def ask_batch(
    client: TeacherClient,
    requests: Sequence[TeacherRequest],
    *,
    poll_seconds: float,
    on_progress: OnProgress | None = None,
) -> list[Reply]:
    """Return one reply per request, in order, asked in as few batches as the provider's limits allow.

    Raises ``RunError`` or ``BudgetError`` like ``TeacherClient.ask_many``; what was collected is kept.
    """
    keys = [request.key(client.config) for request in requests]
    unique = dict(zip(keys, requests, strict=True))
    client.stats.from_ledger += len(client.calls.recorded(list(unique)))
    collector = _Collector(client, poll_seconds, len(unique), on_progress)
    parts = split(client, unique)
    results = await asyncio.gather(*(collector.finish(part) for part in parts), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    found = client.calls.recorded(list(unique))
    return [Reply.from_response(found[key]) for key in keys]


def split(client: TeacherClient, unique: Part) -> list[Part]:
    """Cut requests, in order, into parts that the provider takes as one batch each."""
    limits = client.provider.limits
    parts: list[Part] = []
    room = 0
    for key, request in unique.items():
        size = len(json.dumps(client.provider.body(request))) + 256  # room for the custom id and the frame
        if not parts or size > room or len(parts[-1]) >= limits.requests:
            parts.append({})
            room = limits.bytes
        parts[-1][key] = request
        room -= size
    return parts


class _Collector:
    """Brings parts to their end: submit, wait, collect, and submit again what was not answered."""

    def __init__(
        self, client: TeacherClient, poll_seconds: float, total: int, on_progress: OnProgress | None
    ) -> None:
        self._client = client
        self._poll_seconds = poll_seconds
        self._total = total
        self._on_progress = on_progress
        self._done = 0

    async def finish(self, part: Part) -> None:
        """Return when every request of the part is in the ledger; a failure stops the other parts too.

        Their batches go on at the provider, and the next run collects them.
        """
        try:
            await self._finish(part)
        except Exception as error:
            self._client.stop(error)
            raise

    async def _finish(self, part: Part) -> None:
        ignore: set[str] = set()
        problem = ""
        for _ in range(_ROUNDS):
            missing = self._missing(part)
            if not missing:
                self._close_leftover(part)
                return
            ticket = BatchTicket(_batch_key(self._client, missing), len(missing))
            with self._affordable(ticket, missing):
                batch_id = await self._submitted(ticket, missing, ignore)
                problem = await self._collected(ticket, batch_id, missing)
            ignore.add(batch_id)
        if missing := self._missing(part):
            raise RunError(
                f"teacher {self._client.config.name}: {len(missing)} of {len(part)} batch requests are still "
                f"unanswered after {_ROUNDS} batches (last: {problem}); run again to go on"
            )

    async def _submitted(self, ticket: BatchTicket, missing: Part, ignore: set[str]) -> str:
        calls, provider = self._client.calls, self._client.provider
        saved = calls.open_batch(ticket.key)
        if saved and not saved.startswith(_UNDER_WAY) and saved not in ignore:
            return saved
        config = self._client.config
        search = saved is not None and saved.startswith(_UNDER_WAY)
        if search:
            assert saved is not None
            ticket = replace(ticket, since=float(saved.removeprefix(_UNDER_WAY)) - _CLOCK_SKEW_SECONDS)
        else:
            now = time.time()
            ticket = replace(ticket, since=now - _CLOCK_SKEW_SECONDS)
            calls.save_batch(ticket.key, config.api, f"{_UNDER_WAY}{now:.0f}")
        bodies = [provider.body(request) for request in missing.values()]

        async def send() -> str:
            # After a failure without an answer the batch may exist all the same: look before leaping.
            nonlocal search
            found = await provider.find(ticket, ignore) if search else None
            search = True
            return found or await provider.submit(ticket, bodies)

        batch_id = await self._client.call(send)
        calls.save_batch(ticket.key, config.api, batch_id)
        self._client.stats.batches += 1
        return batch_id

    async def _collected(self, ticket: BatchTicket, batch_id: str, missing: Part) -> str:
        """Wait for a batch and record its answers; return the last problem of those without one."""
        client = self._client
        while True:
            status = await client.call(lambda: client.provider.status(batch_id))
            self._tell(status.finished)
            if status.ended:
                break
            await client.pause(self._poll_seconds)
            client.raise_if_stopped()
        if status.problem:
            client.calls.close_batch(ticket.key)
            raise RunError(f"teacher {client.config.name} refused batch {batch_id}: {status.problem}")
        items = await client.call(lambda: client.provider.results(batch_id))
        return self._record(ticket, batch_id, items, missing)

    def _record(self, ticket: BatchTicket, batch_id: str, items: list[BatchItem], missing: Part) -> str:
        client = self._client
        keys = {ticket.custom_id(index): key for index, key in enumerate(missing)}
        answered = {
            keys[item.custom_id]: item.answer for item in items if item.answer and item.custom_id in keys
        }
        # In the order of the requests, because a provider returns them in any order.
        records = [client.record_of(key, answered[key], batch_id) for key in missing if key in answered]
        try:
            client.calls.record(records)
        except BudgetError:
            client.calls.close_batch(ticket.key)
            raise
        client.calls.close_batch(ticket.key)
        client.stats.asked += len(records)
        self._done += len(records)
        self._tell(0)
        failed = [item for item in items if item.answer is None]
        for item in failed:
            if item.final:
                raise RunError(f"teacher {client.config.name} refused a request in a batch: {item.error}")
        return failed[-1].error if failed else "the batch returned fewer results than requests"

    def _affordable(self, ticket: BatchTicket, part: Part) -> AbstractContextManager[None]:
        # A batch that an earlier run submitted is paid already: only a new one must be affordable.
        if self._client.calls.open_batch(ticket.key) is not None:
            return nullcontext()
        config = self._client.config
        expected = sum(expected_usd(config, request, batch=True) for request in part.values())
        return self._client.spending.reserve(expected)

    def _missing(self, part: Part) -> Part:
        known = self._client.calls.recorded(list(part))
        return {key: request for key, request in part.items() if key not in known}

    def _close_leftover(self, part: Part) -> None:
        # A kill between recording and closing leaves the batch open although nothing is missing.
        key = _batch_key(self._client, part)
        if self._client.calls.open_batch(key):
            self._client.calls.close_batch(key)

    def _tell(self, under_way: int) -> None:
        if self._on_progress:
            self._on_progress(min(self._done + under_way, self._total), self._total)


def _batch_key(client: TeacherClient, part: Part) -> str:
    return digest_of({"batch": client.config.api, "model": client.config.model, "requests": list(part)})
