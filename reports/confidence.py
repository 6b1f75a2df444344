"""What a report says of a model's confidence: how far it is from the chance of being right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from reports import text
from reports.schema import ConfidencePart, ScalingPart

_NAMES = {"none": "before scaling", "temperature": "temperature scaling", "platt": "Platt scaling"}


def confidence_part(facts: Mapping[str, Any]) -> ConfidencePart | None:
    """Return what the facts of ``compression.confidence`` tell; None for facts that tell nothing of it."""
    told, metrics = facts.get("calibration"), facts.get("metrics")
    if not isinstance(told, dict) or not isinstance(metrics, dict):
        return None
    try:
        shared = {name: facts[name] for name in ("method", "temperature", "platt", "items", "accuracy")}
        # A manifest keeps no order.
        scalings = [_scaling(name, told[name]) for name in _NAMES]
        return ConfidencePart(
            **shared,
            mean_confidence=facts["mean_confidence"],
            alpha=metrics["ece"]["alpha"],
            scalings=scalings,
        )
    except (KeyError, TypeError, ValidationError):
        # Another stage's facts of the same name.
        return None


def _scaling(name: str, values: Mapping[str, Any]) -> ScalingPart:
    ece = values["ece"]
    return ScalingPart(
        name=name,
        ece=ece["value"],
        lower=ece["lower"],
        upper=ece["upper"],
        **{key: values[key] for key in ("brier", "log_loss", "auroc", "reliability")},
    )


def shown(part: ConfidencePart) -> list[ScalingPart]:
    """Return what the plot shows: the confidence as it is, and as it is shipped."""
    return [one for one in part.scalings if one.name in ("none", part.method)]


def scaling_name(name: str) -> str:
    """Return what a scaling is called in a report."""
    return _NAMES[name]


def told(part: ConfidencePart) -> str:
    """Say in words what the plot shows."""
    said = [f"{part.items:,} held-out answers, {text.percent(part.accuracy)} right"]
    said.append(f"mean confidence {text.percent(part.mean_confidence)}")
    said += [
        f"calibration error {text.share(one.ece)} {text.interval(one.lower, one.upper)} "
        f"{'before scaling' if one.name == 'none' else f'after {scaling_name(one.name)}'}"
        for one in shown(part)
    ]
    return "; ".join(said)


HEADER = ("Step", "Scaling", "Parameters", "Calibration error", "Bounds", "Brier", "Log loss", "AUROC")


def table(parts: Iterable[tuple[str, ConfidencePart]]) -> list[list[str]]:
    """Return the rows of the table of calibrations, under ``HEADER``."""
    return [
        [
            name,
            scaling_name(one.name) + (", shipped" if one.name == part.method else ""),
            _parameters(one.name, part),
            text.share(one.ece),
            text.interval(one.lower, one.upper),
            text.share(one.brier),
            text.share(one.log_loss),
            text.share(one.auroc),
        ]
        for name, part in parts
        for one in part.scalings
    ]


def bins(part: ConfidencePart) -> list[list[str]]:
    """Return the bins of what the plot shows: scaling, answers, mean confidence, share right, its bounds."""
    return [
        [
            scaling_name(one.name),
            f"{row.n:,}",
            text.share(row.confidence),
            text.share(row.accuracy),
            text.interval(row.lower, row.upper),
        ]
        for one in shown(part)
        for row in one.reliability
    ]


def _parameters(name: str, part: ConfidencePart) -> str:
    if name == "temperature":
        return f"T = {part.temperature:.3g}"
    if name == "platt":
        return f"a = {part.platt[0]:.3g}, b = {part.platt[1]:.3g}"
    return text.UNKNOWN
