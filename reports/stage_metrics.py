"""What stages measured beside the suites: numbers that a gate may ask for, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from gates.metrics import DATA_METRICS, EXACT, METRICS
from reports import text
from reports.schema import MetricPart

HEADER = ("Step", "Metric", "Value", "Bounds", "n", "What it is")


def metric_parts(facts: Mapping[str, Any]) -> list[MetricPart]:
    """Return the metrics in a stage's facts, by name; what is no number, or of another shape, is left out."""
    told = facts.get("metrics")
    if not isinstance(told, Mapping):
        return []
    return [part for name in sorted(told) if (part := _part(str(name), told[name])) is not None]


def _part(name: str, told: Any) -> MetricPart | None:
    about = METRICS.get(name, "")
    if not isinstance(told, Mapping):
        return MetricPart(metric=name, about=about, value=told) if _is_number(told) else None
    if not _is_number(told.get("value")):
        return None
    numbers = {key: told[key] for key in ("lower", "upper", "alpha") if _is_number(told.get(key))}
    n, note = told.get("n"), told.get("note")
    return MetricPart(
        metric=name,
        about=about,
        value=told["value"],
        **numbers,
        n=n if isinstance(n, int) and not isinstance(n, bool) else None,
        note=note if isinstance(note, str) else "",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def table(parts: Iterable[tuple[str, MetricPart]]) -> list[list[str]]:
    """Return the rows of the table of metrics, under ``HEADER``; sizes and counts of rows stand elsewhere."""
    return [
        [
            name,
            part.metric,
            text.scalar_text(part.metric, part.value),
            text.interval(part.lower, part.upper),
            text.UNKNOWN if part.n is None else f"{part.n:,}",
            "; ".join(one for one in (part.about, part.note) if one),
        ]
        for name, part in parts
        if part.metric not in DATA_METRICS and part.metric not in EXACT
    ]
