"""The check before a run spends: the benchmarks that it measures, and the rows that it trains on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cogumi.errors import RunError
from cogumi.hub import NotHereError, local_only
from cogumi.stage import Stage
from cogumi.store import Artifact
from evals.datafiles import noting_files
from evals.lint.fields import parts_of
from evals.lint.findings import SAME_ID, Finding
from evals.lint.leaks import BenchmarkIndex, Place
from evals.lint.linter import Report, benchmark_index, lint_files
from evals.lint.rows import Row, read_rows
from evals.types import Item, Task

# Published benchmarks repeat a few questions themselves; a file that was spoilt repeats many.
_MOST_REPEATED = 0.02
_SAMPLE = 20
_OTHER_SPLITS = ("train", "dev", "valid")

Items = Callable[[Task], Sequence[Item]]


def check_benchmarks(tasks: Sequence[Task], items: Items, tell: Callable[[str], None]) -> BenchmarkIndex:
    """Lint the local files of the tasks and return their items, which must not be trained on.

    ``items`` loads a task's items. What a task would fetch from the hub is skipped. ``tell`` is given one
    line about what is odd but stops nothing. Raises ``RunError`` naming file, line and mend for rows that
    cannot be read or scored, for repeated items, and for one benchmark under another's name.
    """
    index = BenchmarkIndex()
    asked: list[str] = []
    for task in {task.name: task for task in tasks}.values():
        with local_only(), noting_files() as opened:
            try:
                found = items(task)
            except NotHereError:
                continue
            except RunError:
                # The task says what it cannot use; lint may know the line, and how many there are.
                _refuse(lint_files([str(path) for path in opened], near=1))
                raise
        files = [str(path) for path in opened if _is_benchmark(path, found)]
        asked += [name for name in files if name not in asked]
        for item in () if files else found:
            place = Place(f"{task.name}, item {item.id}")
            # Questions that a program writes are all alike: only the same one is a leak.
            add = index.add_exact if task.name.startswith("micro/") else index.add_question
            add(item.prompt, place)
    report = lint_files(asked, near=1)
    _refuse(report)
    if report.findings:
        counts = ", ".join(f"{count} {rule}" for rule, count in report.counts.items())
        tell(f"  benchmarks: {counts} (`cogumi data lint` tells where); the run goes on")
    return benchmark_index(asked, index)[0]


def _is_benchmark(path: Path, items: Sequence[Item]) -> bool:
    """Tell whether a file holds the items and not the worked examples that go before them.

    A file named as another split counts when its questions end the items' prompts; some benchmarks have but
    one split, which they call train.
    """
    if not any(name in path.stem.lower() for name in _OTHER_SPLITS):
        return True
    questions = [parts_of(row.value).question or "" for row in read_rows(path) if isinstance(row, Row)]
    sample = [text.strip() for text in questions[:: max(1, len(questions) // _SAMPLE)] if text.strip()]
    found = sum(any(text in item.prompt[-len(text) - 200 :] for item in items) for text in sample)
    return found > 0.8 * len(sample)


def _refuse(report: Report) -> None:
    stopping = [found for found in report.findings if found.severity == "error" and found.rule != "duplicate"]
    stopping += _repeated(report)
    if stopping:
        raise _error("benchmark", stopping, "mend or remove such rows")


def _repeated(report: Report) -> list[Finding]:
    """Return the duplicates that spoil a file: rows with their ids again, or more than 2 % of its rows."""
    found = [finding for finding in report.findings if finding.rule == "duplicate"]
    counts = Counter(finding.file for finding in found)
    rows = report.rows_of
    return [
        finding
        for finding in found
        if SAME_ID in finding.message or counts[finding.file] > _MOST_REPEATED * rows[finding.file]
    ]


def check_training(path: Path, benchmarks: BenchmarkIndex) -> None:
    """Lint the rows that a model is about to be trained on.

    Raises ``RunError`` naming file, line and mend for rows that are broken, repeated or cut short, or that
    hold an item of the benchmarks.
    """
    report = lint_files([str(path)], near=1, benchmarks=benchmarks)
    stopping = [found for found in report.findings if found.severity == "error"]
    if stopping:
        raise _error("training data", stopping, "make the data again without such rows")


def _error(what: str, findings: Sequence[Finding], mend: str) -> RunError:
    first = findings[0]
    more = f", and {len(findings) - 1:,} more" if len(findings) > 1 else ""
    where = f"{first.file}, line {first.line}"
    told = f"{first.rule}: {first.message}{more}"
    return RunError(f"{what}: {where}: {told}; {mend} (`cogumi data lint` on that file lists them)")


def checked_stage(stage: Stage[Any], check: Callable[[Artifact], None]) -> Stage[Any]:
    """Return the stage with a check of its input ``data`` before its first step; others as they are."""
    if "data" not in stage.inputs:
        return stage
    return replace(stage, check=lambda inputs: check(inputs["data"]))
