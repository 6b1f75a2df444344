"""A study's tasks: from a JSONL file, or from answers that a measurement recorded; always blinded."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cogumi.errors import RunError, UsageError, nearest
from cogumi.strict_yaml import explain
from evals.human.blinding import Blinder
from evals.human.plan import StudyTask
from evals.human.text import harmless, unfit

if TYPE_CHECKING:
    from cogumi.evidence import EvidenceFile
    from cogumi.workspace import Workspace

_LONGEST_LINE = 10 * 2**20
"""Bytes of a line of a tasks file; nobody reads a longer task."""
_SHAPE = "task_id, domain, prompt, answers by system, and maybe bad_answer"
NO_ANSWER = "(no answer)"
"""What is shown where a model recorded an empty answer: that is to be rated too."""


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Blinded tasks and what blinding replaced."""

    tasks: tuple[StudyTask, ...]
    subject: str
    systems: Mapping[str, int]
    """How many tasks each system answered."""
    scrubbed: Mapping[str, int]
    """How often each name was replaced in the answers, as it was written in lower case."""

    @property
    def replaced(self) -> int:
        """How many names were replaced in all."""
        return sum(self.scrubbed.values())


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a study wants of its tasks. ``subject`` None: the one system that there is."""

    items: int
    subject: str | None = None
    reference: str | None = None
    pairs: int = 0
    pool: int | None = None
    """Draw so many tasks (all, by default), evenly over the domains."""
    seed: int = 0


def tasks_from_jsonl(path: Path, wanted: Wanted) -> TaskSet:
    """Read tasks: one object a line with task_id, domain, prompt, answers by system, and maybe bad_answer.

    Raises ``UsageError`` in one line with file, line number and mend.
    """
    tasks: list[StudyTask] = []
    lines: dict[str, int] = {}
    for number, row in _objects(path):
        task = _task(row, f"{path}, line {number}")
        if task.task_id in lines:
            raise UsageError(
                f"{path}, line {number}: task_id {task.task_id!r} stands on line {lines[task.task_id]} "
                "already; give each task an id of its own"
            )
        lines[task.task_id] = number
        tasks.append(task)
    if not tasks:
        raise UsageError(f"{path}: no task in it; one object a line is expected with {_SHAPE}")
    _known_reference(tasks, wanted, str(path))
    _enough(len(tasks), wanted, str(path))
    subject = _subject(tasks, wanted, str(path))
    for task in tasks:
        if subject not in task.answers:
            raise UsageError(
                f"{path}, line {lines[task.task_id]}: no answer of {subject!r}, which is judged; "
                "add it, or remove the task"
            )
    return _task_set(tasks, subject, wanted, str(path))


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and object of each line that is not blank."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                where = f"{path}, line {number}"
                if len(line) > _LONGEST_LINE:
                    raise UsageError(f"{where}: longer than 10 MiB; no rater reads that, shorten it")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, _object(line, where)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; one object a line is expected with {_SHAPE}") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RunError(
            f"{where}: not UTF-8 text ({error.reason} at byte {error.start}); save it so"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where}: not JSON ({error}); write one object a line") from None
    if not isinstance(row, dict):
        raise RunError(f"{where}: an object is expected with {_SHAPE}, found {type(row).__name__}")
    return row


def _task(row: Mapping[str, Any], where: str) -> StudyTask:
    for text in _texts(row):
        found = unfit(text)
        if found is not None:
            raise UsageError(f"{where}: the character {found} cannot be shown or stored; remove it")
    try:
        return StudyTask.model_validate(row)
    except ValidationError as error:
        raise UsageError(f"{where}: {explain(error, StudyTask)}") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from (str(name), *_texts(inner))


def tasks_from_evidence(
    workspace: Workspace, systems: Mapping[str, str], task_names: Sequence[str], wanted: Wanted
) -> TaskSet:
    """Take prompts and answers that the workspace recorded for artifacts on a suite's tasks.

    ``systems``: name in the study -> artifact digest. Raises ``UsageError`` naming `cogumi eval` where too
    few are recorded, ``RunError`` where evidence is broken.
    """
    subject = wanted.subject or next(iter(systems))
    recorded = {name: _recorded(workspace, digest, task_names) for name, digest in systems.items()}
    own = recorded[subject]
    if len(own) < wanted.items:
        suites = ", ".join(task_names[:3]) + (" and more" if len(task_names) > 3 else "")
        raise UsageError(
            f"{len(own):,} answers of {subject} to {suites} are recorded, {wanted.items} are needed: "
            f"run `cogumi eval {systems[subject].removeprefix('sha256:')[:12]}` on the suite first"
        )
    tasks = []
    for key, (domain, prompt, _) in own.items():
        # Another prompt under the same id, of another version of the task, is no answer to this one.
        answers = {
            name: rows[key][2] for name, rows in recorded.items() if key in rows and rows[key][1] == prompt
        }
        tasks.append(
            StudyTask(task_id=f"{key[0]}:{key[1]}"[:200], domain=domain, prompt=prompt, answers=answers)
        )
    return _task_set(tasks, subject, wanted, "the recorded answers")


def _recorded(
    workspace: Workspace, digest: str, task_names: Sequence[str]
) -> dict[tuple[str, str], tuple[str, str, str]]:
    """Return domain, prompt and output by (task, item) of an artifact's longest record of each task."""
    from cogumi.evidence import list_evidence

    best: dict[str, EvidenceFile] = {}
    for file in list_evidence(workspace.evidence):
        task = file.key.task
        if file.key.artifact == digest and task in task_names:
            known = best.get(task)
            if known is None or file.count() > known.count():
                best[task] = file
    found: dict[tuple[str, str], tuple[str, str, str]] = {}
    for task in sorted(best):
        columns = ["item_id", "domain", "prompt", "output"]
        for row in best[task].table(columns).to_pylist():
            if row["prompt"].strip():
                output = harmless(row["output"])
                shown = output if output.strip() else NO_ANSWER
                found[task, row["item_id"]] = (row["domain"] or task, harmless(row["prompt"]), shown)
    return found


# Both ---------------------------------------------------------------------------------------------


def _enough(tasks: int, wanted: Wanted, where: str) -> None:
    if wanted.pool is not None and wanted.pool < wanted.items:
        raise UsageError(f"--pool {wanted.pool}: a rater sees {wanted.items} items; draw as many at least")
    most = wanted.pool or wanted.items
    if tasks < most:
        raise UsageError(
            f"{where}: {tasks} tasks, {most} are wanted: add tasks, or ask for fewer with --items or --pool"
        )


def _known_reference(tasks: Sequence[StudyTask], wanted: Wanted, where: str) -> None:
    systems = list(dict.fromkeys(name for task in tasks for name in task.answers))
    if wanted.reference is not None and wanted.reference not in systems:
        hint = nearest(wanted.reference, systems)
        raise UsageError(f"{where}: no answer of the reference {wanted.reference!r}{hint}")


def _subject(tasks: Sequence[StudyTask], wanted: Wanted, where: str) -> str:
    systems = list(dict.fromkeys(name for task in tasks for name in task.answers))
    if wanted.subject is not None:
        if wanted.subject not in systems:
            raise UsageError(
                f"{where}: no answer of {wanted.subject!r}{nearest(wanted.subject, systems)}; "
                f"there are {', '.join(systems[:8])}"
            )
        return wanted.subject
    rest = [name for name in systems if name != wanted.reference]
    if len(rest) != 1:
        raise UsageError(f"{where}: answers of {', '.join(systems[:8])}: say with --subject which is judged")
    return rest[0]


def _task_set(tasks: Sequence[StudyTask], subject: str, wanted: Wanted, where: str) -> TaskSet:
    _enough(len(tasks), wanted, where)
    drawn = _drawn(tasks, wanted) if wanted.pool is not None else list(tasks)
    # Of other systems nothing is shown: what is not in the plan cannot leak.
    kept = {subject, wanted.reference}
    blinder = Blinder(name for task in drawn for name in task.answers)
    blinded = tuple(
        task.model_copy(
            update={
                "answers": {
                    name: blinder.blind(answer) for name, answer in task.answers.items() if name in kept
                },
                "bad_answer": None if task.bad_answer is None else blinder.blind(task.bad_answer),
            }
        )
        for task in drawn
    )
    systems = Counter(name for task in blinded for name in task.answers)
    return TaskSet(blinded, subject, dict(systems), dict(sorted(blinder.replaced.items())))


def _drawn(tasks: Sequence[StudyTask], wanted: Wanted) -> list[StudyTask]:
    """Draw ``pool`` tasks: domains take turns while they last; for pairs those first that both answered."""
    rng = random.Random(wanted.seed)
    domains: dict[str, list[StudyTask]] = {}
    for task in tasks:
        domains.setdefault(task.domain, []).append(task)
    for one in domains.values():
        rng.shuffle(one)
        if wanted.pairs:
            one.sort(key=lambda task: wanted.reference not in task.answers)
    turns = list(_in_turn(domains.values()))[: wanted.pool]
    chosen = {task.task_id for task in turns}
    return [task for task in tasks if task.task_id in chosen]


def _in_turn(groups: Iterable[Sequence[StudyTask]]) -> Iterator[StudyTask]:
    rows = [list(group) for group in groups]
    for turn in range(max(map(len, rows))):
        yield from (row[turn] for row in rows if turn < len(row))
