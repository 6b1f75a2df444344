from __future__ import annotations

import json
from pathlib import Path

import pytest

from cogumi.errors import RunError
from evals.datafiles import read_jsonl
from evals.references.registry import get
from evals.tasks.ifeval import IFEval
from evals.types import Item


def item(instruction: str, **kwargs: object) -> Item:
    target = {"key": 1, "prompt": "p", "instruction_id_list": [instruction], "kwargs": [kwargs]}
    return Item("1", "p", target)


@pytest.mark.parametrize(
    ("asked", "answer", "score"),
    [
        (item("punctuation:no_comma"), "no comma here", 1.0),
        (item("punctuation:no_comma"), "one, comma", 0.0),
        (item("punctuation:no_comma"), "  ", 0.0),
        (item("change_case:english_lowercase"), "all small letters, in plain english.", 1.0),
        (item("change_case:english_capital"), "not all capital", 0.0),
        (
            item("length_constraints:number_sentences", relation="at least", num_sentences=3),
            "The cat sat down. Two dogs barked. We went home.",
            1.0,
        ),
        (
            item("length_constraints:number_sentences", relation="at least", num_sentences=4),
            "The cat sat down. Two dogs barked. We went home.",
            0.0,
        ),
        (
            item("change_case:capital_word_frequency", capital_relation="at least", capital_frequency=2),
            "A BIG CAT",
            1.0,
        ),
    ],
)
def test_scores_what_a_reader_would(asked: Item, answer: str, score: float) -> None:
    assert IFEval().score(asked, answer).score == score


def test_gpt4s_answers_score_what_its_authors_report(data_folder: Path) -> None:
    task = IFEval()
    answers = {
        row["prompt"]: row["response"] for row in read_jsonl(data_folder / "ifeval/gpt4_responses.jsonl")
    }
    items = task.items(data_folder)
    scores = [task.score(found, answers[found.prompt]) for found in items]
    prompt_level = sum(found.score for found in scores) / len(scores)
    followed = sum(found.details["inst_level_strict_acc_followed"] for found in scores)
    instruction_level = followed / sum(found.details["instructions"] for found in scores)
    row = get("gpt-4/ifeval@2023-11-07")
    assert len(items) == row.n == 541
    assert row.published_score is not None
    assert abs(prompt_level - row.published_score) < 0.006
    assert abs(instruction_level - 0.8357) < 0.006
    assert row.family == task.family


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"key": 1, "prompt": "p"', "line 1"),
        ("[1, 2]", "an object is expected"),
        (json.dumps({"key": 1, "prompt": "p", "kwargs": []}), "no column 'instruction_id_list'"),
        ("", None),
        ("\udcff", "UTF-8"),
    ],
)
def test_a_broken_row_names_file_and_line(tmp_path: Path, text: str, told: str | None) -> None:
    (tmp_path / "ifeval").mkdir()
    path = tmp_path / "ifeval" / "prompts.jsonl"
    path.write_bytes(text.encode(errors="surrogateescape"))
    if told is None:
        assert IFEval().items(tmp_path) == []
        return
    with pytest.raises(RunError) as found:
        IFEval().items(tmp_path)
    assert told in str(found.value)
    assert "prompts.jsonl" in str(found.value)


def test_a_folder_without_the_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such benchmark file"):
        IFEval().items(tmp_path)


def test_what_the_checker_draws_follows_from_the_prompt() -> None:
    # No letter: the checker draws one, and in half of all draws another answer is right.
    odd = item("keywords:letter_frequency", let_relation="at least", letter="#", let_frequency=4)
    answers = ["aaaa eeee iiii oooo", "bbbb cccc dddd ffff", "mmmm nnnn pppp ssss", "tttt uuuu vvvv zzzz"]
    task = IFEval()
    first = [task.score(odd, answer).score for answer in answers]
    assert all([task.score(odd, answer).score for answer in answers] == first for _ in range(20))
