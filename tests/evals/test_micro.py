"""Micro-domains: texts read back, answers verified exactly, splits stable, corruption always wrong."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogumi.errors import UsageError
from evals import micro, sandbox
from evals.micro import catalog
from evals.micro.forms import normalise

CELLS = [(domain, difficulty) for domain in micro.DOMAINS for difficulty in micro.DIFFICULTIES]
TEXT_CELLS = [cell for cell in CELLS if cell[0] != "coding"]
needs_sandbox = pytest.mark.skipif(not sandbox.available(), reason=sandbox.NO_SANDBOX)


def test_the_eight_domains_in_the_plans_order():
    assert micro.DOMAINS == (
        "coding",
        "math",
        "tool_use",
        "reasoning",
        "reading",
        "summarization",
        "common_sense",
        "instruction",
    )


@pytest.mark.parametrize(("domain", "difficulty"), CELLS)
def test_each_cell_holds_enough_questions_that_read_back(domain, difficulty):
    rng = random.Random(1)
    questions = {micro.write_question(domain, difficulty, rng) for _ in range(14_000)}
    assert len(questions) >= 1_500
    shares = [micro.split_of(question) for question in questions]
    assert shares.count("train") / len(shares) == pytest.approx(0.70, abs=0.04)
    assert shares.count("gate") / len(shares) == pytest.approx(0.20, abs=0.04)
    assert set(shares) == {"train", "dev", "gate", "final"}
    for question in sorted(questions)[:300]:
        solution = micro.solve(question)
        assert solution is not None
        assert (solution.domain, solution.difficulty) == (domain, difficulty)
        assert solution.answer
        assert "\n" not in solution.steps
        assert solution.steps.endswith(".")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CELLS), st.integers(0, 2**32))
def test_a_question_has_one_reading(cell, seed):
    question = micro.write_question(*cell, random.Random(seed))
    readings = [
        form
        for pattern, _, _, form in catalog._patterns()
        if (match := pattern.fullmatch(question)) and form.allowed(match.groupdict())
    ]
    assert len(readings) == 1
    assert micro.solve("  " + question.replace(" ", "\n ")) == micro.solve(question)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(TEXT_CELLS), st.integers(0, 2**32))
def test_right_answers_pass_and_corrupted_ones_fail(cell, seed):
    rng = random.Random(seed)
    question = micro.write_question(*cell, rng)
    solution = micro.solve(question)
    assert solution is not None
    assert micro.verify(question, solution.answer)
    wrong = micro.corrupt(question, rng)
    assert wrong
    assert not micro.verify(question, wrong)


@needs_sandbox
@pytest.mark.parametrize("difficulty", micro.DIFFICULTIES)
def test_code_is_executed(difficulty):
    rng = random.Random(3)
    for _ in range(6):
        question = micro.write_question("coding", difficulty, rng)
        solution = micro.solve(question)
        assert solution is not None
        assert micro.verify(question, solution.answer)
        assert not micro.verify(question, micro.corrupt(question, rng))


@needs_sandbox
def test_code_is_judged_by_what_it_does():
    question = "Write a function f(x) that returns x plus 3."
    assert micro.verify(question, "f = lambda y: 1 + y + 2")
    assert micro.verify(
        question, "def f(n):\n    total = n\n    for _ in range(3):\n        total += 1\n    return total"
    )
    for wrong in (
        "def f(x): return x + 4",
        "def g(x): return x + 3",
        "def f(x): return x + 3.0",
        "def f(x): return str(x + 3)",
        "def f(x): return x + 3 if x < 20 else 0",
        "print(10)",
        "",
    ):
        assert not micro.verify(question, wrong), wrong


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(TEXT_CELLS), st.integers(0, 2**32), st.text(max_size=60))
def test_garbage_is_a_wrong_answer(cell, seed, garbage):
    question = micro.write_question(*cell, random.Random(seed))
    solution = micro.solve(question)
    assert solution is not None
    if normalise(garbage) != normalise(solution.answer) and not any(char.isalnum() for char in garbage):
        assert not micro.verify(question, garbage)
    micro.verify(question, garbage)
    micro.verify(question, "[" * 20_000)
    micro.verify(question, "9" * 5_000)


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        (
            "Tom has 6 cups and gets 5 more. How many cups does Tom have?",
            ["11", "11 cups.", "The answer is 11."],
            ["13", "6 plus 5 is 11", "-11", "eleven", "1 1"],
        ),
        ("What is 6 minus 4?", ["2"], ["-2", "2.2", "2 or 3"]),
        (
            "Call a tool: send the red ball to Anna.",
            ['{"to": "Anna", "item": "red ball", "tool": "send"}'],
            [
                '{"tool":"send","item":"red ball"}',
                '{"tool":"send","item":"red ball","to":"Anna","to":"Anna"}',
                '{"tool":"send","item":"red ball","to":["Anna"]}',
                '["send"]',
                "send the red ball",
            ],
        ),
        (
            "Call a tool: show 3 red cups from Tom to Mia.",
            ['{"tool":"show","item":"red cup","count":3,"from":"Tom","to":"Mia"}'],
            [
                '{"tool":"show","item":"red cup","count":"3","from":"Tom","to":"Mia"}',
                '{"tool":"show","item":"red cup","count":3.0,"from":"Tom","to":"Mia"}',
                '{"tool":"show","item":"red cup","count":3,"from":"Mia","to":"Tom"}',
            ],
        ),
        (
            "Ben is older than Mia. Mia is older than Tom. Who is the youngest?",
            ["Tom", "tom."],
            ["Ben", "Mia", "Tom and Ben"],
        ),
        ("Tom beat Anna, Anna beat Ben and Ben beat Mia. Who came third?", ["Ben"], ["Anna", "third"]),
        (
            "Tom took the ball to the park. Then Mia took the cup to the shop. Where did Tom go?",
            ["park", "Park."],
            ["shop", "park shop"],
        ),
        (
            "Summarize: Tom is in the park. Mia is in the park.",
            ["Tom and Mia are in the park.", "Mia and Tom are in the park"],
            ["Tom is in the park.", "Tom and Tom are in the park."],
        ),
        (
            "Tom wants to read. Which helps, a ring or a book?",
            ["book", "A book."],
            ["ring", "a book or a ring"],
        ),
        (
            "Tom wants to read and Mia wants to pay. What do they need?",
            ["book and coin", "a coin and a book"],
            ["book", "book and book", "book and pen"],
        ),
        (
            "Say red cup 2 times with commas.",
            ["red cup, red cup", "Red cup, red cup."],
            ["red cup red cup", "red cup"],
        ),
        ("Say red cup in capital letters.", ["RED CUP"], ["Red Cup", "red cup"]),
        (
            "Name 2 colors, but not red or blue.",
            ["green, black", "white and yellow", "yellow, green."],
            ["green", "green, red", "green, green", "green, black, white", "green, pink"],
        ),
        (
            "List in reverse order: ball, cup, hat.",
            ["hat, cup, ball", "hat,cup,ball"],
            ["ball, cup, hat", "hat, cup"],
        ),
    ],
)
def test_verifier_takes_every_right_answer_and_no_other(question, right, wrong):
    assert [answer for answer in right if not micro.verify(question, answer)] == []
    assert [answer for answer in wrong if micro.verify(question, answer)] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello",
        "What is 7 plus?",
        "What is 7 plus 5? Really?",
        "Tom is older than Mia. Mia is older than Tom. Who is the oldest?",
    ],
)
def test_other_texts_are_not_questions(text):
    assert micro.solve(text) is None
    with pytest.raises(UsageError, match="not a micro-domain question"):
        micro.verify(text, "5")
    with pytest.raises(UsageError, match="not a micro-domain question"):
        micro.corrupt(text, random.Random(0))


def test_unknown_names_are_usage_errors():
    with pytest.raises(UsageError, match=r"unknown micro-domain 'maths' .*math"):
        micro.write_question("maths", "easy", random.Random(0))
    with pytest.raises(UsageError, match=r"unknown difficulty 'eassy' .*easy"):
        micro.write_question("math", "eassy", random.Random(0))
    with pytest.raises(UsageError, match="distinct held-out questions"):
        micro.gate_items("instruction", 5_000)


def test_split_ignores_case_spacing_and_closing_marks():
    assert micro.split_of("What is  7 plus 5?") == micro.split_of("what is 7 plus 5")
    # Pinned: a change of the hash would let yesterday's training data into today's gate.
    questions = [f"What is {left} plus 5?" for left in range(1, 9)]
    assert [micro.split_of(question) for question in questions] == [
        "train",
        "train",
        "gate",
        "final",
        "train",
        "train",
        "gate",
        "gate",
    ]


@pytest.mark.parametrize("domain", micro.DOMAINS)
def test_gate_items_are_held_out_distinct_and_stable(domain):
    items = micro.gate_items(domain, 80)
    assert items == micro.gate_items(domain, 80)
    assert items[:40] == micro.gate_items(domain, 40)
    assert items != micro.gate_items(domain, 80, seed=1)
    assert len({item.prompt for item in items}) == 80
    assert {micro.split_of(item.prompt) for item in items} == {"gate"}
    assert [item.target["difficulty"] for item in items].count("easy") == 40
    assert items[0].id == f"{domain}-0001"


def test_task_scores_right_and_wrong():
    task = micro.MicroTask("tool_use", n=10)
    assert (task.name, task.family, task.version) == ("micro/tool_use", "micro/exact", 1)
    items = task.items(None)
    assert [task.score(item, item.target["answer"]).score for item in items] == [1.0] * 10
    assert [task.score(item, json.dumps({"tool": "none"})).score for item in items] == [0.0] * 10
