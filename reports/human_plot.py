"""Plots of a human study as inline SVG: intervals beside the bar, histogram, tasks from worst to best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from gates.crossed import MeanInterval
from gates.people_tables import GroupMean
from reports.svg import line, svg, text
from reports.text import clean

_TOP, _STEP = 30.0, 34.0
_NARROW = 600
"""Up to this width in px names stand above their intervals, as there is no room before them."""
_NAMES = 184.0


def intervals_plot(found: Sequence[tuple[str, MeanInterval]], bar: float, width: int, title: str) -> str:
    """Return an SVG of intervals below each other, their names before or above them, the bar dashed."""
    known = [(name, one) for name, one in found if one.n]
    roomy = width > _NARROW
    left, right = (_NAMES if roomy else 14.0), width - 14.0
    ends = [bar]
    for _, one in known:
        ends += [one.mean, *(end for end in (one.lower, one.upper) if end is not None)]
    air = max(0.06 * (max(ends) - min(ends)), 0.05)
    low, high = min(ends) - air, max(ends) + air

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    bottom = _TOP + _STEP * len(known)
    parts = [_axis(low, high, x, (_TOP - 6, bottom)), line("p-bar", x(bar), _TOP - 10, x(bar), bottom)]
    for k, (name, one) in enumerate(known):
        y = _TOP + k * _STEP + 24
        last = k == len(known) - 1
        parts.append(text("p-label", 14.0, y + 4 if roomy else y - 9, name))
        if one.lower is not None and one.upper is not None:
            parts.append(line("p-error" if k else "p-interval", x(one.lower), y, x(one.upper), y))
        told = escape(clean(f"{name}: {one.mean:.3f}"))
        shape = "p-hollow" if last else "p-dot"
        mark = f'<circle class="{shape}" cx="{x(one.mean):.1f}" cy="{y:.1f}" r="5">'
        parts.append(f"{mark}<title>{told}</title></circle>")
    anchor = "end" if x(bar) > width / 2 else "start"
    parts.append(text("p-title", x(bar), 14, f"bar {bar:g}", anchor))
    parts.append(text("p-title", right, bottom + 36, "mean rating →", "end"))
    return svg(width, int(bottom + 46), title, parts)


def _axis(low: float, high: float, x: Callable[[float], float], span: tuple[float, float]) -> str:
    top, bottom = span
    parts = []
    for value in _ticks(low, high, 6):
        parts.append(line("p-grid", x(value), top, x(value), bottom))
        parts.append(text("p-tick", x(value), bottom + 16, f"{value:.4g}", "middle"))
    return "".join(parts)


def _ticks(low: float, high: float, about: int) -> list[float]:
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def histogram_plot(counts: Sequence[int], width: int, title: str) -> str:
    """Return an SVG of how many ratings gave 1, 2, ... 10."""
    height, left, right, top, bottom = 240, 14.0, width - 14.0, 30.0, 200.0
    most, total = max(counts, default=0) or 1, sum(counts) or 1
    slot = (right - left) / len(counts)
    parts = [text("p-title", left, 14, "share of the ratings")]
    for k, count in enumerate(counts):
        tall = (bottom - top) * count / most
        at = left + k * slot
        told = f"<title>{k + 1}: {count:,} ratings</title>"
        parts.append(
            f'<rect class="h-column" x="{at + 3:.1f}" y="{bottom - tall:.1f}" width="{slot - 6:.1f}" '
            f'height="{tall:.1f}" rx="2">{told}</rect>'
        )
        parts.append(text("p-tick", at + slot / 2, bottom - tall - 5, _share(count / total), "middle"))
        parts.append(text("p-tick", at + slot / 2, bottom + 16, str(k + 1), "middle"))
    parts.append(line("p-axis", left, bottom, right, bottom))
    parts.append(text("p-title", right, bottom + 34, "rating →", "end"))
    return svg(width, height, title, parts)


def _share(value: float) -> str:
    return "0 %" if value == 0 else "< 1 %" if value < 0.005 else f"{100 * value:.0f} %"


def tasks_plot(tasks: Sequence[GroupMean], bar: float, width: int, title: str) -> str:
    """Return an SVG of every task's mean with its bounds, the worst to the left."""
    height, left, right, top, bottom = 300, 34.0, width - 14.0, 24.0, 262.0
    order = sorted(tasks, key=lambda one: (one.mean, one.name))
    ends = [bar]
    for one in order:
        ends += [one.mean, *(end for end in (one.lower, one.upper) if end is not None)]
    low, high = max(0.5, min(ends) - 0.3), min(10.5, max(ends) + 0.3)
    low, high = min(low, min(ends)), max(high, max(ends))

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = []
    for value in _ticks(low, high, 5):
        parts.append(line("p-grid", left, y(value), right, y(value)))
        parts.append(text("p-tick", left - 6, y(value) + 4, f"{value:.3g}", "end"))
    slot = (right - left) / max(1, len(order))
    radius = min(5.0, max(2.0, slot * 0.35))
    for k, one in enumerate(order):
        x = left + (k + 0.5) * slot
        if one.lower is not None and one.upper is not None:
            parts.append(line("p-error", x, y(one.lower), x, y(one.upper)))
        told = escape(clean(f"{one.name} ({one.domain}): {one.mean:.2f} from {one.n} ratings"))
        parts.append(
            f'<circle class="p-dot" cx="{x:.1f}" cy="{y(one.mean):.1f}" r="{radius:.1f}">'
            f"<title>{told}</title></circle>"
        )
    parts.append(line("p-bar", left, y(bar), right, y(bar)))
    parts.append(text("p-title", 4, 14, "mean rating ↑"))
    parts.append(text("p-title", right, bottom + 30, "tasks, from the lowest mean to the highest →", "end"))
    return svg(width, height, title, parts)
