"""One asking of several teachers in one event loop: their clients, shared limits, shared ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cogumi.stage import Calls, TeacherConfig
from cogumi.teachers import AskOptions, Job, OnReply
from cogumi.teachers.batches import ask_batch
from cogumi.teachers.client import TeacherClient
from cogumi.teachers.limit import Pace
from cogumi.teachers.recorder import Recorder
from cogumi.teachers.types import Reply, TeacherRequest, TeacherStats


class Asking:
    """Asks each job's teacher its requests; the first failure stops them all, and nothing paid is lost."""

    def __init__(
        self,
        calls: Calls,
        jobs: Sequence[Job],
        options: AskOptions,
        on_reply: OnReply,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self._calls = calls
        self._jobs = jobs
        self._options = options
        self._on_reply = on_reply
        self._on_progress = on_progress
        self._total = sum(len(requests) for _, requests in jobs)
        self._done = 0
        self._under_way = [0] * len(jobs)
        self._failure: BaseException | None = None
        self._clients: list[TeacherClient] = []
        self._taken: list[tuple[int, int, Reply]] = []
        self._handing_on: asyncio.Task[None] | None = None

    async def run(self) -> TeacherStats:
        """Ask everything; return what happened on the wire."""
        recorder = Recorder(self._calls, self.stop)
        paces = _paces([config for config, _ in self._jobs])
        for number, (config, _) in enumerate(self._jobs):
            self._clients.append(
                TeacherClient(
                    config,
                    recorder,
                    self._options.concurrency,
                    self._options.policy,
                    paces[config.provider],
                    _Ear(self, number),
                )
            )
        self._tell()
        results = await asyncio.gather(
            *(self._one(number, client) for number, client in enumerate(self._clients)),
            return_exceptions=True,
        )
        await recorder.drained()
        await self.settled()
        if self._failure is not None:
            raise self._failure
        for result in results:
            if isinstance(result, BaseException):
                raise result
        stats = TeacherStats()
        for client in self._clients:
            stats.add(client.stats)
        return stats

    async def _one(self, number: int, client: TeacherClient) -> None:
        requests: Sequence[TeacherRequest] = self._jobs[number][1]
        async with client:
            try:
                if self._options.mode == "live":
                    await client.ask_many(requests)
                else:
                    await ask_batch(
                        client,
                        requests,
                        poll_seconds=self._options.poll_seconds,
                        on_under_way=lambda count: self._batches_told(number, count),
                    )
            except BaseException as error:
                # The others ask nothing new either, but what they have under way is awaited and kept.
                self.stop(error)
                raise

    def stop(self, error: BaseException) -> None:
        """Let no teacher ask anything new."""
        if self._failure is None:
            self._failure = error
        for client in self._clients:
            client.stop(error)

    def take(self, number: int, place: int, reply: Reply) -> None:
        """Take a reply of a job; it is told soon."""
        self._taken.append((number, place, reply))
        if self._handing_on is None:
            self._handing_on = asyncio.create_task(self._hand_on())

    async def settled(self) -> None:
        """Return when every reply so far has been told."""
        while self._handing_on is not None:
            await self._handing_on

    async def _hand_on(self) -> None:
        """Tell replies beside the event loop: while it stood still, answers on their way would time out."""
        while self._taken and self._failure is None:
            taken, self._taken = self._taken, []
            try:
                await asyncio.to_thread(self._tell_replies, taken)
            except BaseException as error:
                self.stop(error)
        self._handing_on = None

    def _tell_replies(self, taken: Sequence[tuple[int, int, Reply]]) -> None:
        for number, place, reply in taken:
            self._done += 1
            self._on_reply(number, place, reply)
            self._tell()

    def _batches_told(self, number: int, count: int) -> None:
        self._under_way[number] = count
        self._tell()

    def _tell(self) -> None:
        if self._on_progress:
            self._on_progress(min(self._done + sum(self._under_way), self._total), self._total)


class _Ear:
    """Hears what becomes of one job's requests."""

    def __init__(self, asking: Asking, number: int) -> None:
        self._asking = asking
        self._number = number

    def reply(self, place: int, reply: Reply) -> None:
        self._asking.take(self._number, place, reply)

    async def settled(self) -> None:
        await self._asking.settled()

    def failed(self, error: BaseException) -> None:
        self._asking.stop(error)


def _paces(configs: Sequence[TeacherConfig]) -> dict[tuple[str, str | None, str | None], Pace]:
    """Return the pace of each provider: the lowest limits that any of its teachers names."""
    found: dict[tuple[str, str | None, str | None], list[TeacherConfig]] = {}
    for config in configs:
        found.setdefault(config.provider, []).append(config)
    return {
        provider: Pace(
            min((each.requests_per_minute for each in teachers if each.requests_per_minute), default=None),
            min((each.tokens_per_minute for each in teachers if each.tokens_per_minute), default=None),
        )
        for provider, teachers in found.items()
    }
