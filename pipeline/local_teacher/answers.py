"""What the local teacher says: a question writer, a judge and an answerer of the micro-domains.

Its role is read off the prompt, as a real model would read it. What it says depends on the seed, the
model's name and the prompt alone, never on time or order, so that its true accuracy is known beforehand.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from cogumi.errors import UsageError
from cogumi.teacher_faults import CONTENT_FAULTS
from evals.micro import corrupt as corrupt_answer
from evals.micro import solve, write_question
from pipeline.generation import prompts
from pipeline.local_teacher.options import TeacherOptions
from pipeline.local_teacher.scenes import behind_scene, with_scene

Finish = Literal["stop", "length", "refusal"]

UNKNOWN = "I do not know."
REFUSAL = "I'm sorry, but I can't help with that."

_WRITER = re.compile(
    re.escape(prompts.WRITER_LINE)
    .replace(r"\{n\}", r"(?P<n>\d+)")
    .replace(r"\{domain\}", r"(?P<domain>\w+)")
    .replace(r"\{difficulty\}", r"(?P<difficulty>\w+)")
)
_JUDGED = re.compile(r"<question>\n(?P<question>.*)\n</question>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request in the terms that both wire formats share."""

    model: str
    system: str
    messages: tuple[tuple[str, str], ...]
    """(role, text) in order; the first is the user's."""
    max_tokens: int
    digest: str
    """Digest of the request's body: equal requests are answered equally."""
    cached_prefix: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """How a real model chooses its words; the micro answerer knows one answer only."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, before it is put into a wire format."""

    text: str
    finish: Finish = "stop"
    input_tokens: int = 0
    output_tokens: int = 0


class EndingError(Exception):
    """The server ends before an answer was found; nothing is counted."""


class Answers(Protocol):
    """What stands behind the wire formats: the micro answerer, or a real model."""

    def reply(self, ask: Ask) -> Reply:
        """Answer one request, its tokens counted; raises ``UsageError`` for one that cannot be answered."""
        ...

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        ...

    def close(self) -> None:
        """End what is under way, which then raises ``EndingError``."""
        ...


def count_tokens(text: str) -> int:
    """Return the number of tokens that the teacher bills: four characters each, at least one."""
    return max(1, -(-len(text) // 4))


def share(*parts: object) -> float:
    """Return a number in [0, 1) that depends on the parts alone (SHA-256)."""
    return int.from_bytes(_digest(parts)[:8], "big") / 2**64


def micro_question(options: TeacherOptions, text: str) -> str:
    """Return the micro-domain question of a text: what stands behind its scene, if scenes are written."""
    return behind_scene(text) if options.varied else text


def is_wrong(options: TeacherOptions, model: str, domain: str, question: str) -> bool:
    """Tell whether this model answers this question wrongly: the rule that fixes its true accuracy."""
    rate = options.error_rates.get(domain, options.error_rate)
    return share(options.seed, model, micro_question(options, question)) < rate


def true_accuracy(options: TeacherOptions, model: str, domain: str, questions: Iterable[str]) -> float:
    """Return the share of these questions of one domain that this model answers correctly, faults aside."""
    wrong = [is_wrong(options, model, domain, question) for question in questions]
    return 1 - sum(wrong) / len(wrong)


class Answerer:
    """Answers requests in the role that their prompt gives."""

    def __init__(self, options: TeacherOptions) -> None:
        self._options = options

    def reply(self, ask: Ask) -> Reply:
        """Answer one request; the content faults of the options are part of what this model is like."""
        text, finish = self._said(ask)
        prompt = sum(len(turn) for _, turn in ask.messages) + len(ask.system)
        return Reply(text, finish, max(1, -(-prompt // 4)), count_tokens(text))

    def count(self, text: str) -> int:
        """Return the number of tokens that the teacher bills for a text."""
        return count_tokens(text)

    def close(self) -> None:
        """Nothing is under way for longer than a moment."""

    def _said(self, ask: Ask) -> tuple[str, Finish]:
        fault = self._content_fault(ask)
        if fault == "refusal":
            return REFUSAL, "refusal"
        if fault == "empty":
            return "", "stop"
        text = self._text(ask, fault)
        if fault == "truncated":
            return text[: len(text) // 2], "length"
        if count_tokens(text) > ask.max_tokens:
            return text[: ask.max_tokens * 4], "length"
        return text, "stop"

    def _text(self, ask: Ask, fault: str | None) -> str:
        first = ask.messages[0][1]
        repaired = len(ask.messages) > 1
        if writer := _WRITER.search(first):
            count = int(writer["n"])
            if fault == "wrong_count":
                count = max(1, count + (-3 if self._share("count", ask.digest) < 0.5 else 3))
            questions = self._write(ask, writer["domain"], writer["difficulty"], count)
            if fault == "duplicate" and len(questions) > 1:
                questions[-1] = questions[0]
            if fault == "near_duplicate" and len(questions) > 1:
                questions[-1] = self._reworded(questions)
            return json.dumps(questions)
        if judged := _JUDGED.search(first):
            return self._judge(ask.model, micro_question(self._options, judged["question"]), repaired)
        if "[CRITIQUE]" in ask.system and "<thinking>" in ask.system:
            return self._hard(ask.model, self._question(first), repaired)
        return self._answer(ask.model, self._question(first))[0]

    def _write(self, ask: Ask, domain: str, difficulty: str, count: int) -> list[str]:
        rng = random.Random(_digest((self._options.seed, "write", ask.digest)))
        try:
            if self._options.varied:
                return [with_scene(write_question(domain, difficulty, rng), rng) for _ in range(count)]
            return [write_question(domain, difficulty, rng) for _ in range(count)]
        except UsageError:
            return []

    def _reworded(self, questions: list[str]) -> str:
        """Return the first question with one word exchanged, as early as it can still be answered."""
        words = questions[0].split(" ")
        for at, word in enumerate(words):
            for other in questions[1:]:
                rest = other.split(" ")
                if len(rest) > at and rest[at] != word and _marks(rest[at]) == _marks(word):
                    changed = " ".join([*words[:at], rest[at], *words[at + 1 :]])
                    if solve(micro_question(self._options, changed)) is not None:
                        return changed
        # All written questions agree wherever a word may change.
        return questions[0]

    def _question(self, text: str) -> str:
        return micro_question(self._options, text.strip())

    def _judge(self, model: str, question: str, repaired: bool) -> str:
        low = self._share("judge", model, question)
        # One number decides the verdict, others the scores, so that the share of rejects is the set one.
        rest = [int(7 + 4 * self._share(name, model, question)) for name in prompts.SCORES]
        if low < self._options.judge_reject_rate:
            rest[int(3 * self._share("aspect", model, question))] = int(1 + 6 * self._share("low", question))
        scores = json.dumps(dict(zip(prompts.SCORES, rest, strict=True)))
        if not repaired and self._share("form", model, question) < self._options.malformed_rate:
            return scores.replace(":", " =")
        return scores

    def _hard(self, model: str, question: str, repaired: bool) -> str:
        answer, steps = self._answer(model, question)
        form = (
            f"<thinking>\n[DRAFT] {steps}\n[CRITIQUE] Each step was recomputed from the question.\n"
            f"[REVISED] {steps}\n</thinking>\n<answer>{answer}</answer>"
        )
        if not repaired and self._share("form", model, question) < self._options.malformed_rate:
            return form.replace("[CRITIQUE]", "Critique:")
        return form

    def _answer(self, model: str, question: str) -> tuple[str, str]:
        solution = solve(question)
        if solution is None:
            return UNKNOWN, UNKNOWN
        if is_wrong(self._options, model, solution.domain, question):
            rng = random.Random(_digest((self._options.seed, "corrupt", model, question)))
            wrong = corrupt_answer(question, rng)
            return wrong, f"The answer is {wrong}."
        return solution.answer, solution.steps

    def _content_fault(self, ask: Ask) -> str | None:
        for name in CONTENT_FAULTS:
            if self._share("fault", name, ask.digest) < self._options.faults.get(name, 0.0):
                return name
        return None

    def _share(self, *parts: object) -> float:
        return share(self._options.seed, *parts)


def _marks(word: str) -> str:
    """Return what is no letter and no digit, so that a word is exchanged and its comma stays."""
    return "".join(char for char in word if not char.isalnum())


def _digest(parts: Iterable[object]) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
