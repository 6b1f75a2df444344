"""Cells, quotas, and the JSONL files that the steps of plan 1.1 to 1.5 hand on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

from cogumi.errors import RunError, nearest
from cogumi.store import disk_error
from pipeline.generation.topics import DIFFICULTIES, DOMAINS

QUESTIONS = "questions_60k.jsonl"
VALIDATED = "questions_60k_validated.jsonl"
RESERVE = "questions_reserve.jsonl"
ANSWERS_EASY = "answers_easy_24k.jsonl"
ANSWERS_HARD = "answers_hard_36k.jsonl"
TRAINING = "training_60k_complete.jsonl"
WRITER = "writer.json"
STATS = "stats.json"

Row = dict[str, Any]


class Cell(NamedTuple):
    """One of the plan's sixteen quotas: a domain at a difficulty."""

    domain: str
    difficulty: str

    def __str__(self) -> str:
        return f"{self.domain}/{self.difficulty}"

    def question_id(self, number: int) -> str:
        """Return the plan's id, ``coding_easy_0001``."""
        return f"{self.domain}_{self.difficulty}_{number:04d}"


def cell_of(row: Mapping[str, Any]) -> Cell:
    """Return the cell that a row belongs to."""
    return Cell(row["domain"], row["difficulty"])


def _known_domains(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name not in DOMAINS:
            raise ValueError(f"unknown domain {name!r}{nearest(name, list(DOMAINS))}")
    return value


def _known_cells(value: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    for domain, levels in _known_domains(value).items():
        for level in levels:
            if level not in DIFFICULTIES:
                raise ValueError(
                    f"{domain}: unknown difficulty {level!r}{nearest(level, list(DIFFICULTIES))}"
                )
    if not any(value.values()):
        raise ValueError("no cell has a quota")
    return value


Quotas = Annotated[dict[str, dict[str, Annotated[int, Field(ge=1)]]], AfterValidator(_known_cells)]
"""Questions per domain and difficulty: ``{coding: {easy: 4000, hard: 6000}}``."""

TeacherByDomain = Annotated[dict[str, str], AfterValidator(_known_domains)]
"""Which teacher writes the questions of a domain."""


def cells_of(quotas: Mapping[str, Mapping[str, int]]) -> dict[Cell, int]:
    """Return the quotas by cell, in the plan's order of domains whatever the order of the profile."""
    return {
        Cell(domain, difficulty): quotas[domain][difficulty]
        for domain in DOMAINS
        for difficulty in DIFFICULTIES
        if difficulty in quotas.get(domain, {})
    }


def counts_by_cell(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of rows per cell, by its name."""
    counts: dict[str, int] = {}
    for row in rows:
        name = str(cell_of(row))
        counts[name] = counts.get(name, 0) + 1
    return counts


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSONL; raises ``RunError`` on a full disk."""
    try:
        with path.open("w", encoding="utf-8", newline="\n") as handle:
            for row in rows:
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise disk_error(error, path) from error


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write one JSON document for people and programs; raises ``RunError`` on a full disk."""
    try:
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path) from error


def each_row(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, int, Row]]:
    """Yield (line, place in bytes, row) of a JSONL file.

    Raises ``RunError`` naming file and line of a row without these text fields.
    """
    place = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            start, place = place, place + len(line)
            if line == b"\n":
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RunError(f"{where}: not JSON ({error}); make the step before again") from None
            missing = [
                each for each in fields if not isinstance(row, dict) or not isinstance(row.get(each), str)
            ]
            if missing:
                raise RunError(f"{where}: no text under {', '.join(missing)}; make the step before again")
            yield number, start, row


def read_rows(path: Path, fields: tuple[str, ...]) -> list[Row]:
    """Read JSONL rows; raises ``RunError`` naming file and line of one without these text fields."""
    return [row for _, _, row in each_row(path, fields)]


QUESTION_FIELDS = ("question_id", "domain", "difficulty", "question", "model")
