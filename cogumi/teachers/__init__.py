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
    "ask_each",
]


@dataclass(frozen=True, slots=True)
class AskOptions:
    """How to ask: one by one at once, or in batches at the provider's discount."""

    mode: Literal["live", "batch"] = "live"
    concurrency: int = 16
    poll_seconds: float = 30.0
    policy: RetryPolicy = field(default_factory=RetryPolicy)


Job = tuple[TeacherConfig, Sequence[TeacherRequest]]
OnReply = Callable[[int, int, Reply], None]
"""Told (number of the job, place of the request in it, reply) once the reply is in the ledger."""


def ask(
    calls: Calls,
    jobs: Sequence[Job],
    options: AskOptions,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[list[Reply]], TeacherStats]:
    """Ask several teachers at the same time; return their replies in the order of the requests.

    Raises ``RunError`` or ``BudgetError`` after everything that was answered has been recorded.
    """
    replies: list[list[Reply | None]] = [[None] * len(requests) for _, requests in jobs]

    def take(job: int, place: int, reply: Reply) -> None:
        replies[job][place] = reply

    stats = ask_each(calls, jobs, options, take, on_progress)
    return [[reply for reply in row if reply is not None] for row in replies], stats


def ask_each(
    calls: Calls,
    jobs: Sequence[Job],
    options: AskOptions,
    on_reply: OnReply,
    on_progress: Callable[[int, int], None] | None = None,
) -> TeacherStats:
    """Ask several teachers at the same time and keep no reply: each is handed on as it arrives.

    Replies come in no order, those that the ledger held already first. Raises like ``ask``.
    """
    from cogumi.teachers.asking import Asking

    return asyncio.run(Asking(calls, jobs, options, on_reply, on_progress).run())
