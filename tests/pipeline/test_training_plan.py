"""What training would take: tokens row by row, speed from FLOPs and peaks, hours, and their cost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from plan_profiles import ANSWERS, GPU, LORA, be_sure, steps, training, with_answering_stages

import pipeline.planning
from cogumi.profile import load_profile, parse_profile
from pipeline.assumptions import SPEED
from pipeline.meta.few_shot import FewShotSettings
from pipeline.planning import estimate_run
from pipeline.training.meta_tasks import MetaSettings
from pipeline.training_plan import TrainingPlan


@pytest.fixture(autouse=True)
def _with_answering_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    with_answering_stages(monkeypatch)


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    be_sure(monkeypatch)


@pytest.mark.usefixtures("sure")
@pytest.mark.parametrize(
    ("settings", "tokens_seen"),
    [
        # 1,000 rows of 30 + 20 + 50 and 2,000 of 30 + 20 + 500, of which half is reasoning.
        ({"epochs": 3, "held_out_share": 0}, 3 * (1000 * 100 + 2000 * 300)),
        (
            {"epochs": 1, "held_out_share": 0.02, "include_reasoning": True},
            0.98 * (1000 * 100 + 2000 * 550),
        ),
        ({"epochs": 1, "held_out_share": 0, "max_length": 200}, 1000 * 100 + 2000 * 200),
        ({"steps": 80, "batch_tokens": 4096}, 80 * 4096),
        ({"steps": 80}, 80 * 1536),
    ],
)
def test_training_tokens_are_counted_row_by_row(settings: dict[str, Any], tokens_seen: float) -> None:
    step = steps(estimate_run(training({**LORA, **settings})))["base"]
    assert step.training_tokens == round(tokens_seen)
    # LoRA on the reference's own shape and GPU has the assumed speed.
    assert step.gpu_hours == pytest.approx(tokens_seen / 10_000 / 3600)
    assert step.gpu_usd == pytest.approx(3.0 * step.gpu_hours)
    assert step.gpu_pace == "10,000 tokens a second, Llama-3.1-8B-Instruct on H100 SXM"


@pytest.mark.usefixtures("sure")
def test_low_is_the_first_attempt_and_high_is_all_of_them() -> None:
    attempts = [{"steps": 80}, {"steps": 600}]
    step = steps(estimate_run(training({**LORA, "steps": 1, "batch_tokens": 1000}, attempts=attempts)))[
        "base"
    ]
    found = (step.training_tokens_low, step.training_tokens, step.training_tokens_high)
    assert found == (80_000, 680_000, 680_000)
    assert step.gpu_hours_low == pytest.approx(80_000 / 10_000 / 3600)


@pytest.mark.usefixtures("sure")
@pytest.mark.parametrize(
    ("model", "method", "gpu", "speed"),
    [
        # 4 FLOPs a weight on a frozen base, 6 in full training.
        ("meta-llama/Llama-3.1-8B-Instruct", "full", "H100 SXM", 10_000 * 4 / 6),
        ("meta-llama/Llama-3.1-8B-Instruct", "lora", "A100 40GB", 10_000 * 312 / 989.4),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "lora", "H100 SXM", 10_000 * 6.979321856 / 1.1),
        ("smollm2-135m-instruct", "lora", "H100 SXM", 200_000),
        ("some/model", "lora", "H100 SXM", 10_000),
    ],
)
def test_speed_follows_the_flops_of_a_token_and_the_peak(
    model: str, method: str, gpu: str, speed: float
) -> None:
    settings = {"method": method, "learning_rate": 1e-3, "steps": 1000, "batch_tokens": 10_000}
    settings |= {"lora": {}} if method == "lora" else {}
    found = estimate_run(training(settings, model=model, gpu={**GPU, "name": gpu}))
    step = steps(found)["base"]
    assert step.gpu_hours == pytest.approx(1e7 / speed / 3600)
    assert ("a model of unknown size, counted as 8B" in step.gpu_pace) == (model == "some/model")


@pytest.mark.usefixtures("sure")
def test_the_profiles_own_speed_wins_and_an_unknown_gpu_has_none() -> None:
    settings = {**LORA, "steps": 100, "batch_tokens": 36_000}
    own = {**GPU, "name": "MI300X", "tokens_per_second": 20_000}
    step = steps(estimate_run(training(settings, gpu=own)))["base"]
    assert step.gpu_hours == pytest.approx(100 * 36_000 / 20_000 / 3600)
    assert step.gpu_pace.endswith("on MI300X, as the profile says")
    unknown = estimate_run(training(settings, gpu={**GPU, "name": "MI300X"}))
    step = steps(unknown)["base"]
    assert (step.gpu_hours, step.gpu_usd) == (0, None)
    assert step.gpu_pace == "speed on MI300X unknown: give gpu.tokens_per_second"
    assert steps(estimate_run(training(settings, gpu=None)))["base"].gpu_hours == 0


@pytest.mark.usefixtures("sure")
def test_an_unknown_price_leaves_hours_without_a_sum() -> None:
    found = estimate_run(training({**LORA, "epochs": 1}, gpu={"name": "H100 SXM", "source": "test"}))
    step = steps(found)["base"]
    assert step.gpu_hours > 0
    assert (step.gpu_usd, step.gpu_usd_low, step.gpu_usd_high) == (None, None, None)
    assert found.document()["gpu_usd"] is None


@pytest.mark.usefixtures("sure")
def test_a_distilled_draft_pays_for_its_teachers_forward_pass() -> None:
    cut = {
        "id": "draft",
        "uses": "training.sft",
        "inputs": {"model": "raw", "data": "hard", "teacher": "base"},
    }
    plan = TrainingPlan(training({**LORA, "epochs": 1}), {}, {})
    step = training({**LORA, "epochs": 1}, steps=[{**cut, "settings": {**LORA, "epochs": 1}}]).steps[-1]
    case = {SPEED: 10_000.0}
    alone, _ = plan._speed(step, {"method": "lora"}, case)  # type: ignore[arg-type]
    taught, _ = plan._speed(step, {"method": "lora", "distill": {"weight": 0.5}}, case)  # type: ignore[arg-type]
    assert taught == pytest.approx(alone * 4 / 6)


@pytest.mark.usefixtures("sure")
@pytest.mark.parametrize(
    ("objective", "passes"),
    [("fomaml", 5 * 4 + 3), ("maml", 2 * (5 * 4 + 3)), ("anil", 2 * (5 * 4 + 3)), ("reptile", 3 * 4 + 2 * 3)],
)
def test_episodes_count_every_pass(objective: str, passes: int) -> None:
    """100 outer steps of 4 tasks, 5 inner steps each; the keys are those of the stage's own settings."""
    meta = MetaSettings(tasks_per_step=4, support=4, query=3, inner_steps=5, inner_learning_rate=0.1)
    settings = {"objective": objective, "meta": meta.model_dump(), "steps": 100, "batch_tokens": 1536}
    plan, case = a_plan()
    row = (1000 * 100 + 2000 * 300) / 3000
    assert plan._tokens(settings, case) == round(100 * 4 * passes * row)


@pytest.mark.usefixtures("sure")
def test_the_few_shot_comparison_counts_both_models() -> None:
    settings = FewShotSettings.model_validate(
        {"families": {"held_out": 0.25}, "learning_rates": [0.1], "episodes": 400}
    )
    plan, case = a_plan()
    row = (1000 * 100 + 2000 * 300) / 3000
    assert plan._tokens(settings.model_dump(), case) == round(2 * 400 * (2 * 5 + 2 * 5) * row)


def a_plan() -> tuple[TrainingPlan, Any]:
    profile = training({**LORA, "epochs": 1})
    known = pipeline.planning.assumptions_of(profile)
    rows = {"coding": {"easy": 1000, "hard": 2000}}
    return TrainingPlan(profile, {}, rows), {name: each.expected for name, each in known.items()}


@pytest.mark.usefixtures("sure")
def test_answers_of_a_model_of_the_run_take_gpu_time_too() -> None:
    measure = {
        "id": "accepted",
        "uses": "training.acceptance",
        "inputs": {"draft": "base", "base": "base", "data": "hard"},
        "settings": {"held_out_share": 0.1, "prompts": 150, "batch_size": 64},
    }
    found = steps(estimate_run(training({**LORA, "epochs": 1}, steps=[ANSWERS, measure])))
    # An answer ends at 200 tokens.
    total = 1000 * 50 + 2000 * 200
    assert (found["answers"].answer_tokens, found["answers"].training_tokens) == (total, 0)
    assert found["answers"].gpu_hours == pytest.approx(total / 1000 / 3600)
    # 150 of 3,000 prompts, two batches' worth at once.
    total = (1000 * 50 + 2000 * 256) / 20
    assert found["accepted"].answer_tokens == round(total)
    assert found["accepted"].gpu_hours == pytest.approx(total / 2000 / 3600)


def test_the_plans_base_beside_what_the_plan_says() -> None:
    """60,000 rows three times: the plan has 7 to 8 hours for $16 on an H100."""
    quotas = {"coding": {"easy": 24_000, "hard": 36_000}}
    document = training({**LORA, "epochs": 3, "include_reasoning": True}).model_dump(
        mode="json", exclude_defaults=True
    )
    document["steps"][0]["settings"]["quotas"] = quotas
    document["gpu"]["usd_per_hour"] = 2.0
    del document["expected"]
    step = steps(estimate_run(parse_profile(document, "test")))["base"]
    assert step.plan_says == "$16, 7-8 h"
    assert 90e6 < step.training_tokens < 100e6
    assert step.gpu_hours == pytest.approx(step.training_tokens / 15_050 / 3600)
    assert step.gpu_hours_low < step.gpu_hours < step.gpu_hours_high < 7
    assert step.gpu_usd is not None
    assert step.gpu_usd < 16


def test_a_printed_plan_tells_training_with_its_speed_and_price(cogumi: Any, tmp_path: Path) -> None:
    document = load_profile("rehearsal").model_dump(mode="json", exclude_defaults=True)
    document["gpu"] = {"name": "RTX 4090", "usd_per_hour": 0.5, "source": "my own"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    lines = cogumi("plan", "--profile", "mine.yaml").out.splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("training"))
    assert re.search(r"tokens +GPU h low +expected +high +\$ low +expected +high", lines[head])
    assert re.search(r"1\.6 base +1,044,480 +\S+ +\S+ +\S+ +\$", lines[head + 1])
    assert any(line == "  RTX 4090: $0.50 an hour (my own)" for line in lines)
    assert any(re.match(r"  base: [\d,]+ tokens a second, blank on RTX 4090", line) for line in lines)
    assert any(line.startswith("  training tokens a second") for line in lines)
    assert "GPU hours ($" in next(line for line in lines if line.startswith("total"))
    plain = cogumi("plan").out
    assert "no GPU hours: the profile names no gpu" in plain
