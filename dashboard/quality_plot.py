"""The plot of quality, size and speed: models with bounds, the frontier, the plan's lines and limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from cogumi.units import size
from dashboard.pareto import Better, Value
from dashboard.places import AXES, Axis, Place
from dashboard.plan_lines import Line, Region
from dashboard.text import plain
from reports.text import UNKNOWN, interval, share, speed

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SHAPES = {"gguf": "square", "missing": "x"}
"""Marks by kind; a folder of weights is a circle."""
_WORDS = {
    "best": "best: none beats it",
    "not told apart": "not told apart from a better one",
    "behind": "behind a better one for sure",
    None: "not ranked: a number is unknown",
}
_MARK_PX = (9.0, 26.0)
_NEAR = 3.0
"""Lines of the plan up to so many times beyond the models are drawn by default."""
_LONGEST = 160
_MOST_NAMED = 10
"""With more models in the plot only the best have their names beside their marks."""
_LABEL_ROOM = (0.45, 0.06)
"""Share of the plot's width and height that a name takes on a phone."""
_MOST_TICKS = 8
_LEAST = 1e-7
"""A logarithm has no place for 0: a divergence below this is drawn here, all of it is rounding."""
_LEGEND = 44


@dataclass(frozen=True, slots=True)
class Frame:
    """What is drawn besides the models: axes, lines and regions."""

    x: Axis
    y_label: str
    better: tuple[Better, ...]
    log: bool
    x_lines: Sequence[Line]
    y_lines: Sequence[Line]
    level: Line | None
    """What the reference scores."""
    x_region: Region | None
    y_region: Region | None
    divergence: bool
    """Whether y is one: logarithmic, and no score."""
    marks: str
    """Of ``AXES``: what a mark's area tells; empty for marks of one size."""
    colours: Sequence[str]
    all_lines: bool
    zoom: bool
    """Whether y shows the part from the worst of the best models on."""


@dataclass(frozen=True, slots=True)
class _Span:
    """A range of an axis that holds the models, and of the lines those that are near."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: Iterable[float], *, log: bool, floor: float | None = None) -> _Span:
        known = [value for value in values if math.isfinite(value)] or [1.0]
        low, high = min(known), max(known)
        if log:
            pad = max(0.1 * math.log10(high / low), 0.12)
            return cls(low / 10**pad, high * 10**pad, log)
        pad = max(0.08 * (high - low), 0.02 * abs(high), 1e-9)
        bottom = low - pad if floor is None else max(low - pad, floor - pad / 2)
        return cls(bottom, high + pad, log)

    def holds(self, at: float) -> bool:
        return self.low <= at <= self.high

    def share(self, at: float) -> float:
        """Return how far along the axis a number lies, 0 to 1."""
        low, high = self.ends
        return ((math.log10(at) if self.log else at) - low) / (high - low)

    @property
    def ends(self) -> list[float]:
        """The range as plotly takes it: of a logarithmic axis, exponents."""
        return [math.log10(self.low), math.log10(self.high)] if self.log else [self.low, self.high]


def near_lines(frame: Frame, places: Iterable[Place]) -> list[Line]:
    """Return the lines on x that are near the models and so are drawn; all of them where that is asked."""
    values = _xs(place for place in places if place.drawn)
    if frame.all_lines or not values:
        return list(frame.x_lines)
    return [line for line in frame.x_lines if min(values) / _NEAR <= line.at <= max(values) * _NEAR]


def quality_figure(frame: Frame, places: Sequence[Place]) -> go.Figure:
    """Return the figure of the places that have both values; each point's customdata names its artifact."""
    import plotly.graph_objects as go

    drawn = [place for place in places if place.drawn]
    x_lines = near_lines(frame, drawn)
    levels = [*frame.y_lines, *([frame.level] if frame.level is not None else [])]
    x_span = _Span.of([*_xs(drawn), *(line.at for line in x_lines)], log=frame.log)
    shown = [place for place in drawn if place.standing != "behind"] if frame.zoom else drawn
    ends = [end for place in shown for end in _ends(place, frame)] + [line.at for line in levels]
    y_span = _Span.of(ends, log=frame.divergence, floor=0.0)
    fig = go.Figure()
    _regions(fig, frame, x_span, y_span)
    _stairs(fig, frame, drawn)
    for line in x_lines:
        _vertical(fig, frame, line, x_span)
    _levels(fig, frame, x_span)
    _marks(fig, frame, drawn, (x_span, y_span))
    _layout(fig, frame, x_span, y_span)
    return fig


def _xs(places: Iterable[Place]) -> list[float]:
    return [place.x.value for place in places if place.x is not None]


def _ends(place: Place, frame: Frame) -> list[float]:
    if place.y is None:
        return []
    ends = [place.y.value, place.y.lower, place.y.upper]
    return [max(end, _LEAST) for end in ends] if frame.divergence else ends


# Marks --------------------------------------------------------------------------------------------


def _marks(fig: go.Figure, frame: Frame, places: Sequence[Place], spans: tuple[_Span, _Span]) -> None:
    import plotly.graph_objects as go

    shown = [place for place in places if spans[0].holds(_x(place)) and spans[1].holds(_y(place, frame))]
    _error_bars(fig, frame, shown, spans[1])
    colours = (frame.colours[0], frame.colours[1], frame.colours[-1], frame.colours[-1])
    radii, labels = _radii(shown, frame), _labels(frame, shown, spans)
    for (standing, word), colour in zip(_WORDS.items(), colours, strict=True):
        here = [place for place in shown if place.standing == standing]
        if not here:
            continue
        fig.add_trace(
            go.Scatter(
                x=[_x(place) for place in here],
                y=[_y(place, frame) for place in here],
                mode="markers+text",
                name=word,
                text=[labels[place.key][0] for place in here],
                textposition=[labels[place.key][1] for place in here],
                textfont={"size": 13},
                cliponaxis=False,
                hovertext=[_hover(place, frame) for place in here],
                hoverinfo="text",
                customdata=[{"artifact": place.digest or ""} for place in here],
                marker={
                    "symbol": [_symbol(place) for place in here],
                    "size": [radii[place.key] for place in here],
                    "color": colour,
                    "line": {"width": 2, "color": colour},
                },
            )
        )


def _symbol(place: Place) -> str:
    shape = _SHAPES.get(place.kind, "circle")
    return shape if place.standing == "best" or shape == "x" else f"{shape}-open"


def _x(place: Place) -> float:
    return place.x.value if place.x is not None else math.nan


def _y(place: Place, frame: Frame) -> float:
    value = place.y.value if place.y is not None else math.nan
    return max(value, _LEAST) if frame.divergence else value


def _error_bars(fig: go.Figure, frame: Frame, places: Sequence[Place], span: _Span) -> None:
    """Draw the bounds of all numbers that have chance in them; an open side ends at the edge of the plot."""
    import plotly.graph_objects as go

    bounded = [(place, place.y) for place in places if place.y is not None and not place.y.exact]
    if not bounded:
        return
    fig.add_trace(
        go.Scatter(
            x=[_x(place) for place, _ in bounded],
            y=[_y(place, frame) for place, _ in bounded],
            mode="markers",
            marker={"size": 1, "color": frame.colours[-1]},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [max(0.0, min(y.upper, span.high) - _y(place, frame)) for place, y in bounded],
                "arrayminus": [max(0.0, _y(place, frame) - max(y.lower, span.low)) for place, y in bounded],
                "thickness": 1.5,
                "width": 6,
                "color": frame.colours[-1],
            },
            name="bounds",
            showlegend=False,
            hoverinfo="skip",
        )
    )


def _radii(places: Sequence[Place], frame: Frame) -> dict[str, float]:
    """Return each mark's diameter: its area grows with the number that marks tell."""
    low, high = _MARK_PX
    known = {place.key: place.numbers.get(frame.marks) for place in places}
    most = max((value for value in known.values() if value), default=0.0)
    if not frame.marks or most <= 0:
        return dict.fromkeys(known, (low + high) / 2.5)
    return {
        key: low if value is None else max(low, high * math.sqrt(max(value, 0.0) / most))
        for key, value in known.items()
    }


def _labels(frame: Frame, places: Sequence[Place], spans: tuple[_Span, _Span]) -> dict[str, tuple[str, str]]:
    """Return each mark's label and its side of the mark: towards the middle, in turn above and below.

    Names, the best first, where no other name stands near; else the number in the table.
    """
    where = {place.key: (spans[0].share(_x(place)), spans[1].share(_y(place, frame))) for place in places}
    found: dict[str, tuple[str, str]] = {}
    named: list[tuple[float, float]] = []
    in_turn = sorted(places, key=lambda one: (one.standing != "best", where[one.key]))
    for k, place in enumerate(in_turn):
        x, y = where[place.key]
        told = "" if place.number is None else str(place.number)
        wanted = place.standing == "best" or len(places) <= _MOST_NAMED
        if wanted and not any(abs(x - a) < _LABEL_ROOM[0] and abs(y - b) < _LABEL_ROOM[1] for a, b in named):
            told = f"{told} {place.name}".strip()
            named.append((x, y))
        found[place.key] = (
            _text(told, 40),
            f"{'bottom' if k % 2 else 'top'} {'right' if x <= 0.5 else 'left'}",
        )
    return found


def _text(told: str, longest: int = _LONGEST) -> str:
    """Return text of others for plotly, which reads tags in it."""
    return escape(" ".join(plain(told, longest=longest).split()), quote=False)


def _hover(place: Place, frame: Frame) -> str:
    lines = [f"<b>{_text(place.name)}</b>"]
    if place.y is not None:
        n = f", {place.n:,} of {place.n_total:,} items" if place.n_total and not frame.divergence else ""
        lines.append(f"{_text(frame.y_label)}: {value_told(place.y, divergence=frame.divergence)}{n}")
    lines += [f"{name}: {number_told(name, place.numbers[name])}" for name in AXES]
    lines.append(f"{_WORDS[place.standing]}")
    if place.recipe:
        lines += ["<br>".join(_wrapped(place.recipe))]
    lines.append("click: its page")
    return "<br>".join(lines)


def _wrapped(recipe: str, width: int = 60) -> list[str]:
    rows: list[str] = []
    for step in plain(recipe, longest=600).split(" → "):
        told = _text(step)
        if rows and len(rows[-1]) + len(told) < width:
            rows[-1] += f" → {told}"
        else:
            rows.append(f"→ {told}" if rows else told)
    return rows


def value_told(value: Value, *, divergence: bool = False) -> str:
    """Return a number of the y axis with its bounds: ``0.874 [0.812, 0.921]``, ``0.891 exact``."""
    if divergence:
        return f"{value.value:.3g} [{value.lower:.3g}, {value.upper:.3g}]"
    upper = None if math.isinf(value.upper) else value.upper
    return f"{share(value.value)} {interval(value.lower, upper)}"


def number_told(name: str, number: float | None) -> str:
    """Return one of ``AXES`` for people: ``507 kB``, ``3.22``, or that it is unknown."""
    if number is None:
        return UNKNOWN
    if AXES[name].is_bytes:
        return size(number)
    return speed(number) if name == "tokens a second" else f"{number:.3g}"


# What is around them ------------------------------------------------------------------------------


def _stairs(fig: go.Figure, frame: Frame, places: Sequence[Place]) -> None:
    """Join the best points by the line beyond which nothing was measured; three objectives have none."""
    if len(frame.better) > 2:
        return
    best = sorted(
        {(one.x.value, one.y.value) for one in places if one.standing == "best" and one.x and one.y}
    )
    if len(best) < 2:
        return
    import plotly.graph_objects as go

    fig.add_trace(
        go.Scatter(
            x=[x for x, _ in best],
            y=[y for _, y in best],
            mode="lines",
            # Of the smaller one until the next is reached; where more is better, from behind it on.
            line={
                "shape": "hv" if frame.better[0] == "less" else "vh",
                "width": 2,
                "color": frame.colours[0],
            },
            name="frontier",
            hoverinfo="skip",
        )
    )


def _vertical(fig: go.Figure, frame: Frame, line: Line, x_span: _Span) -> None:
    fig.add_shape(
        type="line",
        x0=line.at,
        x1=line.at,
        y0=0,
        y1=1,
        yref="paper",
        line={"dash": "dash" if line.asked else "dot", "width": 1.5, "color": frame.colours[2]},
    )
    fig.add_annotation(
        x=math.log10(line.at) if x_span.log else line.at,
        y=0,
        yref="paper",
        text=_text(line.label, 60),
        textangle=-90,
        showarrow=False,
        xanchor="right",
        yanchor="bottom",
        font={"size": 12},
    )


def _levels(fig: go.Figure, frame: Frame, x_span: _Span) -> None:
    """Draw bars and the reference as traces, so that the legend names what a narrow plot has no room for."""
    import plotly.graph_objects as go

    levels = [(bar, "dash" if bar.asked else "dot", frame.colours[2]) for bar in frame.y_lines]
    if frame.level is not None:
        levels.append((frame.level, "dashdot", frame.colours[3]))
    for line, dash, colour in levels:
        fig.add_trace(
            go.Scatter(
                x=[x_span.low, x_span.high],
                y=[line.at, line.at],
                mode="lines",
                line={"dash": dash, "width": 1.5, "color": colour},
                name="<br>".join(wrap(_text(line.label), _LEGEND)),
                hoverinfo="name",
            )
        )


def _regions(fig: go.Figure, frame: Frame, x_span: _Span, y_span: _Span) -> None:
    shade = {
        "type": "rect",
        "line": {"width": 0},
        "fillcolor": frame.colours[-1],
        "opacity": 0.14,
        "layer": "below",
    }
    if frame.x_region is not None and frame.x_region.edge > x_span.low:
        edge = min(frame.x_region.edge, x_span.high)
        fig.add_shape(x0=x_span.low, x1=edge, y0=0, y1=1, yref="paper", **shade)
    if frame.y_region is not None and frame.y_region.edge < y_span.high:
        edge = max(frame.y_region.edge, y_span.low)
        fig.add_shape(x0=0, x1=1, xref="paper", y0=edge, y1=y_span.high, **shade)


def _layout(fig: go.Figure, frame: Frame, x_span: _Span, y_span: _Span) -> None:
    scale = ", logarithmic" if frame.log else ""
    way = {"less": "←", "more": "→"}[frame.better[0]]
    up = {"less": "↓", "more": "↑"}[frame.better[1]]
    told = size if frame.x.is_bytes else "{:.4g}".format
    fig.update_layout(
        height=560,
        margin={"l": 8, "r": 8, "t": 44, "b": 8},
        legend={"orientation": "h", "yanchor": "top", "y": -0.16, "x": 0, "traceorder": "reversed"},
        hoverlabel={"align": "left"},
        xaxis={
            "title": f"{frame.x.label}{scale} {way} better",
            "type": "log" if frame.log else "linear",
            "range": x_span.ends,
            "showgrid": True,
            "zeroline": False,
            **_ticks(x_span, told),
        },
        yaxis={
            "title": f"{_text(frame.y_label)}{', logarithmic' if frame.divergence else ''} {up} better",
            "type": "log" if frame.divergence else "linear",
            "range": y_span.ends,
            "showgrid": True,
            "zeroline": False,
            **_ticks(y_span, "{:.4g}".format),
        },
    )


def _ticks(span: _Span, told: Callable[[float], str]) -> dict[str, Any]:
    """Return ticks at round numbers, written by ``told``: on a logarithmic axis plotly has 5 for 500 kB."""
    if span.log:
        first, last = math.floor(math.log10(span.low)), math.ceil(math.log10(span.high))
        digits = (1, 2, 5) if last - first <= 3 else (1,)
        at = [digit * 10.0**exponent for exponent in range(first, last + 1) for digit in digits]
    else:
        raw = (span.high - span.low) / _MOST_TICKS
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * digit for digit in (1, 2, 5, 10) if unit * digit >= raw)
        at = [step * k for k in range(math.ceil(span.low / step), math.floor(span.high / step) + 1)]
    shown = [value for value in at if span.holds(value) and value >= 0]
    return {"tickvals": shown, "ticktext": [told(value) for value in shown]}
