"""Training on many devices: one process for each, started here, ended together.

Processes meet as torchrun's do (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); accelerate makes the
process group of it. One that fails ends all, and its reason is the one that is told.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from cogumi.devices import devices, seeing
from cogumi.errors import UsageError
from cogumi.stage import Progress, Settings
from cogumi.workers import Worker, together

Strategy = Literal["ddp", "fsdp"]


class DevicesSettings(Settings):
    """How many devices train one model, and what each of them holds."""

    count: Literal["all"] | PositiveInt = 1
    """Processes, one for each device; on a machine without accelerators they share the processor."""
    strategy: Strategy = "ddp"
    """ddp: each device holds the whole model. fsdp: each holds a part of every weight, for large models."""

    def processes(self) -> int:
        """Return how many processes train; loads torch unless one is asked for.

        Raises ``UsageError`` when more devices are asked for than this machine has.
        """
        if self.count == 1:
            return 1
        found = devices()
        if self.count == "all":
            return max(1, len(found))
        # A machine without accelerators has one processor, which any number of processes can share.
        if found and len(found) < self.count:
            raise UsageError(
                f"devices.count: {self.count} devices are asked for and {len(found)} are here: set count: all"
            )
        return self.count


def train_together(
    work: str, arguments: Any, where: DevicesSettings, progress: Progress, *, logs: Path
) -> Any:
    """Do ``work`` in one process for each device; return what the first of them returns.

    ``work`` is ``module:function`` and is called as ``function(arguments, progress, world)``; arguments and
    what it returns are JSON. Each process prints into ``logs/process-N.log``. Raises the error of the process
    that failed, and whatever ``progress`` raises, once all processes have ended.
    """
    size = where.processes()
    cores = max(1, len(os.sched_getaffinity(0)) // size)
    shared = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(cores),
        **seeing(devices()),
    }
    logs.mkdir(parents=True, exist_ok=True)
    task = {"work": work, "arguments": arguments, "strategy": where.strategy}
    workers: list[Worker] = []
    try:
        for rank in range(size):
            workers.append(
                Worker(
                    f"training process {rank + 1} of {size}",
                    "pipeline.training.worker",
                    task,
                    log=logs / f"process-{rank + 1}.log",
                    environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
            )
        return together(workers, progress)
    finally:
        for worker in workers:
            worker.stop()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
