"""How a run is told: a live line with rate and ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cogumi.cli.common import on_terminal, say
from cogumi.profile import GateStep, MeasureStep, StageStep, Step
from cogumi.stage import Progress as StageProgress
from cogumi.units import duration, rate, usd

if TYPE_CHECKING:
    from cogumi.cli.tensorboard import TensorBoardLog

_PLAIN_EVERY_S = 5.0
_PLAIN_EVERY_AT_MOST_S = 60.0
_PLAIN_WIDTH = 110
_DRAWN_EVERY_S = 0.1
_WINDOW_S = 30.0
_WINDOW_STEPS = 10
_SAMPLED_EVERY_S = 0.2

# What training tells, in the order in which a line that is too short loses it, from the end.
_TRAINING: dict[str, Callable[[float], str]] = {
    "gpu_usd": lambda value: f"GPU {usd(value)}",
    "loss": lambda value: f"loss {value:.3g}",
    "held_out_loss": lambda value: f"held-out {value:.3g}",
    "tok_s": lambda value: f"{value:,.0f} tok/s",
    "mfu": lambda value: f"MFU {value:.1%}",
    "lr": lambda value: f"lr {value:.2g}",
}
# A sum of seconds over GPUs says nothing beside the time and the cost.
_UNTOLD = frozenset({"spent", "beside", "gpu_seconds"})


class Pace:
    """How fast work goes now: over the last half minute, or the last ten steps where these took longer.

    What the ledger had from an earlier process is no work of this one and is left out, and so is what is
    done already when the first update comes.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()
        """(moment, units worked until then)"""
        self._worked = 0
        self._last: tuple[int, int] | None = None
        self._total = 0
        self._unit = ""

    def update(self, done: int, total: int, *, replayed: int = 0, unit: str = "") -> None:
        """Count ``done`` of ``total`` units, of which ``replayed`` cost no work.

        Another unit, or a smaller ``done`` or ``total``, is another phase, which goes at a pace of its own.
        """
        now = self._clock()
        if self._last is None or unit != self._unit or done < self._last[0] or total < self._total:
            self._samples.clear()
            self._worked = 0
            self._samples.append((now, 0))
        elif total == self._total:
            self._worked += max(0, (done - self._last[0]) - max(0, replayed - self._last[1]))
        self._last, self._total, self._unit = (done, replayed), total, unit
        if self._worked > self._samples[-1][1]:
            if len(self._samples) > 1 and now - self._samples[-1][0] < _SAMPLED_EVERY_S:
                self._samples[-1] = (self._samples[-1][0], self._worked)
            else:
                self._samples.append((now, self._worked))
        while len(self._samples) > _WINDOW_STEPS and self._samples[1][0] < now - _WINDOW_S:
            self._samples.popleft()

    @property
    def per_second(self) -> float | None:
        """Units a second; None while nothing can be said."""
        if len(self._samples) < 2:
            return None
        start, worked = self._samples[0]
        elapsed = self._clock() - start
        return (self._samples[-1][1] - worked) / elapsed if elapsed >= 1 else None

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at this pace; None while nothing can be said."""
        pace = self.per_second
        return None if not pace or self._last is None else (self._total - self._last[0]) / pace


class Line:
    """Progress of one piece of work on standard error: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._label = label
        self._clock = clock
        self._live = _Bar(label) if on_terminal() else None
        self._pace = Pace(clock)
        self._start = self._told = clock()

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """Show ``done`` of ``total`` with rate, ETA and facts, as often as the stream can bear.

        Among the facts ``unit`` says what is counted, and ``replayed`` how much of it the ledger had already.
        """
        replayed = int(facts.pop("replayed", 0))
        unit = str(facts.pop("unit", ""))
        self._pace.update(done, total, replayed=replayed, unit=unit)
        now = self._clock()
        if self._live is None:
            age = now - self._start
            if now - self._told < min(_PLAIN_EVERY_AT_MOST_S, max(_PLAIN_EVERY_S, age / 20)):
                return
        elif now - self._told < _DRAWN_EVERY_S and 0 < done < total:
            return
        self._told = now
        words = self._words(done, total, replayed, facts)
        if self._live is not None:
            self._live.show(done, total, unit, ", ".join(words))
        else:
            say(_cut([f"    {self._label}: {done:,}/{total:,} {unit}".rstrip(), *words]))

    def close(self) -> None:
        """Wipe the live bar, if one is shown."""
        if self._live is not None:
            self._live.stop()

    def _words(
        self, done: int, total: int, replayed: int, facts: Mapping[str, float | int | str]
    ) -> list[str]:
        pace, left = self._pace.per_second, self._pace.left_s
        # Tokens a second say more than steps a second.
        words = [rate(pace)] if pace and "tok_s" not in facts else []
        if left is not None and done < total:
            words.append(f"{duration(left)} left")
        # Of a stage side by side with this one no other line tells.
        words += [str(facts[name]) for name in ("beside", "spent") if name in facts]
        words += [told(float(facts[name])) for name, told in _TRAINING.items() if name in facts]
        words += [
            f"{name.replace('_', ' ')} {_fact(value)}"
            for name, value in facts.items()
            if name not in _UNTOLD and name not in _TRAINING
        ]
        return [*words, f"{replayed:,} from the ledger"] if replayed else words


def _cut(words: list[str]) -> str:
    """Join as many words as a plain line bears."""
    line = words[0]
    for word in words[1:]:
        if len(line) + 2 + len(word) > _PLAIN_WIDTH:
            break
        line += f", {word}"
    return line


class _Bar:
    """Rich's progress bar, shown from the first update on."""

    def __init__(self, label: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        console = Console(stderr=True)
        # What does not fit is cut off: a second line would jump about.
        cut = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self._bar = Progress(
            TextColumn("    {task.description}"),
            BarColumn(bar_width=16 if console.width >= 100 else 8),
            TextColumn("{task.fields[counted]}"),
            TextColumn("{task.fields[facts]}", table_column=cut),
            console=console,
            refresh_per_second=4,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task(label, total=None, counted="", facts="")

    def show(self, done: int, total: int, unit: str, facts: str) -> None:
        """Draw the bar."""
        self._bar.start()
        counted = f"{done:,}/{total:,} {unit}".rstrip()
        self._bar.update(self._task, completed=done, total=total, counted=counted, facts=facts)

    def stop(self) -> None:
        """Wipe the bar."""
        self._bar.stop()


def _fact(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def describe(step: Step) -> str:
    """Return a step's line: its plan number, name and kind."""
    number = f"{step.plan} " if step.plan else ""
    if isinstance(step, StageStep):
        return f"{number}{step.id}"
    if isinstance(step, MeasureStep):
        return f"{number}{step.id} (measure {step.measure})"
    return f"{number}{step.id} (gate)"


class RunReporter:
    """Tells a run on standard error, one line for each step and each verdict; ``log`` keeps its numbers."""

    def __init__(self, log: TensorBoardLog | None = None) -> None:
        self._line: Line | None = None
        self._log = log
        self._attempts: dict[str, int] = {}

    def _close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def step(self, step: Step, attempt: int, state: str, note: str) -> None:
        """A step changed state."""
        self._close()
        if state == "start":
            self._attempts[step.id] = attempt
            again = f", attempt {attempt}" if attempt > 1 else ""
            say(f"→ {describe(step)}{again}: {note}")
        elif state == "reused":
            say(f"= {describe(step)}: {note}")
        elif state == "done":
            say(f"  done{': ' if note else ''}{note}")
        else:
            say(f"  {state}: {note}")
        if self._log is not None and state != "start":
            self._log.close(step.id, attempt)

    def progress(self, step: Step) -> StageProgress:
        """Return the live line of a stage."""
        self._close()
        self._line = Line(step.id)
        if self._log is None:
            return self._line
        return self._log.progress(self._line, step.id, self._attempts.get(step.id, 1))

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
