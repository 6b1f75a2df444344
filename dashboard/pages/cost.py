"""Cost: what a run has paid, to whom and for what, against plan and limit; play money stands apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from cogumi.gpu_cost import UNKNOWN
from cogumi.prices import price_of
from cogumi.units import usd
from dashboard import costs, kit
from dashboard.costs import CostRow, Spent
from dashboard.run_rows import RunRows, planned, read_run
from dashboard.view import View

_UNKNOWN = "–"
_COUNTS = (
    "Calls",
    "Tokens in",
    "Tokens out",
    "Of unknown price",
    "From the ledger, not asked again",
    "Planned calls",
)
_PLAN_EVERY_S = 1.0
_TOP_PX = 44
"""Above the bars: the plot's buttons."""
_AXIS_PX = 56
"""Under the bars: ticks and title of the axis."""
_LEGEND_PX = 48
"""Two lines of legend, which a phone needs."""


def draw(view: View) -> None:
    """Draw the page."""
    st.title("Cost")
    run = read_run(view)
    if run is None:
        kit.empty("There is no run in this workspace yet.", "cogumi run")
        return
    if run.unreadable:
        st.error(kit.safe(run.unreadable))
    _head(run)
    _wait_for_plan(run)
    kit.asked("by", costs.GROUPS)
    by = st.radio("Group calls by", costs.GROUPS, key="by", bind="query-params", horizontal=True)
    for simulated in (False, True):
        _calls(run, str(by), simulated=simulated)
    _gpus(run)
    _prices(run)


def _head(run: RunRows) -> None:
    paid = costs.total(run.spent, simulated=False)
    play = costs.total(run.spent, simulated=True)
    st.markdown(f"Run {kit.safe(run.name)}. {kit.safe(_paid_told(paid))} {kit.safe(_play_told(play))}")
    limit = run.profile.limits.max_usd
    if limit is not None:
        st.markdown(
            kit.safe(
                f"The profile's spending limit is {usd(limit)}; a run stops before it would pass it. Where a "
                "local teacher plays, its play money counts against the limit as well."
            )
        )
    else:
        st.markdown(kit.safe("The profile sets no spending limit; cogumi run --max-cost sets one."))
    unpriced = sum(row.unpriced for row in run.spent)
    if unpriced:
        calls = (
            "1 call has no known price and is"
            if unpriced == 1
            else f"{unpriced:,} calls have no known price and are"
        )
        st.warning(f"{calls} in no sum of dollars: those sums are a least.")


def _paid_told(paid: Spent | None) -> str:
    if paid is None:
        return "Nothing was paid to a provider."
    known = "an unknown sum" if paid.usd is None else f"{'at least ' if paid.unpriced else ''}{usd(paid.usd)}"
    return f"Paid to providers: {known} for {paid.calls:,} calls."


def _play_told(play: Spent | None) -> str:
    if play is None:
        return ""
    known = "no known price" if play.usd is None else usd(play.usd)
    return f"The local teacher's {play.calls:,} calls would have cost {known}: simulated, nothing was paid."


def _wait_for_plan(run: RunRows) -> None:
    if run.plan is not None:
        if run.plan.why:
            st.caption(kit.safe(f"No estimate of the plan: {run.plan.why}."))
        return

    @st.fragment(run_every=_PLAN_EVERY_S)
    def wait() -> None:
        from dashboard.app import guard

        # Drawn again by itself, so outside of the guard around the page.
        with guard("cost"):
            if planned(run.row) is not None:
                st.rerun()
            st.caption("The plan is being estimated.")

    wait()


# Calls of teachers --------------------------------------------------------------------------------


def _calls(run: RunRows, by: str, *, simulated: bool) -> None:
    rows = costs.grouped(run.spent, by, run.known_plan, simulated=simulated)
    if not rows:
        if not simulated:
            st.header("Paid to providers")
            st.markdown("No call of this run went to a provider that asks for money, and the plan has none.")
        return
    st.header("Simulated: the local teacher's play money" if simulated else "Paid to providers")
    table = _table(run, rows, by, simulated=simulated)
    kind = "simulated" if simulated else "paid"
    name = f"{run.name}-cost-{kind}-by-{by}"
    if any(_known(row) for row in rows):
        kit.figure(_bars(rows, kind), name, None, _alt(rows, by, kind), key=f"chart-{kind}")
    else:
        st.markdown("All of these calls are free, or their price is unknown.")
    if by != "step" and run.known_plan.steps:
        st.caption("The plan is estimated by step; group by step to compare.")
    kit.frame(table, name, key=f"table-{kind}", column_config=_columns())


def _known(row: CostRow) -> bool:
    return bool((row.spent and row.spent.usd) or row.usd)


def _bars(rows: Sequence[CostRow], kind: str) -> go.Figure:
    """Return bars of what was spent, each with the plan's expectation and its ends beside it."""
    shown = [row for row in rows if _known(row)][::-1]
    names = [kit.plain(row.name, longest=60) for row in shown]
    spent, expected = kit.colours()[:2]
    figure = go.Figure()
    figure.add_bar(
        name="spent" if kind == "paid" else "simulated",
        orientation="h",
        y=names,
        x=[row.spent.usd if row.spent else None for row in shown],
        marker={"color": spent},
        hovertemplate="%{y}: $%{x:,.4f}<extra></extra>",
    )
    planned = [row for row in shown if row.usd is not None]
    if planned:
        figure.add_scatter(
            name="the plan: expected, low to high",
            mode="markers",
            y=[kit.plain(row.name, longest=60) for row in planned],
            x=[row.usd for row in planned],
            marker={"symbol": "diamond-open", "size": 11, "color": expected, "line": {"width": 2}},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [_gap(row.usd, row.usd_high) for row in planned],
                "arrayminus": [_gap(row.usd_low, row.usd) for row in planned],
                "color": expected,
            },
            hovertemplate="%{y}: $%{x:,.4f} expected<extra></extra>",
        )
    plot, under = 36 + 44 * len(shown), _AXIS_PX + (_LEGEND_PX if planned else 0)
    figure.update_layout(
        height=_TOP_PX + plot + under,
        margin={"l": 8, "r": 8, "t": _TOP_PX, "b": under},
        # Under the axis: above the plot a phone has room for the buttons alone.
        legend={"orientation": "h", "y": -_AXIS_PX / plot, "yanchor": "top", "x": 0},
        xaxis={
            "title": "US dollars" + (" (simulated, nothing is paid)" if kind == "simulated" else ""),
            "tickprefix": "$",
            "rangemode": "tozero",
        },
        yaxis={"automargin": True, "type": "category"},
    )
    return figure


def _gap(low: float | None, high: float | None) -> float:
    return 0.0 if low is None or high is None else max(0.0, high - low)


def _alt(rows: Sequence[CostRow], by: str, kind: str) -> str:
    told = [f"{row.name} {usd(row.spent.usd)}" for row in rows if row.spent and row.spent.usd is not None]
    return f"Bars: dollars {kind} by {by}: {', '.join(told[:8])}."


def _table(run: RunRows, rows: Sequence[CostRow], by: str, *, simulated: bool) -> pd.DataFrame:
    replays = costs.replayed(run.steps)
    money = "Simulated ($)" if simulated else "Paid ($)"
    found = []
    for row in rows:
        spent = row.spent
        line: dict[str, Any] = {
            by.capitalize(): kit.plain(row.name),
            money: spent.usd if spent else None,
            "Calls": spent.calls if spent else None,
            "Tokens in": spent.input_tokens if spent else None,
            "Tokens out": spent.output_tokens if spent else None,
            "Of unknown price": spent.unpriced if spent else None,
        }
        if by == "step":
            line |= {
                "From the ledger, not asked again": replays.get(row.name),
                "Planned calls": row.calls,
                "Planned, low ($)": row.usd_low,
                "Planned ($)": row.usd,
                "Planned, high ($)": row.usd_high,
                "The plan says": kit.plain(row.says) or _UNKNOWN,
            }
        found.append(line)
    table = pd.DataFrame(found)
    return table.astype({name: "Int64" for name in _COUNTS if name in table})


def _columns() -> dict[str, Any]:
    money = ("Paid ($)", "Simulated ($)", "Planned, low ($)", "Planned ($)", "Planned, high ($)", "Cost ($)")
    return {
        **{name: st.column_config.NumberColumn(format="$%.4f") for name in (*money, "Planned cost ($)")},
        **{name: st.column_config.NumberColumn(format="localized") for name in _COUNTS},
        "The plan says": st.column_config.TextColumn(help="The owner's figure for this step"),
    }


# GPUs and prices ----------------------------------------------------------------------------------


def _gpus(run: RunRows) -> None:
    rows = costs.gpu_rows(run.profile, run.steps, run.known_plan)
    st.header("GPU hours")
    gpu = run.profile.gpu
    if not rows:
        st.markdown("No step of this run took a GPU, and the plan has none.")
        return
    if gpu is None:
        st.markdown(kit.safe(f"The profile names no GPU, so hours are told and their {UNKNOWN}."))
    else:
        price = f"{usd(gpu.usd_per_hour)} an hour" if gpu.usd_per_hour is not None else UNKNOWN
        st.markdown(kit.safe(f"{gpu.name}: {price} ({gpu.source}). Not in what was paid to providers."))
    table = pd.DataFrame(
        [
            {
                "Step": kit.plain(row.step),
                "GPU hours": row.hours,
                "Cost ($)": row.usd,
                "Planned hours, low": row.planned_low,
                "Planned hours": row.planned,
                "Planned hours, high": row.planned_high,
                "Planned cost ($)": row.planned_usd,
                "The plan says": kit.plain(row.says) or _UNKNOWN,
            }
            for row in rows
        ]
    )
    kit.frame(table, f"{run.name}-gpu-hours", key="gpus", column_config=_columns())


def _prices(run: RunRows) -> None:
    teachers = run.profile.teachers
    if not teachers:
        return
    st.header("Prices")
    st.markdown("US dollars for a million tokens, without the discount of a batch.")
    rows = []
    for name, teacher in teachers.items():
        price = price_of(teacher)
        rows.append(
            {
                "Teacher": kit.plain(name),
                "Model": kit.plain(teacher.model),
                "Simulated": "simulated" if teacher.base_url == "local" else "",
                "In ($)": price.input_usd_per_mtok,
                "Out ($)": price.output_usd_per_mtok,
                "A batch saves": price.batch_discount,
                "Source": kit.plain(price.source),
            }
        )
    prices = {name: st.column_config.NumberColumn(format="$%.2f") for name in ("In ($)", "Out ($)")}
    saves = {"A batch saves": st.column_config.NumberColumn(format="percent")}
    kit.frame(pd.DataFrame(rows), f"{run.name}-prices", key="prices", column_config=prices | saves)
