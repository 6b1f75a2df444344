"""The six verdicts of the contract, their exit codes, and how several become one."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Verdict(StrEnum):
    """What a gate says about a claim."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNDECIDED = "UNDECIDED"
    INFEASIBLE = "INFEASIBLE"
    ERROR = "ERROR"
    BUDGET = "BUDGET"

    @property
    def exit_code(self) -> int:
        """The process exit code that stands for this verdict."""
        return EXIT_CODES[self]


EXIT_CODES = {
    Verdict.PASS: 0,
    Verdict.FAIL: 1,
    Verdict.UNDECIDED: 3,
    Verdict.INFEASIBLE: 4,
    Verdict.ERROR: 5,
    Verdict.BUDGET: 6,
}

# The contract's order: any FAIL is FAIL; else any INFEASIBLE, ERROR, UNDECIDED in that order; else PASS.
_PRECEDENCE = (Verdict.FAIL, Verdict.INFEASIBLE, Verdict.ERROR, Verdict.BUDGET, Verdict.UNDECIDED)


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict of a gate from those of its criteria; no criteria is UNDECIDED, never PASS."""
    found = set(verdicts)
    for verdict in _PRECEDENCE:
        if verdict in found:
            return verdict
    return Verdict.PASS if found else Verdict.UNDECIDED
