"""What a report says of each training: tokens, rows left out, speed, memory, energy, cost, and the losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cogumi.gpu_cost import gpu_hours, gpu_usd
from cogumi.ledger import StepRow
from cogumi.profile import GpuPrice
from cogumi.store import Artifact
from reports.schema import LeftOutPart, LookPart, TrainingPart

_META = {"reptile": "Reptile", "fomaml": "first-order MAML", "anil": "ANIL", "maml": "MAML"}
# Why rows were left out or cut, by the fact that counts them; others are told by the fact's own name.
_LEFT_OUT = {
    "too_long_rows": "longer than the context or max_length",
    "dropped_rows": "question alone fills the context",
    "truncated_rows": "answer cut at the context",
    "empty_rows": "no answer",
}
_NO_LOSS = frozenset({"held_out_rows", "train_rows", "support_rows", "query_rows"})


def training_part(row: StepRow, artifact: Artifact, gpu: GpuPrice | None) -> TrainingPart | None:
    """Return what a step's artifact and metrics tell of a training; None for a step that trained nothing."""
    facts, metrics = artifact.facts, row.metrics
    looks = looks_of(facts)
    if not looks and not _number(facts, "tokens_seen"):
        return None
    settings: Mapping[str, Any] = artifact.manifest["made_by"].get("settings", {})
    hours = gpu_hours(metrics)
    return TrainingPart(
        objective=objective_told(settings),
        held_out_name="after adapting" if settings.get("objective") in _META else "held-out",
        looks=looks,
        steps=_count(facts, "steps"),
        stopped_early=bool(facts.get("stopped_early")),
        rows=_count(facts, "rows"),
        held_out_rows=_count(facts, "held_out_rows"),
        left_out=left_out(facts),
        tokens_seen=_count(facts, "tokens_seen"),
        supervised_share=_number(facts, "supervised_share"),
        padding_share=_number(facts, "padding_share"),
        parameters=_count(facts, "parameters"),
        trainable_parameters=_count(facts, "trainable_parameters"),
        seconds=_number(metrics, "seconds"),
        tokens_per_second=_number(metrics, "tokens_per_second"),
        model_flop_utilization=_number(metrics, "model_flop_utilization"),
        peak_bytes=_count(metrics, "peak_bytes"),
        joules=_number(metrics, "joules"),
        gpus=_count(metrics, "gpus"),
        gpu_hours=hours,
        gpu_usd=gpu_usd(hours, gpu),
    )


def objective_told(settings: Mapping[str, Any]) -> str:
    """Return in a few words what was minimised, from a training's settings."""
    objective = str(settings.get("objective") or "sft")
    told = _META.get(objective, "fine-tuning" if objective == "sft" else objective)
    if settings.get("distill"):
        told += " with distillation"
    method = settings.get("method")
    return f"{told}, {'LoRA' if method == 'lora' else method}" if method else told


def left_out(facts: Mapping[str, Any]) -> list[LeftOutPart]:
    """Return which rows a training left out or cut, and why, without those of which there are none."""
    found = []
    for name, value in facts.items():
        if name.endswith("_rows") and name not in _NO_LOSS and _count(facts, name):
            words = name.removesuffix("_rows").replace("_", " ")
            found.append(LeftOutPart(why=_LEFT_OUT.get(name, words), rows=int(value)))
    return found


def looks_of(facts: Mapping[str, Any]) -> list[LookPart]:
    """Return the looks that a training left in its facts.

    ``looks`` holds mappings with ``step``, and ``train_loss`` and ``held_out_loss`` where they are known
    (pipeline.training); what has another shape is no look, and one look is no curve.
    """
    found = []
    looks = facts.get("looks")
    for look in looks if isinstance(looks, list) else []:
        if not isinstance(look, dict) or (step := _number(look, "step")) is None:
            continue
        train, held_out = _number(look, "train_loss"), _number(look, "held_out_loss")
        if train is not None or held_out is not None:
            found.append(LookPart(step=step, train_loss=train, held_out_loss=held_out))
    return found if len(found) > 1 else []


def _number(values: Mapping[str, Any], name: str) -> float | None:
    """Return a figure as a float; what is absent, not a number or not finite is unknown."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _count(values: Mapping[str, Any], name: str) -> int | None:
    value = _number(values, name)
    return None if value is None else round(value)
