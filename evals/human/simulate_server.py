"""The rating app's server as a process of its own, which ends with whoever started it."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cogumi.errors import RunError
from cogumi.processes import end_process
from cogumi.workspace import WORKSPACE_ENV

_START_S = 60.0
_END_S = 10.0


@contextmanager
def serving(workspace: Path, study: str, log: Path, *, url: str | None = None) -> Iterator[str]:
    """Serve a study on a free port of loopback and give the address; the process ends with the context.

    ``log``: file for what the server says; ``url``: of the study's database, where that is no file. Raises
    ``RunError`` with the server's own last line when it does not start.
    """
    from evals.human.store import DATABASE_URL_ENV

    command = [sys.executable, "-m", "cogumi", "humaneval", "serve", study]
    command += ["--port", "0", "--json", "--stop-with-stdin"]
    # By the environment, where no list of processes shows the password that it may hold.
    environment = {**os.environ, WORKSPACE_ENV: str(workspace)}
    environment.pop(DATABASE_URL_ENV, None)
    if url is not None:
        environment[DATABASE_URL_ENV] = url
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            # Ctrl-C is for us; we tell the server.
            start_new_session=True,
        )
    try:
        yield _address(process, log)
    finally:
        end_process(process, _END_S)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address that the server tells when it is ready."""
    lines: queue.Queue[bytes] = queue.Queue()
    pipe = process.stdout
    assert pipe is not None
    # A thread, because a pipe cannot be read with a timeout portably.
    threading.Thread(target=lambda: lines.put(_document(pipe)), daemon=True).start()
    try:
        told = json.loads(lines.get(timeout=_START_S))
        return str(told["url"])
    except (queue.Empty, ValueError, KeyError, TypeError):
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        why = said[0].removeprefix("cogumi: ") if said else "it gave no sign of life"
        raise RunError(f"the rating app did not start: {why}") from None


def _document(pipe: IO[bytes]) -> bytes:
    found = b""
    for line in iter(pipe.readline, b""):
        found += line
        if line == b"}\n":
            break
    return found
