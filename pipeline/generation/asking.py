"""How the generation stages ask: shared settings, and one repair request for an unusable answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

from pydantic import Field

from cogumi.errors import UsageError, nearest
from cogumi.stage import Settings, StageContext, TeacherConfig
from cogumi.teachers import AskOptions, Message, Reply, RetryPolicy, TeacherRequest, TeacherStats, ask

ParsedT = TypeVar("ParsedT")


class CallSettings(Settings):
    """How patiently and how widely a stage asks its teachers."""

    concurrency: int = Field(default=16, ge=1)
    """Calls under way at once, at most; fewer while the provider throttles."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    attempts: int = Field(default=8, ge=1)
    backoff_seconds: float = Field(default=1.0, gt=0)
    poll_seconds: float = Field(default=30.0, gt=0)
    """Time between two looks at a batch."""

    def options(self, mode: Literal["live", "batch"]) -> AskOptions:
        """Return these settings in the client's terms."""
        policy = RetryPolicy(self.timeout_seconds, self.attempts, self.backoff_seconds)
        return AskOptions(mode, self.concurrency, self.poll_seconds, policy)


@dataclass
class Bill:
    """Every reply that a stage used, and what happened on the wire."""

    replies: list[Reply] = field(default_factory=list)
    stats: TeacherStats = field(default_factory=TeacherStats)

    def finish_reasons(self) -> dict[str, int]:
        """Return how many replies ended for which reason, by name."""
        reasons = [reply.finish for reply in self.replies]
        return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def teacher(ctx: StageContext, name: str) -> TeacherConfig:
    """Return a teacher of the profile; raises ``UsageError`` with the nearest known name."""
    if name not in ctx.teachers:
        raise UsageError(f"no teacher {name!r}{nearest(name, sorted(ctx.teachers))}")
    return ctx.teachers[name]


@dataclass(frozen=True, slots=True)
class Asker(Generic[ParsedT]):
    """Asks one teacher and takes its answers apart; what cannot be used gets one repair request."""

    ctx: StageContext
    config: TeacherConfig
    options: AskOptions
    parse: Callable[[str], ParsedT | None]
    repair: str
    """What the repair request says."""
    bill: Bill

    def ask(
        self, requests: Sequence[TeacherRequest], on_progress: Callable[[int, int], None]
    ) -> list[ParsedT | None]:
        """Return what each request's answer holds, or None where the repaired one is unusable too.

        Answers that are cut short, refused or empty are paid and recorded, and never used.
        """
        replies = self._ask(requests, on_progress)
        parsed = [self._parse(reply) for reply in replies]
        broken = [index for index, value in enumerate(parsed) if value is None]
        if broken:
            again = [self._repaired(requests[index], replies[index]) for index in broken]
            for index, reply in zip(broken, self._ask(again, lambda *_: None), strict=True):
                parsed[index] = self._parse(reply)
        return parsed

    def _ask(
        self, requests: Sequence[TeacherRequest], on_progress: Callable[[int, int], None]
    ) -> list[Reply]:
        (replies,), stats = ask(self.ctx.calls, [(self.config, requests)], self.options, on_progress)
        self.bill.replies += replies
        self.bill.stats.add(stats)
        return replies

    def _parse(self, reply: Reply) -> ParsedT | None:
        return self.parse(reply.text) if reply.complete else None

    def _repaired(self, request: TeacherRequest, reply: Reply) -> TeacherRequest:
        # An empty turn is an error at Anthropic.
        said = reply.text.strip() or "(no answer)"
        turns = (*request.messages, Message("assistant", said), Message("user", self.repair))
        return replace(request, messages=turns)
