"""How the generation stages ask: settings, the bill, and one repair request for an unusable answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Generic, Literal, TypeVar

from pydantic import Field

from cogumi.errors import UsageError, nearest
from cogumi.stage import Settings, StageContext, TeacherConfig
from cogumi.teachers import (
    AskOptions,
    Message,
    OnReply,
    Reply,
    RetryPolicy,
    TeacherRequest,
    TeacherStats,
    ask_each,
)

ParsedT = TypeVar("ParsedT")

Mode = Literal["batch", "live"]
Tell = Callable[[int, int], None]
"""Told (answers so far, requests), often."""


class CallSettings(Settings):
    """How patiently and how widely a stage asks its teachers."""

    concurrency: int = Field(default=16, ge=1)
    """Calls under way at once, at most; fewer while the provider throttles."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    attempts: int = Field(default=8, ge=1)
    backoff_seconds: float = Field(default=1.0, gt=0)
    poll_seconds: float = Field(default=30.0, gt=0)
    """Time between two looks at a batch."""
    live_below: int = Field(default=100, ge=0)
    """Replacements and repairs fewer than this are asked live: a batch of them may take a day as well."""

    def options(self, mode: Mode) -> AskOptions:
        """Return these settings in the client's terms."""
        policy = RetryPolicy(self.timeout_seconds, self.attempts, self.backoff_seconds)
        return AskOptions(mode, self.concurrency, self.poll_seconds, policy)


@dataclass
class Bill:
    """What the replies of a stage were and cost in all, and what happened on the wire.

    Sums do not depend on the order in which replies arrive: dollars are added as fractions.
    """

    replies: int = 0
    finishes: Counter[str] = field(default_factory=Counter)
    input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0
    usd: Fraction = field(default_factory=Fraction)
    unpriced: int = 0
    """Replies whose price is unknown."""
    stats: TeacherStats = field(default_factory=TeacherStats)

    def add(self, reply: Reply) -> None:
        """Count one reply."""
        self.replies += 1
        self.finishes[reply.finish] += 1
        self.input_tokens += reply.usage.all_input_tokens
        self.cache_write_tokens += reply.usage.cache_write_tokens
        self.cache_read_tokens += reply.usage.cache_read_tokens
        self.output_tokens += reply.usage.output_tokens
        if reply.cost_usd is None:
            self.unpriced += 1
        else:
            self.usd += Fraction(reply.cost_usd)

    def finish_reasons(self) -> dict[str, int]:
        """Return how many replies ended for which reason, by name."""
        return dict(sorted(self.finishes.items()))

    def tokens(self) -> dict[str, int]:
        """Return the billed tokens, as facts of a stage."""
        return {
            "input_tokens": self.input_tokens,
            "cache_write_tokens": self.cache_write_tokens,
            "cache_read_tokens": self.cache_read_tokens,
            "output_tokens": self.output_tokens,
        }


def total_cost(*bills: Bill) -> float | None:
    """Return the dollars of these bills, or None when a reply of them has no known price."""
    if any(bill.unpriced for bill in bills):
        return None
    return round(float(sum((bill.usd for bill in bills), Fraction())), 8)


def teacher(ctx: StageContext, name: str) -> TeacherConfig:
    """Return a teacher of the profile; raises ``UsageError`` with the nearest known name."""
    if name not in ctx.teachers:
        raise UsageError(f"no teacher {name!r}{nearest(name, sorted(ctx.teachers))}")
    return ctx.teachers[name]


class Asker(Generic[ParsedT]):
    """Asks one teacher and takes its answers apart; what cannot be used gets one repair request.

    Only what was parsed is kept: the replies of a whole step are hundreds of megabytes.
    """

    def __init__(
        self,
        ctx: StageContext,
        config: TeacherConfig,
        settings: CallSettings,
        mode: Mode,
        parse: Callable[[str], ParsedT | None],
        repair: str,
    ) -> None:
        """``repair``: what the repair request says."""
        self.config = config
        self.bill = Bill()
        self.repaired = 0
        """Answers that could be used after their repair request."""
        self._ctx = ctx
        self._settings = settings
        self._mode: Mode = mode
        self._parse = parse
        self._repair = repair

    def ask(
        self, requests: Sequence[TeacherRequest], tell: Tell, *, follow_up: bool = False
    ) -> list[ParsedT | None]:
        """Return what each request's answer holds, or None where the repaired one is unusable too.

        Answers that are cut short, refused or empty are paid and recorded, and never used. ``follow_up``:
        these requests replace earlier ones, so that few of them do not wait for a batch.
        """
        parsed: list[ParsedT | None] = [None] * len(requests)
        broken: dict[int, str] = {}

        def take(_: int, place: int, reply: Reply) -> None:
            self.bill.add(reply)
            parsed[place] = self._value(reply)
            # What the provider rejects, it rejects again.
            if parsed[place] is None and reply.finish != "rejected":
                broken[place] = reply.text

        self._send(requests, take, tell, follow_up=follow_up)
        places = sorted(broken)

        def take_repaired(_: int, number: int, reply: Reply) -> None:
            self.bill.add(reply)
            value = parsed[places[number]] = self._value(reply)
            self.repaired += value is not None

        again = [self._repaired(requests[place], broken[place]) for place in places]
        self._send(again, take_repaired, lambda *_: tell(len(requests), len(requests)), follow_up=True)
        return parsed

    def _send(
        self, requests: Sequence[TeacherRequest], take: OnReply, tell: Tell, *, follow_up: bool
    ) -> None:
        if not requests:
            return
        live = follow_up and len(requests) < self._settings.live_below
        options = self._settings.options("live" if live else self._mode)
        jobs = [(self.config, requests)]
        self.bill.stats.add(ask_each(self._ctx.calls, jobs, options, take, tell))

    def _value(self, reply: Reply) -> ParsedT | None:
        return self._parse(reply.text) if reply.complete else None

    def _repaired(self, request: TeacherRequest, said: str) -> TeacherRequest:
        # An empty turn is an error at Anthropic.
        turn = Message("assistant", said.strip() or "(no answer)")
        return replace(request, messages=(*request.messages, turn, Message("user", self._repair)))


def shown(**counts: int | str) -> dict[str, int | str]:
    """Return those facts of a progress line that say something."""
    return {name: value for name, value in counts.items() if value}
