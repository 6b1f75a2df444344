"""Training data: rows of the merged file, encoded as the model sees them, split into train and held-out.

Covered: a held-out split that a question never leaves, rows too long for the context left out and counted.
Not covered: conversations of several turns, which plan 1.5 has not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cogumi.errors import RunError

if TYPE_CHECKING:
    from cogumi.store import Artifact
    from pipeline.training.chat import ChatEncoder


@dataclass(frozen=True, slots=True)
class Example:
    """One row of the merged training file; ``reasoning`` is None for easy questions."""

    question_id: str
    domain: str
    question: str
    answer: str
    reasoning: str | None
    difficulty: str | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one conversation; the loss is taken on ``ids[answer_start:]``."""

    ids: tuple[int, ...]
    answer_start: int


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """A data set ready for training, each row with its example, and how many rows did not fit the context."""

    train: list[Encoded]
    held_out: list[Encoded]
    train_examples: list[Example]
    held_out_examples: list[Example]
    too_long_rows: int
    """Rows longer than ``max_length``, left out: an answer cut short teaches a model not to stop."""


def training_file(artifact: Artifact) -> Path:
    """Return the one JSONL file of a data set; raises ``RunError`` when there is none or several."""
    names = sorted(name for name in artifact.manifest["files"] if name.endswith(".jsonl"))
    merged = [name for name in names if Path(name).name.startswith("training")] or names
    if len(merged) != 1:
        raise RunError(f"artifact {artifact.short}: one training .jsonl wanted, found {len(merged)}: {names}")
    return artifact.file(merged[0])


def read_examples(path: Path) -> list[Example]:
    """Read the merged file (plan 1.5); raises ``RunError`` naming the first line that is broken."""
    examples = []
    with path.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                examples.append(_example(line, f"{path}:{number}"))
        except UnicodeDecodeError as error:
            raise RunError(
                f"{path}: not UTF-8 text; write the file again with `cogumi data merge`"
            ) from error
    if not examples:
        raise RunError(f"{path}: no rows to train on; run `cogumi data merge` first")
    return examples


def _example(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RunError(f"{where}: not JSON ({error}); mend or remove the line") from error
    if not isinstance(row, dict):
        raise RunError(f"{where}: a JSON object wanted; mend or remove the line")
    for key in ("question_id", "domain", "question", "answer"):
        if not isinstance(row.get(key), str) or not row[key]:
            raise RunError(f"{where}: '{key}' must be a text that is not empty; mend or remove the line")
    if not isinstance(row.get("reasoning"), str | None):
        raise RunError(f"{where}: 'reasoning' must be a text or null; mend or remove the line")
    if not isinstance(row.get("difficulty"), str | None):
        raise RunError(f"{where}: 'difficulty' must be a text or null; mend or remove the line")
    return Example(
        row["question_id"],
        row["domain"],
        row["question"],
        row["answer"],
        row.get("reasoning"),
        row.get("difficulty"),
    )


def is_held_out(question_id: str, share: float) -> bool:
    """Tell whether a question belongs to the held-out part: a pure function of its id."""
    number = int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:8], "big")
    return number < share * 2**64


def encode_all(
    examples: Sequence[Example], encoder: ChatEncoder, *, max_length: int, held_out_share: float
) -> EncodedSet:
    """Encode and split; raises ``RunError`` when nothing is left to train on."""
    found = EncodedSet([], [], [], [], 0)
    too_long = 0
    for example in examples:
        encoded = encoder.encode(example)
        if len(encoded.ids) > max_length:
            too_long += 1
        elif is_held_out(example.question_id, held_out_share):
            found.held_out.append(encoded)
            found.held_out_examples.append(example)
        else:
            found.train.append(encoded)
            found.train_examples.append(example)
    if not found.train:
        raise RunError(f"no rows to train on: {too_long} of {len(examples)} exceed {max_length} tokens")
    return replace(found, too_long_rows=too_long)
