"""Processes of ours that do a part of a step: one task in, progress and one result or one error out.

The task is a JSON line on the worker's standard input, which then stays open: when it closes, because the
parent ended, however it ended, the worker ends too. What the worker tells are JSON lines on a pipe of its
own, so that nothing a library prints can mix in; all that is printed goes into the worker's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogumi import errors
from cogumi.errors import CogumiError, RunError
from cogumi.stage import Progress
from cogumi.store import disk_error
from cogumi.told import as_told

_PIPE = "COGUMI_WORKER_PIPE"
_TICK_S = 0.5
_GRACE_S = 2.0
"""How long after a first failure a better reason is waited for: the others fail because it did."""
_END_S = 5.0
_ORPHAN = 3

Message = dict[str, Any]


class Worker:
    """A worker seen from its parent: ``python -m module`` with one task.

    ``environment`` is set beside the parent's own; ``log`` is written anew. Raises ``RunError`` where the
    log cannot be written.
    """

    def __init__(
        self, name: str, module: str, task: Any, *, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = log
        self.result: Any = None
        self.done = False
        """True once the result has come."""
        self.error: CogumiError | None = None
        """Why the worker failed, as the user is told it."""
        self.doubt = 0
        """0: the error is one that a user can act on; above it the reason may lie in another worker."""
        self._buffer = b""
        self._pipe, theirs = os.pipe()
        os.set_blocking(self._pipe, False)
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    # The parent's own search path and no other: -P keeps the folder it stands in out.
                    [sys.executable, "-P", "-m", module],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs,),
                    env={**os.environ, **environment, "PYTHONPATH": _search_path(), _PIPE: str(theirs)},
                )
        except OSError as error:
            os.close(self._pipe)
            raise disk_error(error, log) from error
        finally:
            os.close(theirs)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # It died already, which is seen when it is read from.
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Tell whether nothing more will come."""
        return self._pipe < 0

    def fileno(self) -> int:
        """Return what to select on."""
        return self._pipe

    def messages(self) -> list[Message]:
        """Return what the worker told since the last call; result and error are taken out of it."""
        # Asked first: what a dead process has told is all in the pipe.
        dead = self._process.poll() is not None
        told: list[Message] = []
        while not self.ended:
            try:
                found = os.read(self._pipe, 1 << 16)
            except BlockingIOError:
                if dead:
                    self._close()
                break
            if not found:
                self._close()
                break
            *lines, self._buffer = (self._buffer + found).split(b"\n")
            told += [message for line in lines if not self._take(message := json.loads(line))]
        return told

    def _take(self, message: Message) -> bool:
        if "result" in message:
            self.result, self.done = message["result"], True
        elif "error" in message:
            self._failed(message)
        return "progress" not in message

    def _failed(self, message: Message) -> None:
        kind = getattr(errors, message["error"], None)
        if isinstance(kind, type) and issubclass(kind, CogumiError):
            self.error = kind(message["text"])
            return
        self.doubt = 3
        self.error = RunError(f"{self.name} failed ({message['error']}: {message['text']}); see {self.log}")

    def _close(self) -> None:
        os.close(self._pipe)
        self._pipe = -1
        if self.done or self.error is not None:
            return
        code = self._process.wait()
        killed = code == -signal.SIGKILL
        self.doubt = 1 if killed else 2
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        why = "too little memory, or someone stopped it; " if killed else f"see {self.log}; "
        self.error = RunError(f"{self.name} {how}: {why}run again to go on from its last checkpoint")

    def stop(self) -> None:
        """End the process: what it has not written yet is lost."""
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        if not self.done:
            self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self.ended:
            os.close(self._pipe)
            self._pipe = -1


def watch(workers: Sequence[Worker]) -> Iterator[list[tuple[Worker, Message]]]:
    """Yield what workers tell, as it comes, and nothing at least twice a second, until all have ended.

    The caller stops them, also when it leaves early.
    """
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.fileno(), selectors.EVENT_READ)
        while waiting := [worker for worker in workers if not worker.ended]:
            selector.select(_TICK_S)
            told: list[tuple[Worker, Message]] = []
            for worker in waiting:
                place = worker.fileno()
                told += [(worker, message) for message in worker.messages()]
                if worker.ended:
                    selector.unregister(place)
            yield told


def together(workers: Sequence[Worker], progress: Progress) -> Any:
    """Return the first worker's result once all have done their part; its progress is passed on.

    The first that fails ends all of them: the error raised is that of the one where the reason lies. What
    ``progress`` raises ends them too.
    """
    try:
        failed_at: float | None = None
        for told in watch(workers):
            for worker, message in told:
                if worker is workers[0]:
                    progress.update(*message["progress"], **message["facts"])
            failed = sorted((found for found in workers if found.error), key=lambda found: found.doubt)
            if failed:
                failed_at = failed_at or time.monotonic()
                over = time.monotonic() - failed_at > _GRACE_S or all(found.ended for found in workers)
                if failed[0].error is not None and (over or not failed[0].doubt):
                    raise failed[0].error
            if all(found.done for found in workers):
                break
        return workers[0].result
    finally:
        for worker in workers:
            worker.stop()


def _search_path() -> str:
    return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)


class _Teller:
    """The worker's end of the pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """Tell the progress."""
        self.tell({"progress": [done, total], "facts": facts})

    def tell(self, message: Message) -> None:
        """Write one line."""
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._pipe, data) :]


def serve(work: Callable[[Any, Progress], Any]) -> int:
    """Be a worker: do ``work(task, progress)``, tell its result or its error; return the exit code."""
    # Ctrl-C goes to the parent as well, and it decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = int(os.environ.pop(_PIPE))
    os.set_inheritable(pipe, False)
    teller = _Teller(pipe)
    task = json.loads(_task_line())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        teller.tell({"result": work(task, teller)})
    except Exception as error:
        told = as_told(error, Path.cwd())
        if told is None:
            traceback.print_exc()
        teller.tell({"error": _class_of(told or error), "text": _first_line(told or error)})
        return 1
    return 0


def _class_of(error: Exception) -> str:
    """Return the name of an error's class; of one of ours, that by which the parent knows it."""
    known = (kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
    return next(known, type(error).__name__)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def _task_line() -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        more = os.read(0, 1 << 16)
        if not more:
            os._exit(_ORPHAN)
        found += more
    return found


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(_ORPHAN)
