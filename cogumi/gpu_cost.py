"""GPU hours of a step and what they cost, from its metrics and the profile's price: unknown is never 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cogumi.profile import GpuPrice
from cogumi.units import usd

if TYPE_CHECKING:
    from cogumi.ledger import StepRow

UNKNOWN = "cost unknown (the profile has no gpu.usd_per_hour)"


def gpu_hours(metrics: Mapping[str, Any]) -> float | None:
    """Return the GPU hours that a step took: its ``gpu_hours``, else ``seconds`` times ``gpus``.

    None for a step without GPUs.
    """
    total = metrics.get("gpu_hours")
    if isinstance(total, int | float):
        return float(total)
    gpus, seconds = metrics.get("gpus"), metrics.get("seconds")
    if not gpus or not isinstance(gpus, int | float) or not isinstance(seconds, int | float):
        return None
    return seconds * gpus / 3600


def paid_hours(row: StepRow) -> float | None:
    """Return the GPU hours that a run paid for a step: None where its work was done in another run.

    A finished stage has a note only when it was found finished.
    """
    return None if row.note and row.status == "done" else gpu_hours(row.metrics)


def gpu_usd(hours: float | None, price: GpuPrice | None) -> float | None:
    """Return what GPU hours cost in dollars; None where either is unknown."""
    if hours is None or price is None or price.usd_per_hour is None:
        return None
    return hours * price.usd_per_hour


def hours_told(hours: float, cost: float | None) -> str:
    """Say GPU hours and their cost: ``1.92 GPU hours, $4.12``."""
    return f"{hours:.3g} GPU hours, {usd(cost) if cost is not None else UNKNOWN}"


def step_told(metrics: Mapping[str, Any], price: GpuPrice | None) -> str:
    """Say what a step's GPUs took, to follow its time: ``, 1.92 GPU hours, $4.12``, or nothing."""
    hours = gpu_hours(metrics)
    return "" if hours is None else f", {hours_told(hours, gpu_usd(hours, price))}"
