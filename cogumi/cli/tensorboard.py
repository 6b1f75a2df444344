"""``cogumi run --tensorboard DIR``: every number that a stage tells on its way, as TensorBoard scalars.

Each attempt of a step has a folder of its own below DIR, with one event file for each process that worked
on it: TensorBoard reads them as one curve, so a resumed run goes on where the last one ended.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from cogumi.errors import RunError, UsageError
from cogumi.stage import Progress

_FLUSH_S = 10
_QUEUE = 1000


class TensorBoardLog:
    """The event files below a folder; raises ``UsageError`` without the package, or where it is a file."""

    def __init__(self, folder: Path) -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            told = "--tensorboard needs the package tensorboard: python -m pip install tensorboard"
            raise UsageError(told) from error
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--tensorboard {folder}: is a file, not a folder")
        self._folder = folder
        self._files: dict[tuple[str, int], _EventFile] = {}

    def progress(self, inner: Progress, step: str, attempt: int) -> Progress:
        """Return a progress that tells ``inner`` and logs the numbers of one attempt of a step."""
        name = f"{step}-attempt-{attempt}" if attempt > 1 else step
        file = self._files.setdefault((step, attempt), _EventFile(self._folder / name, step))
        return _Logged(inner, file)

    def close(self, step: str, attempt: int) -> None:
        """Write what is still waiting of an attempt; raises ``RunError`` where that is not possible."""
        file = self._files.pop((step, attempt), None)
        if file is not None:
            file.close()


class _Logged:
    """A progress whose facts that are numbers become scalars ``STEP/FACT`` at ``done``."""

    def __init__(self, inner: Progress, file: _EventFile) -> None:
        self._inner = inner
        self._file = file

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """Pass the progress on and log it; raises ``RunError`` where the log cannot be written."""
        self._inner.update(done, total, **facts)
        numbers = {
            name: float(value)
            for name, value in facts.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        if numbers:
            self._file.add(done, numbers)


class _EventFile:
    """The event file of one attempt of a step in this process, made with the first number."""

    def __init__(self, folder: Path, step: str) -> None:
        self._folder = folder
        self._step = step
        self._writer: Any = None
        self._last: tuple[int, dict[str, float]] | None = None

    def add(self, done: int, numbers: dict[str, float]) -> None:
        """Log numbers at ``done``, unless they were just now: a line is drawn again for others too."""
        if self._last == (done, numbers):
            return
        self._last = (done, numbers)
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=f"{self._step}/{name}", simple_value=value) for name, value in numbers.items()
        ]
        event = Event(wall_time=time.time(), step=done, summary=Summary(value=values))
        try:
            self._open(done).add_event(event)
        except OSError as error:
            raise self._unwritable(error) from error

    def _open(self, done: int) -> Any:
        if self._writer is None:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            again = self._folder.is_dir()
            self._writer = EventFileWriter(str(self._folder), max_queue_size=_QUEUE, flush_secs=_FLUSH_S)
            if again:
                # What an earlier process told beyond its last checkpoint is done again: TensorBoard drops it.
                start = SessionLog(status=SessionLog.START)
                self._writer.add_event(Event(wall_time=time.time(), step=done, session_log=start))
        return self._writer

    def close(self) -> None:
        """Write what is still waiting and close the file."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            try:
                writer.close()
            except OSError as error:
                raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(f"--tensorboard: cannot write {self._folder}: {error.strerror or error}")
