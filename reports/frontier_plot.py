"""Divergence against bytes as inline SVG, both logarithmic: points with bounds, the frontier, the tiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

from reports.schema import FrontierPointPart
from reports.svg import line, svg, text
from reports.text import clean, size

TIERS = {"S": 540_000_000, "M": 890_000_000}
"""Most bytes of a tier (the gate ``phase3-tiers``)."""
_NARROW = 600
_MARK = 5.0
_CHAR, _LINE = 6.4, 14.0
# A divergence of exactly 0 has no place on a logarithmic axis; below this all is rounding.
_LEAST = 1e-7

_Box = tuple[float, float, float, float]


class _Frame:
    """The plotting area: bytes to download on x, nats per token on y, both logarithmic."""

    def __init__(self, points: Sequence[FrontierPointPart], width: int, height: int) -> None:
        self.left, self.top, self.right, self.bottom = 62.0, 26.0, width - 16.0, height - 44.0
        self._x = _range([point.bytes_download for point in points], 1 / 6)
        ends = [value for p in points for value in (p.kl, p.kl_lower, p.kl_upper)]
        self._y = _range([max(value, _LEAST) for value in ends], 0.25)

    def x(self, value: float) -> float:
        low, high = self._x
        return self.left + (math.log10(value) - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self._y
        at = math.log10(max(value, _LEAST))
        return self.bottom - (at - low) / (high - low) * (self.bottom - self.top)

    def shows(self, value: float) -> bool:
        return self._x[0] <= math.log10(value) <= self._x[1]

    def x_ticks(self) -> list[float]:
        # 56 px: the widest label ("500 MB") and air.
        return _ticks(self._x, lambda one, other: abs(self.x(one) - self.x(other)) >= 56)

    def y_ticks(self) -> list[float]:
        return _ticks(self._y, lambda one, other: abs(self.y(one) - self.y(other)) >= 22)


def _range(values: Sequence[float], least: float) -> tuple[float, float]:
    logs = [math.log10(value) for value in values]
    pad = max(0.08 * (max(logs) - min(logs)), least)
    return min(logs) - pad, max(logs) + pad


def _ticks(ends: tuple[float, float], apart: Callable[[float, float], bool]) -> list[float]:
    # Within one decade 1, 2 and 5 may leave a single tick.
    digits = (1, 2, 5) if ends[1] - ends[0] > 1 else (1, 2, 3, 4, 5, 7)
    found: list[float] = []
    for exponent in range(math.floor(ends[0]), math.ceil(ends[1]) + 1):
        for digit in digits:
            value = digit * 10.0**exponent
            if ends[0] <= math.log10(value) <= ends[1] and (not found or apart(value, found[-1])):
                found.append(value)
    return found


def frontier_plot(points: Sequence[FrontierPointPart], width: int, title: str) -> str:
    """Return an SVG of the points; those that none beats are filled, and joined by the frontier's line."""
    height = 420 if width > _NARROW else 340
    frame = _Frame(points, width, height)
    stairs = _stairs(frame, points)
    labels, tiers = _Labels(frame, points, stairs), []
    for name, most in TIERS.items():
        if frame.shows(most):
            tiers.append(_tier(frame, f"tier {name}: {size(most)}", frame.x(most), labels))
    parts = [*_axes(frame, height), *tiers, *(line("p-front", *ends) for ends in stairs)]
    parts += [_bounds(frame, point) for point in points]
    parts += [_marker(frame, point) for point in points]
    parts += [labels.label(point) for point in points]
    return svg(width, height, title, parts)


def _axes(frame: _Frame, height: int) -> list[str]:
    parts = []
    for value in frame.y_ticks():
        y = frame.y(value)
        parts.append(line("p-grid", frame.left, y, frame.right, y))
        parts.append(text("p-tick", frame.left - 6, y + 4, f"{value:g}", "end"))
    for value in frame.x_ticks():
        x = frame.x(value)
        parts.append(line("p-grid", x, frame.top, x, frame.bottom))
        parts.append(text("p-tick", x, frame.bottom + 16, size(value), "middle"))
    parts.append(line("p-axis", frame.left, frame.bottom, frame.right, frame.bottom))
    parts.append(text("p-title", 4, 14, "KL from the dense model, nats a token, logarithmic ↓"))
    parts.append(text("p-title", frame.right, height - 8, "bytes to download, logarithmic →", "end"))
    return parts


def _tier(frame: _Frame, told: str, x: float, labels: _Labels) -> str:
    """Return a tier's line, its name at the upper end on the first row that is free."""
    labels.keep((x - 1, frame.top, x + 1, frame.bottom))
    wide = _CHAR * len(told)
    left = x - 4 - wide if x - 4 - wide > frame.left else x + 4
    for row in range(4):
        top = frame.top + _LINE * row
        if labels.free((left, top, left + wide, top + _LINE)):
            break
    labels.keep((left, top, left + wide, top + _LINE))
    return line("p-level", x, frame.top, x, frame.bottom) + text("p-levelname", left, top + 11, told)


def _stairs(frame: _Frame, points: Sequence[FrontierPointPart]) -> list[_Box]:
    """Return the lines below which nothing was measured: from a best point right, then down to the next."""
    best = [point for point in points if point.standing == "best"]
    places = [(frame.x(point.bytes_download), frame.y(point.kl)) for point in best]
    found = []
    for (x1, y1), (x2, y2) in pairwise(places):
        found += [(x1, y1, x2, y1), (x2, y1, x2, y2)]
    return found


def _bounds(frame: _Frame, point: FrontierPointPart) -> str:
    x, low, high = frame.x(point.bytes_download), frame.y(point.kl_lower), frame.y(point.kl_upper)
    if low - high < 1:
        return ""
    caps = line("p-error", x - 4, low, x + 4, low) + line("p-error", x - 4, high, x + 4, high)
    return line("p-error", x, low, x, high) + caps


def _marker(frame: _Frame, point: FrontierPointPart) -> str:
    x, y = frame.x(point.bytes_download), frame.y(point.kl)
    told = f"{point.number or ''} {point.name}: {point.kl:.3g} nats, {size(point.bytes_download)}"
    kind = "p-dot" if point.standing == "best" else "p-hollow"
    title = f"<title>{escape(clean(told.strip()))}, {escape(point.standing)}</title>"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{_MARK}">{title}</circle>'


class _Labels:
    """Places a recipe beside each point where nothing else stands, or a number where a recipe has no room."""

    def __init__(self, frame: _Frame, points: Sequence[FrontierPointPart], stairs: Sequence[_Box]) -> None:
        self._frame = frame
        self._taken: list[_Box] = [(x1 - 1, y1 - 1, x2 + 1, y2 + 1) for x1, y1, x2, y2 in stairs]
        for point in points:
            x, y = frame.x(point.bytes_download), frame.y(point.kl)
            self._taken.append((x - _MARK, y - _MARK, x + _MARK, y + _MARK))
            self._taken.append((x - 4, frame.y(point.kl_upper), x + 4, frame.y(point.kl_lower)))

    def keep(self, box: _Box) -> None:
        """Put no label there."""
        self._taken.append(box)

    def label(self, point: FrontierPointPart) -> str:
        """Return a point's label, or nothing where not even a number has room: its mark still tells."""
        x, y = self._frame.x(point.bytes_download), self._frame.y(point.kl)
        number = str(point.number) if point.number is not None else ""
        for told in dict.fromkeys((f"{number} {point.recipe}".strip(), number)):
            wide = _CHAR * len(told)
            for left, top in _places(x, y, wide):
                box = (left, top, left + wide, top + _LINE)
                if told and self.free(box):
                    self.keep(box)
                    return text("p-label", left + wide / 2, top + _LINE - 3, told, "middle")
        return ""

    def free(self, box: _Box) -> bool:
        """Tell whether a box is inside the plotting area and meets nothing."""
        frame = self._frame
        inside = box[0] >= frame.left and box[2] <= frame.right
        inside = inside and box[1] >= frame.top and box[3] <= frame.bottom
        return inside and not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
            for other in self._taken
        )


def _places(x: float, y: float, wide: float) -> list[tuple[float, float]]:
    near, half = _MARK + 4, _LINE / 2
    return [
        (x + near, y - half),
        (x + near, y - _LINE - 2),
        (x + near, y + 2),
        (x - near - wide, y + 2),
        (x - near - wide, y - half),
        (x - near - wide, y - _LINE - 2),
        (x - wide / 2, y - near - _LINE),
        (x - wide / 2, y + near),
    ]
