"""The two plots of an evidence path, the plot of a criterion's history and that of a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cogumi.verdict import Verdict
from dashboard import kit
from dashboard.evidence_path import thin
from dashboard.gate_history import Decided
from gates.paths import EvidencePath
from gates.power import PlanRow
from gates.verdicts import CriterionVerdict

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FloatArray = npt.NDArray[np.float64]

_FLOOR = -4.0
"""The least power of ten of a capital that is drawn: who has lost that much hardly comes back."""
_HEADROOM = 0.6
_MOST_LABELS = 8
# Below the plot: above it a phone has the toolbar.
_LEGEND = {"orientation": "h", "yanchor": "top", "y": -0.24, "x": 0}
_MARKERS = {
    "PASS": "circle", "FAIL": "x", "UNDECIDED": "diamond-open", "INFEASIBLE": "square-open",
    "ERROR": "triangle-up-open", "BUDGET": "triangle-down-open",
}  # fmt: skip


def path_table(path: EvidencePath) -> pd.DataFrame:
    """Return the drawn points of a path as numbers: capitals as powers of ten, bounds where taken."""
    import pandas as pd

    at = np.union1d(drawn(path), path.looks - 1)
    bounds = {int(n) - 1: k for k, n in enumerate(path.looks)}
    looked = [bounds.get(int(n)) for n in at]
    return pd.DataFrame(
        {
            "Draw": at + 1,
            "Items known": path.items[at],
            "Capital for PASS (log10)": path.passing[at] / math.log(10),
            "Capital for FAIL (log10)": path.failing[at] / math.log(10),
            "Estimate": path.value[at],
            "Lower bound": [None if k is None else float(path.lower[k]) for k in looked],
            "Upper bound": [None if k is None else float(path.upper[k]) for k in looked],
        }
    )


def drawn(path: EvidencePath) -> npt.NDArray[np.int64]:
    """Return the points of a path that are drawn."""
    return thin((path.passing, path.failing, path.value))


def capital_figure(path: EvidencePath) -> go.Figure:
    """Return both capitals against the draws, with the thresholds that decide."""
    import plotly.graph_objects as go

    colours, at = kit.colours(), drawn(path)
    thresholds = [-math.log10(alpha) for alpha in path.alphas]
    top = max(thresholds) + _HEADROOM
    fig = go.Figure()
    for name, capital, colour, dash in (
        ("PASS", path.passing, colours[0], "solid"),
        ("FAIL", path.failing, colours[1], "dash"),
    ):
        height = np.clip(capital[at] / math.log(10), _FLOOR, top)
        fig.add_scatter(
            x=at + 1,
            y=height,
            name=f"capital bet on {name}",
            mode="lines+markers" if len(at) == 1 else "lines",
            line={"color": colour, "dash": dash, "width": 2},
            customdata=np.stack([path.items[at], capital[at] / math.log(10)], axis=-1),
            hovertemplate="draw %{x}, %{customdata[0]} items<br>10^%{customdata[1]:.2f}",
        )
    told = dict.fromkeys(zip(thresholds, path.alphas, strict=True))
    for level, alpha in told:
        which = "" if len(told) == 1 else (" for PASS" if alpha == path.alphas[0] else " for FAIL")
        fig.add_hline(
            y=level,
            line={"color": colours[-1], "dash": "dot", "width": 1.5},
            annotation_text=f"decides{which}: 1/alpha = {1 / alpha:,.3g}",
            annotation_position="top left",
        )
    if path.verdict is not Verdict.UNDECIDED:
        side = 0 if path.verdict is Verdict.PASS else 1
        last = (path.passing, path.failing)[side][-1] / math.log(10)
        fig.add_scatter(
            x=[len(path)],
            y=[min(last, top)],
            name=f"{path.verdict.value} here",
            mode="markers",
            marker={"symbol": _MARKERS[path.verdict.value], "size": 12, "color": colours[side]},
            hoverinfo="skip",
        )
    ticks = [n for n in range(int(_FLOOR), math.ceil(top)) if n <= top]
    fig.update_yaxes(
        title="capital (e-value), from 1 at the start",
        range=[_FLOOR - 0.1, top + 0.2],
        tickvals=ticks,
        ticktext=[_power(n) for n in ticks],
    )
    return _finished(fig, "draws")


def _power(exponent: int) -> str:
    return f"{10**exponent:,}" if exponent >= 0 else f"1/{10**-exponent:,}"


def estimate_figure(path: EvidencePath, criterion: CriterionVerdict) -> go.Figure:
    """Return the running estimate in its confidence sequence, against the bar."""
    import plotly.graph_objects as go

    colours, at = kit.colours(), drawn(path)
    bottom, top = _window(path, criterion)
    # Bounds at infinity are drawn out of sight.
    upper = np.minimum(path.upper, 100 * top)
    fig = go.Figure()
    fig.add_scatter(
        x=np.concatenate([path.looks, path.looks[::-1]]),
        y=np.concatenate([upper, path.lower[::-1]]),
        name="bounds, valid at every draw",
        mode="lines",
        fill="toself",
        fillcolor=_faint(colours[0]),
        line={"color": colours[0], "width": 1, "dash": "dot"},
        hoverinfo="skip",
    )
    fig.add_scatter(
        x=at + 1,
        y=path.value[at],
        name=_unit(criterion),
        mode="lines+markers" if len(at) == 1 else "lines",
        line={"color": colours[0], "width": 2},
        customdata=path.items[at],
        hovertemplate="draw %{x}, %{customdata} items<br>%{y:.4f}",
    )
    fig.add_hline(
        y=criterion.bar,
        line={"color": colours[1], "dash": "dash", "width": 2},
        annotation_text=_bar(criterion),
        annotation_position="top right",
    )
    fig.update_yaxes(title=criterion.measure.replace("_", " "), range=[bottom, top])
    return _finished(fig, "draws")


def _bar(criterion: CriterionVerdict) -> str:
    return f"bar {'≥' if criterion.comparison == '>=' else '≤'} {criterion.bar:,g}"


def _unit(criterion: CriterionVerdict) -> str:
    if criterion.measure != "ratio":
        return criterion.measure.replace("_", " ")
    simulated = " (simulated)" if criterion.simulated else ""
    reference = criterion.reference if criterion.reference and len(criterion.reference) <= 40 else "reference"
    return f"ratio to {kit.plain(reference)}{simulated}"


def _window(path: EvidencePath, criterion: CriterionVerdict) -> tuple[float, float]:
    """Return the stretch of the axis that shows bar and bounds once a tenth of the draws is known."""
    late = 10 * path.looks >= len(path)
    seen = np.concatenate([path.lower[late], path.upper[late], path.value[path.looks[late] - 1]])
    # A ratio of a handful of items may be anything, and its upper bound infinite.
    seen = np.append(seen[np.isfinite(seen) & (seen <= 4 * max(1.0, criterion.bar))], criterion.bar)
    spare = 0.15 * max(float(np.ptp(seen)), 0.02)
    return max(-0.02, float(seen.min()) - spare), float(seen.max()) + spare


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"


def history_figure(rows: Sequence[tuple[Decided, CriterionVerdict]], labels: Sequence[str]) -> go.Figure:
    """Return the values of one criterion with their intervals, oldest first, against their bar."""
    import plotly.graph_objects as go

    colours = kit.colours()
    fig = go.Figure()
    for verdict in dict.fromkeys(criterion.verdict.value for _, criterion in rows):
        mine = [(decided.name, one) for decided, one in rows if one.verdict.value == verdict]
        values = [one.value for _, one in mine]
        colour = colours[0] if verdict == "PASS" else colours[1] if verdict == "FAIL" else colours[-1]
        fig.add_scatter(
            x=[name for name, _ in mine],
            y=values,
            name=kit.badge(verdict),
            mode="markers",
            marker={"symbol": _MARKERS.get(verdict, "circle-open"), "size": 11, "color": colour},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [_reach(one.upper, one.value) for _, one in mine],
                "arrayminus": [_reach(one.value, one.lower) for _, one in mine],
                "color": colour,
            },
        )
    bar = rows[0][1]
    fig.add_hline(
        y=bar.bar,
        line={"color": colours[1], "dash": "dash", "width": 2},
        annotation_text=_bar(bar),
        annotation_position="top left",
    )
    order = [decided.name for decided, _ in rows]
    every = math.ceil(len(order) / _MOST_LABELS)
    fig.update_xaxes(
        type="category",
        categoryorder="array",
        categoryarray=order,
        tickvals=order[::every],
        ticktext=labels[::every],
    )
    fig.update_yaxes(title=bar.measure.replace("_", " "))
    fig.update_layout(showlegend=True)
    return _finished(fig, "attempt and artifact, oldest first")


def _reach(above: float | None, below: float | None) -> float:
    return 0.0 if above is None or below is None else max(0.0, above - below)


def plan_figure(rows: Sequence[PlanRow]) -> go.Figure:
    """Return how many items a verdict needs against the true value, median and nine in ten."""
    import plotly.graph_objects as go

    colours = kit.colours()
    fig = go.Figure()
    ratios = [row.ratio for row in rows]
    for name, items, colour, dash, symbol in (
        (
            "half of the verdicts come within",
            [row.median_items for row in rows],
            colours[0],
            "solid",
            "circle",
        ),
        ("nine in ten come within", [row.p90_items for row in rows], colours[1], "dash", "diamond"),
    ):
        fig.add_scatter(
            x=ratios,
            y=items,
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 8},
        )
    fig.add_vline(
        x=rows[0].bar,
        line={"color": colours[-1], "dash": "dot", "width": 1.5},
        annotation_text=f"bar {rows[0].bar:g}",
        annotation_position="top right",
    )
    fig.update_yaxes(title="items", range=[0, 1.08 * max(row.n_total for row in rows)])
    return _finished(fig, "true ratio to the reference")


def _finished(fig: Any, x: str) -> Any:
    fig.update_xaxes(title=x, automargin=True)
    fig.update_yaxes(automargin=True)
    fig.update_layout(legend=_LEGEND, margin={"l": 8, "r": 8, "t": 48, "b": 8}, height=420)
    return fig
