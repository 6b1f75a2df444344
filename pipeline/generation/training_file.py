"""The merged training file: written row by row out of questions and answers, and again as Parquet.

Answers are found by their place in their files, so that no more than one is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cogumi.errors import RunError
from cogumi.store import disk_error
from pipeline.generation.measured import FIELDS
from pipeline.generation.prompts import SCORES
from pipeline.generation.records import QUESTION_FIELDS, each_row

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
_ROW_GROUP = 4000
"""Rows of a Parquet row group: about 10 MB of hard answers."""


@dataclass
class Sources:
    """What the merged rows were made of, counted while they were written."""

    wanted: dict[str, int] = field(default_factory=dict)
    """Ids that must be there once, each with the lowest of its judge's scores."""
    score_counts: dict[str, dict[int, int]] = field(default_factory=lambda: {name: {} for name in SCORES})
    """Merged rows by score, for each aspect that the judge scored."""
    models: dict[str, int] = field(default_factory=dict)
    """Merged rows by the model that wrote their question."""


class AnswerFile:
    """A file of answers, read by question; raises ``RunError`` for a broken row or a second answer."""

    def __init__(self, path: Path, fields: tuple[str, ...]) -> None:
        self.path = path
        self._fields = fields
        self._places: dict[str, int] = {}
        for _, place, row in each_row(path, fields):
            name = row["question_id"]
            if name in self._places:
                raise RunError(f"merge: {name} is answered twice; make 1.3 and 1.4 again")
            self._places[name] = place
        self._handle: BinaryIO | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, name: str) -> Row:
        if self._handle is None:
            self._handle = self.path.open("rb")
        self._handle.seek(self._places[name])
        row: Row = json.loads(self._handle.readline())
        return row

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def merged_rows(
    files: Mapping[Path, bool], refused: set[str], answers: Mapping[str, AnswerFile], sources: Sources
) -> Iterator[Row]:
    """Yield the plan's records in the order of the questions, and count where they come from.

    ``files``: files of judged questions in order; True where all but the ``refused`` must be merged, False
    for a reserve, whose questions count only when they are answered. ``answers``: by difficulty. Raises
    ``RunError`` for an answer without its question, or of the wrong difficulty.
    """
    known: set[str] = set()
    for path, whole in files.items():
        for line, _, question in each_row(path, QUESTION_FIELDS):
            name = question["question_id"]
            known.add(name)
            kind = next((kind for kind, file in answers.items() if name in file), None)
            if kind is None:
                if whole and name not in refused:
                    sources.wanted[name] = _lowest(question, path, line)
                continue
            if kind != question["difficulty"]:
                raise RunError(f"merge: {name} has an answer of the wrong difficulty; make 1.3 and 1.4 again")
            sources.wanted[name] = _lowest(question, path, line)
            for aspect, counts in sources.score_counts.items():
                score = question["scores"][aspect]
                counts[score] = counts.get(score, 0) + 1
            model = question["model"]
            sources.models[model] = sources.models.get(model, 0) + 1
            yield {key: {"reasoning": None, **question, **answers[kind][name]}[key] for key in FIELDS}
    for file in answers.values():
        stray = next((name for name in file if name not in known), None)
        if stray is not None:
            raise RunError(f"merge: {stray} is answered but is no validated question; make 1.3 and 1.4 again")


def _lowest(question: Row, path: Path, line: int) -> int:
    scores = question.get("scores")
    given = [scores.get(name) for name in SCORES] if isinstance(scores, dict) else []
    whole = [score for score in given if type(score) is int]
    if len(whole) < len(SCORES):
        raise RunError(
            f"{path}, line {line}: no {', '.join(SCORES)} under scores; make the step before again"
        )
    return min(whole)


def write_parquet(source: Path, target: Path, tell: Callable[[int], None] = lambda _: None) -> None:
    """Write the rows of a checked merged file as Parquet: zstd, text columns, row groups of 4,000.

    Raises ``RunError`` on a full disk.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Only easy rows' reasoning may be null; the other columns say that they never are.
    schema = pa.schema([pa.field(name, pa.string(), nullable=name == "reasoning") for name in FIELDS])
    try:
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            rows: list[Row] = []
            done = 0
            for _, _, row in each_row(source, FIELDS[:5]):
                rows.append(row)
                if len(rows) == _ROW_GROUP:
                    done += len(rows)
                    writer.write_table(_table(rows, schema))
                    rows = []
                    tell(done)
            if rows:
                writer.write_table(_table(rows, schema))
    except OSError as error:
        raise disk_error(error, target) from error


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema=schema)
