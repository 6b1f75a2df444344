"""The rehearsal's study: which questions it asks, and that equal inputs give equal bytes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cogumi.errors import RunError
from evals.human.frozen import read_frozen
from pipeline.people import study as stage
from pipeline.people.study import NAME, STUDY, StudySettings, questions


class _Artifact:
    """As much of an artifact as the stage reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = {"files": {"training_60k.jsonl": {}}}

    def file(self, name: str) -> Path:
        return self.folder / name


class _Context:
    """A stage's context with folders of its own."""

    def __init__(self, root: Path, data: Path) -> None:
        self.inputs = {"model": _Artifact(data), "data": _Artifact(data)}
        self.out, self.scratch, self.seed = root / "out", root / "scratch", 11
        self.out.mkdir(parents=True)
        self.scratch.mkdir()
        self.told: list[tuple[int, int]] = []
        self.progress = self

    def update(self, done: int, total: int, **facts: Any) -> None:
        self.told.append((done, total))


def write_data(folder: Path, each: int = 30) -> Path:
    """Write ``each`` questions of three domains, some of them twice."""
    rows = [
        {
            "question_id": f"{domain}-{number}",
            "domain": domain,
            "question": f"{domain}: what is {number - number % 2} and one?",
            "answer": f"{number - number % 2 + 1}",
        }
        for domain in ("maths", "mail", "facts")
        for number in range(each)
    ]
    path = folder / "training_60k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_questions_are_distinct_and_even_over_the_domains(tmp_path: Path) -> None:
    path = write_data(tmp_path)
    settings = StudySettings(items=6, tasks=20, held_out_share=1)
    found = questions(path, settings)
    assert len({row.question for row in found}) == 20
    assert sorted(Counter(row.domain for row in found).values()) == [6, 7, 7]
    assert questions(path, settings) == found
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert questions(path, settings) == found


def test_too_few_held_out_questions_are_one_line(tmp_path: Path) -> None:
    path = write_data(tmp_path)
    with pytest.raises(RunError, match=r"held_out_share 0\.001, the study wants 20") as caught:
        questions(path, StudySettings(held_out_share=0.001))
    assert "\n" not in str(caught.value)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says little, and of one question nothing: what is tested here is the study."""

    def answers(_model: Any, examples: list[Any], _max_tokens: int) -> list[str]:
        return ["" if n == 0 else f"It is {row.answer}" for n, row in enumerate(examples)]

    monkeypatch.setattr(stage, "_answers", answers)


@pytest.mark.usefixtures("answering")
def test_equal_inputs_give_equal_bytes_whatever_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COGUMI_STUDY_DATABASE_URL", "postgresql://somebody:else@127.0.0.1:1/study")
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data")
    settings = StudySettings(raters=4, items=6, pairs=1, held_out_share=1, behaviour="honest=0.5,double=0.5")
    contents: list[dict[str, bytes]] = []
    facts: list[Any] = []
    for name in ("one", "two"):
        context: Any = _Context(tmp_path / name, tmp_path / "data")
        result = STUDY.run(settings, context)
        out = context.out
        contents.append({str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()})
        facts.append((result.kind, dict(result.facts)))
        assert context.told[-1] == (4 * 12, 4 * 12)
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"plan.json", "frozen/ratings.parquet", "frozen/study.json"}
    assert facts[0] == facts[1]
    assert facts[0][1]["finished"] == 4
    frozen = read_frozen(tmp_path / "one" / "out")
    assert frozen.plan.name == NAME
    assert frozen.counts["simulated"] == 4
    assert set(frozen.table.column("source").to_pylist()) == {"simulated"}
    assert frozen.closed_at is None
