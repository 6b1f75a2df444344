"""Processes that we start beside ourselves, and how they end."""

from __future__ import annotations

import subprocess


def end_process(process: subprocess.Popen[bytes] | subprocess.Popen[str], seconds: float) -> None:
    """Tell a process to end, kill it when it has not after ``seconds``, and close our ends of its pipes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
