"""Where the rehearsal's time goes, step by step, and its peak memory: the whole of ``cogumi run``."""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import machine
from cogumi.ledger import Ledger
from cogumi.workspace import WORKSPACE_ENV


def main(arguments: list[str]) -> None:
    """Run the rehearsal in a fresh workspace and print a line for each step."""
    argparse.ArgumentParser(description=__doc__).parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        environment = {**os.environ, WORKSPACE_ENV: folder}
        done = subprocess.run([sys.executable, "-m", "cogumi", "run"], env=environment, check=False)
        wall = time.perf_counter() - start
        rows = Ledger(Path(folder)).steps("rehearsal")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"machine: {machine()}; exit {done.returncode}")
    for row in rows:
        seconds = (row.finished_at or row.started_at) - row.started_at
        print(f"  {row.step:<18} attempt {row.attempt}  {seconds:7.1f} s  {seconds / wall:5.1%}  {row.note}")
    print(f"whole run {wall:.1f} s, largest process {peak:.2f} GB resident")


if __name__ == "__main__":
    main(sys.argv[1:])
