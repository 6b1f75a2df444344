from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from plan_profiles import (
    ANSWERS,
    FREE,
    JUDGE,
    LORA,
    SONNET,
    SURE,
    be_sure,
    profile,
    steps,
    training,
    with_answering_stages,
)

import pipeline.planning
from cogumi.profile import Profile, load_profile, profile_names
from cogumi.teachers.pricing import cost_usd
from cogumi.teachers.types import Usage
from evals.lint.tokens import estimate
from pipeline.assumptions import Assumption, assumptions_of
from pipeline.generation import few_shot, prompts
from pipeline.planning import estimate_run, estimate_steps

_ROW = (
    r"^  1\.\d (\w+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +(\$[\d.]+) +(\$[\d.]+) +(\$[\d.]+) +(\$[\d.]+)"
)


@pytest.fixture(autouse=True)
def _with_answering_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    with_answering_stages(monkeypatch)


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    be_sure(monkeypatch)


def tokens(text: str) -> int:
    return estimate([text])


@pytest.mark.usefixtures("sure")
def test_questions_are_asked_until_what_is_kept_fills_the_cells() -> None:
    step = steps(estimate_run(profile()))["questions"]
    # Half is kept: 2,000 and 4,000 are written, ten a call.
    assert step.calls == 200 + 400
    assert step.output_tokens == 6000 * (20 + 4)
    one = [
        tokens(prompts.WRITER_SYSTEM + prompts.writer_prompt("coding", level, 10, 0, 0))
        for level in ("easy", "hard")
    ]
    assert step.input_tokens == 200 * one[0] + 400 * one[1]
    assert (step.usd, step.usd_low, step.usd_high, step.simulated) == (0, 0, 0, False)


@pytest.mark.usefixtures("sure")
@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, (1000, 2000)),
        ({"reserve_share": 0.03}, (1030, 2060)),
        ({"reserve": 50}, (1050, 2050)),
        ({"reserve": 50, "reserve_share": 0.03}, (1050, 2060)),
        ({"reserve_share": 0.0301}, (1031, 2061)),
    ],
)
def test_validation_judges_the_reserve_and_refills_what_it_drops(
    settings: dict[str, Any], wanted: tuple[int, int]
) -> None:
    step = steps(estimate_run(profile(validated=settings)))["validated"]
    judged = [math.ceil(count / 0.8) for count in wanted]
    missing = [count - quota for count, quota in zip(judged, (1000, 2000), strict=True)]
    written = [math.ceil(count / 0.5 / 10) for count in missing]
    assert step.calls == sum(judged) + sum(written)
    assert step.output_tokens == sum(judged) * 30 + sum(written) * 10 * 24
    # The judge is paid by batch, the writer is free.
    prompt = tokens(prompts.JUDGE_SYSTEM + prompts.judge_prompt("coding", "hard", ""))
    usd = sum(judged) * ((prompt + 20) * 0.15 + 30 * 0.60) / 1e6
    assert step.usd == pytest.approx(usd / 2)
    assert step.usd_live == pytest.approx(usd)
    assert step.saves == pytest.approx(usd / 2)


@pytest.mark.usefixtures("sure")
def test_hard_answers_write_and_read_the_shared_prefix() -> None:
    prefix = tokens(few_shot.HARD_SYSTEM)
    step = steps(estimate_run(profile()))["hard"]
    assert (step.calls, step.output_tokens) == (2000, 2000 * 500)
    assert step.input_tokens == 2000 * (prefix + 20)
    assert step.cache_read_tokens == 1500 * prefix
    assert step.cache_write_tokens == 500 * prefix
    usd = 2000 * (20 * 3 + 500 * 15) + prefix * (1500 * 0.30 + 500 * 3.75)
    assert step.usd == pytest.approx(usd / 2 / 1e6)
    # Live, the cache stays warm in this test.
    live = 2000 * (20 * 3 + 500 * 15) + prefix * 2000 * 0.30
    assert step.usd_live == pytest.approx(live / 1e6)
    assert step.saves == pytest.approx((live - usd / 2) / 1e6)


@pytest.mark.usefixtures("sure")
def test_a_short_prefix_is_never_cached_and_paid_in_full() -> None:
    found = steps(estimate_run(profile(teachers={"easy": SONNET})))["easy"]
    assert (found.cache_read_tokens, found.cache_write_tokens) == (0, 0)
    assert found.input_tokens == 1000 * (tokens(prompts.EASY_SYSTEM) + 20)
    # OpenAI's cached input counts in full, as it does in the ledger.
    hard = steps(estimate_run(profile(teachers={"hard": JUDGE})))["hard"]
    assert (hard.cache_read_tokens, hard.cache_write_tokens) == (0, 0)


@pytest.mark.usefixtures("sure")
def test_repairs_ask_again_with_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SURE, "repaired answers", 0.1)
    monkeypatch.setitem(SURE, "refused and replaced", 0.02)
    step = steps(estimate_run(profile()))["easy"]
    asked, repairs = 1020, 102
    assert step.calls == asked + repairs
    assert step.output_tokens == (asked + repairs) * 50
    repair = repairs * (50 + tokens(prompts.REPAIR_EASY))
    assert step.input_tokens == (asked + repairs) * (tokens(prompts.EASY_SYSTEM) + 20) + repair


@pytest.mark.parametrize("name", sorted(assumptions_of(profile())))
def test_every_assumption_matters(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def shifted(profile: Profile) -> dict[str, Assumption]:
        found = assumptions_of(profile)
        one = found[name]
        return found | {name: replace(one, expected=one.expected * 0.9)}

    paid = {"writer": JUDGE}

    def figures() -> list[float | None]:
        found = [estimate_run(profile(mode, teachers=paid)).real_usd for mode in ("batch", "live")]
        trained = estimate_run(training({**LORA, "epochs": 1}, steps=[ANSWERS]))
        return [*found, *(step.gpu_hours for step in trained.steps)]

    before = figures()
    monkeypatch.setattr(pipeline.planning, "assumptions_of", shifted)
    assert before != figures()


@pytest.mark.parametrize("name", profile_names())
def test_low_is_below_expected_and_expected_below_high(name: str) -> None:
    for step in estimate_run(load_profile(name)).steps:
        assert step.usd is not None
        assert step.usd_low is not None
        assert step.usd_high is not None
        assert step.usd_low <= step.usd <= step.usd_high
        assert step.usd_known == step.usd
        if step.usd and step.calls:
            assert step.usd_low < step.usd < step.usd_high


def test_what_the_plan_says_is_the_price_without_batches() -> None:
    """36,000 answers of 750 tokens cost $405 in output alone, and 83 tokens of each question the other $9."""
    sonnet = load_profile("llama-3.1-8b").teachers["claude-sonnet-4"].config("claude-sonnet-4")
    usage = Usage(36_000 * 83, 36_000 * 750)
    assert cost_usd(sonnet, replace(usage, input_tokens=0), batch=False) == pytest.approx(405)
    assert cost_usd(sonnet, usage, batch=False) == pytest.approx(414, abs=0.1)
    assert cost_usd(sonnet, usage, batch=True) == pytest.approx(207, abs=0.1)
    found = steps(estimate_run(load_profile("llama-3.1-8b")))
    assert [step.plan_says for step in found.values() if step.calls] == ["$0", "$9", "$2.52", "$414"]
    hard = found["answers_hard"]
    assert hard.usd_live is not None
    assert hard.usd is not None
    # Within a tenth of the plan's figure live, and well below it in batches.
    assert abs(hard.usd_live - 414) < 41.4
    assert hard.usd < 0.7 * 414


def test_the_example_of_the_document_is_a_real_one(cogumi: Any) -> None:
    """Prompts may change by a few words; a figure that is off by more than a twentieth is out of date."""
    text = (Path(__file__).parents[2] / "docs" / "prices.md").read_text()
    shown = {row[0]: row[1:] for row in re.findall(_ROW, text, re.MULTILINE)}
    found = {
        row[0]: row[1:] for row in re.findall(_ROW, cogumi("plan", "--profile", "llama-3.1-8b").out, re.M)
    }
    assert list(shown) == list(found) == ["questions", "validated", "answers_easy", "answers_hard"]
    for name, figures in shown.items():
        numbers = [
            [float(cell.strip("$").replace(",", "")) for cell in row] for row in (figures, found[name])
        ]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.05)


def test_the_documents_arithmetic_of_the_shared_prefix() -> None:
    plan = load_profile("llama-3.1-8b")
    sonnet = plan.teachers["claude-sonnet-4"].config("claude-sonnet-4")
    tokens_in = 36_904 * tokens(few_shot.HARD_SYSTEM)
    assert tokens(few_shot.HARD_SYSTEM) == pytest.approx(1590, rel=0.05)
    for hits, usd in ((0.98, 11), (0.3, 80)):
        usage = Usage(0, 0, round(tokens_in * (1 - hits)), round(tokens_in * hits))
        assert cost_usd(sonnet, usage, batch=True) == pytest.approx(usd, rel=0.05)
    assert cost_usd(sonnet, Usage(tokens_in, 0), batch=True) == pytest.approx(88, rel=0.05)
    paid = {
        name: teacher.model_copy(update={"model": teacher.model.removesuffix(":free")})
        for name, teacher in plan.teachers.items()
    }
    found = estimate_steps(plan.model_copy(update={"teachers": paid}), {"questions"})
    assert found.real_usd == pytest.approx(3, abs=0.5)


def test_an_unknown_price_is_told_and_never_counted_as_nothing() -> None:
    unknown = {**JUDGE, "model": "gpt-unheard-of"}
    found = estimate_run(profile(teachers={"easy": unknown}))
    easy = steps(found)["easy"]
    assert (easy.usd, easy.usd_low, easy.usd_high, easy.usd_live, easy.saves) == (None,) * 5
    assert easy.usd_known == 0
    document = found.document()
    assert [document[key] for key in ("usd", "usd_low", "usd_high", "usd_live", "saves")] == [None] * 5
    others = [step.usd for step in found.steps if step.step != "easy"]
    assert document["usd_known"] == pytest.approx(sum(usd for usd in others if usd is not None))
    assert document["usd_known"] > 0
    (told,) = found.unknown
    assert "price of easy unknown: add input_usd_per_mtok and output_usd_per_mtok to teachers.easy" in told
    assert "gpt-unheard-of at openai to cogumi/prices.yaml" in told


def test_a_step_of_two_teachers_keeps_what_is_known() -> None:
    found = steps(estimate_run(profile(teachers={"writer": {**JUDGE, "model": "gpt-unheard-of"}})))
    assert found["validated"].usd is None
    assert found["validated"].usd_known > 0


def test_requests_a_minute_and_a_day_make_hours() -> None:
    limited = {**FREE, "requests_per_minute": 10}
    found = estimate_run(profile(teachers={"writer": limited}))
    step = steps(found)["questions"]
    assert step.calls < 1000
    assert step.hours == pytest.approx(step.calls / 10 / 60)
    # Two teachers of one account share its limits, and a thousand a day take days.
    large = steps(estimate_run(load_profile("llama-3.1-8b")))["questions"]
    assert large.calls > 4000
    assert large.hours == 24 * (math.ceil(large.calls / 1000) - 1)
    assert f"{large.calls:,} requests at 20 a minute take {large.calls / 1200:.1f} h" in large.pace
    assert "at 1,000 a day they are spread over 5 days" in large.pace
    assert steps(estimate_run(load_profile("rehearsal")))["questions"].hours == 0


def test_a_retired_model_is_told() -> None:
    retired = {**SONNET, "model": "claude-sonnet-4-20250514"}
    (told,) = estimate_run(profile(teachers={"hard": retired})).warnings
    assert "hard: claude-sonnet-4-20250514 was retired on 2026-06-15, so requests fail" in told
    assert "claude-sonnet-4-6" in told
    assert estimate_run(profile()).warnings == []


def test_some_steps_are_estimated_by_id_or_by_stage() -> None:
    whole = steps(estimate_run(profile()))
    for names in ({"easy"}, {"generation.answers_easy"}):
        found = estimate_steps(profile(), names)
        assert found.steps == [whole["easy"]]
        assert [price.teacher for price in found.prices] == ["easy"]
        # What has no part in it is not told as assumed.
        assert [each.name for each in found.assumptions] == [
            "prompt tokens",
            "repaired answers",
            "refused and replaced",
            "question tokens",
            "easy answer tokens",
        ]
        assert found.real_usd == whole["easy"].usd
    assert estimate_steps(profile(), {"generation.merge"}).document()["usd"] == 0


def test_the_document_of_a_plan_has_its_keys(cogumi: Any) -> None:
    document = cogumi("plan", "--profile", "llama-3.1-8b", "--json").json
    assert document["usd_low"] < document["usd"] < document["usd_high"]
    assert document["saves"] == pytest.approx(document["usd_live"] - document["usd"])
    keys = ["step", "plan", "calls", "input_tokens", "output_tokens", "usd", "simulated", "training_tokens"]
    keys += ["gpu_hours", "plan_says", "usd_low", "usd_high", "usd_live", "saves"]
    for row in document["steps"]:
        assert list(row)[: len(keys)] == keys
    assert {row["teacher"] for row in document["prices"]} == set(load_profile("llama-3.1-8b").teachers)
    assert all(row["source"] for row in document["assumptions"])


def test_a_printed_plan_stands_in_columns(cogumi: Any) -> None:
    result = cogumi("plan", "--profile", "llama-3.1-8b")
    assert result.code == 4
    lines = result.out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("steps"))
    head, rows = lines[start], lines[start + 1 : start + 5]
    ends = [
        head.index(name) + len(name) for name in ("calls", "tokens in", "tokens out", "expected", "the plan")
    ]
    for row in rows:
        assert all(row[end - 1] != " " and row[end : end + 1] in ("", " ") for end in ends), row
    assert [row.split()[-1] for row in rows] == ["$0", "$9", "$2.52", "$414"]
    assert any("batches save $" in line for line in lines)
    assert max(map(len, lines[start : start + 6])) <= 120


def test_a_plan_with_an_unknown_price_says_at_least(cogumi: Any, tmp_path: Path) -> None:
    document = profile(teachers={"easy": {**JUDGE, "model": "gpt-unheard-of"}}).model_dump(
        mode="json", exclude_defaults=True
    )
    document["steps"][1]["inputs"] = {"questions": "questions"}
    for step in document["steps"][2:]:
        step["inputs"] = {"validated": "validated"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    result = cogumi("plan", "--profile", "mine.yaml")
    assert result.code == 0
    total = next(line for line in result.out.splitlines() if line.startswith("total"))
    assert "at least $" in total
    assert "price of easy unknown" in result.out
    assert json.loads(cogumi("plan", "--profile", "mine.yaml", "--json").out)["usd"] is None
