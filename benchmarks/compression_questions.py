"""What candidates are asked, and their answers as they are kept: one JSON object a line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cogumi.digest import digest_of
from cogumi.errors import RunError, UsageError
from cogumi.store import write_atomic
from evals.datafiles import read_jsonl
from evals.items import ItemSet
from evals.tasks import get_task, suite_task_names
from evals.types import Item, Message, Prompt, Task


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked; ``asked`` is the digest of all that decides an answer but for the model."""

    task: str
    item: str
    prompt: Prompt
    max_tokens: int

    @property
    def asked(self) -> str:
        """Return the digest of the prompt and its limit, 16 hex digits."""
        prompt = self.prompt
        messages = [[each.role, each.content] for each in prompt.messages]
        return digest_of([messages, prompt.raw, list(prompt.stop), self.max_tokens])[7:23]


def loaded_tasks(suites: str, data: Path | None) -> list[tuple[Task, Sequence[Item]]]:
    """Return the tasks of suites or tasks named with commas, each with its items in committed order.

    Raises ``UsageError`` for an unknown name and for a task that asks for no text, ``RunError`` without the
    items.
    """
    names = [name.strip() for name in suites.split(",") if name.strip()]
    tasks = dict.fromkeys(task for name in names for task in suite_task_names(name, {}))
    if not tasks:
        raise UsageError("--suite: name a task or a suite, for example ifeval,gsm8k")
    found: list[tuple[Task, Sequence[Item]]] = []
    for name in tasks:
        task = get_task(name)
        if task.style not in ("chat", "completion"):
            raise UsageError(f"--suite: {name} is a {task.style} task; only answers in words are made here")
        found.append((task, ItemSet.load(task, data).items))
    return found


def questions_of(suites: str, data: Path | None, limit: int | None) -> list[Question]:
    """Return the questions of the tasks, the first ``limit`` of each; raises as ``loaded_tasks``."""
    return [
        Question(task.name, item.id, task.ask(item), task.max_tokens)
        for task, items in loaded_tasks(suites, data)
        for item in items[:limit]
    ]


def write_questions(questions: Iterable[Question], out: Path) -> None:
    """Write questions as one JSON object a line."""
    lines = [json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in questions]
    write_atomic(out, "".join(lines).encode())


def read_questions(path: Path, limit: int | None) -> list[Question]:
    """Read what ``write_questions`` wrote, the first ``limit`` of each task.

    Raises ``RunError`` naming file and line when it is broken.
    """
    found: list[Question] = []
    counts: dict[str, int] = {}
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            told = row["prompt"]
            messages = tuple(Message(**message) for message in told["messages"])
            prompt = Prompt(messages, told["raw"], tuple(told["stop"]))
            question = Question(row["task"], row["item"], prompt, int(row["max_tokens"]))
        except (KeyError, TypeError) as error:
            raise RunError(f"{path}, line {number}: no question ({error}); write the prompts again") from None
        counts[question.task] = counts.get(question.task, 0) + 1
        if limit is None or counts[question.task] <= limit:
            found.append(question)
    return found


def answers_file(out: Path, name: str) -> Path:
    """Return where a candidate's answers are kept."""
    return out / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-').lower()}.jsonl"


def read_answers(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file of answers; one that a kill cut short is cut off the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return read_jsonl(path)
