"""Plots of the data page: cells against quota, what became of questions, token shares, a judge's scores."""

from __future__ import annotations

import html
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashboard.data_tables import ASPECTS, FATES
from dashboard.text import plain

if TYPE_CHECKING:
    import pandas as pd

_PATTERNS = ("", "/", "x", "-", ".")
"""One for each series, so that none is told by its colour alone."""
_HEIGHT_OF_BAR = 34
_AXIS_PX = 60
_TOP_PX = 35


@dataclass(frozen=True, slots=True)
class CellMap:
    """One thing that the heat map can show of every cell."""

    name: str
    column: str
    of: str
    """The column that it is divided by; empty for a share that stands there already."""
    against_quota: bool


MAPS = (
    CellMap("Merged rows against quota", "Merged", "Quota", True),
    CellMap("Answered questions against quota", "Answered", "Quota", True),
    CellMap("Validated questions against quota", "Validated", "Quota", True),
    CellMap("Written questions against quota", "Written", "Quota", True),
    CellMap("Share that the judge dropped", "Judge dropped", "", False),
    CellMap("Share of offered questions that were benchmark items", "leaks", "Offered", False),
    CellMap("Share of offered questions that were duplicates", "duplicates", "Offered", False),
    CellMap("Share of offered questions that were near duplicates", "near_duplicates", "Offered", False),
)


def known_maps(cells: pd.DataFrame) -> list[CellMap]:
    """Return the maps of which something is known."""
    return [
        one
        for one in MAPS
        if len(cells) and cells[one.column].notna().any() and (not one.of or cells[one.of].notna().any())
    ]


def cell_map(cells: pd.DataFrame, shown: CellMap) -> Any:
    """Return the heat map of domain and difficulty; every cell is told in figures, a sign marks its quota."""
    import plotly.graph_objects as go

    domains, levels = list(dict.fromkeys(cells["Domain"])), list(dict.fromkeys(cells["Difficulty"]))
    at = {(row["Domain"], row["Difficulty"]): _told(row, shown) for row in cells.to_dict("records")}
    grid = [[at.get((domain, level), (None, "–")) for level in levels] for domain in domains]
    shares = [share for line in grid for share, _ in line if share is not None]
    fig = go.Figure(
        go.Heatmap(
            x=[label(name) for name in levels],
            y=[label(name) for name in domains],
            z=[[share for share, _ in line] for line in grid],
            text=[[told for _, told in line] for line in grid],
            texttemplate="%{text}",
            hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
            # Dark is as it should be, bright is where to look; Cividis is made for colour-blind readers.
            colorscale="Cividis",
            reversescale=shown.against_quota,
            zmin=0,
            # From 0 on, so that cells which hardly differ look alike.
            zmax=1 if shown.against_quota else max(shares, default=0) or 1,
            xgap=2,
            ygap=2,
            colorbar={
                "title": {"text": "rows / quota" if shown.against_quota else "share"},
                "tickformat": ".0%",
                "thickness": 14,
            },
        )
    )
    fig.update_yaxes(autorange="reversed", automargin=True)
    fig.update_xaxes(fixedrange=True)
    fig.update_layout(height=110 + 40 * max(3, len(domains)), margin={"l": 0, "r": 0, "t": _TOP_PX, "b": 10})
    return fig


def _told(row: Mapping[Hashable, Any], shown: CellMap) -> tuple[float | None, str]:
    """Return (colour's value, text) of one cell."""
    count = _known(row[shown.column])
    if count is None:
        return None, "–"
    if not shown.of:
        return count, f"{count:.1%}"
    of = _known(row[shown.of])
    if not shown.against_quota:
        return (count / of, f"{count / of:.1%}") if of else (None, "–")
    if of is None:
        return None, f"{count:,.0f}"
    sign = "✓" if count == of else "▼" if count < of else "▲"
    return count / of if of else 1.0, f"{sign} {count:,.0f} / {of:,.0f}"


def fate_bars(cells: pd.DataFrame, colours: Sequence[str]) -> Any:
    """Return stacked bars: what became of the questions that teachers offered, by domain."""
    import plotly.graph_objects as go

    known = cells.dropna(subset=list(FATES)).groupby("Domain", sort=False)[list(FATES)].sum()
    fig = go.Figure()
    for number, (fate, told) in enumerate(FATES.items()):
        if known[fate].any():
            fig.add_bar(
                x=known[fate],
                y=[label(name) for name in known.index],
                name=told,
                orientation="h",
                marker=_marker(colours, number),
                hovertemplate="%{y}: %{x:,} " + told + "<extra></extra>",
            )
    return _lying(fig, len(known), "questions offered")


def token_bars(cells: pd.DataFrame, column: str, colours: Sequence[str]) -> Any:
    """Return stacked bars of easy and hard by domain, with each domain's share of the rows as a diamond."""
    import plotly.graph_objects as go

    fig = go.Figure()
    domains = list(dict.fromkeys(cells["Domain"]))
    for number, level in enumerate(dict.fromkeys(cells["Difficulty"])):
        part = cells[cells["Difficulty"] == level]
        fig.add_bar(
            x=part[column],
            y=[label(name) for name in part["Domain"]],
            name=label(level),
            orientation="h",
            marker=_marker(colours, number),
            hovertemplate="%{y}, " + label(level) + ": %{x:.1%}<extra></extra>",
        )
    rows = cells.groupby("Domain", sort=False)["Share of rows"].sum(min_count=1)
    fig.add_scatter(
        x=[rows[name] for name in domains],
        y=[label(name) for name in domains],
        name="share of rows",
        mode="markers",
        marker={"symbol": "diamond-open", "size": 13, "color": colours[-1], "line": {"width": 2.5}},
        hovertemplate="%{y}: %{x:.1%} of the rows<extra></extra>",
    )
    fig.update_xaxes(tickformat=".0%")
    return _lying(fig, len(domains), column.lower())


def score_bars(scores: pd.DataFrame, column: str, lowest: float | None, colours: Sequence[str]) -> Any:
    """Return questions by score, one series for each aspect; a line at ``lowest``, from which one is kept."""
    import plotly.graph_objects as go

    fig = go.Figure()
    for number, aspect in enumerate(ASPECTS):
        part = scores[scores["Aspect"] == aspect]
        if len(part):
            fig.add_bar(
                x=part["Score"],
                y=part[column],
                name=aspect,
                marker=_marker(colours, number),
                hovertemplate=f"{aspect} %{{x}}: %{{y:,}}<extra></extra>",
            )
    if lowest is not None:
        fig.add_vline(
            x=lowest - 0.5,
            line={"dash": "dash", "color": colours[-1], "width": 2},
            annotation={"text": f"kept from {lowest:g} on", "xanchor": "right"},
        )
    fig.update_xaxes(title="score, 1 to 10", dtick=1, range=[0.4, 10.6])
    fig.update_yaxes(title="questions", automargin=True)
    return _laid_out(fig, 340)


def _lying(fig: Any, bars: int, title: str) -> Any:
    fig.update_yaxes(autorange="reversed", automargin=True)
    fig.update_xaxes(title=title)
    fig.update_layout(barmode="stack")
    return _laid_out(fig, 150 + _HEIGHT_OF_BAR * max(3, bars))


def _laid_out(fig: Any, height: int) -> Any:
    """Put the legend under the axis: above the plot a phone has room for the buttons alone."""
    under = -_AXIS_PX / (height - _AXIS_PX - _TOP_PX)
    fig.update_layout(
        height=height,
        margin={"l": 0, "r": 0, "t": _TOP_PX, "b": _AXIS_PX},
        legend={"orientation": "h", "yanchor": "top", "y": under, "x": 0, "traceorder": "normal"},
    )
    return fig


def _marker(colours: Sequence[str], number: int) -> dict[str, Any]:
    pattern = {
        "shape": _PATTERNS[number % len(_PATTERNS)],
        "fillmode": "overlay",
        "size": 6,
        "solidity": 0.25,
    }
    return {"color": colours[number % len(colours)], "pattern": pattern}


def label(text: str) -> str:
    """Return a name from a file as plotly shows it: its labels take HTML, and a name is none."""
    return html.escape(plain(text, longest=60), quote=False)


def _known(value: Any) -> float | None:
    """Return a number of a table, or None where it has none: pandas keeps unknown ones as NaN."""
    return float(value) if value is not None and value == value else None
