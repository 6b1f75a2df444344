"""What kind of machine this is, as far as it bears on speed."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from pathlib import Path

from cogumi.devices import compute_device


def machine() -> str:
    """Return processor, usable cores and accelerator, such as ``AMD EPYC 7B13, 2 cores``.

    The accelerator is told once torch is loaded, as it is wherever one is used. No name of a host is in it.
    """
    parts = [_processor(), f"{len(os.sched_getaffinity(0))} cores"]
    torch = sys.modules.get("torch")
    if torch is not None and compute_device() == "cuda":
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        parts += [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return ", ".join(parts)


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
