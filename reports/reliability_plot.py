"""Accuracy against confidence as inline SVG: bins before and after scaling, legible in print."""

from __future__ import annotations

from collections.abc import Sequence

from reports.schema import ReliabilityBinPart, ScalingPart
from reports.svg import line, svg, text

WIDTH, HEIGHT = 480, 330
_LEFT, _TOP, _SIDE = 48.0, 26.0, 250.0
"""The plotting area is a square, so that the diagonal is one; names stand to its right."""
_RIGHT, _BOTTOM = _LEFT + _SIDE, _TOP + _SIDE
_MARK = 4.0


def reliability_plot(scalings: Sequence[tuple[str, ScalingPart]], title: str) -> str:
    """Return an SVG of up to two scalings with their names, the last one drawn as the result.

    Each bin stands at its mean confidence and its share of right answers, with the bounds of that.
    """
    parts = _axes()
    for number, (name, scaling) in enumerate(scalings):
        square = number < len(scalings) - 1
        for one in scaling.reliability:
            parts += _bin(one, square=square)
        y = _TOP + 12 + 36 * number
        parts.append(_mark(_RIGHT + 18, y - 4, square=square))
        parts.append(text("p-label", _RIGHT + 30, y, name))
        parts.append(text("p-tick", _RIGHT + 30, y + 15, f"error {scaling.ece:.3f}"))
    return svg(WIDTH, HEIGHT, title, parts)


def _x(confidence: float) -> float:
    return _LEFT + _SIDE * min(max(confidence, 0.0), 1.0)


def _y(accuracy: float) -> float:
    return _BOTTOM - _SIDE * min(max(accuracy, 0.0), 1.0)


def _axes() -> list[str]:
    parts = []
    for value in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        parts.append(line("p-grid", _LEFT, _y(value), _RIGHT, _y(value)))
        parts.append(text("p-tick", _LEFT - 6, _y(value) + 4, f"{value:.1f}", "end"))
        parts.append(line("p-grid", _x(value), _TOP, _x(value), _BOTTOM))
        parts.append(text("p-tick", _x(value), _BOTTOM + 16, f"{value:.1f}", "middle"))
    parts.append(line("p-level", _LEFT, _BOTTOM, _RIGHT, _TOP))
    parts.append(line("p-axis", _LEFT, _BOTTOM, _RIGHT, _BOTTOM))
    parts.append(line("p-axis", _LEFT, _TOP, _LEFT, _BOTTOM))
    parts.append(text("p-title", 4, 14, "share of right answers ↑"))
    parts.append(text("p-title", _RIGHT, _BOTTOM + 38, "confidence →", "end"))
    return parts


def _bin(one: ReliabilityBinPart, *, square: bool) -> list[str]:
    x = _x(one.confidence)
    bounds = line("p-error", x, _y(one.lower), x, _y(one.upper))
    told = f"{one.n:,} answers of confidence {one.confidence:.3f}: {one.accuracy:.3f} right"
    return [bounds, _mark(x, _y(one.accuracy), square=square, told=told)]


def _mark(x: float, y: float, *, square: bool, told: str = "") -> str:
    title = f"<title>{told}</title>" if told else ""
    if square:
        corner = f'x="{x - _MARK:.1f}" y="{y - _MARK:.1f}" width="{2 * _MARK:.0f}" height="{2 * _MARK:.0f}"'
        return f'<rect class="p-square" {corner}>{title}</rect>'
    return f'<circle class="p-dot" cx="{x:.1f}" cy="{y:.1f}" r="{_MARK:.0f}">{title}</circle>'
