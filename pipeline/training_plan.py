"""What training and answering on GPUs would take: tokens, GPU hours, and how the hours come about.

Speed is that of one measured training, scaled by the FLOPs of a token and the peak of the GPU. Looks at
held-out data, checkpoints and early stopping are not counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cogumi.errors import UsageError, nearest
from cogumi.profile import GpuPrice, Profile, StageStep
from cogumi.stage import Settings
from cogumi.steps import settings_of
from pipeline.assumptions import ANSWERING, SPEED, Case, CaseName
from pipeline.training.flops import peak_of

CASES: tuple[CaseName, ...] = ("low", "expected", "high")

# The training that the assumed speed was measured on: LoRA on Llama-3.1-8B, whose linear layers between
# embedding and head have this many weights (pipeline.training.flops), on an H100 SXM.
_REFERENCE_WEIGHTS = 6_979_321_856
_REFERENCE_GPU = "H100 SXM"
# FLOPs for a weight and a token (pipeline.training.flops).
_FORWARD, _FROZEN, _TRAINED = 2, 4, 6
# Batch that the assumed speed of answering is for: the stages' default.
_REFERENCE_BATCH = 32
# Assumed: with smaller models the time goes into launching kernels and no longer into arithmetic.
_FASTEST = 200_000
# A gradient through a gradient takes about as much again as the steps that it goes through.
_SECOND_ORDER = {"maml": 2, "anil": 2}
_SIZE_IN_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens and GPU hours of one case; no hours where the speed is not known."""

    trained: int
    answered: int
    hours: float


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """What one step takes, by case, and the speed that the hours rest on."""

    cases: Mapping[CaseName, Amount]
    pace: str


class TrainingPlan:
    """Estimates the steps of a profile that train, or that answer with a model of the run.

    ``quotas`` are questions by domain and difficulty.
    """

    def __init__(
        self, profile: Profile, cases: Mapping[CaseName, Case], quotas: Mapping[str, Mapping[str, int]]
    ) -> None:
        self._profile = profile
        self._cases = cases
        self._steps = {step.id: step for step in profile.steps if isinstance(step, StageStep)}
        self._rows = {
            level: sum(cells.get(level, 0) for cells in quotas.values()) for level in ("easy", "hard")
        }

    def step(self, step: StageStep) -> TrainingEstimate | None:
        """Return a step's estimate, or None for one that neither trains nor answers.

        Low counts the first attempt alone, expected and high all of them.
        """
        attempts = self._settings(step)
        if step.uses in ("training.self_answers", "training.acceptance"):
            return self._answering(step, attempts[0])
        if attempts[0].get("equal_compute"):
            source = self._steps.get(step.inputs.get("compute_of", ""))
            return self.step(source) if source else None
        if not any(attempts[0].get(key) for key in ("steps", "epochs")):
            return None
        found, pace = {}, ""
        for name in CASES:
            case = self._cases[name]
            counted = attempts[:1] if name == "low" else attempts
            tokens = [self._tokens(settings, case) for settings in counted]
            hours = 0.0
            for settings, count in zip(counted, tokens, strict=True):
                speed, told = self._speed(step, settings, case)
                hours += count / speed / 3600 if speed else 0.0
                pace = told if name == "expected" else pace
            found[name] = Amount(sum(tokens), 0, hours)
        return TrainingEstimate(found, pace)

    def _settings(self, step: StageStep) -> list[dict[str, Any]]:
        """Return the settings of every attempt, with the stage's own defaults."""
        from pipeline import all_stages

        stages = all_stages()
        if step.uses not in stages:
            raise UsageError(f"steps.{step.id}: no stage {step.uses!r}{nearest(step.uses, sorted(stages))}")
        stage = stages[step.uses]
        found: list[Settings] = [
            settings_of(step, stage, attempt) for attempt in range(1, max(1, len(step.attempts)) + 1)
        ]
        return [settings.model_dump() for settings in found]

    # Tokens -----------------------------------------------------------------------------------------

    def _tokens(self, settings: Mapping[str, Any], case: Case) -> int:
        if settings.get("meta") or settings.get("episodes"):
            return self._episodes(settings, case)
        if settings.get("steps"):
            return int(settings["steps"]) * int(settings["batch_tokens"])
        kept = 1 - float(settings.get("held_out_share") or 0)
        return round(float(settings["epochs"]) * kept * self._all_rows(settings, case))

    def _episodes(self, settings: Mapping[str, Any], case: Case) -> int:
        """Count every pass of a row through the model, with what second derivatives add.

        A task's rows are as long as the data's in the mean. Of the few-shot comparison both models adapt and
        score, before and after; the choice between several rates is not counted.
        """
        rows = sum(self._rows.values())
        row = self._all_rows(settings, case) / rows if rows else 0.0
        meta = settings.get("meta")
        if not meta:
            passes = int(settings["steps"]) * int(settings["support"]) + 2 * int(settings["query"])
            return round(2 * int(settings["episodes"]) * passes * row)
        support, query, inner = (int(meta[key]) for key in ("support", "query", "inner_steps"))
        kind = str(settings["objective"])
        # Reptile's inner steps take the support and the query set in turn, and nothing follows them.
        turns = (
            -(-inner // 2) * support + inner // 2 * query if kind == "reptile" else inner * support + query
        )
        tasks = int(settings["steps"]) * int(meta["tasks_per_step"])
        return round(tasks * turns * _SECOND_ORDER.get(kind, 1) * row)

    def _all_rows(self, settings: Mapping[str, Any], case: Case) -> float:
        """Return the tokens of all rows once, each at most ``max_length``."""
        hard = case["hard answer tokens"]
        if not settings.get("include_reasoning"):
            hard *= case["answer without its reasoning"]
        most = settings.get("max_length") or float("inf")
        total = 0.0
        for level, answer in (("easy", case["easy answer tokens"]), ("hard", hard)):
            row = case["chat template tokens"] + case["question tokens"] + answer
            total += self._rows[level] * min(row, most)
        return total

    # Speed ------------------------------------------------------------------------------------------

    def _speed(self, step: StageStep, settings: Mapping[str, Any], case: Case) -> tuple[float, str]:
        """Return training tokens a second on one GPU, 0 where unknown, and how they come about."""
        gpu = self._profile.gpu
        if gpu is None:
            return 0.0, ""
        size, named = self._weights(step.inputs.get("model"))
        # The few-shot comparison has no method: adapters are there where their base is an input.
        frozen = settings.get("method") == "lora" or "base" in step.inputs
        flops = (_FROZEN if frozen else _TRAINED) * (size or _REFERENCE_WEIGHTS)
        if settings.get("distill"):
            flops += _FORWARD * (self._weights(step.inputs.get("teacher"))[0] or _REFERENCE_WEIGHTS)
        at_reference, told = self._reference(gpu, case)
        speed = min(at_reference * _FROZEN * _REFERENCE_WEIGHTS / flops, _FASTEST)
        if not speed:
            return 0.0, told
        size_told = named if size else "a model of unknown size, counted as 8B"
        return speed, f"{float(f'{speed:.4g}'):,.0f} tokens a second, {size_told} {told}"

    def _reference(self, gpu: GpuPrice, case: Case) -> tuple[float, str]:
        """Return the speed that LoRA on Llama-3.1-8B would have on the profile's GPU."""
        if gpu.tokens_per_second is not None:
            models = self._profile.models
            first = models[0].parameters - models[0].embedding_parameters if models else _REFERENCE_WEIGHTS
            return gpu.tokens_per_second * first / _REFERENCE_WEIGHTS, f"on {gpu.name}, as the profile says"
        peak, known = peak_of(gpu.name), peak_of(_REFERENCE_GPU)
        if peak is None or known is None:
            return 0.0, f"speed on {gpu.name} unknown: give gpu.tokens_per_second"
        return case[SPEED] * peak / known, f"on {gpu.name}"

    def _weights(self, step_id: str | None, seen: int = 0) -> tuple[float | None, str]:
        """Return about how many weights the linear layers of a step's model have, and what it is called.

        A cut model counts as the whole one, since how many layers that has is known only when it is there.
        """
        step = self._steps.get(step_id or "")
        if step is None or seen > len(self._steps):
            return None, ""
        if step.uses == "models.micro":
            (settings,) = self._settings(step)[:1]
            width = settings["hidden_size"] // settings["heads"]
            attention = 2 * settings["hidden_size"] * width * (settings["heads"] + settings["kv_heads"])
            layer = attention + 3 * settings["hidden_size"] * settings["intermediate_size"]
            return settings["layers"] * layer, step.id
        name = step.settings.get("model")
        if isinstance(name, str):
            return self._named(name.rstrip("/").rpartition("/")[2])
        return self._weights(step.inputs.get("model"), seen + 1)

    def _named(self, name: str) -> tuple[float | None, str]:
        for model in self._profile.models:
            if model.name.lower() == name.lower():
                return model.parameters - model.embedding_parameters, model.name
        match = _SIZE_IN_NAME.search(name)
        if match is None:
            return None, name
        return float(match[1]) * (1e9 if match[2].upper() == "B" else 1e6), name

    # Answering --------------------------------------------------------------------------------------

    def _answering(self, step: StageStep, settings: Mapping[str, Any]) -> TrainingEstimate:
        """Count what a model of the run decodes; how fast depends little on its size at these batches."""
        found, speed = {}, 0.0
        for name in CASES:
            case = self._cases[name]
            most = float(settings["max_tokens"])
            lengths = {level: min(case[f"{level} answer tokens"], most) for level in ("easy", "hard")}
            rows = sum(self._rows.values())
            total = sum(self._rows[level] * length for level, length in lengths.items())
            if step.uses == "training.acceptance":
                asked = rows * float(settings["held_out_share"])
                total *= min(asked, settings["prompts"] or asked) / rows if rows else 0.0
            hours = 0.0
            if self._profile.gpu is not None:
                speed = case[ANSWERING] * settings["batch_size"] / _REFERENCE_BATCH
                hours = total / speed / 3600
            found[name] = Amount(0, round(total), hours)
        gpu = self._profile.gpu
        pace = f"{self._cases['expected'][ANSWERING]:,.0f} tokens a second on {gpu.name}" if gpu else ""
        return TrainingEstimate(found, pace)
