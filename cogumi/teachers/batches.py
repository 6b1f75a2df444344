"""Asking through a provider's batch interface, at its discount, so that no kill makes us pay twice.

A batch is named by the digest of the keys that it asks. That name and the keys go into the ledger before
the submission, and the name to the provider with it. After a kill the ledger says that a submission was under
way, and the provider is searched for a batch of that name before anything is submitted again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cogumi.digest import digest_of
from cogumi.errors import BudgetError, RunError
from cogumi.stage import OpenBatch
from cogumi.teachers.client import REFUSALS_IN_A_ROW, Questions, TeacherClient, refusal
from cogumi.teachers.pricing import expected_usd
from cogumi.teachers.types import BatchItem, BatchLimits, BatchStatus, BatchTicket, TeacherRequest

_UNDER_WAY = "submitting:"
_CLOCK_SKEW_SECONDS = 600.0
_ROUNDS = 6
"""Batches that one set of requests gets: an expired or failed part is submitted again this often."""
_FRAME_BYTES = 256
"""Room for the custom id and the frame of one request."""
OURS = BatchLimits(requests=5000, bytes=32_000_000)
"""What we put into one batch at most: its requests and its results are in memory as a whole."""

OnUnderWay = Callable[[int], None]
"""Told how many requests of open batches the provider says it has finished."""


async def ask_batch(
    client: TeacherClient,
    requests: Sequence[TeacherRequest],
    *,
    poll_seconds: float,
    on_under_way: OnUnderWay,
) -> None:
    """Ask what the ledger does not know in batches; every reply is handed on once it is recorded.

    Raises ``RunError`` or ``BudgetError`` like ``TeacherClient.ask_many``; what was collected is kept.
    """
    questions = Questions.of(requests, client.config)
    known = await client.hand_on_recorded(questions, list(questions.by_key))
    client.stats.from_ledger += len(known)
    collector = _Collector(client, questions, poll_seconds, on_under_way)
    # Cut before what is known or under way is left out, so that a resumed run cuts alike.
    settled = known.union(*(batch.requests for batch in collector.open))
    parts = [[key for key in part if key not in settled] for part in split(client, questions.by_key)]
    results = await asyncio.gather(
        *(collector.adopt(batch) for batch in collector.open),
        *(collector.finish(part) for part in parts if part),
        return_exceptions=True,
    )
    for result in results:
        if isinstance(result, BaseException):
            raise result


def split(client: TeacherClient, unique: dict[str, TeacherRequest]) -> list[list[str]]:
    """Cut requests, in order, into parts that the provider takes as one batch each."""
    limits = client.provider.limits
    most = min(limits.requests, OURS.requests)
    parts: list[list[str]] = []
    room = 0
    for key, request in unique.items():
        size = len(json.dumps(client.provider.body(request))) + _FRAME_BYTES
        if not parts or size > room or len(parts[-1]) >= most:
            parts.append([])
            room = min(limits.bytes, OURS.bytes)
        parts[-1].append(key)
        room -= size
    return parts


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one batch."""

    batch_id: str
    problem: str
    """Why requests of it have no answer, told if they never get one."""
    queue_full: bool = False


class _Collector:
    """Brings parts to their end: submit, wait, collect, and submit again what was not answered."""

    def __init__(
        self, client: TeacherClient, questions: Questions, poll_seconds: float, on_under_way: OnUnderWay
    ) -> None:
        self._client = client
        self._questions = questions
        self._poll_seconds = poll_seconds
        self._on_under_way = on_under_way
        self._finished: dict[str, int] = {}
        self.open = self._still_open(client.calls.open_batches(client.config.api))
        """Batches of an earlier run that hold answers which are asked for now."""
        self._active = 0
        # The requests or the results of one batch at a time are in memory.
        self._bulk = asyncio.Lock()

    def _still_open(self, batches: list[OpenBatch]) -> list[OpenBatch]:
        """Return those of our batches that hold an answer which the ledger lacks, and close the others.

        A kill between recording and closing leaves a batch open although nothing is missing.
        """
        calls, found = self._client.calls, []
        for batch in batches:
            if self._questions.by_key.keys().isdisjoint(batch.requests):
                continue
            if len(calls.known(batch.requests)) < len(batch.requests):
                found.append(batch)
            else:
                calls.close_batch(batch.key)
        return found

    async def adopt(self, batch: OpenBatch) -> None:
        """Collect a batch that an earlier run submitted, and so paid, and ask again what it lacks."""
        await self._or_fail(self._adopt(batch))

    async def finish(self, part: list[str]) -> None:
        """Return when every request of the part is in the ledger; a failure stops the other parts too.

        Their batches go on at the provider, and the next run collects them.
        """
        await self._or_fail(self._finish(part, set()))

    async def _or_fail(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:
            self._client.fail(error)
            raise

    async def _adopt(self, batch: OpenBatch) -> None:
        outcome = await self._collected(batch, set())
        wanted = [key for key in batch.requests if key in self._questions.by_key]
        await self._finish(self._missing(wanted), {outcome.batch_id})

    async def _finish(self, missing: list[str], ignore: set[str]) -> None:
        problem, rounds = "", 0
        while missing and rounds < _ROUNDS:
            self._client.raise_if_stopped()
            count = await self._affordable(missing)
            if count < len(missing):
                await self._finish(missing[:count], ignore)
                missing = missing[count:]
                continue
            outcome = await self._asked(missing, ignore)
            problem = outcome.problem
            if outcome.queue_full and self._active:
                # Others of ours leave the provider's queue in time.
                continue
            if outcome.queue_full and len(missing) > 1:
                half = len(missing) // 2
                await self._finish(missing[:half], ignore)
                missing = missing[half:]
                continue
            rounds += 1
            missing = self._missing(missing)
        if missing:
            raise RunError(
                f"teacher {self._client.config.name}: {len(missing)} batch requests are still unanswered "
                f"after {_ROUNDS} batches (last: {problem}); run again to go on"
            )

    def _missing(self, keys: list[str]) -> list[str]:
        known = self._client.calls.known(keys)
        return [key for key in keys if key not in known]

    def _expected(self, keys: list[str]) -> list[float]:
        config = self._client.config
        return [expected_usd(config, self._questions.by_key[key], batch=True) for key in keys]

    async def _affordable(self, keys: list[str]) -> int:
        """Return how many of these requests, at least one, the spending limit allows now."""
        return max(1, await self._client.recorder.affordable(self._expected(keys)))

    async def _asked(self, keys: list[str], ignore: set[str]) -> _Outcome:
        """Ask these requests in one batch."""
        config = self._client.config
        digest = digest_of({"batch": config.api, "model": config.model, "requests": keys})
        expected = sum(self._expected(keys))
        await self._client.recorder.reserve(expected)
        try:
            outcome = await self._collected(OpenBatch(digest, "", tuple(keys)), ignore)
        finally:
            self._client.recorder.release(expected)
        ignore.add(outcome.batch_id)
        if outcome.queue_full:
            await self._client.pause(self._poll_seconds)
        return outcome

    async def _collected(self, batch: OpenBatch, ignore: set[str]) -> _Outcome:
        """Submit a batch if that was not done, wait for it and record its answers."""
        client = self._client
        ticket = BatchTicket(batch.key, len(batch.requests))
        batch_id = await self._submitted(ticket, batch, ignore)
        self._active += 1
        try:
            status = await self._ended(batch.key, batch_id)
        finally:
            self._active -= 1
        if status.problem:
            client.calls.close_batch(batch.key)
            if status.queue_full:
                return _Outcome(batch_id, status.problem, queue_full=True)
            raise RunError(f"teacher {client.config.name} refused batch {batch_id}: {status.problem}")
        async with self._bulk:
            items = await self._results(status)
            return _Outcome(batch_id, await self._record(ticket, batch, batch_id, items))

    async def _ended(self, key: str, batch_id: str) -> BatchStatus:
        client = self._client
        while True:
            status = await client.call(lambda: client.provider.status(batch_id))
            self._tell(key, status.finished)
            if status.ended:
                return status
            await client.pause(self._poll_seconds)
            client.raise_if_stopped()

    async def _submitted(self, ticket: BatchTicket, batch: OpenBatch, ignore: set[str]) -> str:
        calls, config = self._client.calls, self._client.config
        if batch.batch_id and not batch.batch_id.startswith(_UNDER_WAY):
            return batch.batch_id
        search = batch.batch_id.startswith(_UNDER_WAY)
        if search:
            since = float(batch.batch_id.removeprefix(_UNDER_WAY))
        else:
            since = time.time()
            calls.save_batch(config.api, replace(batch, batch_id=f"{_UNDER_WAY}{since:.0f}"))
        ticket = replace(ticket, since=since - _CLOCK_SKEW_SECONDS)
        batch_id = await self._found(ticket, ignore) if search else None
        if batch_id is None:
            batch_id = await self._sent(ticket, batch, ignore)
        calls.save_batch(config.api, replace(batch, batch_id=batch_id))
        self._client.stats.batches += 1
        return batch_id

    async def _sent(self, ticket: BatchTicket, batch: OpenBatch, ignore: set[str]) -> str:
        client, provider = self._client, self._client.provider
        if missing := sum(key not in self._questions.by_key for key in batch.requests):
            client.calls.close_batch(batch.key)
            raise RunError(
                f"teacher {client.config.name}: the submission of a batch was cut off, and {missing} of its "
                "requests are no longer asked; nothing was paid for it, run again to ask the others"
            )
        async with self._bulk:
            bodies = [provider.body(self._questions.by_key[key]) for key in batch.requests]
            uploaded = await client.call(lambda: provider.upload(ticket, bodies))
            # After a failure without an answer the batch may exist all the same: look before leaping.
            return await client.call(
                lambda: provider.submit(ticket, uploaded),
                before_again=lambda: self._found(ticket, ignore),
            )

    async def _found(self, ticket: BatchTicket, ignore: set[str]) -> str | None:
        """Search the provider for a batch that was submitted under this ticket."""
        client = self._client
        for batch_id in await client.call(lambda: client.provider.candidates(ticket, ignore)):
            if client.provider.names_batches:
                return batch_id
            items = await self._results(await self._ended(ticket.key, batch_id))
            if any(item.custom_id.startswith(ticket.prefix) for item in items):
                return batch_id
        return None

    async def _results(self, status: BatchStatus) -> list[BatchItem]:
        items: list[BatchItem] = []
        for place in status.results:
            items += await self._client.call(partial(self._client.provider.results, place))
        return items

    async def _record(
        self, ticket: BatchTicket, batch: OpenBatch, batch_id: str, items: list[BatchItem]
    ) -> str:
        client = self._client
        keys = {ticket.custom_id(index): key for index, key in enumerate(batch.requests)}
        ours = {keys[item.custom_id]: item for item in items if item.custom_id in keys}
        failed = [item for item in ours.values() if item.answer is None]
        refused = [item for item in failed if item.kind == "request"]
        if len(refused) == len(ours) >= REFUSALS_IN_A_ROW:
            client.calls.close_batch(batch.key)
            raise RunError(
                f"teacher {client.config.name} refused every request of a batch: {refused[0].error}"
            )
        # In the order of the requests, because a provider returns them in any order.
        records = []
        for key in batch.requests:
            item = ours.get(key)
            if item and (item.answer or item.kind == "request"):
                records.append(client.record_of(key, item.answer or refusal(item.error), batch_id))
        try:
            await client.recorder.record(records)
        except BudgetError as error:
            client.fail(error)
        client.calls.close_batch(batch.key)
        client.stats.asked += len(records) - len(refused)
        client.stats.rejected += len(refused)
        self._tell(batch.key, 0)
        for record in records:
            if record.key in self._questions.places:
                client.hand_on(self._questions, record.key, dict(record.response))
        await client.listener.settled()
        client.raise_if_stopped()
        for item in failed:
            if item.kind == "fatal":
                raise RunError(f"teacher {client.config.name} refused a request in a batch: {item.error}")
        again = [item for item in failed if item.kind == "retry"]
        return again[-1].error if again else "the batch returned fewer results than requests"

    def _tell(self, key: str, finished: int) -> None:
        self._finished[key] = finished
        self._on_under_way(sum(self._finished.values()))
