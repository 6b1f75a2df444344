"""The eight micro-domains: writing, solving, spoiling and verifying their questions."""

from __future__ import annotations

import functools
import random
import re

from cogumi.errors import UsageError, nearest
from evals.micro import commands, language, quantity
from evals.micro.forms import DIFFICULTIES, Fields, Form, Solution

_FORMS: dict[str, tuple[tuple[Form, ...], tuple[Form, ...]]] = {
    "coding": (quantity.CODING_EASY, quantity.CODING_HARD),
    "math": (quantity.MATH_EASY, quantity.MATH_HARD),
    "tool_use": (commands.TOOL_USE_EASY, commands.TOOL_USE_HARD),
    "reasoning": (language.REASONING_EASY, language.REASONING_HARD),
    "reading": (language.READING_EASY, language.READING_HARD),
    "summarization": (language.SUMMARIZATION_EASY, language.SUMMARIZATION_HARD),
    "common_sense": (language.COMMON_SENSE_EASY, language.COMMON_SENSE_HARD),
    "instruction": (commands.INSTRUCTION_EASY, commands.INSTRUCTION_HARD),
}

DOMAINS = tuple(_FORMS)
"""The eight domains in the plan's order."""


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], str, str, Form]]:
    """Return one pattern per text of every form; no question fits two of different meaning."""
    return [
        (pattern, domain, difficulty, form)
        for domain, levels in _FORMS.items()
        for difficulty, forms in zip(DIFFICULTIES, levels, strict=True)
        for form in forms
        for pattern in form.patterns()
    ]


def _read(question: str) -> tuple[str, str, Form, Fields] | None:
    text = " ".join(question.split())
    for pattern, domain, difficulty, form in _patterns():
        match = pattern.fullmatch(text)
        if match and form.allowed(match.groupdict()):
            return domain, difficulty, form, match.groupdict()
    return None


def _must_read(question: str) -> tuple[Form, Fields]:
    found = _read(question)
    if found is None:
        raise UsageError(f"not a micro-domain question: {question[:80]!r}; write one with write_question")
    return found[2], found[3]


def write_question(domain: str, difficulty: str, rng: random.Random) -> str:
    """Return a random question of a domain; raises UsageError for an unknown domain or difficulty."""
    if domain not in _FORMS:
        raise UsageError(f"unknown micro-domain '{domain}'{nearest(domain, list(DOMAINS))}")
    if difficulty not in DIFFICULTIES:
        raise UsageError(f"unknown difficulty '{difficulty}'{nearest(difficulty, list(DIFFICULTIES))}")
    forms = _FORMS[domain][DIFFICULTIES.index(difficulty)]
    return rng.choices(forms, [form.weight for form in forms])[0].write(rng)


def solve(question: str) -> Solution | None:
    """Return the right answer to a question, read from its text alone, or None if it is none of ours."""
    found = _read(question)
    if found is None:
        return None
    domain, difficulty, form, fields = found
    return Solution(domain, difficulty, *form.answer(fields))


def verify(question: str, answer: str) -> bool:
    """Return whether an answer is right: executed, parsed or checked, not compared with one text.

    Garbage is a wrong answer. Raises UsageError for a question that is none of ours, and RunError when a
    coding answer cannot be executed because there is no sandbox.
    """
    form, fields = _must_read(question)
    return form.right(fields, answer)


def corrupt(question: str, rng: random.Random) -> str:
    """Return a plausible answer of the right form that is certainly wrong; UsageError as in `verify`."""
    form, fields = _must_read(question)
    return form.corrupt(fields, rng)
