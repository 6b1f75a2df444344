"""An error in the contract's words: what went wrong at the system below us, as one line and exit code."""

from __future__ import annotations

import errno
from pathlib import Path

from cogumi.errors import CogumiError
from cogumi.store import disk_error

# The system's words, which safetensors, llama.cpp and PostgreSQL wrap in errors of their own, and SQLite's.
_FULL = ("No space left on device", "database or disk is full")


def as_told(error: BaseException, path: Path) -> CogumiError | None:
    """Return the error as the user is told it, or None when it is a defect or an interrupt.

    ``path`` is where was written to.
    """
    if isinstance(error, CogumiError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_error(error, path)
    if isinstance(error, Exception) and any(words in str(error) for words in _FULL):
        return disk_error(OSError(errno.ENOSPC, "No space left on device"), path)
    return None


def note_of(error: BaseException, told: CogumiError | None) -> str:
    """Return what the ledger notes of a step that ended so."""
    return "interrupted" if isinstance(error, KeyboardInterrupt) else str(told or type(error).__name__)
