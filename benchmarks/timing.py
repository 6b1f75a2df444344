"""Timing whole processes: interleaved runs, so that a busy machine slows both sides alike."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence


def seconds_of(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Return the wall seconds of a process whose output is thrown away."""
    start = time.perf_counter()
    subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> str:
    """Return ``median s (fastest to slowest)``."""
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def machine() -> str:
    """Name the machine in a few words."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
