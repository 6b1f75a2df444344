"""What a profile would take, from its settings alone: calls, tokens, dollars, training tokens, GPU hours.

The prompts are the real ones; what no run has measured is an assumption with three values, beside its source
(``pipeline.assumptions``). Low, expected and high are the cost with all of them at one end: a wide range, and
no bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cogumi.errors import UsageError, nearest
from cogumi.gpu_cost import gpu_usd
from cogumi.prices import TeacherPrice, price_of, price_table
from cogumi.profile import Profile, StageStep, Teacher
from cogumi.steps import merge
from cogumi.teachers.pricing import cost_usd
from cogumi.teachers.types import Usage
from evals.lint.tokens import estimate
from pipeline.assumptions import Assumption, Case, assumptions_of
from pipeline.estimates import RunEstimate, StepEstimate, UsedPrice
from pipeline.generation import few_shot, prompts
from pipeline.generation.writer import WriterSettings
from pipeline.training_plan import CASES, TrainingEstimate, TrainingPlan

Mode = Literal["live", "batch"]
Quotas = Mapping[str, Mapping[str, int]]

# Quotes, comma and blank around a question in a JSON array.
_JSON_TOKENS = 4
# Anthropic's least prefix for Sonnet models (platform.claude.com, prompt caching), where no row names one.
_CACHE_MINIMUM_TOKENS = 1024


def estimate_run(profile: Profile) -> RunEstimate:
    """Estimate every stage of a profile; stages that call and train nothing are left out."""
    return _estimate(profile, [step for step in profile.steps if isinstance(step, StageStep)])


def estimate_steps(profile: Profile, names: Collection[str]) -> RunEstimate:
    """Estimate some steps only, named by their id or by the stage that they use."""
    steps = [step for step in profile.steps if isinstance(step, StageStep)]
    return _estimate(profile, [step for step in steps if step.id in names or step.uses in names])


def _estimate(profile: Profile, steps: Iterable[StageStep]) -> RunEstimate:
    assumptions = assumptions_of(profile)
    plan = _Plan(profile, assumptions)
    found = [estimated for step in steps if (estimated := plan.step(step)) is not None]
    used = sorted({name for step in found for name in step.teachers})
    return RunEstimate(
        found,
        profile.gpu,
        [_used(profile.teachers[name], name) for name in used],
        [each for name, each in assumptions.items() if name in plan.used],
        [told for name in used if (told := _unknown(profile.teachers[name], name))],
        [told for name in used if (told := _retired(profile.teachers[name], name))],
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """Calls of one teacher in one mode."""

    teacher: str
    mode: Mode
    calls: int
    usage: Usage


class _Plan:
    """Estimates the steps of one profile."""

    def __init__(self, profile: Profile, assumptions: Mapping[str, Assumption]) -> None:
        self._profile = profile
        self.used: set[str] = set()
        """Assumptions that the estimates so far rest on."""
        self._low, self._expected, self._high = (
            Case(name, assumptions, self.used) for name in ("low", "expected", "high")
        )
        self._writing: dict[str, Any] = {}
        for step in profile.steps:
            if isinstance(step, StageStep) and step.uses == "generation.questions":
                self._writing = _settings(step)
                break
        self._quotas: Quotas = self._writing.get("quotas", {})
        cases: list[Case] = [self._low, self._expected, self._high]
        self._training = TrainingPlan(profile, dict(zip(CASES, cases, strict=True)), self._quotas)

    def step(self, step: StageStep) -> StepEstimate | None:
        """Return a step's estimate, or None for a stage that calls and trains nothing."""
        if step.uses.startswith(("training.", "meta.")):
            found = self._training.step(step)
            return self._trained(step, found) if found else None
        counters: dict[str, Callable[[dict[str, Any], Case], list[_Part]]] = {
            "generation.questions": self._questions,
            "generation.validate": self._validate,
            "generation.answers_easy": self._answers_easy,
            "generation.answers_hard": self._answers_hard,
        }
        count = counters.get(step.uses)
        return self._asking(step, count) if count else None

    def _asking(self, step: StageStep, count: Callable[[dict[str, Any], Case], list[_Part]]) -> StepEstimate:
        settings = _settings(step)
        parts = count(settings, self._expected)
        usd = self._sum(parts)
        live = self._sum(count({**settings, "mode": "live"}, self._expected))
        usage = [part.usage for part in parts]
        hours, pace = self._pace(parts)
        return StepEstimate(
            step.id,
            step.plan,
            calls=sum(part.calls for part in parts),
            input_tokens=sum(each.all_input_tokens for each in usage),
            output_tokens=sum(each.output_tokens for each in usage),
            usd=usd,
            simulated=all(self._teacher(part.teacher).base_url == "local" for part in parts),
            plan_says=step.plan_says,
            usd_low=self._sum(count(settings, self._low)),
            usd_high=self._sum(count(settings, self._high)),
            usd_live=live,
            saves=None if usd is None or live is None else live - usd,
            usd_known=sum(cost for part in parts if (cost := self._cost(part)) is not None),
            cache_write_tokens=sum(each.cache_write_tokens for each in usage),
            cache_read_tokens=sum(each.cache_read_tokens for each in usage),
            teachers=tuple(dict.fromkeys(part.teacher for part in parts)),
            hours=hours,
            pace=pace,
        )

    # What each stage asks ---------------------------------------------------------------------------

    def _questions(self, settings: dict[str, Any], case: Case) -> list[_Part]:
        wanted = {
            (domain, level): count for domain, cells in self._quotas.items() for level, count in cells.items()
        }
        return self._written(settings["teachers"], wanted, case)

    def _validate(self, settings: dict[str, Any], case: Case) -> list[_Part]:
        judged, missing = 0, {}
        for domain, cells in self._quotas.items():
            for level, quota in cells.items():
                share = math.ceil(quota * float(settings.get("reserve_share", 0)))
                wanted = quota + max(int(settings.get("reserve", 0)), share)
                seen = math.ceil(wanted / case["kept by the judge"])
                judged += seen
                missing[domain, level] = seen - quota
        prompt = _tokens(prompts.JUDGE_SYSTEM + prompts.judge_prompt("coding", "hard", ""), case)
        repairs = math.ceil(judged * case["repaired answers"])
        again = case["judgement tokens"] + _tokens(prompts.REPAIR_JSON, case)
        given = (judged + repairs) * (prompt + case["question tokens"]) + repairs * again
        usage = Usage(round(given), round((judged + repairs) * case["judgement tokens"]))
        judge = _Part(settings["judge"], _mode(settings), judged + repairs, usage)
        return [judge, *self._written(settings["teachers"], missing, case)]

    def _written(
        self, teachers: Mapping[str, str], wanted: Mapping[tuple[str, str], int], case: Case
    ) -> list[_Part]:
        """Return the calls that write ``wanted`` questions per cell, one part per teacher."""
        per_call = int(
            self._writing.get("writer", {}).get(
                "questions_per_call", WriterSettings.model_fields["questions_per_call"].default
            )
        )
        parts: dict[str, _Part] = {}
        for (domain, level), count in wanted.items():
            if count <= 0:
                continue
            calls = math.ceil(count / case["kept of the written"] / per_call)
            prompt = _tokens(
                prompts.WRITER_SYSTEM + prompts.writer_prompt(domain, level, per_call, 0, 0), case
            )
            answer = per_call * (case["question tokens"] + _JSON_TOKENS)
            name = teachers[domain]
            before = parts.get(name, _Part(name, "live", 0, Usage(0, 0)))
            usage = Usage(
                before.usage.input_tokens + calls * prompt, before.usage.output_tokens + round(calls * answer)
            )
            parts[name] = _Part(name, "live", before.calls + calls, usage)
        return list(parts.values())

    def _answers_easy(self, settings: dict[str, Any], case: Case) -> list[_Part]:
        return self._answers(settings, case, "easy", prompts.EASY_SYSTEM, prompts.REPAIR_EASY)

    def _answers_hard(self, settings: dict[str, Any], case: Case) -> list[_Part]:
        return self._answers(settings, case, "hard", few_shot.HARD_SYSTEM, prompts.REPAIR_HARD)

    def _answers(
        self, settings: dict[str, Any], case: Case, level: str, system: str, repair: str
    ) -> list[_Part]:
        name, mode = settings["teacher"], _mode(settings)
        asked = math.ceil(_count(self._quotas, level) * (1 + case["refused and replaced"]))
        repairs = math.ceil(asked * case["repaired answers"])
        calls = asked + repairs
        answer = case[f"{level} answer tokens"]
        given = calls * case["question tokens"] + repairs * (answer + _tokens(repair, case))
        prefix = calls * _tokens(system, case)
        written = read = 0
        if _caches(self._teacher(name), system):
            # A miss pays for writing the prefix again; a repair request has the same prefix.
            read = round(prefix * case["cache hits in batches" if mode == "batch" else "cache hits live"])
            written, prefix = prefix - read, 0
        usage = Usage(round(given) + prefix, round(calls * answer), written, read)
        return [_Part(name, mode, calls, usage)]

    def _trained(self, step: StageStep, found: TrainingEstimate) -> StepEstimate:
        low, expected, high = (found.cases[name] for name in CASES)
        gpu = self._profile.gpu
        usd = {name: gpu_usd(found.cases[name].hours or None, gpu) for name in CASES}
        return StepEstimate(
            step.id,
            step.plan,
            training_tokens=expected.trained,
            gpu_hours=expected.hours,
            plan_says=step.plan_says,
            training_tokens_low=low.trained,
            training_tokens_high=high.trained,
            answer_tokens=expected.answered,
            gpu_hours_low=low.hours,
            gpu_hours_high=high.hours,
            gpu_usd=usd["expected"],
            gpu_usd_low=usd["low"],
            gpu_usd_high=usd["high"],
            gpu_pace=found.pace,
        )

    # Money and time ---------------------------------------------------------------------------------

    def _teacher(self, name: str) -> Teacher:
        teachers = self._profile.teachers
        if name not in teachers:
            raise UsageError(
                f"profile {self._profile.profile}: no teacher {name!r}{nearest(name, sorted(teachers))}"
            )
        return teachers[name]

    def _cost(self, part: _Part) -> float | None:
        config = self._teacher(part.teacher).config(part.teacher)
        return cost_usd(config, part.usage, batch=part.mode == "batch")

    def _sum(self, parts: Iterable[_Part]) -> float | None:
        costs = [self._cost(part) for part in parts]
        return None if None in costs else sum(cost for cost in costs if cost is not None)

    def _pace(self, parts: Iterable[_Part]) -> tuple[float, str]:
        """Return the hours that the slowest account needs for its live calls, and how they come about."""
        accounts: dict[tuple[str, str | None, str | None], list[tuple[int, Teacher]]] = {}
        for part in parts:
            teacher = self._teacher(part.teacher)
            if part.mode == "live" and teacher.base_url != "local":
                key = (teacher.api, teacher.base_url, teacher.key_env)
                accounts.setdefault(key, []).append((part.calls, teacher))
        paces = [
            _account_pace(sum(calls for calls, _ in used), [teacher for _, teacher in used])
            for used in accounts.values()
        ]
        return max(paces, default=(0.0, ""))


def _account_pace(calls: int, teachers: list[Teacher]) -> tuple[float, str]:
    rows = [row for teacher in teachers if (row := price_of(teacher).row)]
    minute = [
        limit
        for limit in (
            *(teacher.requests_per_minute for teacher in teachers),
            *(row.requests_per_minute for row in rows),
        )
        if limit
    ]
    day = [row.requests_per_day for row in rows if row.requests_per_day]
    hours, told = 0.0, []
    if minute:
        hours = calls / min(minute) / 60
        told.append(f"{calls:,} requests at {min(minute):,g} a minute take {hours:.1f} h")
    if day and calls > min(day):
        days = math.ceil(calls / min(day))
        hours = max(hours, (days - 1) * 24)
        told.append(f"at {min(day):,g} a day they are spread over {days} days")
    return hours, "; ".join(told)


def _used(teacher: Teacher, name: str) -> UsedPrice:
    price: TeacherPrice = price_of(teacher)
    return UsedPrice(name, teacher.model, price.input_usd_per_mtok, price.output_usd_per_mtok, price.source)


def _unknown(teacher: Teacher, name: str) -> str:
    if price_of(teacher).known:
        return ""
    where = price_table().provider(teacher.api, teacher.base_url) or teacher.base_url or teacher.api
    return (
        f"price of {name} unknown: add input_usd_per_mtok and output_usd_per_mtok to teachers.{name}, or a "
        f"row for {teacher.model} at {where} to cogumi/prices.yaml"
    )


def _retired(teacher: Teacher, name: str) -> str:
    row = price_of(teacher).row
    if row is None or row.retired_on is None:
        return ""
    instead = f"; set teachers.{name}.model to another, as {row.successor}" if row.successor else ""
    return f"{name}: {teacher.model} was retired on {row.retired_on}, so requests fail{instead}"


def _caches(teacher: Teacher, system: str) -> bool:
    # OpenAI's cached input counts in full, as it does in the ledger.
    if teacher.api != "anthropic":
        return False
    row = price_of(teacher).row
    minimum = row.cache_minimum_tokens if row else None
    return estimate([system]) >= (minimum or _CACHE_MINIMUM_TOKENS)


def _settings(step: StageStep) -> dict[str, Any]:
    return merge(step.settings, step.attempts[0]) if step.attempts else step.settings


def _count(quotas: Quotas, difficulty: str) -> int:
    return sum(cells.get(difficulty, 0) for cells in quotas.values())


def _tokens(text: str, case: Case) -> int:
    return math.ceil(estimate([text]) * case["prompt tokens"])


def _mode(settings: Mapping[str, Any]) -> Mode:
    return "live" if settings.get("mode") == "live" else "batch"
