"""The device that models compute on, this machine's accelerators, and how processes share them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from cogumi.errors import UsageError

DEVICES_ENV = "COGUMI_DEVICES"
"""How many shares of the processor count as devices, in place of any accelerator."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_CPU: Literal["cpu"] = "cpu"


def compute_device() -> Literal["cuda", "cpu"]:
    """Return where this process computes: its first CUDA device where it sees one, else the processor.

    As torch's device strings name it. Loads torch.
    """
    import torch

    return "cuda" if torch.cuda.is_available() else _CPU


def devices() -> tuple[str, ...]:
    """Return the devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    ``cpu`` for each share of the processor that ``COGUMI_DEVICES`` counts. Loads torch unless that is set.
    Raises ``UsageError`` when it is no number.
    """
    shares = os.environ.get(DEVICES_ENV)
    if shares:
        if not shares.isdecimal():
            raise UsageError(f"{DEVICES_ENV}: a number of processes is expected, not {shares!r}")
        return (_CPU,) * int(shares)
    import torch

    count = torch.cuda.device_count()
    # Numbers, or ids that begin with GPU- or MIG-.
    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(str(index) for index in range(count))


def seeing(share: Sequence[str]) -> dict[str, str]:
    """Return the environment in which a process sees these devices alone."""
    if _CPU in share:
        return {DEVICES_ENV: str(len(share)), _VISIBLE: ""}
    return {_VISIBLE: ",".join(share)}


def shared_out(found: Sequence[str], parts: int) -> list[dict[str, str]]:
    """Return for each of ``parts`` processes the environment in which it sees its own devices alone.

    What is left over goes to the first.
    """
    sizes = [len(found) // parts + (part < len(found) % parts) for part in range(parts)]
    starts = [sum(sizes[:part]) for part in range(parts)]
    return [seeing(found[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
