"""Profiles to estimate: a teacher for each task, a model that is trained, assumptions of one value."""

from __future__ import annotations

from typing import Any

import pytest

import pipeline.planning
from cogumi.profile import Profile, parse_profile
from pipeline.assumptions import ANSWERING, SPEED, Assumption, assumptions_of
from pipeline.estimates import RunEstimate, StepEstimate
from pipeline.training.acceptance import ACCEPTANCE
from pipeline.training.self_answers import SELF_ANSWERS

JUDGE = {"api": "openai", "model": "gpt-4o-mini", "key_env": "OPENAI_API_KEY"}
SONNET = {"api": "anthropic", "model": "claude-sonnet-4-6", "key_env": "ANTHROPIC_API_KEY"}
FREE = {
    "api": "openai",
    "base_url": "https://openrouter.ai/api/v1",
    "model": "deepseek/deepseek-chat-v3-0324:free",
    "key_env": "OPENROUTER_API_KEY",
}
SURE = {
    "prompt tokens": 1.0,
    "kept of the written": 0.5,
    "kept by the judge": 0.8,
    "judgement tokens": 30,
    "repaired answers": 0.0,
    "refused and replaced": 0.0,
    "cache hits in batches": 0.75,
    "cache hits live": 1.0,
    SPEED: 10_000,
    "chat template tokens": 30,
    "answer without its reasoning": 0.5,
    ANSWERING: 1_000,
}
GPU = {"name": "H100 SXM", "usd_per_hour": 3.0, "source": "test"}
LORA = {"method": "lora", "lora": {"rank": 64}, "learning_rate": 2e-4}


def profile(mode: str = "batch", **changes: Any) -> Profile:
    """A profile of 1,000 easy and 2,000 hard questions with one teacher for each task."""
    teachers = {"writer": FREE, "judge": JUDGE, "easy": JUDGE, "hard": SONNET}
    document: dict[str, Any] = {
        "profile": "p",
        "title": "t",
        "teachers": {**teachers, **changes.pop("teachers", {})},
        "expected": {"question_tokens": 20, "easy_answer_tokens": 50, "hard_answer_tokens": 500},
        "steps": [
            {
                "id": "questions",
                "uses": "generation.questions",
                "settings": {
                    "quotas": {"coding": {"easy": 1000, "hard": 2000}},
                    "teachers": {"coding": "writer"},
                    "writer": {"questions_per_call": 10},
                },
            },
            {
                "id": "validated",
                "uses": "generation.validate",
                "settings": {"judge": "judge", "teachers": {"coding": "writer"}, "mode": mode},
            },
            {"id": "easy", "uses": "generation.answers_easy", "settings": {"teacher": "easy", "mode": mode}},
            {"id": "hard", "uses": "generation.answers_hard", "settings": {"teacher": "hard", "mode": mode}},
        ],
    }
    for step in document["steps"]:
        step["settings"] |= changes.get(step["id"], {})
    return parse_profile(document, "test")


def training(
    settings: dict[str, Any],
    *,
    attempts: list[dict[str, Any]] | None = None,
    model: str = "meta-llama/Llama-3.1-8B-Instruct",
    gpu: dict[str, Any] | None = GPU,
    **more: Any,
) -> Profile:
    """The same 1,000 easy and 2,000 hard rows, and a model that is trained on them."""
    document = profile().model_dump(mode="json", exclude_defaults=True)
    document["steps"] += [
        {"id": "raw", "uses": "models.pretrained", "settings": {"model": model}},
        {
            "id": "base",
            "plan": "1.6",
            "uses": "training.sft",
            "inputs": {"model": "raw", "data": "hard"},
            "settings": settings,
            "attempts": attempts or [],
            "plan_says": "$16, 7-8 h",
        },
        *more.pop("steps", []),
    ]
    models = [
        {
            "name": "Llama-3.1-8B-Instruct",
            "parameters": 6_979_321_856 + 50,
            "embedding_parameters": 50,
            "source": "test",
        }
    ]
    return parse_profile({**document, "gpu": gpu, "models": models, **more}, "test")


ANSWERS = {
    "id": "answers",
    "uses": "training.self_answers",
    "inputs": {"model": "base", "data": "hard"},
    "settings": {"max_tokens": 200},
}


def with_answering_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the stages that answer too, whether or not they are registered."""
    known = {**pipeline.all_stages(), **{stage.name: stage for stage in (SELF_ANSWERS, ACCEPTANCE)}}
    monkeypatch.setattr(pipeline, "all_stages", lambda: known)


def be_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every assumption one value, so that an estimate can be reckoned by hand."""

    def known(profile: Profile) -> dict[str, Assumption]:
        found = assumptions_of(profile)
        return found | {name: Assumption(name, value, value, value, "test") for name, value in SURE.items()}

    monkeypatch.setattr(pipeline.planning, "assumptions_of", known)


def steps(found: RunEstimate) -> dict[str, StepEstimate]:
    return {step.step: step for step in found.steps}
