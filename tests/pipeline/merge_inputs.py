"""Small, varied inputs of ``generation.merge``: artifacts as the four steps leave them, without a teacher."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogumi.stage import StageContext
from cogumi.store import Artifact, ArtifactStore
from pipeline.generation.merge import MergeSettings, run
from pipeline.generation.topics import DOMAINS
from pipeline.generation.writer import WriterSettings

Row = dict[str, Any]
Change = Callable[[dict[str, list[Row]]], None]
"""Tampers with the rows of the files, by file name, before they are written."""

_SYLLABLES = (
    "ba",
    "ko",
    "ri",
    "mu",
    "te",
    "lo",
    "sha",
    "vi",
    "den",
    "pra",
    "gul",
    "zor",
    "fin",
    "hest",
    "yan",
)
SIMULATED = ("answers_easy",)
COSTS: Mapping[str, float | None] = {
    "questions": 0.0,
    "validated": 1.25,
    "answers_easy": 0.5,
    "answers_hard": 8.0,
}


def words(chance: random.Random, number: int) -> str:
    """Return so many made-up words, of which two questions share few runs of three."""
    return " ".join("".join(chance.choices(_SYLLABLES, k=chance.randint(1, 3))) for _ in range(number))


def rows_of(quotas: Mapping[str, Mapping[str, int]], answer_words: int = 12) -> dict[str, list[Row]]:
    """Return the rows of the four steps' files; the first hard question is refused and replaced."""
    chance = random.Random(5)
    files: dict[str, list[Row]] = {
        name: [] for name in ("validated", "reserve", "easy", "hard", "refused_easy", "refused_hard")
    }
    for domain, levels in quotas.items():
        for level, quota in levels.items():
            made = [_question(chance, domain, level, number) for number in range(1, quota + 2)]
            files["validated"] += made[:quota]
            files["reserve"] += made[quota:]
            if level == "hard" and not files["refused_hard"]:
                files["refused_hard"].append(made[0])
                answered = made[1:]
            else:
                answered = made[:quota]
            files[level] += [_answer(chance, row, answer_words) for row in answered]
    return files


def _question(chance: random.Random, domain: str, level: str, number: int) -> Row:
    return {
        "question_id": f"{domain}_{level}_{number:04d}",
        "domain": domain,
        "difficulty": level,
        "question": f"{words(chance, 14).capitalize()}?",
        "model": "deepseek-chat" if domain in list(DOMAINS)[:4] else "llama-405b",
        "scores": {"quality": chance.randint(7, 10), "relevance": 9, "clarity": chance.randint(8, 10)},
    }


def _answer(chance: random.Random, row: Row, length: int) -> Row:
    name, said = row["question_id"], f"{words(chance, length).capitalize()}."
    if row["difficulty"] == "easy":
        return {"question_id": name, "answer": said}
    parts = (
        f"[{part}] {words(chance, 3 * length).capitalize()}." for part in ("DRAFT", "CRITIQUE", "REVISED")
    )
    return {"question_id": name, "answer": said, "reasoning": "\n".join(parts)}


class Silent:
    """A progress that checks what it is told."""

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        assert 0 <= done <= total


@dataclass
class Merging:
    """A store with the four inputs, and the stage run on them."""

    root: Path
    quotas: Mapping[str, Mapping[str, int]]
    writer: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, float | None] = field(default_factory=lambda: dict(COSTS))
    simulated: tuple[str, ...] = ()
    data: Path | None = None

    def __post_init__(self) -> None:
        self.store = ArtifactStore(self.root / "store")

    def merge(self, rows: dict[str, list[Row]] | None = None, **settings: Any) -> Artifact:
        """Run the stage on these rows and commit what it leaves."""
        inputs = self.inputs(rows or rows_of(self.quotas))
        staging = self.store.new_staging()
        ctx = StageContext(
            inputs=inputs,
            out=staging / "payload",
            scratch=self.root,
            seed=1,
            progress=Silent(),
            calls=None,  # type: ignore[arg-type]  # the stage asks nobody
            teachers={},
            data=self.data,
        )
        result = run(MergeSettings(**settings), ctx)
        made_by = {"stage": "generation.merge", "settings": settings}
        return self.store.commit(
            staging, kind=result.kind, made_by=made_by, facts=result.facts, created="now"
        )

    def inputs(self, rows: dict[str, list[Row]]) -> dict[str, Artifact]:
        """Commit the four input artifacts."""
        answers = {"answers_easy": ("easy", "answers_easy_24k"), "answers_hard": ("hard", "answers_hard_36k")}
        account = {"duplicates": 3, "near_duplicates": 2, "leaks": 1, "too_long": 0}
        document = {
            "quotas": self.quotas,
            "settings": WriterSettings(**self.writer).model_dump(mode="json"),
            "accounts": {
                f"{domain}/{level}": account for domain in self.quotas for level in self.quotas[domain]
            },
        }
        made = {
            "questions": self._commit("questions", {"questions_60k.jsonl": rows["validated"]}, {}),
            "validated": self._commit(
                "validated",
                {
                    "questions_60k_validated.jsonl": rows["validated"],
                    "questions_reserve.jsonl": rows["reserve"],
                    "writer.json": [document],
                },
                {"dropped": 4},
            ),
        }
        for name, (level, file) in answers.items():
            files = {f"{file}.jsonl": rows[level], "refused.jsonl": rows[f"refused_{level}"]}
            made[name] = self._commit(name, files, {"refused": len(rows[f"refused_{level}"]), "repaired": 2})
        return made

    def _commit(self, name: str, files: Mapping[str, list[Row]], facts: Mapping[str, Any]) -> Artifact:
        staging = self.store.new_staging()
        for file, rows in files.items():
            with (staging / "payload" / file).open("w", encoding="utf-8") as handle:
                handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        teacher = {"api": "openai", "model": "gpt-4o-mini", "base_url": None}
        if name in self.simulated:
            teacher["base_url"] = "local"
        if name == "answers_hard":
            teacher = {**teacher, "api": "anthropic", "model": "claude-sonnet-4"}
        told = {
            **facts,
            "finish_reasons": {"stop": 10, "length": 1},
            "cost_usd": self.costs[name],
            "simulated": name in self.simulated,
        }
        made_by = {"stage": name, "teachers": {f"{name}-teacher": teacher}}
        return self.store.commit(staging, kind="dataset", made_by=made_by, facts=told, created="now")


def each_line(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
