"""The closed vocabulary that all micro-domains share, so that a tiny model can learn it in minutes."""

from __future__ import annotations

NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lily", "Max", "Ella", "Leo", "Zoe")
OBJECTS = ("ball", "book", "cup", "hat", "key", "lamp", "pen", "ring", "coin", "bag")
COLORS = ("red", "blue", "green", "black", "white", "yellow")
PLACES = ("park", "kitchen", "garden", "school", "shop", "station", "museum", "forest")
# What one takes each object for: the knowledge of the common-sense domain.
PURPOSES = {
    "play": "ball",
    "read": "book",
    "drink": "cup",
    "cover the head": "hat",
    "open the door": "key",
    "light the room": "lamp",
    "write": "pen",
    "marry": "ring",
    "pay": "coin",
    "carry food": "bag",
}


def numbers(low: int, high: int) -> tuple[str, ...]:
    """Return the numerals from low to high, both included."""
    return tuple(str(value) for value in range(low, high + 1))
