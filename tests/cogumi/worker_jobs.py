"""What the workers of test_workers do: importable by other processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from cogumi.runner import UnfinishedError
from cogumi.stage import Progress
from cogumi.workers import serve


def work(task: Any, progress: Progress) -> Any:
    """Do the one thing that the task names."""
    print("printed beside the progress")
    kind = task["do"]
    if kind == "add":
        progress.update(1, 2, loss=0.5)
        return {"sum": sum(task["values"]), "pid": os.getpid()}
    if kind == "refuse":
        raise UnfinishedError(type("Step", (), {"id": "a"}), "r")  # type: ignore[arg-type]
    if kind == "full":
        raise OSError(28, "No space left on device")
    if kind == "defect":
        raise KeyError("a line\nand another")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "quit":
        os._exit(0)
    if kind == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(task["pid"]).write_text(str(os.getpid()))
        progress.update(0, 1)
        time.sleep(60)
    raise AssertionError(kind)


if __name__ == "__main__":
    sys.exit(serve(work))
