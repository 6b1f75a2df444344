"""A form of question: texts with slots, what may stand in them, the answer and its exact check."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from cogumi.errors import RunError

Fields = dict[str, str]
Split = Literal["train", "dev", "gate", "final"]

DIFFICULTIES = ("easy", "hard")

# More draws than any form needs: the least accepting condition takes one draw in five.
_MAX_DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class Solution:
    """What the teacher knows of a question; ``steps`` is one short line of reasoning."""

    domain: str
    difficulty: str
    answer: str
    steps: str


def same_text(expected: str, given: str) -> bool:
    """Return whether two short answers agree, but for case, spacing and a closing full stop."""
    return normalise(expected) == normalise(given)


def normalise(text: str) -> str:
    """Return the text in one case, with single spaces and without closing punctuation."""
    return " ".join(text.casefold().split()).rstrip(" .?!")


def _always(fields: Fields) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Form:
    """Questions of one pattern.

    ``texts`` are paraphrases with the same ``{slot}`` names; ``slots`` lists what each may hold; ``allowed``
    rules combinations out. ``answer`` gives the answer and the steps, ``check`` whether a given answer is
    right (default: the same text). ``meaning`` is equal for two fillings when their answers are
    interchangeable (default: the answer). ``weight`` is the form's share among those of its domain and
    difficulty.
    """

    texts: tuple[str, ...]
    slots: Mapping[str, tuple[str, ...]]
    answer: Callable[[Fields], tuple[str, str]]
    allowed: Callable[[Fields], bool] = _always
    check: Callable[[Fields, str], bool] | None = None
    meaning: Callable[[Fields], object] | None = None
    weight: float = 1.0

    def draw(self, rng: random.Random) -> Fields:
        """Return a random allowed filling of the slots."""
        for _ in range(_MAX_DRAWS):
            fields = {slot: rng.choice(values) for slot, values in self.slots.items()}
            if self.allowed(fields):
                return fields
        raise RunError(f"no allowed filling found for the form {self.texts[0]!r}")

    def write(self, rng: random.Random) -> str:
        """Return a random question of this form."""
        fields = self.draw(rng)
        return rng.choice(self.texts).format(**fields)

    def patterns(self) -> Iterator[re.Pattern[str]]:
        """Give one pattern per text that reads the slots back."""
        for text in self.texts:
            seen: set[str] = set()
            parts = []
            for part in re.split(r"(\{\w+\})", text):
                slot = part[1:-1]
                if not (part.startswith("{") and slot in self.slots):
                    parts.append(re.escape(part))
                elif slot in seen:
                    parts.append(f"(?P={slot})")
                else:
                    seen.add(slot)
                    values = sorted(self.slots[slot], key=len, reverse=True)
                    parts.append(f"(?P<{slot}>{'|'.join(re.escape(value) for value in values)})")
            yield re.compile("".join(parts))

    def right(self, fields: Fields, answer: str) -> bool:
        """Return whether the answer is right for these fields."""
        if self.check is not None:
            return self.check(fields, answer)
        return same_text(self.answer(fields)[0], answer)

    def _mutate(self, fields: Fields, rng: random.Random) -> Fields:
        """Return the fields with two alike exchanged, for the mix-ups that models make, or one redrawn."""
        first = rng.choice(sorted(self.slots))
        alike = [
            slot for slot in sorted(self.slots) if slot != first and self.slots[slot] == self.slots[first]
        ]
        if alike and rng.random() < 0.5:
            second = rng.choice(alike)
            return fields | {first: fields[second], second: fields[first]}
        return fields | {first: rng.choice(self.slots[first])}

    def corrupt(self, fields: Fields, rng: random.Random) -> str:
        """Return the right answer to a slightly different question that is wrong for this one."""
        meaning = self.meaning or (lambda filled: self.answer(filled)[0])
        for _ in range(_MAX_DRAWS):
            other = self._mutate(fields, rng)
            if self.allowed(other) and meaning(other) != meaning(fields):
                answer = self.answer(other)[0]
                # Where the meaning stands for the check, that costs a sandbox; else ask the check itself.
                if self.meaning is not None or not self.right(fields, answer):
                    return answer
        raise RunError(f"no wrong answer found for the form {self.texts[0]!r}")


def split_of(question: str) -> Split:
    """Return the split that a question belongs to: 70 % train, 5 % dev, 20 % gate, 5 % final.

    By SHA-256 of the normalised text, so that every program, today and later, agrees without a list.
    """
    share = int.from_bytes(hashlib.sha256(normalise(question).encode()).digest()[:8], "big") % 100
    if share < 70:
        return "train"
    if share < 75:
        return "dev"
    return "gate" if share < 95 else "final"


def distinct(*slots: str) -> Callable[[Fields], bool]:
    """Return a condition that these slots hold different values."""
    return lambda fields: len({fields[slot] for slot in slots}) == len(slots)
