"""How a run is told: a live line with rate and ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cogumi.cli.common import on_terminal, say
from cogumi.profile import GateStep, MeasureStep, StageStep, Step
from cogumi.stage import Progress as StageProgress
from cogumi.units import duration

_PLAIN_EVERY_S = 5.0


class Line:
    """Progress of one piece of work on standard error: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._live = _Bar(label) if on_terminal() else None
        self._start = self._told = time.monotonic()

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """Show ``done`` of ``total`` with ETA and facts, as often as the stream can bear."""
        told = "".join(f", {name} {_fact(value)}" for name, value in facts.items())
        if self._live is not None:
            self._live.show(done, total, told.removeprefix(", "))
            return
        now = time.monotonic()
        if now - self._told < _PLAIN_EVERY_S:
            return
        self._told = now
        eta = f", {duration((total - done) * (now - self._start) / done)} left" if 0 < done < total else ""
        say(f"    {self._label}: {done}/{total}{told}{eta}")

    def close(self) -> None:
        """Wipe the live bar, if one is shown."""
        if self._live is not None:
            self._live.stop()


class _Bar:
    """Rich's progress bar, shown from the first update on."""

    def __init__(self, label: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("    {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(label, total=None, facts="")

    def show(self, done: int, total: int, facts: str) -> None:
        """Draw the bar."""
        self._bar.start()
        self._bar.update(self._task, completed=done, total=total, facts=facts)

    def stop(self) -> None:
        """Wipe the bar."""
        self._bar.stop()


def _fact(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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

    def progress(self, step: Step) -> StageProgress:
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
