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
from typing import Literal

from cogumi.errors import UsageError
from evals.micro import corrupt as corrupt_answer
from evals.micro import solve, write_question
from pipeline.generation import prompts
from pipeline.local_teacher.options import CONTENT_FAULTS, TeacherOptions

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


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, before it is put into a wire format."""

    text: str
    finish: Literal["stop", "length", "refusal"] = "stop"


def count_tokens(text: str) -> int:
    """Return the number of tokens that the teacher bills: four characters each, at least one."""
    return max(1, -(-len(text) // 4))


def share(*parts: object) -> float:
    """Return a number in [0, 1) that depends on the parts alone (SHA-256)."""
    return int.from_bytes(_digest(parts)[:8], "big") / 2**64


def is_wrong(options: TeacherOptions, model: str, domain: str, question: str) -> bool:
    """Tell whether this model answers this question wrongly: the rule that fixes its true accuracy."""
    rate = options.error_rates.get(domain, options.error_rate)
    return share(options.seed, model, question) < rate


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
        fault = self._content_fault(ask)
        if fault == "refusal":
            return Reply(REFUSAL, "refusal")
        if fault == "empty":
            return Reply("")
        text = self._text(ask, fault)
        if fault == "truncated":
            return Reply(text[: len(text) // 2], "length")
        if count_tokens(text) > ask.max_tokens:
            return Reply(text[: ask.max_tokens * 4], "length")
        return Reply(text)

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
            return json.dumps(questions)
        if judged := _JUDGED.search(first):
            return self._judge(ask.model, judged["question"], repaired)
        if "[CRITIQUE]" in ask.system and "<thinking>" in ask.system:
            return self._hard(ask.model, first.strip(), repaired)
        return self._answer(ask.model, first.strip())[0]

    def _write(self, ask: Ask, domain: str, difficulty: str, count: int) -> list[str]:
        rng = random.Random(_digest((self._options.seed, "write", ask.digest)))
        try:
            return [write_question(domain, difficulty, rng) for _ in range(count)]
        except UsageError:
            return []

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


def _digest(parts: Iterable[object]) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
