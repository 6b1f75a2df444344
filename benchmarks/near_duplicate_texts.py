"""The questions of the near-duplicate benchmark: the real ones, and deterministic variants of them.

A variant is made, not written: it has the lengths, words and openings of real questions and every similarity
to its original from almost none to almost equal, but it need not make sense. Its kinds and their shares are
those of ``KINDS``; a chain of variants of variants makes families, as a teacher that repeats itself does.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

_NUMBER = re.compile(r"\d+")
_OPENINGS = (
    "In your own words,",
    "For a beginner,",
    "Suppose you are in a hurry.",
    "Think step by step.",
    "As a teacher would explain it:",
    "Briefly,",
)
_CLOSINGS = (
    "and why?",
    "in two sentences?",
    "with an example?",
    "when time is short?",
    "compared with the usual way?",
    "in the long run?",
)


class Question(NamedTuple):
    """A real question, the domain that its file names, and its cell ``domain/difficulty``."""

    text: str
    domain: str
    cell: str


def real_questions(folder: Path) -> list[Question]:
    """Return the questions of ``teacher/questions`` in the data folder, file by file."""
    found = []
    for path in sorted((folder / "teacher" / "questions").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.append(Question(row["question"], row["domain"], f"{row['domain']}/{row['difficulty']}"))
    return found


def swapped(text: str, rng: random.Random, other: str) -> str:
    """Replace one to four words by words of another question."""
    words, theirs = text.split(), other.split()
    for _ in range(rng.randint(1, 4)):
        words[rng.randrange(len(words))] = rng.choice(theirs)
    return " ".join(words)


def exchanged(text: str, rng: random.Random, other: str) -> str:
    """Let two neighbouring words change places."""
    words = text.split()
    at = rng.randrange(max(1, len(words) - 1))
    words[at : at + 2] = reversed(words[at : at + 2])
    return " ".join(words)


def renumbered(text: str, rng: random.Random, other: str) -> str:
    """Give every number another value; a text without numbers gets one."""
    if _NUMBER.search(text):
        return _NUMBER.sub(lambda _: str(rng.randint(1, 999)), text)
    return f"{text.rstrip('?.! ')}, case {rng.randint(1, 9999)}?"


def lengthened(text: str, rng: random.Random, other: str) -> str:
    """Add a clause before or after."""
    if rng.random() < 0.5:
        return f"{rng.choice(_OPENINGS)} {text}"
    return f"{text.rstrip('?.! ')} {rng.choice(_CLOSINGS)}"


def recombined(text: str, rng: random.Random, other: str) -> str:
    """Join the first half of a question with the second half of another."""
    words, theirs = text.split(), other.split()
    return " ".join(words[: (len(words) + 1) // 2] + theirs[len(theirs) // 2 :])


KINDS: tuple[tuple[float, Callable[[str, random.Random, str], str]], ...] = (
    (0.3, swapped),
    (0.1, exchanged),
    (0.2, renumbered),
    (0.15, lengthened),
    (0.25, recombined),
)
"""Shares of the kinds of variants."""


def with_variants(real: Sequence[str], total: int, seed: int) -> list[str]:
    """Return ``total`` texts in a random order: all real ones, the rest variants of what is there already."""
    rng = random.Random(seed)
    texts = [text for text in real if text.split()]
    shares, kinds = [share for share, _ in KINDS], [kind for _, kind in KINDS]
    while len(texts) < total:
        (kind,) = rng.choices(kinds, shares)
        texts.append(kind(rng.choice(texts), rng, rng.choice(real)))
    rng.shuffle(texts)
    return texts[:total]
