"""The parts of plan 1.1 to 1.5 that need no teacher: duplicates, leaks, prompts and their parsers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogumi.errors import RunError, UsageError
from evals.lint.duplicates import QuestionIndex, tokens_of
from evals.lint.linter import lint_files
from evals.micro import normalise, split_of
from evals.tasks import get_task
from pipeline.generation import prompts
from pipeline.generation.few_shot import HARD_SYSTEM
from pipeline.generation.leaks import LeakCheck
from pipeline.generation.records import Cell, read_rows
from pipeline.generation.topics import DOMAINS

# Duplicates and leaks --------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(["a", "b", "c", "1", "2"]), min_size=1, max_size=9).map(" ".join)


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of token trigrams, written anew from its definition."""
    sets = []
    for text in (one, other):
        tokens = tokens_of(text)
        windows = [tuple(tokens[at : at + 3]) for at in range(len(tokens) - 2)]
        sets.append(set(windows) or {tuple(tokens)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@given(st.lists(WORDS, max_size=40), st.sampled_from([0.3, 0.5, 2 / 3, 0.7, 0.9]))
def test_index_finds_what_comparing_all_pairs_finds(texts: list[str], threshold: float) -> None:
    index = QuestionIndex(threshold)
    kept: list[str] = []
    for text in texts:
        if any(tokens_of(text) == tokens_of(other) for other in kept):
            expected = "exact"
        elif any(similarity(text, other) >= threshold - 1e-9 for other in kept):
            expected = "near"
        else:
            expected = None
        assert index.match(text) == expected
        if expected is None:
            index.add(text)
            kept.append(text)


def test_numbers_in_another_order_are_another_question() -> None:
    for threshold in (0.8, 1.0):
        index = QuestionIndex(threshold)
        index.add("What is 7 plus 5?")
        assert index.match("What is 5 plus 7?") is None
        assert index.match("what  is 7 plus 5") == "exact"


def test_benchmark_files_are_leaks_exactly_and_nearly(tmp_path: Path) -> None:
    text = "A farmer has seventeen sheep and all but nine run away, how many sheep does the farmer have left?"
    (tmp_path / "bench.jsonl").write_text(json.dumps({"prompt": text}) + "\n\n")
    check = LeakCheck(micro=False, files=["bench.jsonl"], threshold=0.7, data=tmp_path)
    assert check.leaks(text.upper())
    assert check.leaks(text.replace("left", "now"))
    assert not check.leaks("How many sheep are there?")


def test_micro_questions_that_are_held_out_are_leaks() -> None:
    texts = [f"What is {a} plus {b}?" for a in range(1, 9) for b in range(1, 9)]
    check = LeakCheck(micro=True, files=[], threshold=0.7, data=None)
    assert {text for text in texts if not check.leaks(text)} == {
        text for text in texts if split_of(text) == "train"
    }


GSM = (
    "Natalia sold clips to forty eight of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)


def test_tasks_items_are_leaks_whole_in_part_and_nearly(tmp_path: Path) -> None:
    (tmp_path / "ifeval").mkdir()
    rows = [
        {"key": number, "prompt": text, "instruction_id_list": [], "kwargs": []}
        for number, text in enumerate((GSM, "Name the seven tallest mountains of Peru, in capital letters."))
    ]
    (tmp_path / "ifeval" / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check = LeakCheck(micro=False, files=[], threshold=0.7, data=tmp_path, tasks=["ifeval", "ifeval"])
    part = " ".join(GSM.split()[:16])
    held = [
        GSM,
        GSM.replace("Natalia", "Maria"),
        f"Read this: {part}. Then say what she sold.",
        rows[1]["prompt"],
    ]
    free = ["How many clips did Natalia sell?", "Name the three tallest mountains of Chile."]
    assert check.leaking([*held, *free]) == [True] * 4 + [False] * 2
    assert [check.leaks(text) for text in [*held, *free]] == check.leaking([*held, *free])


def test_micro_tasks_items_are_leaks_word_by_word() -> None:
    items = get_task("micro/math").items(None)
    check = LeakCheck(micro=False, files=[], threshold=0.7, data=None, tasks=["micro/math"])
    assert all(check.leaking([item.prompt for item in items]))
    known = {normalise(item.prompt) for item in items}
    others = [f"What is {a} plus {b}?" for a in range(1, 30) for b in range(1, 30)]
    assert not any(check.leaking([text for text in others if normalise(text) not in known]))


def test_what_lint_finds_against_a_benchmark_the_check_refuses(tmp_path: Path, data_folder: Path) -> None:
    file = data_folder / "gsm8k" / "test_000_659.jsonl"
    asked = [json.loads(line)["question"] for line in file.read_text().splitlines()][::25]
    texts = [
        text for question in asked for text in (question, " ".join(question.split()[3:20]), question[::-1])
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"question": text, "answer": "1"}) for text in texts))
    leaked = {found.line for found in lint_files([str(path)], [str(file)]).findings if found.rule == "leak"}
    expected = [line in leaked for line in range(1, len(texts) + 1)]
    assert 0.3 < sum(expected) / len(expected) < 0.7
    for named in ({"files": ["gsm8k/test_000_659.jsonl"]}, {"files": [], "tasks": ["gsm8k"]}):
        assert LeakCheck(micro=False, threshold=0.7, data=data_folder, **named).leaking(texts) == expected


def test_tasks_that_are_unknown_or_not_here_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"leak_tasks: no task 'ifevals' .did you mean 'ifeval'"):
        LeakCheck(micro=False, files=[], threshold=0.7, data=None, tasks=["ifevals"])
    with pytest.raises(RunError, match=r"leak_tasks: .*ifeval.*--data or COGUMI_DATA"):
        LeakCheck(micro=False, files=[], threshold=0.7, data=tmp_path, tasks=["ifeval"])


def test_missing_and_broken_leak_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"leak_files: no file nowhere\.jsonl"):
        LeakCheck(micro=False, files=["nowhere.jsonl"], threshold=0.7, data=tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n{"answer": 3}\n')
    with pytest.raises(RunError, match=r"bad\.jsonl, line 2"):
        LeakCheck(micro=False, files=["bad.jsonl"], threshold=0.7, data=tmp_path)


# Prompts and parsers ---------------------------------------------------------------------------------


def test_writer_prompts_of_a_cell_never_repeat() -> None:
    for domain in DOMAINS:
        texts = {prompts.writer_prompt(domain, "hard", 20, call, 3) for call in range(500)}
        assert len(texts) == 500


def test_hard_prefix_is_long_enough_to_be_cached_and_its_examples_keep_its_form() -> None:
    # Anthropic's tokenizer gives more tokens than one per 4.5 characters of English.
    assert len(HARD_SYSTEM) / 4.5 > 1024
    examples = HARD_SYSTEM.split("Question: ")[1:]
    assert len(examples) == 8
    for example in examples:
        assert prompts.parse_hard_answer(example[example.index("<thinking>") :]) is not None


PART = st.text(st.characters(exclude_characters="[]<>", exclude_categories=("Cs",)), min_size=1).filter(
    lambda text: bool(text.strip())
)


@given(PART, PART, PART, PART)
def test_hard_answer_is_taken_apart_and_nothing_else_is(
    draft: str, critique: str, revised: str, answer: str
) -> None:
    thinking = f"<thinking>[DRAFT] {draft} [CRITIQUE] {critique} [REVISED] {revised}</thinking>"
    whole = f"{thinking}\n<answer>{answer}</answer>"
    parsed = prompts.parse_hard_answer(whole)
    assert parsed is not None
    assert parsed.answer == answer.strip()
    assert parsed.reasoning.endswith(f"[REVISED] {revised.strip()}")
    for broken in (
        thinking,
        whole + " Anything else?",
        "Sure! " + whole,
        whole.replace("[CRITIQUE]", ""),
        whole.replace("[DRAFT]", "[REVISED]"),
        whole.replace(answer, " "),
        whole + whole,
        whole[:-3],
    ):
        assert prompts.parse_hard_answer(broken) is None


@given(st.text())
def test_parsers_never_fail_on_garbage(text: str) -> None:
    prompts.parse_hard_answer(text)
    assert prompts.parse_scores(text) is None or "quality" in text
    parsed = prompts.parse_questions(text)
    assert parsed is None or all(parsed)


@pytest.mark.parametrize(
    "text",
    [
        '{"quality": 8, "relevance": 9}',
        '{"quality": 8, "relevance": 9, "clarity": 11}',
        '{"quality": 8, "relevance": 9, "clarity": true}',
        '{"quality": 8, "relevance": 9, "clarity": "8"}',
        '[{"quality": 8}]',
        "[" * 100_000,
        "{" * 100_000 + "}",
    ],
)
def test_scores_are_read_strictly(text: str) -> None:
    assert prompts.parse_scores(text) is None


def test_json_in_a_fence_is_read() -> None:
    scores = {"quality": 8, "relevance": 9, "clarity": 7}
    assert prompts.parse_scores(f"```json\n{json.dumps(scores | {'note': 'fine'})}\n```") == scores
    assert prompts.parse_questions('Here: ["a", " ", "b "]') == ["a", "b"]
    assert prompts.parse_questions('["a", 1]') is None
    assert prompts.parse_questions('["whole", "half of \\ud83d"]') == ["whole"]
    assert prompts.parse_questions('["a", "b') is None


def test_question_ids_and_rows_survive_odd_characters(tmp_path: Path) -> None:
    assert Cell("coding", "easy").question_id(7) == "coding_easy_0007"
    assert Cell("coding", "easy").question_id(12345) == "coding_easy_12345"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rows(path, ("text",)) == [{"text": "a\u2028b"}]
