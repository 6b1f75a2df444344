"""One of the processes that train a model together: ``python -m pipeline.training.worker``."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from cogumi.stage import Progress
from cogumi.workers import serve


class _Unheard:
    """The progress of all processes but the first."""

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """Say nothing: the first process tells the same."""


def work(task: Any, progress: Progress) -> Any:
    """Join the other processes and do this one's part; return the work's answer in the first, else None."""
    from pipeline.training.world import join_world

    world = join_world(task["strategy"])
    module, _, name = str(task["work"]).partition(":")
    found = getattr(importlib.import_module(module), name)
    answer = found(task["arguments"], progress if world.first else _Unheard(), world)
    # The group is not torn down: one that has done its part might wait there for the first to write files.
    return answer if world.first else None


if __name__ == "__main__":
    sys.exit(serve(work))
