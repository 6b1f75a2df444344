"""Asking a teacher many things at once: bounded, retried, recorded before counted, never paid twice."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from cogumi.errors import CogumiError, RunError
from cogumi.stage import CallRecord, TeacherConfig
from cogumi.teachers.limit import AdaptiveLimit, Pace, RetryPolicy
from cogumi.teachers.pricing import cost_usd, expected_usd
from cogumi.teachers.providers import open_provider
from cogumi.teachers.recorder import Recorder
from cogumi.teachers.types import (
    Answer,
    Failure,
    Provider,
    Reply,
    TeacherRequest,
    TeacherStats,
    Usage,
    response_of,
)

ResultT = TypeVar("ResultT")

_READ_ROWS = 1000
REFUSALS_IN_A_ROW = 5
"""Requests refused one after another before the fault is taken to be ours or the account's."""


class Listener(Protocol):
    """Who is told what becomes of a teacher's requests."""

    def reply(self, place: int, reply: Reply) -> None:
        """Take the reply to the request at this place, which is in the ledger now; they come in no order."""
        ...

    async def settled(self) -> None:
        """Return when every reply so far has been dealt with, so that no more than these are in memory."""
        ...

    def failed(self, error: BaseException) -> None:
        """Stop the other teachers too."""
        ...


class RefusedError(RunError):
    """The provider will never answer this one request."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Requests by the key of their answer: equal ones are asked once."""

    by_key: dict[str, TeacherRequest] = field(default_factory=dict)
    places: dict[str, list[int]] = field(default_factory=dict)

    @staticmethod
    def of(requests: Sequence[TeacherRequest], config: TeacherConfig) -> Questions:
        """Return the requests of one teacher by key."""
        questions = Questions()
        for place, request in enumerate(requests):
            key = request.key(config)
            questions.by_key.setdefault(key, request)
            questions.places.setdefault(key, []).append(place)
        return questions


class TeacherClient:
    """One teacher over its SDK; use it inside one event loop, as an asynchronous context manager.

    The first answer that cannot be had (dead key, spending limit, retries used up) stops the asking of
    new questions; those under way are awaited and recorded, because they are paid. Then it is raised.
    """

    def __init__(
        self,
        config: TeacherConfig,
        recorder: Recorder,
        concurrency: int,
        policy: RetryPolicy,
        pace: Pace,
        listener: Listener,
    ) -> None:
        self.config = config
        self.recorder = recorder
        self.calls = recorder.calls
        self.policy = policy
        self.stats = TeacherStats()
        self._pace = pace
        self.listener = listener
        self._provider: Provider | None = None
        self._concurrency = concurrency
        self._limit = AdaptiveLimit(concurrency)
        self._stop: BaseException | None = None
        self._refused: list[tuple[str, str]] = []

    async def __aenter__(self) -> TeacherClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._provider is not None:
            await self._provider.close()

    @property
    def provider(self) -> Provider:
        """The SDK behind this client, opened when first needed: what is recorded needs no key."""
        if self._provider is None:
            self._provider = open_provider(self.config, self.policy.timeout_seconds, self._concurrency)
        return self._provider

    def hand_on(self, questions: Questions, key: str, response: dict[str, object]) -> None:
        """Tell whoever asks what the ledger holds for a key."""
        reply = Reply.from_response(response)
        for place in questions.places[key]:
            self.listener.reply(place, reply)

    async def hand_on_recorded(self, questions: Questions, keys: Sequence[str]) -> set[str]:
        """Tell what the ledger already holds for these keys, and return those that it holds."""
        found: set[str] = set()
        # In slices: the answers of a whole step would not fit into memory beside each other.
        for start in range(0, len(keys), _READ_ROWS):
            for key, response in self.calls.recorded(keys[start : start + _READ_ROWS]).items():
                found.add(key)
                self.hand_on(questions, key, response)
            await self.listener.settled()
        return found

    async def ask_many(self, requests: Sequence[TeacherRequest]) -> None:
        """Ask what the ledger does not know; every reply is handed on once it is recorded.

        Raises ``RunError`` (dead key, retries used up, refused requests) or ``BudgetError``; everything
        that was answered until then is recorded.
        """
        questions = Questions.of(requests, self.config)
        known = await self.hand_on_recorded(questions, list(questions.by_key))
        self.stats.from_ledger += len(known)
        waiting = deque(key for key in questions.by_key if key not in known)

        async def work(most: int) -> None:
            while waiting and most and self._stop is None:
                most -= 1
                key = waiting.popleft()
                try:
                    await self._ask_one(questions, key)
                except Exception as error:
                    self.fail(error)

        if waiting and questions.by_key[waiting[0]].cache_system:
            # A cached prefix can be read once the first answer is there: asked together, all would write it.
            await work(1)
        await asyncio.gather(*(work(len(waiting)) for _ in range(min(self._concurrency, len(waiting)))))
        if self._stop is None:
            self._keep_refused(questions)
        await self.recorder.drained()
        self.raise_if_stopped()

    async def call(
        self,
        send: Callable[[], Awaitable[ResultT]],
        *,
        tokens: int = 0,
        before_again: Callable[[], Awaitable[ResultT | None]] | None = None,
    ) -> ResultT:
        """Run one call of the provider with the retry policy; raises ``RunError`` when it is of no use.

        ``tokens`` is what the call is expected to take of the provider's tokens a minute. A call that
        must not be made twice is given ``before_again``, which looks whether a failed one had its effect.
        """
        message = ""
        for attempt in range(1, self.policy.attempts + 1):
            outcome = await self._attempt(send, tokens)
            if not isinstance(outcome, Failure):
                return outcome
            message = outcome.message
            if attempt < self.policy.attempts:
                self.stats.retries += 1
                await self.pause(self.policy.delay(attempt, outcome.retry_after))
                found = await before_again() if before_again else None
                if found is not None:
                    return found
        raise RunError(
            f"teacher {self.config.name}: gave up after {self.policy.attempts} attempts "
            f"(last: {message}); answers so far are kept, run again to go on"
        )

    async def _attempt(self, send: Callable[[], Awaitable[ResultT]], tokens: int) -> ResultT | Failure:
        """Return what a call brought, or why it is worth another attempt."""
        if (wait := self._pace.wait(tokens)) > 0:
            await self.pause(wait)
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
            self._raise_if_final(failure)
            return failure
        else:
            self._limit.succeeded()
            return result
        finally:
            self._limit.release()

    async def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until this client is stopped."""
        await self._limit.sleep(seconds)

    def fail(self, error: BaseException) -> None:
        """Stop this client and those that are asked at the same time."""
        self.stop(error)
        self.listener.failed(error)

    def stop(self, error: BaseException) -> None:
        """Ask nothing new; calls under way end and are recorded, then the first error is raised."""
        if self._stop is None:
            self._stop = error
            self._limit.close()

    def record_of(self, key: str, answer: Answer, batch_id: str | None) -> CallRecord:
        """Return the ledger's row of an answer."""
        answer = _writable(answer)
        refused = answer.finish == "rejected"
        cost = 0.0 if refused else cost_usd(self.config, answer.usage, batch=batch_id is not None)
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

    async def _ask_one(self, questions: Questions, key: str) -> None:
        request = questions.by_key[key]
        expected = expected_usd(self.config, request, batch=False)
        await self.recorder.reserve(expected)
        try:
            answer = await self.call(lambda: self._in_time(request), tokens=request.expected_tokens)
        except RefusedError as error:
            self.recorder.release(expected)
            self._refused.append((key, str(error)))
            if len(self._refused) >= REFUSALS_IN_A_ROW:
                raise RunError(f"{error}; and {len(self._refused) - 1} more in a row") from None
            return
        except BaseException:
            self.recorder.release(expected)
            raise
        used = answer.usage.all_input_tokens + answer.usage.output_tokens
        self._pace.correct(request.expected_tokens, used)
        self._keep_refused(questions)
        self._put(questions, key, answer, expected)

    async def _in_time(self, request: TeacherRequest) -> Answer:
        # The SDK's limit is one for every read: a server that sends a byte now and then would pass it.
        async with asyncio.timeout(self.policy.timeout_seconds):
            return await self.provider.ask(request)

    def _put(self, questions: Questions, key: str, answer: Answer, reserved_usd: float) -> None:
        record = self.record_of(key, answer, None)

        def recorded() -> None:
            if answer.finish != "rejected":
                self.stats.asked += 1
            self.hand_on(questions, key, dict(record.response))

        self.recorder.put(record, reserved_usd, recorded)

    def _keep_refused(self, questions: Questions) -> None:
        # Another request was answered: the fault lay in these alone, and asking them again is of no use.
        refused, self._refused = self._refused, []
        for key, why in refused:
            self.stats.rejected += 1
            self._put(questions, key, refusal(why), 0.0)

    def _raise_if_final(self, failure: Failure) -> None:
        name = str(failure.status) if failure.status else "connection"
        self.stats.failures[name] = self.stats.failures.get(name, 0) + 1
        if failure.kind == "key":
            raise RunError(f"teacher {self.config.name}: {failure.message}; answers so far are kept")
        if failure.kind == "request":
            raise RefusedError(f"teacher {self.config.name} refused a request: {failure.message}")
        if failure.kind == "fatal":
            raise RunError(f"teacher {self.config.name} refused a request: {failure.message}")
        if failure.throttled:
            self.stats.throttled += 1
            self._limit.throttled(failure.retry_after)


def _writable(answer: Answer) -> Answer:
    """Return the answer with signs for half characters, which JSON can spell and UTF-8 cannot."""
    if answer.text.isascii():
        return answer
    text = answer.text.encode("utf-8", "replace").decode("utf-8")
    return answer if text == answer.text else replace(answer, text=text)


def refusal(why: str) -> Answer:
    """Return what stands in the ledger for a request that the provider will never answer."""
    return Answer(id="", text=why, finish="rejected", usage=Usage(0, 0))
