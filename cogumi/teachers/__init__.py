"""Teachers: models behind the OpenAI and Anthropic interfaces, live and in batches, paid once.

Import the SDK-heavy parts through ``ask``, which loads them when it is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cogumi.stage import Calls, TeacherConfig
from cogumi.teachers.limit import RetryPolicy
from cogumi.teachers.types import Message, Reply, TeacherRequest, TeacherStats, Usage

__all__ = [
    "AskOptions",
    "Message",
    "Reply",
    "RetryPolicy",
    "TeacherRequest",
    "TeacherStats",
    "Usage",
    "ask",
]


@dataclass(frozen=True, slots=True)
class AskOptions:
    """How to ask: one by one at once, or in batches at the provider's discount."""

    mode: Literal["live", "batch"] = "live"
    concurrency: int = 16
    poll_seconds: float = 30.0
    policy: RetryPolicy = field(default_factory=RetryPolicy)


Job = tuple[TeacherConfig, Sequence[TeacherRequest]]


def ask(
    calls: Calls,
    jobs: Sequence[Job],
    options: AskOptions,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[list[Reply]], TeacherStats]:
    """Ask several teachers at the same time; return their replies in the order of the requests.

    Raises ``RunError`` or ``BudgetError`` after everything that was answered has been recorded.
    """
    from cogumi.teachers.batches import ask_batch
    from cogumi.teachers.client import Spending, TeacherClient

    done = [0] * len(jobs)
    total = sum(len(requests) for _, requests in jobs)
    spending = Spending(calls)
    clients: list[TeacherClient] = []

    async def one(index: int, client: TeacherClient) -> list[Reply]:
        requests = jobs[index][1]

        def tell(count: int, _: int) -> None:
            done[index] = count
            if on_progress:
                on_progress(sum(done), total)

        async with client:
            try:
                if options.mode == "live":
                    return await client.ask_many(requests, tell)
                return await ask_batch(client, requests, poll_seconds=options.poll_seconds, on_progress=tell)
            except Exception as error:
                # The others ask nothing new either, but what they have under way is awaited and kept.
                for other in clients:
                    other.stop(error)
                raise

    async def everybody() -> list[list[Reply]]:
        for config, _ in jobs:
            clients.append(TeacherClient(config, spending, options.concurrency, options.policy))
        results = await asyncio.gather(
            *(one(index, client) for index, client in enumerate(clients)), return_exceptions=True
        )
        replies = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            replies.append(result)
        return replies

    replies = asyncio.run(everybody())
    stats = TeacherStats()
    for client in clients:
        stats.add(client.stats)
    return replies, stats
