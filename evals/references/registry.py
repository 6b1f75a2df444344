"""The reference registry: what GPT-4 and others scored, under which protocol, according to whom.

Rows live in the YAML files beside this module, one file per model family, and in the workspace folder
``references/``. A row is never changed once a verdict may have named it: another number gets another id.
Not covered: scoring the answers of a per-item reference, which the evaluations do with their own scorers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cogumi.errors import UsageError, nearest
from cogumi.strict_yaml import load_strict
from evals.references.scores import ReferenceScores

PACKAGED = Path(__file__).parent
WORKSPACE_FOLDER = "references"

# Half a point: published numbers of one model under one protocol differ by at least that much (research note
# on evaluation and gates, section 4.4).
LEAST_MARGIN = 0.005

Fraction = Annotated[float, Field(ge=0, le=1)]


class ReferenceRow(BaseModel):
    """One score of one model on one benchmark."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._+-]+@[A-Za-z0-9._-]+$")]
    """``model/benchmark@tag``; the tag tells snapshots and sources apart."""
    model: str
    snapshot: str | None
    """The dated version of the model; None where the source does not say."""
    benchmark: str
    kind: Literal["published", "per-item"]
    score: Fraction | None = None
    """Fraction of the full score, for kind published."""
    published_score: Fraction | None = None
    """For kind per-item: what the authors report, to check our scorer against."""
    file: str | None = None
    """For kind per-item: the answers, relative to the data folder."""
    n: Annotated[int, Field(gt=0)] | None = None
    """Items that the score is over; None where the source does not say."""
    family: Annotated[str, Field(min_length=1)]
    """Protocol family, ``benchmark/metric/shots-style``: only equal families are compared."""
    source: Annotated[str, Field(min_length=1)]
    date: str | None
    """When the source measured or published it, as the source has it."""
    margin: Annotated[float, Field(ge=LEAST_MARGIN, lt=1)] | None = None
    """Protocol margin for kind published: half the spread of credible values, at least 0.005."""
    how_read: Literal["primary", "copy", "measured"]
    """Read at the source itself, on a page that quotes it, or measured with our own scorers."""
    simulated: bool = False
    note: str = ""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> ReferenceRow:
        if self.kind == "published":
            if self.score is None or self.margin is None:
                raise ValueError("a published reference needs score and margin")
            if self.file is not None or self.published_score is not None:
                raise ValueError(
                    "a published reference has no file and no published_score; its number is score"
                )
        elif self.file is None or self.n is None:
            raise ValueError("a per-item reference needs file and n")
        elif self.score is not None or self.margin is not None:
            raise ValueError("a per-item reference has no score and no margin: both come from its items")
        return self

    def published(self) -> ReferenceScores:
        """Return the row as what a gate compares with; for kind published only."""
        if self.score is None or self.margin is None:
            raise UsageError(f"reference {self.id} is per item: score its answers in {self.file} first")
        return ReferenceScores(
            id=self.id,
            kind="published",
            family=self.family,
            score=self.score,
            margin=self.margin,
            n=self.n,
            simulated=self.simulated,
        )


class ReferenceFile(BaseModel):
    """A YAML file of rows."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)

    references: Annotated[list[ReferenceRow], Field(min_length=1)]


def load_all(workspace: Path | None = None) -> dict[str, ReferenceRow]:
    """Return every row by its id: those that ship with Cogumi, then those of the workspace.

    Raises ``UsageError`` naming the file when a row is broken or an id stands twice.
    """
    rows = dict(_packaged())
    if workspace is not None:
        _collect(sorted((workspace / WORKSPACE_FOLDER).glob("*.yaml")), rows)
    return rows


@cache
def _packaged() -> dict[str, ReferenceRow]:
    rows: dict[str, ReferenceRow] = {}
    _collect(sorted(PACKAGED.glob("*.yaml")), rows)
    return rows


def _collect(files: Iterable[Path], rows: dict[str, ReferenceRow]) -> None:
    for path in files:
        for row in load_strict(path, ReferenceFile).references:
            if row.id in rows:
                raise UsageError(
                    f"{path}: the id '{row.id}' stands in two rows; give one of them another tag"
                )
            rows[row.id] = row


def get(row_id: str, workspace: Path | None = None) -> ReferenceRow:
    """Return the row of an id; ``UsageError`` with its nearest neighbour when there is none."""
    rows = load_all(workspace)
    if row_id not in rows:
        raise UsageError(
            f"no reference '{row_id}'{nearest(row_id, list(rows))}; `cogumi reference list` shows all"
        )
    return rows[row_id]


def add(file: Path, workspace: Path) -> list[ReferenceRow]:
    """Check the rows of ``file`` and save it into the workspace; return them.

    Adding the same rows again changes nothing. Raises ``UsageError`` for a broken row, or for an id that is
    taken by another content.
    """
    rows = load_strict(file, ReferenceFile).references
    known = load_all(workspace)
    fresh: list[ReferenceRow] = []
    for row in rows:
        if any(row.id == other.id for other in fresh):
            raise UsageError(f"{file}: the id '{row.id}' stands in two rows; give one of them another tag")
        if known.get(row.id, row) != row:
            raise UsageError(
                f"{file}: the id '{row.id}' is taken by other content; give this row another tag"
            )
        if row.id not in known:
            fresh.append(row)
    if fresh:
        _save(fresh, file, workspace / WORKSPACE_FOLDER)
    return rows


def save_rows(rows: list[ReferenceRow], name: str, workspace: Path) -> Path:
    """Write measured rows as ``references/NAME.yaml`` of the workspace, all or nothing; return the path."""
    import yaml

    folder = workspace / WORKSPACE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.yaml"
    draft = folder / f".{name}.yaml.{os.getpid()}"
    data = {"references": [row.model_dump(exclude_defaults=False, exclude_none=False) for row in rows]}
    draft.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    draft.replace(target)
    return target


def _save(rows: list[ReferenceRow], file: Path, folder: Path) -> None:
    """Save under the file's own name, or beside it with a number when that name is taken."""
    name, count = file.stem, 2
    while (folder / f"{name}.yaml").exists():
        name, count = f"{file.stem}-{count}", count + 1
    save_rows(rows, name, folder.parent)


def table(rows: Iterable[ReferenceRow]) -> list[dict[str, str]]:
    """Return what ``cogumi reference list`` shows: one dictionary of texts per row, sorted by id."""
    return [
        {
            "id": row.id,
            "score": _percent(row.score if row.kind == "published" else row.published_score),
            "margin": "" if row.margin is None else f"{100 * row.margin:g}",
            "n": "" if row.n is None else str(row.n),
            "kind": row.kind + (", simulated" if row.simulated else ""),
            "family": row.family,
            "read": row.how_read,
            "source": row.source,
        }
        for row in sorted(rows, key=lambda row: row.id)
    ]


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.2f}".removesuffix("0").removesuffix(".0")
