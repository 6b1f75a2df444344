"""Whether a process holds a run, seen without touching its lock."""

from __future__ import annotations

from pathlib import Path

from cogumi.workspace import Workspace

_LOCKS = Path("/proc/locks")


def is_held(workspace: Workspace, run: str) -> bool | None:
    """Tell whether a process that can be seen from here holds the run's lock; None where nobody can tell.

    Read from the kernel's list of locks: to try the lock would be to take it for a moment.
    """
    try:
        number = (workspace.root / "locks" / f"run-{run}.lock").stat().st_ino
        lines = _LOCKS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    # Major, minor and inode; on some file systems the device here is not the one that stat tells.
    return any(f":{number} " in line for line in lines if "FLOCK" in line)
