"""What a profile would take, from its settings alone: calls, tokens, dollars, training tokens, GPU hours.

Expected values, not bounds. Prompt lengths are those of the real prompts; answer lengths and yields are
assumptions, each with its source beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from cogumi.profile import Profile, StageStep, Teacher
from pipeline.generation import few_shot, prompts

# English averages about four characters a token (OpenAI's tokenizer guide).
CHARS_PER_TOKEN = 4
# Share of written questions that survive de-duplication: 6,685 of 10,000 in the predecessor's spoilt run.
KEPT = 0.67
# Share of judged questions that reach 7 on all three scores: not known before a run; 0.95 is assumed.
ACCEPTED = 0.95
JUDGEMENT_TOKENS = 40


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """What one step is expected to take; ``usd`` is None when a price is unknown."""

    step: str
    plan: str
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = 0.0
    simulated: bool = False
    training_tokens: int = 0
    gpu_hours: float = 0.0
    plan_says: str = ""


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """The estimate of a whole profile."""

    steps: list[StepEstimate] = field(default_factory=list)
    gpu_usd: float | None = None

    @property
    def real_usd(self) -> float | None:
        """Dollars that providers will ask for; None when a price is unknown."""
        real = [step.usd for step in self.steps if not step.simulated]
        return None if None in real else sum(usd for usd in real if usd is not None)

    @property
    def simulated_usd(self) -> float:
        """Play money of the local teacher."""
        return sum(step.usd or 0.0 for step in self.steps if step.simulated)

    @property
    def gpu_hours(self) -> float:
        """Hours on the profile's accelerator."""
        return sum(step.gpu_hours for step in self.steps)


def estimate_run(profile: Profile) -> RunEstimate:
    """Estimate every stage of a profile; stages that call and train nothing are left out."""
    quotas = _quotas(profile)
    steps = []
    for step in profile.steps:
        if isinstance(step, StageStep):
            found = _estimate(profile, step, quotas)
            if found is not None:
                steps.append(found)
    hours = sum(step.gpu_hours for step in steps)
    return RunEstimate(steps, hours * profile.gpu.usd_per_hour if profile.gpu else None)


def _quotas(profile: Profile) -> dict[str, dict[str, int]]:
    for step in profile.steps:
        if isinstance(step, StageStep) and step.uses == "generation.questions":
            quotas: dict[str, dict[str, int]] = step.settings["quotas"]
            return quotas
    return {}


def _estimate(profile: Profile, step: StageStep, quotas: dict[str, dict[str, int]]) -> StepEstimate | None:
    estimators = {
        "generation.questions": _questions,
        "generation.validate": _validate,
        "generation.answers_easy": _answers_easy,
        "generation.answers_hard": _answers_hard,
        "training.sft": _training,
    }
    estimator = estimators.get(step.uses)
    return estimator(profile, step, quotas) if estimator else None


def _count(quotas: dict[str, dict[str, int]], *difficulties: str) -> int:
    return sum(cells.get(difficulty, 0) for cells in quotas.values() for difficulty in difficulties)


def _tokens(text: str) -> int:
    return math.ceil(len(text) / CHARS_PER_TOKEN)


def _priced(
    step: StageStep, teacher: Teacher, calls: int, tokens: tuple[int, int], mode: str
) -> StepEstimate:
    """Return the estimate of ``calls`` calls of (input, output) tokens each."""
    given, answered = calls * tokens[0], calls * tokens[1]
    usd = None
    if teacher.input_usd_per_mtok is not None and teacher.output_usd_per_mtok is not None:
        usd = (given * teacher.input_usd_per_mtok + answered * teacher.output_usd_per_mtok) / 1e6
        usd *= 1 - teacher.batch_discount if mode == "batch" else 1
    simulated = teacher.base_url == "local"
    return StepEstimate(step.id, step.plan, calls, given, answered, usd, simulated, plan_says=step.plan_says)


def _questions(profile: Profile, step: StageStep, quotas: dict[str, dict[str, int]]) -> StepEstimate:
    per_call = int(step.settings.get("writer", {}).get("questions_per_call", 20))
    teachers: dict[str, str] = step.settings["teachers"]
    parts = []
    for domain, cells in quotas.items():
        calls = sum(math.ceil(count / KEPT / per_call) for count in cells.values())
        prompt = _tokens(prompts.WRITER_SYSTEM + prompts.writer_prompt(domain, "hard", per_call, 0, 0))
        tokens = (prompt, per_call * profile.expected.question_tokens)
        parts.append(_priced(step, profile.teachers[teachers[domain]], calls, tokens, "live"))
    return _sum(step, parts)


def _sum(step: StageStep, parts: list[StepEstimate]) -> StepEstimate:
    unknown = any(part.usd is None for part in parts)
    return StepEstimate(
        step.id,
        step.plan,
        sum(part.calls for part in parts),
        sum(part.input_tokens for part in parts),
        sum(part.output_tokens for part in parts),
        None if unknown else sum(part.usd or 0.0 for part in parts),
        all(part.simulated for part in parts),
        plan_says=step.plan_says,
    )


def _validate(profile: Profile, step: StageStep, quotas: dict[str, dict[str, int]]) -> StepEstimate:
    reserve = int(step.settings.get("reserve", 0)) * sum(len(cells) for cells in quotas.values())
    calls = math.ceil((_count(quotas, "easy", "hard") + reserve) / ACCEPTED)
    prompt = _tokens(prompts.JUDGE_SYSTEM) + 2 * profile.expected.question_tokens
    teacher = profile.teachers[step.settings["judge"]]
    return _priced(step, teacher, calls, (prompt, JUDGEMENT_TOKENS), _mode(step))


def _answers_easy(profile: Profile, step: StageStep, quotas: dict[str, dict[str, int]]) -> StepEstimate:
    tokens = (
        _tokens(prompts.EASY_SYSTEM) + profile.expected.question_tokens,
        profile.expected.easy_answer_tokens,
    )
    teacher = profile.teachers[step.settings["teacher"]]
    return _priced(step, teacher, _count(quotas, "easy"), tokens, _mode(step))


def _answers_hard(profile: Profile, step: StageStep, quotas: dict[str, dict[str, int]]) -> StepEstimate:
    # The shared prefix is read from the provider's cache at a tenth of the price.
    tokens = (
        _tokens(few_shot.HARD_SYSTEM) // 10 + profile.expected.question_tokens,
        profile.expected.hard_answer_tokens,
    )
    teacher = profile.teachers[step.settings["teacher"]]
    return _priced(step, teacher, _count(quotas, "hard"), tokens, _mode(step))


def _mode(step: StageStep) -> str:
    return str(step.settings.get("mode", "batch"))


def _training(profile: Profile, step: StageStep, quotas: dict[str, dict[str, int]]) -> StepEstimate:
    """Count the tokens of all attempts: the most that the step can take."""
    attempts: list[dict[str, Any]] = [{**step.settings, **over} for over in step.attempts or [{}]]
    row_tokens = _count(quotas, "easy") * (
        profile.expected.question_tokens + profile.expected.easy_answer_tokens
    )
    row_tokens += _count(quotas, "hard") * (
        profile.expected.question_tokens + profile.expected.hard_answer_tokens
    )
    total = 0
    for settings in attempts:
        if settings.get("steps"):
            total += int(settings["steps"]) * int(settings.get("batch_tokens", 2048))
        else:
            total += int(float(settings["epochs"]) * row_tokens)
    hours = total / profile.gpu.tokens_per_second / 3600 if profile.gpu else 0.0
    return StepEstimate(step.id, step.plan, training_tokens=total, gpu_hours=hours, plan_says=step.plan_says)
