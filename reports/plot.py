"""Plots as inline SVG: quality against bytes, and a criterion against its bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from reports.svg import line as _line
from reports.svg import svg as _svg
from reports.svg import text as _text
from reports.text import clean, interval, share, size, speed

_CHAR = 6.4
"""Mean width of a character of the labels' 12 px sans-serif type, in px."""
_LINE = 14.0
_PX_PER_LABEL = 80
"""Where a point has less width than this, labels are numbers only: names stand in the table."""
_NARROW = 600


@dataclass(frozen=True, slots=True)
class Point:
    """One artifact: ``x`` in bytes, ``y`` and its bounds in [0, 1], speed in tokens per second."""

    number: int
    name: str
    x: float
    y: float
    lower: float
    upper: float
    speed: float | None
    square: bool


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line: what the reference scores."""

    name: str
    y: float


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def inside(self, other: _Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


class _Frame:
    """The plotting area: bytes on a logarithmic x axis, scores on y."""

    def __init__(self, points: Sequence[Point], levels: Sequence[Level], width: int, height: int) -> None:
        self.area = _Box(46, 24, width - 16, height - 44)
        logs = [math.log10(point.x) for point in points]
        # A sixth of a decade of air at least, so that one size alone is still an axis.
        pad = max(0.08 * (max(logs) - min(logs)), 1 / 6)
        self.x_range = (min(logs) - pad, max(logs) + pad)
        ends = [v for p in points for v in (p.lower, p.upper)] + [level.y for level in levels]
        air = max(0.08 * (max(ends) - min(ends)), 0.02)
        self.y_range = (max(0.0, min(ends) - air), min(1.0, max(ends) + air))

    def x(self, value: float) -> float:
        low, high = self.x_range
        share_of = (math.log10(value) - low) / (high - low)
        return self.area.left + share_of * (self.area.right - self.area.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.area.bottom - (value - low) / (high - low) * (self.area.bottom - self.area.top)

    def x_ticks(self) -> list[float]:
        low, high = self.x_range
        ticks: list[float] = []
        for exponent in range(math.floor(low), math.ceil(high) + 1):
            for digit in (1, 2, 5):
                value = digit * 10.0**exponent
                fits = low <= math.log10(value) <= high
                # 56 px: the widest label ("500 MB") and air.
                if fits and (not ticks or self.x(value) - self.x(ticks[-1]) >= 56):
                    ticks.append(value)
        return ticks

    def y_ticks(self) -> list[float]:
        low, high = self.y_range
        step = next((s for s in (0.01, 0.02, 0.05, 0.1) if (high - low) / s <= 6), 0.2)
        first = math.ceil(low / step - 1e-9)
        return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def scatter(points: Sequence[Point], levels: Sequence[Level], width: int, title: str) -> str:
    """Return an SVG of quality against bytes; a larger marker is a faster model, a square one is GGUF."""
    height = 420 if width > _NARROW else 340
    frame = _Frame(points, levels, width, height)
    parts = [_axes(frame, height), *(_level(frame, level) for level in levels)]
    parts += [_error_bar(frame, point) for point in points]
    fastest = max((point.speed or 0.0 for point in points), default=0.0)
    radii = {point.number: _radius(point, fastest) for point in points}
    # Small ones last, so that no mark hides another.
    by_size = sorted(points, key=lambda point: -radii[point.number])
    parts += [_marker(frame, point, radii[point.number]) for point in by_size]
    parts += _labels(frame, points, levels, radii)
    return _svg(width, height, title, parts)


def _axes(frame: _Frame, height: int) -> str:
    area = frame.area
    parts = []
    for value in frame.y_ticks():
        y = frame.y(value)
        parts += [_line("p-grid", area.left, y, area.right, y)]
        parts += [_text("p-tick", area.left - 6, y + 4, f"{value:.2f}", "end")]
    for value in frame.x_ticks():
        x = frame.x(value)
        parts += [_line("p-grid", x, area.top, x, area.bottom)]
        parts += [_text("p-tick", x, area.bottom + 16, size(value), "middle")]
    parts.append(_line("p-axis", area.left, area.bottom, area.right, area.bottom))
    parts.append(_text("p-title", 4, 12, "score ↑"))
    parts.append(_text("p-title", area.right, height - 8, "bytes to download, logarithmic →", "end"))
    return "".join(parts)


def _level(frame: _Frame, level: Level) -> str:
    y = frame.y(level.y)
    return _line("p-level", frame.area.left, y, frame.area.right, y)


def _level_name(frame: _Frame, level: Level, taken: list[_Box]) -> tuple[str, _Box]:
    """Place the name of a level along its line, above or below, where no mark stands."""
    narrow = frame.area.right < _NARROW
    name = f"{'reference' if narrow else level.name}: {share(level.y)}"
    wide, y, area = _CHAR * len(name), frame.y(level.y), frame.area
    places = [area.left + 6 + k * (area.right - area.left - wide - 12) / 8 for k in range(9)]
    boxes = [_Box(x, top, x + wide, top + _LINE) for x in places for top in (y - _LINE - 3, y + 3)]
    inside = [box for box in boxes if box.inside(area)] or boxes
    # With no free place the first one is crossed: a name that is hard to read beats none.
    free = (box for box in inside if not any(box.overlaps(other) for other in taken))
    box = next(free, inside[0])
    return _text("p-levelname", box.left, box.bottom - 3, name), box


def _radius(point: Point, fastest: float) -> float:
    # Area in proportion to speed; 4 px stay visible, 10 px still leave room for labels.
    return max(4.0, 10.0 * math.sqrt(point.speed / fastest)) if point.speed and fastest else 4.0


def _error_bar(frame: _Frame, point: Point) -> str:
    x, low, high = frame.x(point.x), frame.y(point.lower), frame.y(point.upper)
    if low - high < 1:
        return ""
    caps = _line("p-error", x - 4, low, x + 4, low) + _line("p-error", x - 4, high, x + 4, high)
    return _line("p-error", x, low, x, high) + caps


def _marker(frame: _Frame, point: Point, radius: float) -> str:
    x, y = frame.x(point.x), frame.y(point.y)
    told = (
        f"{point.number} {point.name}: {share(point.y)} {interval(point.lower, point.upper)}, {size(point.x)}"
    )
    title = f"<title>{escape(clean(f'{told}, {speed(point.speed)} tokens/s'))}</title>"
    if point.square:
        side = 1.77 * radius  # the same area as the circle: sqrt(pi)
        half = side / 2
        return (
            f'<rect class="p-square" x="{x - half:.1f}" y="{y - half:.1f}" width="{side:.1f}" '
            f'height="{side:.1f}">{title}</rect>'
        )
    return f'<circle class="p-dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{title}</circle>'


# Labels -------------------------------------------------------------------------------------------


def _labels(
    frame: _Frame, points: Sequence[Point], levels: Sequence[Level], radii: dict[int, float]
) -> list[str]:
    """Place a label beside each point where nothing else stands; a short one where a long one has no room."""
    hard = [_around(frame, point, radii[point.number]) for point in points]
    bars = [_bar_box(frame, point) for point in points]
    parts = []
    for level in levels:
        told, box = _level_name(frame, level, hard + bars)
        parts.append(told)
        hard.append(box)
    soft = bars + [
        _Box(frame.area.left, frame.y(v.y) - 1, frame.area.right, frame.y(v.y) + 1) for v in levels
    ]
    roomy = (frame.area.right - frame.area.left) / _PX_PER_LABEL >= len(points)
    for point in points:
        short = str(point.number)
        fast = f", {speed(point.speed)} tok/s" if point.speed else ""
        texts = [f"{short} {point.name}{fast}", f"{short} {point.name}", short]
        for text in texts if roomy else [short]:
            place = _place(frame, point, radii[point.number], text, (hard, soft))
            if place is not None:
                hard.append(place)
                parts.append(_label(frame, point, radii[point.number], text, place))
                break
    return parts


def _around(frame: _Frame, point: Point, radius: float) -> _Box:
    x, y = frame.x(point.x), frame.y(point.y)
    return _Box(x - radius, y - radius, x + radius, y + radius)


def _bar_box(frame: _Frame, point: Point) -> _Box:
    x = frame.x(point.x)
    return _Box(x - 4, frame.y(point.upper), x + 4, frame.y(point.lower))


def _place(
    frame: _Frame, point: Point, radius: float, text: str, taken: tuple[list[_Box], list[_Box]]
) -> _Box | None:
    """Return the nearest free place for a label: off markers and labels, and off lines where possible."""
    x, y, wide = frame.x(point.x), frame.y(point.y), _CHAR * len(text)
    hard, soft = taken
    for avoid in (hard + soft, hard):
        for gap in (5.0, 16.0, 30.0, 48.0, 70.0):
            reach = radius + gap
            for box in _candidates(x, y, wide, reach):
                if box.inside(frame.area) and not any(box.overlaps(other) for other in avoid):
                    return box
    return None


def _candidates(x: float, y: float, wide: float, reach: float) -> list[_Box]:
    half = _LINE / 2
    slant = 0.8 * reach
    return [
        _Box(x + reach, y - half, x + reach + wide, y + half),
        _Box(x - reach - wide, y - half, x - reach, y + half),
        _Box(x + slant, y - slant - half, x + slant + wide, y - slant + half),
        _Box(x + slant, y + slant - half, x + slant + wide, y + slant + half),
        _Box(x - slant - wide, y - slant - half, x - slant, y - slant + half),
        _Box(x - slant - wide, y + slant - half, x - slant, y + slant + half),
        _Box(x - wide / 2, y - reach - _LINE, x + wide / 2, y - reach),
        _Box(x - wide / 2, y + reach, x + wide / 2, y + reach + _LINE),
    ]


def _label(frame: _Frame, point: Point, radius: float, text: str, box: _Box) -> str:
    x, y = frame.x(point.x), frame.y(point.y)
    # The leader ends at the label's nearest edge; next to the marker none is needed.
    to_x, to_y = min(max(x, box.left), box.right), min(max(y, box.top + 3), box.bottom - 3)
    far = math.hypot(to_x - x, to_y - y) > radius + 12
    leader = _line("p-leader", x, y, to_x, to_y) if far else ""
    return leader + _text("p-label", (box.left + box.right) / 2, box.bottom - 3, text, "middle")


# Small ones ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Strip:
    """A criterion's number with its bounds against the bar; None is unknown or unbounded."""

    value: float | None
    lower: float | None
    upper: float | None
    bar: float
    at_least: bool
    share: bool
    """The number is a share: its axis begins at 0 and shows 1."""


def strip(data: Strip, title: str) -> str:
    """Return an SVG that shows where the interval lies beside the bar; the side that passes is shaded."""
    width, height, middle = 260, 40, 20.0
    known = [v for v in (data.value, data.lower, data.upper) if v is not None and math.isfinite(v)]
    # An unbounded or far end is cut: three bars away says enough.
    top = min(max([data.bar, *known]), 3 * data.bar) if data.bar > 0 else max([data.bar, *known])
    top = max(top * 1.15, 1.0 if data.share and data.bar > 0.2 else 0.0) or 1.0

    def x(value: float) -> float:
        return 6 + (width - 12) * min(max(value, 0.0), top) / top

    good = (x(data.bar), x(top)) if data.at_least else (x(0), x(data.bar))
    parts = [
        f'<rect class="p-track" x="6" y="{middle - 5:.1f}" width="{width - 12}" height="10" rx="3"/>',
        f'<rect class="p-good" x="{good[0]:.1f}" y="{middle - 5:.1f}" '
        f'width="{max(good[1] - good[0], 0):.1f}" height="10" rx="3"/>',
    ]
    if data.value is not None:
        low, high = data.lower or 0.0, data.upper if data.upper is not None else top
        parts.append(_line("p-interval", x(low), middle, x(high), middle))
        parts.append(f'<circle class="p-dot" cx="{x(data.value):.1f}" cy="{middle}" r="5"/>')
    parts.append(_line("p-bar", x(data.bar), middle - 11, x(data.bar), middle + 11))
    return _svg(width, height, title, parts)
