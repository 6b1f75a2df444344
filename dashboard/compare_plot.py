"""The plot of a comparison: on each task how far every model is from the baseline, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dashboard.pairs import Compared
from dashboard.text import plain
from reports.text import interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Beside colours, so that nothing rests on colour alone.
_MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star")
_MODEL_PIXELS = 16
_TASK_PIXELS = 24
_MARGIN = 0.05
"""Beside the widest interval, as a share of what is drawn."""


def forest(models: Mapping[str, Compared], colours: Sequence[str]) -> go.Figure:
    """Return the differences of each named model on each task, and on the suite where it is whole."""
    import plotly.graph_objects as go

    figure = go.Figure()
    lines, ends = 1, [0.0]
    for number, (name, found) in enumerate(models.items()):
        compared = found.of
        if compared is None:
            continue
        rows = [(task.task, task.difference, task.lower, task.upper, task.n) for task in compared.tasks]
        if found.whole and len(rows) > 1:
            n = sum(task.n for task in compared.tasks)
            rows.append(("whole suite", compared.difference, compared.lower, compared.upper, n))
        lines = max(lines, len(rows))
        ends += [end for _, _, lower, upper, _ in rows for end in (lower, upper)]
        colour = colours[number % len(colours)]
        figure.add_trace(
            go.Scatter(
                name=plain(name, longest=60),
                x=[value for _, value, *_ in rows],
                y=[plain(task, longest=60) for task, *_ in rows],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [upper - value for _, value, _, upper, _ in rows],
                    "arrayminus": [value - lower for _, value, lower, _, _ in rows],
                },
                mode="markers",
                # So that models of one task stand below each other, not shifted along the difference.
                orientation="h",
                marker={"symbol": _MARKERS[number % len(_MARKERS)], "size": 10, "color": colour},
                text=[f"{interval(lower, upper)}, {n:,} items" for _, _, lower, upper, n in rows],
                hovertemplate="%{y}: %{x:+.3f} %{text}",
            )
        )
    figure.add_vline(x=0, line_width=1, line_dash="dot", line_color="#888888")
    margin = _MARGIN * (max(ends) - min(ends)) or _MARGIN
    figure.update_layout(
        height=170 + (_TASK_PIXELS + _MODEL_PIXELS * len(models)) * lines,
        xaxis={
            "title": {"text": "difference of scores to the baseline"},
            "tickformat": "+.3~f",
            "range": [min(ends) - margin, max(ends) + margin],
        },
        yaxis={"autorange": "reversed", "automargin": True},
        scattermode="group",
        showlegend=True,
        legend={"orientation": "h", "yanchor": "top", "y": -0.2, "yref": "paper", "x": 0},
        margin={"l": 8, "r": 8, "t": 40, "b": 8},
    )
    return figure
