"""The question writer and the asker without a network: seeds, order of answers, yields, repairs, bills."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from generation_bench import Told
from hypothesis import given
from hypothesis import strategies as st

from cogumi.ledger import Ledger, LedgerCalls
from cogumi.stage import Calls, StageContext, TeacherConfig
from cogumi.teachers import AskOptions, OnReply, Reply, TeacherRequest, TeacherStats, Usage
from cogumi.teachers.types import Finish
from pipeline.generation import asking, prompts, topics, writer
from pipeline.generation.accounts import CellAccount
from pipeline.generation.asking import Asker, Bill, CallSettings, total_cost
from pipeline.generation.records import Cell
from pipeline.generation.validate import Judged, ValidateSettings
from pipeline.generation.writer import QuestionWriter, WriterSettings

Answer = Callable[[str], tuple[str, Finish]]
"""Gives a model's text and finish reason for the last message of a request."""


def config(name: str) -> TeacherConfig:
    return TeacherConfig(name, "openai", name, None, None, 1.0, 2.0, 0.5, "here", simulated=True)


def context(root: Path, told: Told | None = None) -> StageContext:
    return StageContext(
        inputs={},
        out=root,
        scratch=root,
        seed=5,
        progress=told or Told(),
        calls=LedgerCalls(Ledger(root), "run", "questions", None),
        teachers={name: config(name) for name in ("one", "other")},
        data=None,
    )


class Scripted:
    """Stands for ``ask_each``: answers from a function, and hands the answers on in an order of its own."""

    def __init__(self, answer: Answer, order: random.Random | None = None) -> None:
        self.asked: list[TeacherRequest] = []
        self.modes: list[tuple[str, int]] = []
        self._answer = answer
        self._order = order

    def __call__(
        self,
        calls: Calls,
        jobs: Sequence[tuple[TeacherConfig, Sequence[TeacherRequest]]],
        options: AskOptions,
        on_reply: OnReply,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> TeacherStats:
        places = [(job, place) for job, (_, requests) in enumerate(jobs) for place in range(len(requests))]
        # Teachers answer side by side.
        places.sort(key=lambda each: each[::-1])
        self.modes.append((options.mode, len(places)))
        self.asked += [jobs[job][1][place] for job, place in places]
        if self._order:
            self._order.shuffle(places)
        for job, place in places:
            text, finish = self._answer(jobs[job][1][place].messages[-1].text)
            on_reply(job, place, Reply("id", text, finish, Usage(3, 5), 0.1))
        return TeacherStats()


def prompt_rng(prompt: str) -> random.Random:
    return random.Random(f"answer to {prompt}")


def many_alike(prompt: str) -> tuple[str, Finish]:
    """About twenty questions out of 120, which soon repeat; now and then a list that is cut or refused."""
    rng = prompt_rng(prompt)
    finish: Finish = rng.choices(["stop", "length", "refusal", "rejected"], [3, 2, 1, 1])[0]
    numbers = [rng.randrange(120) for _ in range(rng.choice([18, 20, 23]))]
    # Three wordings of each of 40 questions.
    asked = [" ".join(f"word{n // 3}of{at}" for at in range(12)) + " again" * (n % 3) for n in numbers]
    return json.dumps(asked), finish


# Seeds of the prompts --------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", list(topics.DOMAINS))
def test_no_combination_of_seeds_returns_within_5000_calls(domain: str) -> None:
    seeds = [topics.seeds_of(domain, call, 3) for call in range(5000)]
    assert len(set(seeds)) == 5000
    for one, next_one in itertools.pairwise(seeds):
        assert one.topic != next_one.topic
        assert one.kind != next_one.kind
        assert one.setting != next_one.setting
        assert one.style != next_one.style
    known = topics.DOMAINS[domain]
    lists = (known.topics, known.kinds, topics.SETTINGS, topics.STYLES)
    assert all(len(set(each)) == len(each) for each in lists)
    assert math.lcm(*map(len, lists)) == math.prod(map(len, lists)) >= 5000


def test_prompts_of_a_cell_and_of_two_seeds_differ() -> None:
    for domain in topics.DOMAINS:
        texts = {
            prompts.writer_prompt(domain, difficulty, 20, call, seed)
            for difficulty in topics.DIFFICULTIES
            for call in range(200)
            for seed in (1, 2)
        }
        assert len(texts) == 800


def test_taken_questions_stand_in_the_prompt_in_one_short_line_each() -> None:
    text = prompts.writer_prompt("math", "easy", 20, 4, 1, ["What is\n1 plus 1?", "x" * 5000])
    assert "\n- What is 1 plus 1?\n- xxx" in text
    assert len(text) < 2000
    assert prompts.WRITER_LINE.format(n=20, domain="math", difficulty="easy") in text


# Filling cells ---------------------------------------------------------------------------------------

WANTED = {Cell("math", "easy"): 17, Cell("coding", "hard"): 20}


def filled(root: Path, script: Scripted, told: Told | None = None, **settings: Any) -> tuple[Any, Any, Bill]:
    root.mkdir(exist_ok=True)
    bill = Bill()
    made = QuestionWriter(
        context(root, told),
        WriterSettings(**settings),
        {"math": "one", "coding": "other"},
        AskOptions(),
        bill,
    )
    return made.fill(WANTED), made.document(), bill


def test_order_of_the_answers_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = []
    for number in range(6):
        script = Scripted(many_alike, random.Random(number) if number else None)
        monkeypatch.setattr(writer, "ask_each", script)
        rows, document, bill = filled(tmp_path / str(number), script, near_duplicate_threshold=0.6)
        assert {cell: len(of_cell) for cell, of_cell in rows.items()} == WANTED
        outcomes.append((rows, document, bill.usd, bill.finish_reasons(), script.asked))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    accounts = outcomes[0][1]["accounts"].values()
    for name in ("duplicates", "near_duplicates", "unusable_calls", "refused_calls", "surplus"):
        assert sum(account[name] for account in accounts) > 0, name


def test_every_question_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted(many_alike)
    monkeypatch.setattr(writer, "ask_each", script)
    _, document, bill = filled(tmp_path, script)
    written = 0
    for request in script.asked:
        text, finish = many_alike(request.messages[0].text)
        written += len(json.loads(text)) if finish == "stop" else 0
    accounts = document["accounts"].values()
    looked = sum(account["offered"] for account in accounts)
    assert looked + sum(account["surplus"] for account in accounts) == written
    for account in accounts:
        parts = ("accepted", "duplicates", "near_duplicates", "leaks", "too_long")
        assert account["offered"] == sum(account[name] for name in parts)
    assert bill.replies == len(script.asked) == sum(account["calls"] for account in accounts)


def test_answers_are_looked_at_while_others_are_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Watching(Told):
        def update(self, done: int, total: int, **facts: float | int | str) -> None:
            super().update(done, total, **facts)
            seen.append(done)

    def fresh(prompt: str) -> tuple[str, Finish]:
        rng = prompt_rng(prompt)
        return json.dumps([f"{rng.random()} {rng.random()}" for _ in range(5)]), "stop"

    script = Scripted(fresh)
    monkeypatch.setattr(writer, "ask_each", script)
    told = Watching()
    filled(tmp_path, script, told, questions_per_call=5)
    assert script.modes == [("live", 8)]
    assert seen == [5, 10, 15, 20, 25, 30, 32, 37]
    assert told.facts == {"cells": "2/2", "calls": "8/8"}


def test_repeated_questions_are_named_once_the_yield_is_low(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_of_four(prompt: str) -> tuple[str, Finish]:
        rng = prompt_rng(prompt)
        known = [f"Which river is the longest of country number {n}?" for n in range(3)]
        return json.dumps([*known * 5, *(f"{rng.random()} {rng.random()}" for _ in range(5))]), "stop"

    script = Scripted(one_of_four)
    monkeypatch.setattr(writer, "ask_each", script)
    filled(tmp_path, script)
    first, later = script.asked[0].messages[0].text, script.asked[-1].messages[0].text
    assert "Already taken" not in first
    assert later.count("\n- Which river is the longest of country number") == 3
    # 37 questions at 5 new a call: what was asked beyond need stays small.
    assert 6 <= len(script.asked) <= 9


@given(
    wanted=st.integers(1, 3000),
    share=st.floats(0.2, 1.0),
    per_call=st.integers(10, 40),
    number=st.integers(0, 99),
)
def test_no_more_is_asked_than_the_yield_needs(wanted: int, share: float, per_call: int, number: int) -> None:
    rng = random.Random(number)
    account, has, calls = CellAccount(), 0, 0
    planner = object.__new__(QuestionWriter)
    planner._settings = WriterSettings(questions_per_call=per_call)
    while has < wanted:
        planned = planner._calls(account, wanted - has, calls)
        assert planned >= 1
        for _ in range(planned):
            new = sum(rng.random() < share for _ in range(per_call))
            account.took(per_call, new, 20)
            has += new
        calls += planned
    # A tenth, and the last call's.
    assert has <= 1.1 * wanted + 2 * per_call


# Asking, repairing, paying ---------------------------------------------------------------------------


def numbered(text: str) -> list[TeacherRequest]:
    return [TeacherRequest((asking.Message("user", each),), 10) for each in text.split()]


def test_only_what_may_help_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(prompt: str) -> tuple[str, Finish]:
        given: dict[str, tuple[str, Finish]] = {
            "good": ("7", "stop"),
            "cut": ("8", "length"),
            "refused": ("no", "refusal"),
            "rejected": ("9", "rejected"),
            "blank": (" ", "stop"),
            "again": ("12", "stop"),
        }
        return given.get(prompt, ("word", "stop"))

    script = Scripted(answer)
    monkeypatch.setattr(asking, "ask_each", script)
    asker = Asker(
        context(tmp_path),
        config("one"),
        CallSettings(live_below=3),
        "batch",
        lambda text: int(text) if text.isdigit() else None,
        "again",
    )
    parsed = asker.ask(numbered("good cut refused rejected blank odd"), lambda *_: None)
    assert parsed == [7, 12, 12, None, 12, 12]
    assert asker.repaired == 4
    again = script.asked[6:]
    assert [request.messages[0].text for request in again] == ["cut", "refused", "blank", "odd"]
    assert again[2].messages[1].text == "(no answer)"
    assert asker.bill.finish_reasons() == {"length": 1, "refusal": 1, "rejected": 1, "stop": 7}
    assert total_cost(asker.bill) == 1.0
    assert asker.ask(numbered("good odd"), lambda *_: None, follow_up=True) == [7, 12]
    # Only what replaces or repairs goes live, and only when it is little.
    assert script.modes == [("batch", 6), ("batch", 4), ("live", 2), ("live", 1)]


@given(st.lists(st.floats(0, 10, allow_nan=False), max_size=50), st.randoms())
def test_bill_does_not_depend_on_the_order(costs: list[float], rng: random.Random) -> None:
    bills = []
    for _ in range(2):
        bill = Bill()
        for cost in costs:
            bill.add(Reply("id", "text", "stop", Usage(1, 2, 3, 4), cost))
        bills.append((bill.usd, bill.tokens(), total_cost(bill)))
        rng.shuffle(costs)
    assert bills[0] == bills[1]
    assert total_cost(bill) == pytest.approx(math.fsum(costs), abs=1e-8)
    bill.add(Reply("id", "text", "stop", Usage(1, 2), None))
    assert total_cost(Bill(), bill) is None


# Judging ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reserve", "share", "quota", "wanted"),
    [(0, 0.0, 50, 50), (3, 0.0, 50, 53), (3, 0.07, 100, 107), (9, 0.07, 100, 109), (0, 0.03, 2000, 2060)],
)
def test_reserve_is_the_larger_of_number_and_share(
    reserve: int, share: float, quota: int, wanted: int
) -> None:
    settings = ValidateSettings(judge="j", teachers={}, reserve=reserve, reserve_share=share)
    assert settings.wanted(quota) == wanted


def test_unreadable_judgements_are_dropped_and_leave_no_mean() -> None:
    cell = Cell("math", "easy")
    judged = Judged({cell: []})
    row = {"domain": "math", "difficulty": "easy", "question": "?"}
    judged.add(row, None, 7)
    assert judged.mean_scores() == {"quality": None, "relevance": None, "clarity": None}
    judged.add(row, {"quality": 8, "relevance": 7, "clarity": 10}, 7)
    judged.add(row, {"quality": 8, "relevance": 6, "clarity": 10}, 7)
    assert judged.mean_scores() == {"quality": 8.0, "relevance": 6.5, "clarity": 10.0}
    assert judged.histograms()["relevance"] == {str(score): int(score in (6, 7)) for score in range(1, 11)}
    assert (judged.unreadable, judged.dropped[cell], judged.seen[cell]) == (1, 2, 3)
    assert judged.missing({cell: 3}) == {cell: 2}
    assert round(judged.dropped_share(cell), 3) == 0.667
