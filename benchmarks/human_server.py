"""The rating app as a process of its own, for tests and load: killed, stopped and started again at once.

A start of the command costs a second of imports. Where a server is killed two hundred times it is a child of
a process that has imported everything and opened nothing: ``python -m benchmarks.human_server FOLDER PORT``
forks one child for each line on its standard input, which opens the study, binds the port and serves as
``cogumi humaneval serve`` does. The child shares no file, connection or thread with the one before.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
STUDY = "phase8"


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Command:
    """A running ``cogumi humaneval serve``."""

    def __init__(self, workspace: Path, study: str = STUDY) -> None:
        words = [sys.executable, "-m", "cogumi", "humaneval", "serve", study, "--port", "0", "--json"]
        self._process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "COGUMI_WORKSPACE": str(workspace)},
        )
        assert self._process.stdout is not None
        told = ""
        for line in self._process.stdout:
            told += line
            if line == "}\n":
                break
        self.url, self.pid = str(json.loads(told)["url"]), self._process.pid

    def stop(self) -> int:
        """End it as a service manager does, and return its exit code."""
        self._process.terminate()
        code = self._process.wait(timeout=30)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code


class Server:
    """A server that starts within a tenth of a second, any number of times, always at the same address.

    Args:
        study: the study's folder, as ``StudyStore.open`` takes it.
        within: words put in front of the command, for a server in a namespace of its own.
    """

    def __init__(self, study: Path, *, within: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.pid = 0
        words = [*within, sys.executable, "-m", "benchmarks.human_server", str(study), str(self.port)]
        self._runner = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        self.runner_pid = int(self._told("runner"))

    def _told(self, word: str) -> str:
        stdout: IO[str] | None = self._runner.stdout
        assert stdout is not None
        said = stdout.readline().split()
        if len(said) != 2 or said[0] != word:
            raise RuntimeError(f"the server said {said!r} instead of {word!r}")
        return said[1]

    def start(self, *, most_file_bytes: int = 0) -> None:
        """Start it and wait until it listens; ``most_file_bytes`` caps what it may write into one file."""
        assert self._runner.stdin is not None
        self._runner.stdin.write(f"{most_file_bytes}\n")
        self._runner.stdin.flush()
        self.pid = int(self._told("ready"))

    def signal(self, number: signal.Signals) -> None:
        """Send the server a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a power cut would end it, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as a service manager does, and wait until it is gone."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        until = time.monotonic() + 30
        while psutil.pid_exists(self.pid):
            if time.monotonic() > until:
                raise TimeoutError(f"the server {self.pid} does not end")
            time.sleep(0.002)
        self.pid = 0

    def limit_files(self, most_bytes: int) -> None:
        """Change what the running server may write into one file."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))

    def close(self) -> None:
        """End the server and what starts it."""
        if self.pid:
            self.kill()
        assert self._runner.stdin is not None
        assert self._runner.stdout is not None
        self._runner.stdin.close()
        self._runner.wait(timeout=30)
        self._runner.stdout.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(folder: Path, port: int, most_file_bytes: int) -> None:
    from dashboard.human_eval.app import AppSettings
    from dashboard.human_eval.serve import serve
    from evals.human.store import StudyStore

    if most_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_file_bytes, resource.RLIM_INFINITY))
    store = StudyStore.open(folder)
    secret = bytes.fromhex((folder / "secret").read_text().strip())
    settings = AppSettings(public_url=None, secret=secret)
    serve(store, settings, "127.0.0.1", port, lambda _: print("ready", os.getpid(), flush=True))


def main(words: Sequence[str]) -> None:
    """Start a server for each line of standard input, which holds its RLIMIT_FSIZE in bytes or 0."""
    for module in ("dashboard.human_eval.app", "dashboard.human_eval.serve", "evals.human.store"):
        importlib.import_module(module)
    folder, port = Path(words[0]), int(words[1])
    # The kernel takes ended children away: whoever killed one sees it go.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("runner", os.getpid(), flush=True)
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = 1
            try:
                _serve(folder, port, int(line))
                code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
