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
        self._clients: list[TeacherClient] = []

    async def run(self) -> TeacherStats:
        """Ask everything; return what happened on the wire."""
        recorder = Recorder(self._calls, self._stop)
        paces = _paces([config for config, _ in self._jobs])
        for number, (config, _) in enumerate(self._jobs):
            self._clients.append(
                TeacherClient(
                    config,
                    recorder,
                    self._options.concurrency,
                    self._options.policy,
                    paces[config.provider],
                    self._taker(number),
                    self._stop,
                )
            )
        self._tell()
        results = await asyncio.gather(
            *(self._one(number, client) for number, client in enumerate(self._clients)),
            return_exceptions=True,
        )
        await recorder.drained()
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
                self._stop(error)
                raise

    def _stop(self, error: BaseException) -> None:
        for client in self._clients:
            client.stop(error)

    def _taker(self, number: int) -> Callable[[int, Reply], None]:
        def take(place: int, reply: Reply) -> None:
            self._done += 1
            self._on_reply(number, place, reply)
            self._tell()

        return take

    def _batches_told(self, number: int, count: int) -> None:
        self._under_way[number] = count
        self._tell()

    def _tell(self) -> None:
        if self._on_progress:
            self._on_progress(min(self._done + sum(self._under_way), self._total), self._total)


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
