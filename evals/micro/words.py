"""The closed vocabulary that all micro-domains share, so that a tiny model can learn it in minutes."""

from __future__ import annotations

NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lily", "Max", "Ella", "Leo", "Zoe")
OBJECTS = ("ball", "book", "cup", "hat", "key", "lamp", "pen", "ring", "coin", "bag")
COLORS = ("red", "blue", "green", "black", "white", "yellow")
PLACES = ("park", "kitchen", "garden", "school", "shop", "station", "museum", "forest")
# From the smallest and lightest to the biggest and heaviest: adult animals, typical weight, each well apart.
ANIMALS = (
    "flea",
    "bee",
    "mouse",
    "rat",
    "rabbit",
    "cat",
    "fox",
    "wolf",
    "lion",
    "horse",
    "hippo",
    "whale",
)


def numbers(low: int, high: int) -> tuple[str, ...]:
    """Return the numerals from low to high, both included."""
    return tuple(str(value) for value in range(low, high + 1))
