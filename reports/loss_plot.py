"""Loss over training steps as inline SVG: training and held-out loss in one plot, legible in print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.schema import LookPart
from reports.svg import line, svg, text

WIDTH, HEIGHT = 480, 290
_LEFT, _TOP, _RIGHT, _BOTTOM = 48.0, 30.0, 376.0, 238.0
"""Edges of the plotting area; the names of the curves stand to its right."""
_LOGARITHMIC_FROM = 10.0
"""Ratio of the largest to the smallest loss from which a linear axis would show a hook and a flat line."""
_MARKED = 24
"""Up to so many looks each has a mark of its own."""
_NAME_GAP = 15.0

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class _Scale:
    """A linear or logarithmic axis from ``low`` to ``high`` between two places in px."""

    low: float
    high: float
    at_low: float
    at_high: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        low, high = self._on(self.low), self._on(self.high)
        return self.at_low + (self.at_high - self.at_low) * (self._on(value) - low) / (high - low)

    def _on(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def ticks(self, about: int) -> list[float]:
        """Return round values within the axis, about so many."""
        if self.logarithmic:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [digit * 10.0**power for power in exponents for digit in (1, 2, 5)]
            return [value for value in found if self.low <= value <= self.high]
        raw = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def loss_plot(looks: Sequence[LookPart], held_out_name: str, title: str) -> str:
    """Return an SVG of the losses of a training; nothing where fewer than two looks have one of them."""
    curves = {
        name: points
        for name, points in (
            (held_out_name, [(p.step, p.held_out_loss) for p in looks if p.held_out_loss is not None]),
            ("training", [(p.step, p.train_loss) for p in looks if p.train_loss is not None]),
        )
        if len(points) > 1
    }
    if not curves:
        return ""
    x, y = _scales([point for points in curves.values() for point in points])
    parts = _axes(x, y)
    for name, points in curves.items():
        parts += _curve(points, x, y, dashed=name == "training")
    parts += _names({name: points[-1] for name, points in curves.items()}, y)
    return svg(WIDTH, HEIGHT, title, parts)


def _scales(points: Curve) -> tuple[_Scale, _Scale]:
    steps, losses = [p[0] for p in points], [p[1] for p in points]
    low, high = min(losses), max(losses)
    logarithmic = low > 0 and high / low >= _LOGARITHMIC_FROM
    if logarithmic:
        low, high = low / 1.15, high * 1.15
    else:
        # A flat curve still needs an axis with a height.
        air = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = (max(0.0, low - air) if low >= 0 else low - air), high + air
    first, last = min(steps), max(steps)
    x = _Scale(first, last if last > first else first + 1, _LEFT, _RIGHT)
    return x, _Scale(low, high, _BOTTOM, _TOP, logarithmic)


def _axes(x: _Scale, y: _Scale) -> list[str]:
    parts = []
    for value in y.ticks(5):
        parts += [line("p-grid", _LEFT, y.at(value), _RIGHT, y.at(value))]
        parts += [text("p-tick", _LEFT - 6, y.at(value) + 4, f"{value:.4g}", "end")]
    for value in x.ticks(5):
        parts += [line("p-grid", x.at(value), _TOP, x.at(value), _BOTTOM)]
        parts += [text("p-tick", x.at(value), _BOTTOM + 16, f"{value:,.10g}", "middle")]
    parts.append(line("p-axis", _LEFT, _BOTTOM, _RIGHT, _BOTTOM))
    parts.append(line("p-axis", _LEFT, _TOP, _LEFT, _BOTTOM))
    kind = ", logarithmic" if y.logarithmic else ""
    parts.append(text("p-title", 4, 14, f"loss, nats per answer token{kind} ↑"))
    parts.append(text("p-title", _RIGHT, _BOTTOM + 38, "optimizer step →", "end"))
    return parts


def _curve(points: Curve, x: _Scale, y: _Scale, *, dashed: bool) -> list[str]:
    """Draw a curve; held-out looks have round marks, so that print without colours tells the two apart."""
    kind = "p-curve-train" if dashed else "p-curve"
    path = " ".join(f"{x.at(step):.1f},{y.at(loss):.1f}" for step, loss in points)
    parts = [f'<polyline class="{kind}" points="{path}"/>']
    if not dashed and len(points) <= _MARKED:
        parts += [
            f'<circle class="p-dot" cx="{x.at(step):.1f}" cy="{y.at(loss):.1f}" r="3">'
            f"<title>step {step:,.10g}: {loss:.4g}</title></circle>"
            for step, loss in points
        ]
    return parts


def _names(ends: dict[str, tuple[float, float]], y: _Scale) -> list[str]:
    """Write each curve's name and last value at its end, one below the other where they would touch."""
    order = sorted(ends, key=lambda name: y.at(ends[name][1]))
    places = [y.at(ends[name][1]) + 4 for name in order]
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + 2 * _NAME_GAP)
    # What runs out below moves up, and what stands above it moves with it.
    limit = _BOTTOM - _NAME_GAP + 4
    for k in reversed(range(len(places))):
        places[k] = min(places[k], limit)
        limit = places[k] - 2 * _NAME_GAP
    parts = []
    for name, place in zip(order, places, strict=True):
        parts.append(text("p-label", _RIGHT + 8, place, name))
        parts.append(text("p-tick", _RIGHT + 8, place + _NAME_GAP - 1, f"{ends[name][1]:.3g}"))
    return parts
