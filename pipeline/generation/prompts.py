"""Every prompt of plan 1.1 to 1.5, each beside the parser of what it asks for.

The local teacher recognises its role from these same texts, so that the rehearsal sends what a paid run
sends. Anything that changes here changes what is asked: raise the stages' version with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.generation.topics import DOMAINS, seeds_of

WRITER_SYSTEM = (
    "You write questions that a language model is trained on. You follow the requested format exactly and "
    "return nothing else."
)

_LEVELS = {
    "easy": "can be answered at once, in one step, in a few words or sentences",
    "hard": "needs several steps, or several facts put together, but has one answer that can be checked",
}

WRITER_LINE = 'Write {n} different questions for the domain "{domain}" at difficulty "{difficulty}".'


_TAKEN = "Already taken, so write nothing like these:"
_TAKEN_CHARS = 200
"""Of a taken question; a passage need not be repeated in full to be avoided."""


def writer_prompt(
    domain: str, difficulty: str, n: int, call: int, seed: int, taken: Sequence[str] = ()
) -> str:
    """Return the request for ``n`` questions; ``call`` counts the calls of a cell and varies the set.

    ``taken``: questions that the teacher wrote again and again in earlier sets, shown one a line.
    """
    known = DOMAINS[domain]
    seeds = seeds_of(domain, call, seed)
    lines = [
        WRITER_LINE.format(n=n, domain=domain, difficulty=difficulty),
        f"The domain: {known.description}.",
        f"The difficulty: the question {_LEVELS[difficulty]}.",
        f"Topic of this set: {seeds.topic}. Kind of question: {seeds.kind}. Setting: {seeds.setting}. "
        f"Style: {seeds.style}. Where these do not go together, the topic counts.",
        "Each question stands alone: it contains every text, number or tool that it refers to. "
        "No two ask the same thing in other words.",
    ]
    if taken:
        lines += [_TAKEN, *(f"- {' '.join(text.split())[:_TAKEN_CHARS]}" for text in taken)]
    lines += [
        f"This is set {call} of seed {seed}; avoid what the other sets are likely to contain.",
        f"Return one JSON array of {n} strings and nothing else.",
    ]
    return "\n".join(lines)


def parse_questions(text: str) -> list[str] | None:
    """Return the strings of the JSON array in a writer's answer, or None when there is no such array."""
    value = _json_between(text, "[", "]")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    # JSON can spell half a character, which no file of text can hold.
    return [item.strip() for item in value if item.strip() and _writable(item)]


JUDGE_SYSTEM = (
    "You review questions before a language model is trained on them. Score each of three aspects from 1 "
    "(useless) to 10 (perfect). quality: correct, complete, answerable, worth learning. relevance: belongs "
    "to the stated domain and has the stated difficulty. clarity: unambiguous and well written. Return one "
    'JSON object and nothing else: {"quality": 8, "relevance": 9, "clarity": 8}'
)

SCORES = ("quality", "relevance", "clarity")


def judge_prompt(domain: str, difficulty: str, question: str) -> str:
    """Return the request to score one question."""
    return f"Domain: {domain}\nDifficulty: {difficulty}\nQuestion:\n<question>\n{question}\n</question>"


def parse_scores(text: str) -> dict[str, int] | None:
    """Return the three scores of a judge's answer, or None unless all are whole numbers from 1 to 10."""
    value = _json_between(text, "{", "}")
    if not isinstance(value, dict):
        return None
    scores: dict[str, int] = {}
    for name in SCORES:
        score = value.get(name)
        # bool is an int to Python, and true is no score.
        if type(score) is not int or not 1 <= score <= 10:
            return None
        scores[name] = score
    return scores


EASY_SYSTEM = (
    "Answer the question correctly, directly and completely. Give only the answer: no introduction, no "
    "repetition of the question, no explanation unless the question asks for one."
)

_HARD_TAGS = ("<thinking>", "[DRAFT]", "[CRITIQUE]", "[REVISED]", "</thinking>", "<answer>", "</answer>")


@dataclass(frozen=True, slots=True)
class HardAnswer:
    """A hard answer taken apart; ``reasoning`` is what stood between the thinking tags."""

    reasoning: str
    answer: str


def parse_hard_answer(text: str) -> HardAnswer | None:
    """Take a draft-critique-revised answer apart, or return None when its form is not exact.

    Every tag must occur once and in order, every part must hold text, and nothing may stand outside.
    """
    if any(text.count(tag) != 1 for tag in _HARD_TAGS):
        return None
    # Not one regular expression: its lazy parts take most of the time that an answer costs.
    parts, rest = [], text
    for tag in _HARD_TAGS:
        part, found, rest = rest.partition(tag)
        if not found:
            return None
        parts.append(part.strip())
    before, opened, draft, critique, revised, between, answer = parts
    if before or opened or between or rest.strip() or not (draft and critique and revised and answer):
        return None
    return HardAnswer(f"[DRAFT] {draft}\n[CRITIQUE] {critique}\n[REVISED] {revised}", answer)


# What the second request of a conversation says when the first answer could not be used.
REPAIR_JSON = "That could not be read. Return only the JSON that was asked for, complete and valid."
REPAIR_EASY = "That is not a complete answer. Answer the question again, completely and in fewer words."
REPAIR_HARD = (
    "That is not in the required form. Answer again, in exactly this form and with nothing outside of it: "
    "<thinking>[DRAFT] ... [CRITIQUE] ... [REVISED] ...</thinking><answer>...</answer>"
)


def _writable(text: str) -> bool:
    """Tell whether a text can be written as UTF-8: one with half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_between(text: str, first: str, last: str) -> object:
    # Models like to wrap JSON in a code fence or a sentence; what lies outside the brackets is dropped.
    start, end = text.find(first), text.rfind(last)
    if start < 0 or end < start:
        return None
    try:
        value: object = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None
    return value
