"""How much is asked at once: a limit that halves when the provider throttles and grows back slowly."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait for an answer and how often to ask again."""

    timeout_seconds: float = 120.0
    attempts: int = 8
    backoff_seconds: float = 1.0
    backoff_cap_seconds: float = 60.0

    def delay(self, attempt: int, retry_after: float | None) -> float:
        """Return the seconds to wait after the given failed attempt (1 for the first).

        Full jitter, so that many callers do not return at once (Brooker, "Exponential Backoff And
        Jitter", AWS Architecture Blog 2015); never less than the provider asked for.
        """
        ceiling = min(self.backoff_cap_seconds, self.backoff_seconds * 2 ** (attempt - 1))
        jitter = random.uniform(0, ceiling)
        return jitter if retry_after is None else retry_after + jitter * 0.1


class Pace:
    """A provider's requests and tokens a minute, spread evenly: no burst above a second's worth.

    The generic cell rate algorithm (ITU-T I.371): one time per limit, from which on the next call fits.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._seconds_a_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_a_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._request_at = float("-inf")
        self._token_at = float("-inf")

    def wait(self, tokens: int) -> float:
        """Take a place for one call of about so many tokens; return the seconds until it may be made."""
        if not self._seconds_a_request and not self._seconds_a_token:
            return 0.0
        now = asyncio.get_running_loop().time()
        start = max(now, self._request_at, self._token_at)
        # What was not used in the last second may be used at once.
        self._request_at = max(now - 1.0, self._request_at) + self._seconds_a_request
        self._token_at = max(now - 1.0, self._token_at) + tokens * self._seconds_a_token
        return start - now

    def correct(self, expected: int, used: int) -> None:
        """Count the tokens that a call has really used instead of those expected."""
        self._token_at += (used - expected) * self._seconds_a_token


class AdaptiveLimit:
    """A semaphore whose size follows the provider: additive increase, multiplicative decrease."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._allowed = float(maximum)
        self._active = 0
        self._resume_at = 0.0
        self._halved_at = float("-inf")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = asyncio.Event()

    @property
    def allowed(self) -> int:
        """How many calls may run at once now."""
        return int(self._allowed)

    async def acquire(self) -> None:
        """Wait for a free place and for the end of a pause; returns at once when closed."""
        loop = asyncio.get_running_loop()
        while not self._closed.is_set():
            pause = self._resume_at - loop.time()
            if pause > 0:
                await self.sleep(pause)
            elif self._active < self.allowed:
                break
            else:
                turn: asyncio.Future[None] = loop.create_future()
                self._waiting.append(turn)
                await turn
        self._active += 1

    def release(self) -> None:
        """Give the place back."""
        self._active -= 1
        self._wake(1)

    def succeeded(self) -> None:
        """Grow by one place per round of successes."""
        self._allowed = min(self._maximum, self._allowed + 1 / self._allowed)
        self._wake(self.allowed - self._active)

    def throttled(self, retry_after: float | None) -> None:
        """Halve, once for all the calls that were throttled together, and pause as asked."""
        now = asyncio.get_running_loop().time()
        pause = retry_after or 0.0
        if now >= self._halved_at + max(pause, 1.0):
            self._allowed = max(1.0, self._allowed / 2)
            self._halved_at = now
        self._resume_at = max(self._resume_at, now + pause)

    async def sleep(self, seconds: float) -> None:
        """Sleep, or return early when the limit is closed."""
        try:
            await asyncio.wait_for(self._closed.wait(), seconds)
        except TimeoutError:
            return

    def close(self) -> None:
        """Let everybody through: the work is being stopped and nobody shall wait any longer."""
        self._closed.set()
        self._wake(len(self._waiting))

    def _wake(self, places: int) -> None:
        while places > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                places -= 1
