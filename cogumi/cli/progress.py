"""How a run is told: a live line with rate and ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cogumi.cli.common import on_terminal, say
from cogumi.profile import GateStep, MeasureStep, StageStep, Step
from cogumi.stage import Progress

_PLAIN_EVERY_S = 5.0
_LIVE_EVERY_S = 0.1


class Line:
    """Progress of one piece of work on standard error."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._live = on_terminal()
        self._start = time.monotonic()
        self._told = self._start if not self._live else 0.0
        self._open = False

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """Show ``done`` of ``total`` with rate, ETA and facts, as often as the stream can bear."""
        now = time.monotonic()
        if now - self._told < (_LIVE_EVERY_S if self._live else _PLAIN_EVERY_S):
            return
        self._told = now
        seconds = max(now - self._start, 1e-9)
        rate = done / seconds
        eta = f", {clock((total - done) / rate)} left" if 0 < done < total else ""
        told = "".join(f", {name} {_fact(value)}" for name, value in facts.items())
        line = f"    {self._label}: {done}/{total}{told}{eta}"
        if self._live:
            import sys

            sys.stderr.write(f"\r\x1b[2K{line[:160]}")
            sys.stderr.flush()
            self._open = True
        else:
            say(line)

    def close(self) -> None:
        """Wipe the live line, if one is shown."""
        if self._open:
            import sys

            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._open = False


def _fact(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def clock(seconds: float) -> str:
    """Format a duration: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def describe(step: Step) -> str:
    """Return a step's line: its plan number, name and kind."""
    number = f"{step.plan} " if step.plan else ""
    if isinstance(step, StageStep):
        return f"{number}{step.id}"
    if isinstance(step, MeasureStep):
        return f"{number}{step.id} (measure {step.measure})"
    return f"{number}{step.id} (gate)"


class RunReporter:
    """Tells a run on standard error, one line for each step and each verdict."""

    def __init__(self) -> None:
        self._line: Line | None = None

    def _close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def step(self, step: Step, attempt: int, state: str, note: str) -> None:
        """A step changed state."""
        self._close()
        if state == "start":
            again = f", attempt {attempt}" if attempt > 1 else ""
            say(f"→ {describe(step)}{again}: {note}")
        elif state == "reused":
            say(f"= {describe(step)}: {note}")
        elif state == "done":
            say(f"  done{': ' if note else ''}{note}")
        else:
            say(f"  {state}: {note}")

    def progress(self, step: Step) -> Progress:
        """Return the live line of a stage."""
        self._close()
        self._line = Line(step.id)
        return self._line

    def tell(self, task: str, done: int, wanted: int) -> None:
        """Show how far a measurement is."""
        if self._line is None:
            self._line = Line("answered")
        self._line.update(done, wanted, task=task)

    def verdict(self, step: GateStep, document: Mapping[str, Any], again: str | None) -> None:
        """A gate was decided."""
        from gates.render import text
        from gates.verdicts import GateVerdict

        self._close()
        for line in text(GateVerdict.from_json(document)).splitlines():
            say(f"  {line}")
        if again:
            say(f"  {step.gate} is not passed: {again} is tried again with its next settings")
