"""The few shapes of the inline SVG that plots are drawn with.

Colours and fonts come from the page's style sheet (classes ``p-…``), so that they follow light and dark.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from reports.text import clean


def svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """Return a picture of its parts; ``title`` is what a screen reader says."""
    label = escape(clean(title))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a straight line of class ``kind``."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(kind: str, x: float, y: float, told: str, anchor: str = "start") -> str:
    """Return a line of text of class ``kind``; ``anchor`` is the end that ``x`` is."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(clean(told))}</text>'
