"""What one more attempt costs: the loop "train until the gate passes" must not pass by luck.

Attempt j of a gate on the same items spends alpha_j = 6 alpha / (pi^2 j^2), so that all attempts together
spend at most alpha; fresh items begin again at j = 1 (research note on evaluation and gates, section 4.7).
"""

from __future__ import annotations

import math
from typing import Protocol


class AttemptBook(Protocol):
    """The ledger's memory of which artifacts a gate has already judged on which items."""

    def number(self, gate: str, items_digest: str, artifact: str) -> int:
        """Return the attempt number (from 1) of ``artifact``; asking again returns the same."""
        ...


def alpha_of(attempt: int, alpha: float) -> float:
    """Return what attempt number ``attempt`` (from 1) may spend of ``alpha``."""
    if attempt < 1:
        raise ValueError(f"attempts count from 1, not {attempt}")
    return 6 * alpha / (math.pi**2 * attempt**2)
