"""Plan 1.1 to 1.5 against the local teacher over real HTTP, with the real ledger and store."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cogumi.errors import RunError, UsageError
from cogumi.ledger import Ledger, LedgerCalls
from cogumi.stage import CallRecord, Calls, StageContext, TeacherConfig
from cogumi.store import Artifact, ArtifactStore
from evals.micro import split_of, verify
from pipeline.generation import STAGES, prompts
from pipeline.generation.dedup import QuestionIndex, tokens_of
from pipeline.generation.few_shot import HARD_SYSTEM
from pipeline.generation.leaks import LeakCheck
from pipeline.generation.questions import QuestionSettings
from pipeline.generation.records import Cell, read_rows
from pipeline.generation.topics import DOMAINS
from pipeline.local_teacher import LocalTeacher, TeacherOptions

BY_NAME = {stage.name.partition(".")[2]: stage for stage in STAGES}
SOURCES = {
    "questions": "questions",
    "validated": "validate",
    "answers_easy": "answers_easy",
    "answers_hard": "answers_hard",
}
QUOTAS = {
    "math": {"easy": 12, "hard": 18},
    "reading": {"easy": 8, "hard": 12},
    "coding": {"easy": 4, "hard": 6},
}
WRITERS = {"math": "deepseek", "reading": "llama", "coding": "deepseek"}
QUICK = {"poll_seconds": 0.05, "backoff_seconds": 0.05, "timeout_seconds": 10.0, "concurrency": 8}


class Silent:
    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        assert 0 <= done <= total


@dataclass
class Bench:
    """A store, a ledger and a teacher: enough of a workspace to run the stages one after another."""

    root: Path
    url: str
    calls: Calls | None = None
    made: dict[str, Artifact] = field(default_factory=dict)
    metrics: dict[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(exist_ok=True)
        self.store = ArtifactStore(self.root / "store")
        self.ledger = Ledger(self.root)

    def teachers(self) -> dict[str, TeacherConfig]:
        prices = {"deepseek": 0.0, "llama": 0.0, "mini": 0.15, "sonnet": 3.0}
        return {
            name: TeacherConfig(
                name=name,
                api="anthropic" if name == "sonnet" else "openai",
                model=name,
                base_url=self.url,
                key_env=None,
                input_usd_per_mtok=price,
                output_usd_per_mtok=4 * price,
                batch_discount=0.5,
                simulated=True,
            )
            for name, price in prices.items()
        }

    def run(self, name: str, **settings: Any) -> Artifact:
        stage = BY_NAME[name]
        if name != "merge":
            settings = {**QUICK, **settings}
        staging = self.store.new_staging()
        ctx = StageContext(
            inputs={wanted: self.made[SOURCES[wanted]] for wanted in stage.inputs},
            out=staging / "payload",
            scratch=self.root / "scratch",
            seed=11,
            progress=Silent(),
            calls=self.calls or LedgerCalls(self.ledger, "run", name, None),
            teachers=self.teachers(),
            data=None,
        )
        result = stage.run(stage.settings(**settings), ctx)
        made_by = {"stage": name, "settings": settings}
        self.made[name] = self.store.commit(
            staging, kind=result.kind, made_by=made_by, facts=result.facts, created="now"
        )
        self.metrics[name] = result.metrics
        return self.made[name]

    def run_all(self, *, reserve: int = 3, mode: str = "batch") -> Artifact:
        writer = {"questions_per_call": 6, "near_duplicate_threshold": 1.0, "leak_micro": True}
        self.run("questions", quotas=QUOTAS, teachers=WRITERS, writer=writer)
        self.run("validate", judge="mini", teachers=WRITERS, reserve=reserve, mode=mode)
        self.run("answers_easy", teacher="mini", mode=mode)
        self.run("answers_hard", teacher="sonnet", mode=mode)
        return self.run("merge")

    def rows(self, name: str, file: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.made[name].file(file).read_text().splitlines()]

    def digests(self) -> dict[str, str]:
        return {name: artifact.digest for name, artifact in self.made.items()}


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
    assert sum(each["share"] for each in card["words"].values()) == pytest.approx(1.0, abs=0.001)
    steps = [card["cost_usd"][name] for name in ("questions", "validated", "answers_easy", "answers_hard")]
    assert card["cost_usd"]["total"] == pytest.approx(sum(steps))
    assert bench.ledger.spent("run")[1] == pytest.approx(card["cost_usd"]["total"])
    assert bench.made["answers_hard"].facts["cache_read_tokens"] > 0


def test_ledger_holds_what_the_teacher_answered_each_once(bench: Bench, tmp_path: Path) -> None:
    with LocalTeacher(TeacherOptions(tmp_path / "teacher", malformed_rate=0.1)) as teacher:
        made = Bench(tmp_path / "bench", teacher.base_url)
        made.run_all()
        ids = teacher.counters(ids=True)["ids"]
    assert len(ids) == len(set(ids))
    assert sorted(ids) == sorted(row["response"]["id"] for row in made.ledger.snapshot()["calls"])


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

    def save_batch(self, key: str, provider: str, batch_id: str) -> None:
        self._maybe_die(late=False)
        super().save_batch(key, provider, batch_id)
        self._maybe_die(late=True)

    def _maybe_die(self, *, late: bool) -> None:
        if late == self._late:
            self._countdown[0] -= 1
            if self._countdown[0] == 0:
                raise Killed


@pytest.mark.parametrize("late", [False, True], ids=["before commit", "after commit"])
def test_resumed_run_gives_the_same_bytes(
    bench: Bench, teacher: LocalTeacher, tmp_path: Path, late: bool
) -> None:
    resumed = Bench(tmp_path / "bench", teacher.base_url)
    kills = 0
    for steps in (2, 5, 3, 7, 4, 6, 1000):
        resumed.calls = MortalCalls(resumed.ledger, "any", [steps], late=late)
        try:
            resumed.run_all()
            break
        except Killed:
            kills += 1
    assert kills >= 3
    assert resumed.digests() == bench.digests()


def test_faults_leave_quotas_exact(tmp_path: Path) -> None:
    names = ("500", "drop", "truncated", "refusal", "wrong_count", "duplicate", "empty", "batch_error")
    options = TeacherOptions(tmp_path / "teacher", faults=dict.fromkeys(names, 0.06))
    with LocalTeacher(options) as teacher:
        made = Bench(tmp_path / "bench", teacher.base_url)
        made.run_all(reserve=8)
        ids = teacher.counters(ids=True)["ids"]
    rows = made.rows("merge", "training_60k_complete.jsonl")
    assert cells(rows) == QUOTAS
    assert not any("I'm sorry" in row["answer"] for row in rows)
    assert len(ids) == len(set(ids)) == len(made.ledger.snapshot()["calls"])
    refused = made.rows("answers_hard", "refused.jsonl")
    assert not {row["question_id"] for row in refused} & {row["question_id"] for row in rows}


# Refusals --------------------------------------------------------------------------------------------


def test_saturated_cells_stop_with_an_account(teacher: LocalTeacher, tmp_path: Path) -> None:
    made = Bench(tmp_path / "bench", teacher.base_url)
    writer = {"questions_per_call": 5, "max_calls_per_cell": 3, "leak_micro": True}
    with pytest.raises(
        RunError, match=r"math/easy has \d+ of 500: \d+ new of 15 offered in 3 calls .*\d+ held out"
    ) as raised:
        made.run("questions", quotas={"math": {"easy": 500}}, teachers=WRITERS, writer=writer)
    assert "\n" not in str(raised.value)


def test_teacher_that_writes_nothing_usable_runs_dry(tmp_path: Path) -> None:
    with LocalTeacher(TeacherOptions(tmp_path / "teacher", faults={"refusal": 1.0})) as teacher:
        made = Bench(tmp_path / "bench", teacher.base_url)
        with pytest.raises(RunError, match=r"math/easy has 0 of 9: .* 4 unusable answers"):
            made.run(
                "questions",
                quotas={"math": {"easy": 9}},
                teachers=WRITERS,
                writer={"max_dry_calls": 4, "questions_per_call": 10},
            )


def test_exhausted_reserve_is_an_error_that_names_the_cell(bench: Bench, tmp_path: Path) -> None:
    with LocalTeacher(TeacherOptions(tmp_path / "teacher", faults={"empty": 1.0})) as mute:
        made = Bench(tmp_path / "bench", mute.base_url, made=dict(bench.made))
        with pytest.raises(RunError, match=r"reserve is used up: math/easy lacks \d+"):
            made.run("answers_easy", teacher="mini")


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
    assert prompts.parse_questions('["a", "b') is None


def test_question_ids_and_rows_survive_odd_characters(tmp_path: Path) -> None:
    assert Cell("coding", "easy").question_id(7) == "coding_easy_0007"
    assert Cell("coding", "easy").question_id(12345) == "coding_easy_12345"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rows(path, ("text",)) == [{"text": "a\u2028b"}]
