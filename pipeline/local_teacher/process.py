"""Starting the local teacher as a process of its own, and never leaving it behind."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import urllib.request
from types import TracebackType
from typing import Any

from cogumi.errors import RunError
from cogumi.processes import end_process
from pipeline.local_teacher.options import READY, TeacherOptions


class LocalTeacher:
    """A running local teacher; use it as a context manager.

    It ends with the context, and also when this process dies, since it reads the pipe that we hold.
    """

    def __init__(self, options: TeacherOptions, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.options = options
        self.base_url = ""
        """Root address without a path, known once it is started."""
        self._command = [sys.executable, "-m", "pipeline.local_teacher", "--host", host, "--port", str(port)]
        self._command += ["--stop-with-stdin", *options.arguments()]
        self._process: subprocess.Popen[str] | None = None

    def start(self, *, timeout_seconds: float = 60.0) -> None:
        """Start the process and wait until it answers; raises ``RunError`` with its own last words."""
        self.options.state.mkdir(parents=True, exist_ok=True)
        log = self.options.state / "stderr.log"
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # Its own group: Ctrl-C reaches the parent alone, which then ends it in order.
                start_new_session=True,
            )
        line = self._first_line(timeout_seconds)
        if not line.startswith(READY):
            self.kill()
            last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["it gave no sign of life"]
            raise RunError(f"the local teacher did not start: {last[0].removeprefix('error: ')}")
        self.base_url = line.removeprefix(READY).strip()

    def stop(self) -> None:
        """End the process and wait for it."""
        process, self._process = self._process, None
        if process is not None:
            end_process(process, 5)

    def kill(self) -> None:
        """End the process at once (SIGKILL), as a power cut would."""
        if self._process is not None:
            self._process.kill()
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the running teacher."""
        if self._process is None:
            raise RunError("the local teacher is not running")
        return self._process.pid

    def counters(self, *, ids: bool = False) -> dict[str, Any]:
        """Return the teacher's own counts of what it answered: the truth that a ledger is held against."""
        url = self.base_url + "/counters" + ("?ids" if ids else "")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as answer:
            document: dict[str, Any] = json.load(answer)
        return document

    def __enter__(self) -> LocalTeacher:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _first_line(self, timeout_seconds: float) -> str:
        # A thread, because a pipe cannot be read with a timeout portably.
        lines: queue.Queue[str] = queue.Queue()
        assert self._process is not None
        pipe = self._process.stdout
        assert pipe is not None
        threading.Thread(target=lambda: lines.put(pipe.readline()), daemon=True).start()
        try:
            return lines.get(timeout=timeout_seconds)
        except queue.Empty:
            return ""
