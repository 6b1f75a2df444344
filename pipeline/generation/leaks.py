"""The leak check: no question of a benchmark, nor one nearly like it, may be trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cogumi.errors import RunError, UsageError
from evals.micro import split_of
from pipeline.generation.dedup import QuestionIndex

_FIELDS = ("question", "prompt", "text", "instruction", "problem")
"""Names under which benchmark files keep their questions, the first found counts."""


class LeakCheck:
    """Tells whether a question belongs to what is held out for evaluation."""

    def __init__(self, *, micro: bool, files: Sequence[str], threshold: float, data: Path | None) -> None:
        self._micro = micro
        self._benchmarks = QuestionIndex(threshold)
        for name in files:
            for question in _questions_in(_find(name, data)):
                self._benchmarks.add(question)

    def leaks(self, question: str) -> bool:
        """Return True for a held-out question."""
        if self._micro and split_of(question) != "train":
            return True
        return len(self._benchmarks) > 0 and self._benchmarks.match(question) is not None


def _find(name: str, data: Path | None) -> Path:
    for path in (*([data / name] if data else []), Path(name)):
        if path.is_file():
            return path
    where = f"in {data} or here" if data else "here (and no --data folder is known)"
    raise UsageError(f"leak_files: no file {name} {where}")


def _questions_in(path: Path) -> list[str]:
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            field = next(field for field in _FIELDS if isinstance(row.get(field), str))
        except (ValueError, AttributeError, StopIteration):
            raise RunError(
                f"{path}, line {number}: no JSON object with text under {', '.join(_FIELDS)}; mend or drop it"
            ) from None
        questions.append(row[field])
    return questions
