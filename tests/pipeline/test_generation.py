"""Plan 1.1 to 1.5 against the local teacher over real HTTP, with the real ledger and store."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from generation_bench import QUOTAS, WRITERS, Bench
from pydantic import ValidationError

from cogumi.errors import RunError, UsageError
from cogumi.ledger import Ledger, LedgerCalls
from cogumi.stage import CallRecord, OpenBatch
from evals.micro import split_of, verify
from pipeline.generation.questions import QuestionSettings
from pipeline.generation.records import counts_by_cell
from pipeline.local_teacher import LocalTeacher, TeacherOptions


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTeacher]:
    options = TeacherOptions(tmp_path_factory.mktemp("teacher"), judge_reject_rate=0.15, malformed_rate=0.1)
    with LocalTeacher(options) as running:
        yield running


@pytest.fixture(scope="module")
def bench(teacher: LocalTeacher, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """All five steps, run once without disturbance."""
    made = Bench(tmp_path_factory.mktemp("bench"), teacher.base_url)
    made.run_all()
    return made


# The five steps --------------------------------------------------------------------------------------


def cells(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {}
    for (domain, difficulty), count in Counter((row["domain"], row["difficulty"]) for row in rows).items():
        counted.setdefault(domain, {})[difficulty] = count
    return counted


@pytest.mark.parametrize(
    ("step", "file"),
    [
        ("questions", "questions_60k.jsonl"),
        ("validate", "questions_60k_validated.jsonl"),
        ("merge", "training_60k_complete.jsonl"),
    ],
)
def test_every_cell_is_exactly_full_of_distinct_training_questions(
    bench: Bench, step: str, file: str
) -> None:
    rows = bench.rows(step, file)
    assert cells(rows) == QUOTAS
    assert len({row["question_id"] for row in rows}) == len(rows)
    assert len({row["question"] for row in rows}) == len(rows)
    assert {split_of(row["question"]) for row in rows} == {"train"}
    for row in rows:
        assert re.fullmatch(rf"{row['domain']}_{row['difficulty']}_\d{{4}}", row["question_id"])


def test_validated_rows_reach_the_bar_and_the_dropped_ones_are_gone(bench: Bench) -> None:
    rows = bench.rows("validate", "questions_60k_validated.jsonl")
    reserve = bench.rows("validate", "questions_reserve.jsonl")
    assert all(min(row["scores"].values()) >= 7 for row in [*rows, *reserve])
    assert min(Counter((row["domain"], row["difficulty"]) for row in reserve).values()) >= 3
    facts = bench.made["validate"].facts
    first = {row["question_id"] for row in bench.rows("questions", "questions_60k.jsonl")}
    assert facts["dropped"] > 0
    assert facts["judged"] == facts["dropped"] + len(rows) + len(reserve)
    assert set(facts["dropped_share"]) == set(facts["cells"])
    for name, counts in facts["score_histograms"].items():
        assert sum(counts.values()) == facts["judged"] - facts["unreadable_judgements"]
        mean = sum(int(score) * count for score, count in counts.items()) / sum(counts.values())
        assert facts["mean_scores"][name] == pytest.approx(mean, abs=1e-4)
    assert len(first - {row["question_id"] for row in [*rows, *reserve]}) <= facts["dropped"]


def test_training_rows_have_the_plans_format(bench: Bench) -> None:
    rows = bench.rows("merge", "training_60k_complete.jsonl")
    for row in rows:
        assert list(row) == ["question_id", "domain", "difficulty", "question", "answer", "reasoning"]
        assert (row["reasoning"] is None) == (row["difficulty"] == "easy")
        assert "<" not in row["answer"]
        if row["reasoning"]:
            assert re.match(r"\[DRAFT\] .*\n\[CRITIQUE\] .*\n\[REVISED\] ", row["reasoning"], re.DOTALL)
    math = [row for row in rows if row["domain"] == "math"]
    assert sum(verify(row["question"], row["answer"]) for row in math) >= 0.8 * len(math)


def test_answer_files_hold_the_plans_fields(bench: Bench) -> None:
    easy = bench.rows("answers_easy", "answers_easy_24k.jsonl")
    hard = bench.rows("answers_hard", "answers_hard_36k.jsonl")
    assert {tuple(row) for row in easy} == {("question_id", "answer")}
    assert {tuple(row) for row in hard} == {("question_id", "answer", "reasoning")}


def test_card_accounts_for_content_and_money(bench: Bench) -> None:
    card = json.loads(bench.made["merge"].file("card.json").read_text())
    assert card == dict(bench.made["merge"].facts)
    assert card["simulated"] is True
    assert (card["duplicates"], card["near_duplicates"], card["leaks"]) == (0, 0, 0)
    steps = [card["cost_usd"][name] for name in ("questions", "validated", "answers_easy", "answers_hard")]
    assert card["cost_usd"]["total"] == pytest.approx(sum(steps))
    assert bench.ledger.spent("run")[1] == pytest.approx(card["cost_usd"]["total"])
    assert bench.made["answers_hard"].facts["cache_read_tokens"] > 0


def test_live_mode_gives_the_same_training_rows(bench: Bench, teacher: LocalTeacher, tmp_path: Path) -> None:
    live = Bench(tmp_path / "live", teacher.base_url)
    live.run_all(mode="live")
    file = "training_60k_complete.jsonl"
    assert live.rows("merge", file) == bench.rows("merge", file)


# Interruptions ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


class MortalCalls(LedgerCalls):
    """Dies at the n-th write, before or after its commit."""

    def __init__(self, ledger: Ledger, step: str, countdown: list[int], *, late: bool) -> None:
        super().__init__(ledger, "run", step, None)
        self._countdown = countdown
        self._late = late

    def record(self, records: Sequence[CallRecord]) -> None:
        self._maybe_die(late=False)
        super().record(records)
        self._maybe_die(late=True)

    def save_batch(self, provider: str, batch: OpenBatch) -> None:
        self._maybe_die(late=False)
        super().save_batch(provider, batch)
        self._maybe_die(late=True)

    def _maybe_die(self, *, late: bool) -> None:
        if late == self._late:
            self._countdown[0] -= 1
            if self._countdown[0] == 0:
                raise Killed


def test_resumed_run_gives_the_same_bytes(bench: Bench, teacher: LocalTeacher, tmp_path: Path) -> None:
    resumed = Bench(tmp_path / "bench", teacher.base_url)
    kills = 0
    for attempt, writes in enumerate((2, 5, 3, 7, 4, 1000)):
        late = attempt % 2 == 1
        resumed.calls = MortalCalls(resumed.ledger, "any", [writes], late=late)
        try:
            resumed.run_all()
            break
        except Killed:
            kills += 1
    assert kills >= 3
    assert resumed.digests() == bench.digests()


def test_faults_leave_quotas_exact_and_the_ledger_equal_to_the_teachers_count(tmp_path: Path) -> None:
    names = (
        "500",
        "drop",
        "truncated",
        "refusal",
        "wrong_count",
        "duplicate",
        "empty",
        "batch_error",
        "garbage",
    )
    options = TeacherOptions(tmp_path / "teacher", faults=dict.fromkeys(names, 0.06))
    with LocalTeacher(options) as teacher:
        made = Bench(tmp_path / "bench", teacher.base_url)
        made.run_all(reserve=8)
        ids = teacher.counters(ids=True)["ids"]
    rows = made.rows("merge", "training_60k_complete.jsonl")
    assert cells(rows) == QUOTAS
    assert not any("I'm sorry" in row["answer"] for row in rows)
    assert len(ids) == len(set(ids))
    assert sorted(ids) == sorted(row["response"]["id"] for row in made.ledger.snapshot()["calls"])
    refused = made.rows("answers_hard", "refused.jsonl")
    assert not {row["question_id"] for row in refused} & {row["question_id"] for row in rows}


# Refusals --------------------------------------------------------------------------------------------


def test_exhausted_reserve_is_an_error_that_names_the_cell(bench: Bench, tmp_path: Path) -> None:
    with LocalTeacher(TeacherOptions(tmp_path / "teacher", faults={"empty": 1.0})) as mute:
        made = Bench(tmp_path / "bench", mute.base_url, made=dict(bench.made))
        with pytest.raises(RunError, match=r"reserve is used up: math/easy lacks \d+"):
            made.run("answers_easy", teacher="mini")


def test_raised_reserve_pays_only_for_what_is_new(tmp_path: Path) -> None:
    options = TeacherOptions(tmp_path / "teacher", faults={"truncated": 0.4})
    quotas = {"math": {"easy": 30}, "reading": {"easy": 20}}
    with LocalTeacher(options) as teacher:
        made = Bench(tmp_path / "bench", teacher.base_url)
        writer = {"questions_per_call": 3, "near_duplicate_threshold": 1.0}
        made.run("questions", quotas=quotas, teachers=WRITERS, writer=writer)
        made.run("validate", judge="mini", teachers=WRITERS)
        with pytest.raises(RunError, match=r"used up: math/easy lacks \d+, reading/easy lacks \d+; raise"):
            made.run("answers_easy", teacher="mini")
        paid = teacher.counters(ids=False)["answered"]
        made.run("validate", judge="mini", teachers=WRITERS, reserve=2, reserve_share=0.5)
        made.run("answers_easy", teacher="mini")
        after = teacher.counters(ids=True)
    assert len(set(after["ids"])) == after["answered"] > paid
    assert counts_by_cell(made.rows("validate", "questions_60k_validated.jsonl")) == {
        "math/easy": 30,
        "reading/easy": 20,
    }
    reserve = Counter(row["domain"] for row in made.rows("validate", "questions_reserve.jsonl"))
    assert (reserve["math"] >= 15, reserve["reading"] >= 10) == (True, True)
    facts = made.made["answers_easy"].facts
    assert facts["cells"] == {"math/easy": 30, "reading/easy": 20}
    assert facts["refused"] > 0
    assert facts["repaired"] > 0
    # Everything that the first run answered is found again.
    assert made.metrics["answers_easy"]["calls_from_ledger"] >= 50


def test_judge_that_drops_everything_is_given_up(bench: Bench, tmp_path: Path) -> None:
    with LocalTeacher(TeacherOptions(tmp_path / "teacher", judge_reject_rate=1.0)) as strict:
        made = Bench(tmp_path / "bench", strict.base_url, made={"questions": bench.made["questions"]})
        with pytest.raises(RunError, match="drops too much after 2 rounds"):
            made.run("validate", judge="mini", teachers=WRITERS, max_rounds=2)


def test_unknown_teacher_is_named_with_the_nearest(teacher: LocalTeacher, tmp_path: Path) -> None:
    made = Bench(tmp_path / "bench", teacher.base_url)
    with pytest.raises(UsageError, match="did you mean 'deepseek'"):
        made.run("questions", quotas={"math": {"easy": 1}}, teachers={"math": "deepsek"})


def tampered(bench: Bench, root: Path, name: str, file: str, lines: list[str]) -> Bench:
    made = Bench(root, bench.url, made=dict(bench.made))
    staging = made.store.new_staging()
    source = bench.made[name]
    for entry in source.manifest["files"]:
        (staging / "payload" / entry).write_bytes(source.file(entry).read_bytes())
    (staging / "payload" / file).write_text("\n".join(lines) + "\n")
    made.made[name] = made.store.commit(
        staging, kind="dataset", made_by={}, facts=source.facts, created="now"
    )
    return made


def test_merge_refuses_missing_twice_answered_and_unknown_questions(bench: Bench, tmp_path: Path) -> None:
    file = "answers_easy_24k.jsonl"
    lines = bench.made["answers_easy"].file(file).read_text().splitlines()
    stray = json.dumps({"question_id": "math_easy_9999", "answer": "1"})
    broken = '{"question_id": "math_easy_0001", "answer": 5}'
    for number, (changed, message) in enumerate(
        (
            (lines[1:], r"coding/easy has 3 of 4"),
            ([*lines, lines[0]], r"is answered twice"),
            ([*lines, stray], r"math_easy_9999 is answered but is no validated question"),
            ([*lines, broken], rf"{file}, line {len(lines) + 1}: no text under answer"),
            ([*lines, "{"], rf"{file}, line {len(lines) + 1}: not JSON"),
        )
    ):
        made = tampered(bench, tmp_path / str(number), "answers_easy", file, changed)
        with pytest.raises(RunError, match=message):
            made.run("merge")


def test_merge_refuses_held_out_and_repeated_questions(bench: Bench, tmp_path: Path) -> None:
    file = "questions_60k_validated.jsonl"
    rows = bench.rows("validate", file)
    held_out = next(
        text
        for text in (f"What is {a} plus {b}?" for a in range(1, 9) for b in range(1, 9))
        if split_of(text) == "gate"
    )
    for number, (question, message) in enumerate(
        ((held_out, "hold 1 leaks"), (rows[1]["question"].upper(), "hold 1 duplicates"))
    ):
        changed = [{**rows[0], "question": question}, *rows[1:]]
        made = tampered(bench, tmp_path / str(number), "validate", file, [json.dumps(row) for row in changed])
        with pytest.raises(RunError, match=message):
            made.run("merge")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quotas": {"maths": {"easy": 1}}, "teachers": {}}, "did you mean 'math'"),
        ({"quotas": {"math": {"esy": 1}}, "teachers": {}}, "did you mean 'easy'"),
        ({"quotas": {"math": {"easy": 1}}, "teachers": {}}, "no teacher for the domain 'math'"),
        ({"quotas": {}, "teachers": {}}, "no cell has a quota"),
        ({"quotas": {"math": {"easy": 0}}, "teachers": {"math": "x"}}, "greater than or equal to 1"),
        ({"quotas": {"math": {"easy": 1}}, "teachers": {"math": "x"}, "temprature": 1}, "temprature"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QuestionSettings(**settings)
