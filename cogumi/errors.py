"""Errors that reach the user as one line, each with the exit code of the contract."""

from __future__ import annotations


class CogumiError(Exception):
    """A problem that the user can act on; ``str(error)`` is the one line that is printed."""

    exit_code = 5


class UsageError(CogumiError):
    """Wrong usage or configuration: unknown name, key or path (exit 2)."""

    exit_code = 2


class InfeasibleError(CogumiError):
    """A target that no model or file could meet, or protocols that do not match (exit 4)."""

    exit_code = 4


class RunError(CogumiError):
    """The work could not be done: broken file, missing model, no sandbox, backend down (exit 5)."""

    exit_code = 5


class BudgetError(CogumiError):
    """The spending or time limit was reached; everything paid for is kept (exit 6)."""

    exit_code = 6


def nearest(name: str, known: list[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of the known names, or the list of them."""
    import difflib

    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if match:
        return f" (did you mean '{match[0]}'?)"
    return f" (known: {', '.join(sorted(known))})" if known else ""
