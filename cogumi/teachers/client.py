"""Asking a teacher many things at once: bounded, retried, recorded before counted, never paid twice."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from cogumi.errors import BudgetError, CogumiError, RunError
from cogumi.stage import CallRecord, Calls, TeacherConfig
from cogumi.teachers.limit import AdaptiveLimit, RetryPolicy
from cogumi.teachers.pricing import cost_usd, expected_usd
from cogumi.teachers.providers import open_provider
from cogumi.teachers.types import Answer, Failure, Provider, Reply, TeacherRequest, TeacherStats, response_of

OnProgress = Callable[[int, int], None]
"""Told (done, total)."""
ResultT = TypeVar("ResultT")


class Spending:
    """The ledger's budget with what is under way: several calls at once must not pass the limit together."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self._reserved_usd = 0.0

    @contextmanager
    def reserve(self, expected_usd: float) -> Iterator[None]:
        """Hold the expected cost of a call until it is recorded; raises ``BudgetError`` beforehand."""
        self.calls.check_budget(self._reserved_usd + expected_usd)
        self._reserved_usd += expected_usd
        try:
            yield
        finally:
            self._reserved_usd -= expected_usd


class TeacherClient:
    """One teacher over its SDK; use it inside one event loop, as an asynchronous context manager.

    The first answer that cannot be had (dead key, spending limit, retries used up) stops the asking of
    new questions; those under way are awaited and recorded, because they are paid. Then it is raised.
    """

    def __init__(
        self, config: TeacherConfig, spending: Spending, concurrency: int, policy: RetryPolicy
    ) -> None:
        self.config = config
        self.spending = spending
        self.calls = spending.calls
        self.policy = policy
        self.stats = TeacherStats()
        self._provider: Provider | None = None
        self._concurrency = concurrency
        self._limit = AdaptiveLimit(concurrency)
        self._stop: Exception | None = None
        self._unrecorded: list[tuple[CallRecord, asyncio.Future[None]]] = []

    async def __aenter__(self) -> TeacherClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._provider is not None:
            await self._provider.close()

    @property
    def provider(self) -> Provider:
        """The SDK behind this client, opened when first needed: what is recorded needs no key."""
        if self._provider is None:
            self._provider = open_provider(self.config, self.policy.timeout_seconds)
        return self._provider

    async def ask_many(
        self, requests: Sequence[TeacherRequest], on_progress: OnProgress | None = None
    ) -> list[Reply]:
        """Return one reply per request, in order; what the ledger knows is not asked again.

        Raises ``RunError`` (dead key, retries used up, refused request) or ``BudgetError``; everything
        that was answered until then is recorded.
        """
        keys = [request.key(self.config) for request in requests]
        unique = dict(zip(keys, requests, strict=True))
        known = {key: Reply.from_response(found) for key, found in self.calls.recorded(list(unique)).items()}
        self.stats.from_ledger += len(known)
        waiting = deque((key, request) for key, request in unique.items() if key not in known)

        def tell() -> None:
            if on_progress:
                on_progress(len(known), len(unique))

        async def work() -> None:
            while waiting and self._stop is None:
                key, request = waiting.popleft()
                try:
                    known[key] = await self._ask_one(key, request)
                    tell()
                except Exception as error:
                    self.stop(error)

        tell()
        await asyncio.gather(*(work() for _ in range(min(self._concurrency, len(waiting)))))
        self.raise_if_stopped()
        return [known[key] for key in keys]

    async def call(self, send: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Run one call of the provider with the retry policy; raises ``RunError`` when it is of no use."""
        message = ""
        for attempt in range(1, self.policy.attempts + 1):
            failure = None
            await self._limit.acquire()
            try:
                self.raise_if_stopped()
                result = await send()
            except CogumiError:
                raise
            except Exception as error:
                failure = self.provider.failure(error)
                if failure is None:
                    raise
            else:
                self._limit.succeeded()
                return result
            finally:
                self._limit.release()
            message = failure.message
            self._raise_if_final(failure)
            if attempt < self.policy.attempts:
                self.stats.retries += 1
                await self.pause(self.policy.delay(attempt, failure.retry_after))
        raise RunError(
            f"teacher {self.config.name}: gave up after {self.policy.attempts} attempts "
            f"(last: {message}); answers so far are kept, run again to go on"
        )

    async def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until this client is stopped."""
        await self._limit.sleep(seconds)

    def stop(self, error: Exception) -> None:
        """Ask nothing new; calls under way end and are recorded, then the first error is raised."""
        if self._stop is None:
            self._stop = error
            self._limit.close()

    def record_of(self, key: str, answer: Answer, batch_id: str | None) -> CallRecord:
        """Return the ledger's row of an answer."""
        cost = cost_usd(self.config, answer.usage, batch=batch_id is not None)
        return CallRecord(
            key=key,
            provider=self.config.api,
            model=self.config.model,
            response=response_of(answer, cost),
            input_tokens=answer.usage.all_input_tokens,
            output_tokens=answer.usage.output_tokens,
            cost_usd=cost,
            simulated=self.config.simulated,
            batch_id=batch_id,
        )

    def raise_if_stopped(self) -> None:
        """Raise what stopped this client, if anything did."""
        if self._stop is not None:
            raise self._stop

    async def _ask_one(self, key: str, request: TeacherRequest) -> Reply:
        with self.spending.reserve(expected_usd(self.config, request, batch=False)):
            answer = await self.call(lambda: self.provider.ask(request))
            record = self.record_of(key, answer, None)
            await self._recorded(record)
        self.stats.asked += 1
        return Reply.from_response(record.response)

    def _recorded(self, record: CallRecord) -> asyncio.Future[None]:
        # Answers that arrive in the same turn of the loop share one transaction.
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if not self._unrecorded:
            loop.call_soon(self._flush)
        self._unrecorded.append((record, done))
        return done

    def _flush(self) -> None:
        batch, self._unrecorded = self._unrecorded, []
        try:
            self.calls.record([record for record, _ in batch])
        except BudgetError as error:
            # Raised after the commit: these answers count, the next ones are not asked.
            self.stop(error)
        except BaseException as error:
            # Handed to those who wait, whatever it is: the event loop would swallow it here.
            for _, done in batch:
                if not done.done():
                    done.set_exception(error)
            return
        for _, done in batch:
            if not done.done():
                done.set_result(None)

    def _raise_if_final(self, failure: Failure) -> None:
        name = str(failure.status) if failure.status else "connection"
        self.stats.failures[name] = self.stats.failures.get(name, 0) + 1
        if failure.kind == "key":
            raise RunError(f"teacher {self.config.name}: {failure.message}; answers so far are kept")
        if failure.kind == "fatal":
            raise RunError(f"teacher {self.config.name} refused a request: {failure.message}")
        if failure.throttled:
            self.stats.throttled += 1
            self._limit.throttled(failure.retry_after)
