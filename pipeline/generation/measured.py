"""What a merged file really holds: one pass over its rows as they stand on disk, every figure of the card.

The rules that make ``merge`` stop and the metrics that the gate reads come from this same pass, so that
neither can say what the other does not.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from evals.lint.duplicates import NEAR_THRESHOLD, QuestionIndex
from evals.lint.tokens import Counts
from evals.lint.truncation import cut_by_form
from pipeline.generation.prompts import parse_hard_answer
from pipeline.generation.records import Cell
from pipeline.generation.topics import DIFFICULTIES, DOMAINS

FIELDS = ("question_id", "domain", "difficulty", "question", "answer", "reasoning")
"""The plan's record (1.5), in its order."""
PARTS = ("question", "answer", "reasoning")
CELLS = tuple(Cell(domain, difficulty) for domain in DOMAINS for difficulty in DIFFICULTIES)
_NUMBER = re.compile(r"\d{4,}")
_AT_ONCE = 256
"""Rows whose tokens are counted together; an encoding is far larger than its text."""
_TOLD = 3

Row = dict[str, Any]


class Leaks(Protocol):
    """Tells which questions belong to a benchmark, as ``LeakCheck`` does."""

    def leaking(self, questions: Sequence[str]) -> list[bool]:
        """Tell for each question whether it is held out."""
        ...


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the rows are held against."""

    quotas: Mapping[Cell, int]
    wanted: Mapping[str, int]
    """Ids of the questions that must be there once, each with the lowest of its judge's scores."""
    near_threshold: float
    """Similarity from which the profile refuses a question; 1 is exact only."""
    leaks: Leaks | None
    """None where no benchmark was named, so that nothing can be said of leaks."""


@dataclass
class Measured:
    """Counts over all rows of a merged file."""

    rows: int = 0
    schema_errors: int = 0
    invalid: int = 0
    """Rows in the record's form whose answer is blank, cut off or out of form."""
    hard: int = 0
    structured: int = 0
    duplicates: int = 0
    near: int = 0
    """Rows that nearly repeat an earlier one as lint has it (Jaccard from 0.8), whatever the profile says."""
    near_refused: int = 0
    """Those that the profile's own threshold refuses."""
    leaks: int | None = None
    missing: int = 0
    twice: int = 0
    """Rows whose id an earlier row has."""
    unknown: int = 0
    """Rows whose id is none of the questions."""
    lowest_score: int | None = None
    cells: dict[Cell, int] = field(default_factory=dict)
    distinct: dict[Cell, int] = field(default_factory=dict)
    """Rows per cell whose question no earlier row has."""
    answered: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DIFFICULTIES, 0))
    """Rows with a usable answer, by difficulty."""
    lengths: dict[Cell, dict[str, array[int]]] = field(default_factory=dict)
    """Tokens of every row's parts, in the file's order; of easy rows no reasoning."""
    faults: dict[str, list[str]] = field(default_factory=dict)
    """The first few rows at fault, by what is wrong with them."""

    def cells_off_quota(self, quotas: Mapping[Cell, int]) -> list[str]:
        """Return ``coding/easy has 3 of 4`` for each cell that does not hold its quota exactly."""
        return [
            f"{cell} has {self.cells.get(cell, 0)} of {quotas.get(cell, 0)}"
            for cell in CELLS
            if self.cells.get(cell, 0) != quotas.get(cell, 0)
        ]

    def metrics(self, quotas: Mapping[Cell, int]) -> dict[str, float]:
        """Return the numbers under the names that gates know; what could not be measured is left out."""
        found: dict[str, float | None] = {
            "questions": sum(self.distinct.values()),
            **{f"questions_{cell.domain}_{cell.difficulty}": self.distinct.get(cell, 0) for cell in CELLS},
            "cells_off_quota": len(self.cells_off_quota(quotas)),
            "near_duplicate_share": self.near / self.rows if self.rows else None,
            "benchmark_leaks": self.leaks,
            "judge_score_min": self.lowest_score,
            "answers_easy": self.answered["easy"],
            "answers_hard": self.answered["hard"],
            "answers_invalid": self.invalid,
            "reasoning_structure_rate": self.structured / self.hard if self.hard else None,
            "rows_merged": self.rows,
            "rows_missing_or_twice": self.missing + self.twice + self.unknown,
            "schema_errors": self.schema_errors,
        }
        return {name: value for name, value in found.items() if value is not None}

    def told(self, kind: str) -> str:
        """Return the first rows at fault of one kind, for an error."""
        return "; ".join(self.faults.get(kind, ()))

    def _fault(self, kind: str, text: str) -> None:
        known = self.faults.setdefault(kind, [])
        if len(known) < _TOLD:
            known.append(text)


def measure(
    path: Path, against: Yardstick, counts: Counts, tell: Callable[[int], None] = lambda _: None
) -> Measured:
    """Read a merged file row by row and count; never raises for what a row holds.

    ``counts``: the tokenizer. ``tell`` hears how many rows are read. Memory is that of the questions' index:
    answers are dropped as soon as they are counted.
    """
    found = Measured(leaks=None if against.leaks is None else 0)
    index = QuestionIndex(min(against.near_threshold, NEAR_THRESHOLD))
    seen: set[str] = set()
    waiting: list[tuple[str, Row]] = []
    for line, row in _lines(path):
        found.rows += 1
        wrong = schema_fault(row)
        if wrong or not isinstance(row, dict):
            found.schema_errors += 1
            found._fault("schema", f"line {line}: {wrong}")
            continue
        where = f"line {line} ({row['question_id']})"
        cell = Cell(row["domain"], row["difficulty"])
        found.cells[cell] = found.cells.get(cell, 0) + 1
        _check_id(found, against, seen, row["question_id"], where)
        _check_answer(found, row, where)
        _check_question(found, against, index, cell, row["question"], where)
        waiting.append((where, row))
        if len(waiting) == _AT_ONCE:
            _many(found, against.leaks, waiting, counts)
            waiting = []
            tell(found.rows)
    _many(found, against.leaks, waiting, counts)
    lost = [name for name in against.wanted if name not in seen]
    found.missing = len(lost)
    for name in lost[:_TOLD]:
        found._fault("missing", f"{name} is not there")
    return found


def schema_fault(row: Any) -> str:
    """Return how a row departs from the plan's record, or nothing."""
    if not isinstance(row, dict):
        return "no JSON object"
    if tuple(row) != FIELDS:
        return f"its fields are {', '.join(map(str, row)) or 'none'}; wanted are {', '.join(FIELDS)}"
    for name in FIELDS[:5]:
        if not isinstance(row[name], str):
            return f"{name} is no text"
    domain, difficulty = row["domain"], row["difficulty"]
    if domain not in DOMAINS or difficulty not in DIFFICULTIES:
        return f"no cell {domain}/{difficulty}"
    prefix, name = f"{domain}_{difficulty}_", row["question_id"]
    if not name.startswith(prefix) or not _NUMBER.fullmatch(name, len(prefix)):
        return f"question_id {name!r} is not {prefix}NNNN"
    if not row["question"].strip():
        return "question is blank"
    if difficulty == "easy" and row["reasoning"] is not None:
        return "an easy row's reasoning is not null"
    if difficulty == "hard" and not isinstance(row["reasoning"], str):
        return "a hard row's reasoning is no text"
    return ""


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def _check_id(found: Measured, against: Yardstick, seen: set[str], name: str, where: str) -> None:
    if name in seen:
        found.twice += 1
        found._fault("missing", f"{where} is there twice")
    elif name not in against.wanted:
        found.unknown += 1
        found._fault("missing", f"{where} is no validated question")
    else:
        score = against.wanted[name]
        found.lowest_score = score if found.lowest_score is None else min(found.lowest_score, score)
    seen.add(name)


def _check_answer(found: Measured, row: Row, where: str) -> None:
    wrong = "" if row["answer"].strip() else "the answer is blank"
    if row["reasoning"] is not None:
        found.hard += 1
        whole = f"<thinking>{row['reasoning']}</thinking><answer>{row['answer']}</answer>"
        if parse_hard_answer(whole) is not None:
            found.structured += 1
        else:
            wrong = wrong or "the hard answer is not draft, critique, revision and answer"
    cut = cut_by_form("answer", row["answer"])
    # A tag that never closes is certain; lint's other signs of a cut are guesses, which it tells itself.
    if cut is not None and cut[1] == "error":
        wrong = wrong or cut[0]
    if wrong:
        found.invalid += 1
        found._fault("answer", f"{where}: {wrong}")
    else:
        found.answered[row["difficulty"]] += 1


def _check_question(
    found: Measured, against: Yardstick, index: QuestionIndex, cell: Cell, question: str, where: str
) -> None:
    match = index.match(question)
    if match == "near":
        closest = index.closest(question)
        similarity = closest.similarity if closest is not None else 0.0
        found.near += similarity >= NEAR_THRESHOLD - 1e-9
        if against.near_threshold < 1 and similarity >= against.near_threshold - 1e-9:
            found.near_refused += 1
            found._fault("near_duplicates", f"{where}, Jaccard {similarity:.2f}")
    elif match == "exact":
        found.duplicates += 1
        found._fault("duplicates", where)
    if match != "exact":
        found.distinct[cell] = found.distinct.get(cell, 0) + 1
    index.add(question)


def _many(found: Measured, leaks: Leaks | None, rows: Sequence[tuple[str, Row]], counts: Counts) -> None:
    """Do what is faster for many rows at once: the look for benchmark items, and the tokens."""
    if leaks is not None:
        held = leaks.leaking([row["question"] for _, row in rows])
        for (where, _), leaked in zip(rows, held, strict=True):
            if leaked:
                found.leaks = (found.leaks or 0) + 1
                found._fault("leaks", where)
    texts = [(row, part) for _, row in rows for part in PARTS if row[part] is not None]
    tokens = counts([row[part] for row, part in texts]) if texts else []
    for (row, part), number in zip(texts, tokens, strict=True):
        cell = Cell(row["domain"], row["difficulty"])
        lengths = found.lengths.setdefault(cell, {name: array("l") for name in PARTS})
        lengths[part].append(number)
