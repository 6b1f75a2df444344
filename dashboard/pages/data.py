"""Data: the rows that the run trains on, their cells, cost and scores, and what was thrown away."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import streamlit as st

from dashboard import data_plots as plots
from dashboard import data_sets as sets
from dashboard import data_tables as tables
from dashboard import kit
from dashboard.data_sample import draw_rows
from dashboard.data_sets import MERGE, DataSets, DataStep
from gates.render import claim

if TYPE_CHECKING:
    import pandas as pd

    from dashboard.view import View

_TOKENS = {
    "Trained tokens (answers and reasoning)": "Share of trained tokens",
    "Answer tokens": "Share of answer tokens",
}
_SCORES = {"All that were judged": "Judged", "Those of the merged rows": "Merged"}
_SHARE = "percent"
_DOLLARS = "$%.4f"


def draw(view: View) -> None:
    """Draw the page."""
    st.title("Data")
    found = sets.data_sets(view)
    if not found.steps:
        kit.empty("This run has no step that makes data.", "cogumi data generate")
        return
    _summary(view, found)
    cells = tables.cell_table(found)
    _steps(found)
    _cells(cells)
    _thrown_away(view, found, cells)
    _tokens(found, cells)
    _scores(found)
    draw_rows(found)


def _summary(view: View, found: DataSets) -> None:
    """Say in a sentence or two whether the rows are there and as they should be."""
    merged = found.made_by(MERGE)
    if merged is None or merged.artifact is None:
        _unfinished(view, found)
    else:
        st.markdown(_sentence(found, merged))
    simulated = [
        step.step for step in found.steps if step.facts.get("simulated") is True and step.stage != MERGE
    ]
    if simulated:
        st.warning(
            f"Simulated: a local teacher stood in for the models of {kit.safe(', '.join(simulated))}. "
            "Such rows are a rehearsal, and their dollars are play money.",
            icon=":material/science:",
        )
    for step in found.steps:
        if step.gone:
            st.warning(
                f"What step {kit.safe(step.step)} made is no longer in the store, or its manifest is broken: "
                "run the step again to see it."
            )


def _sentence(found: DataSets, merged: DataStep) -> str:
    facts = merged.facts
    rows, off = sets.number(facts, "rows"), sets.number(facts, "metrics", "cells_off_quota")
    cells = len(sets.counts(facts, "cells"))
    quota = (
        "quotas unknown"
        if off is None
        else "every cell exactly full"
        if not off
        else f"{off:g} off their quota"
    )
    twice = sets.number(facts, "duplicates")
    leaks = None if "benchmark_leaks" in sets.part(facts, "unmeasured") else sets.number(facts, "leaks")
    held = "not looked for" if leaks is None else f"{leaks:,.0f}"
    told = f"**{_told(rows)} rows in {cells} cells**, {quota}. "
    return told + f"Questions there twice: {_told(twice)}. Benchmark items among them: {held}."


def _told(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _unfinished(view: View, found: DataSets) -> None:
    done = sum(step.artifact is not None for step in found.steps)
    now = next((step for step in found.steps if step.status != "done"), None)
    row = view.workspace.ledger.run(view.run) if view.run else None
    profile = f" --profile {shlex.quote(str(row['profile_name']))}" if row is not None else ""
    what = f"The rows are not merged yet: {done} of {len(found.steps)} data steps are done"
    if now is not None:
        what += f", {now.step} is {now.status}"
    last = shlex.quote((found.made_by(MERGE) or found.steps[-1]).step)
    kit.empty(f"{what}.", f"cogumi run{profile} --run {shlex.quote(view.run or '')} --until {last}")


# Steps and cost -------------------------------------------------------------------------------------


def _steps(found: DataSets) -> None:
    st.header("Steps")
    st.caption(
        "Calls: answered by a teacher in the step's last process. Replayed: answers that the ledger had "
        "already. Repaired: answers that one further request saved."
    )
    kit.frame(
        tables.step_table(found),
        "data steps",
        key="steps",
        column_config={
            name: st.column_config.NumberColumn(format="localized")
            for name in (
                "Rows",
                "Calls",
                "Replayed",
                "Repaired",
                "Refused",
                "Tokens in",
                "Tokens out",
                "Seconds",
            )
        },
    )
    costs = tables.cost_table(found)
    if len(costs):
        st.subheader("Cost by step")
        st.caption(
            "Of all answers that the data hold, replayed ones too. “–”: none such, or an unknown price."
        )
        kit.frame(
            costs,
            "data cost by step",
            key="costs",
            column_config={
                name: st.column_config.NumberColumn(format=_DOLLARS) for name in ("USD paid", "USD simulated")
            },
        )
        kit.go("Everything that the run has spent", "cost")


# Cells ----------------------------------------------------------------------------------------------


def _cells(cells: pd.DataFrame) -> None:
    known = {one.name: one for one in plots.known_maps(cells)}
    if not known:
        return
    st.header("Cells")
    kit.asked("map", list(known))
    shown = known[st.selectbox("What the map shows", list(known), key="map", bind="query-params")]
    if shown.against_quota:
        st.caption("✓ the quota exactly, ▼ under it, ▲ over it.")
    wanted = ["Cell", *(name for name in (shown.of, shown.column) if name)]
    kit.figure(
        plots.cell_map(cells, shown),
        f"cells {shown.name}",
        cells[wanted],
        f"Heat map of {len(cells)} cells by domain and difficulty: {shown.name.lower()}.",
        key="cells",
    )


# What was thrown away -------------------------------------------------------------------------------


def _thrown_away(view: View, found: DataSets, cells: pd.DataFrame) -> None:
    st.header("Duplicates, leaks and refusals")
    if cells["Offered"].notna().any() if len(cells) else False:
        kit.figure(
            plots.fate_bars(cells, kit.colours()),
            "what became of offered questions",
            cells[["Cell", "Offered", *tables.FATES]],
            "Stacked bars by domain: offered questions that were new, duplicates, near duplicates, benchmark "
            "items or too long.",
            key="fates",
        )
    st.subheader("Thrown away on the way")
    st.caption("Of: the questions that were offered, judged or asked in that step.")
    kit.frame(
        tables.thrown_away(found),
        "thrown away",
        key="thrown",
        column_config={
            "Questions": st.column_config.NumberColumn(format="localized"),
            "Of": st.column_config.NumberColumn(format="localized"),
            "Share": st.column_config.NumberColumn(format=_SHARE),
        },
    )
    merged = found.made_by(MERGE)
    if merged is None or merged.artifact is None:
        return
    st.subheader("Left in the merged rows")
    near = sets.number(merged.facts, "metrics", "near_duplicate_share")
    kit.frame(
        tables.left_over(found),
        "left in the merged rows",
        key="left",
        column_config={"Found": st.column_config.NumberColumn(format="localized")},
    )
    if near is not None:
        st.markdown(
            f"{near:.1%} of the rows ask nearly the same as an earlier one (Jaccard similarity of token "
            "trigrams from 0.8 on), whatever the profile refuses."
        )
    _verdicts(view, merged)


def _verdicts(view: View, merged: DataStep) -> None:
    decided = sets.verdicts_about(view, merged)
    if not decided:
        st.markdown("No gate has judged these rows in this run.")
        st.code(
            f"cogumi gate phase1-data --run {shlex.quote(view.run or '')}", language=None, wrap_lines=True
        )
        st.caption("Its bars are those of the plan's 60,000 rows.")
        return
    last = decided[-1]
    st.markdown(f"Gate {kit.safe(last.gate)}: **{kit.badge(last.verdict.value)}**")
    for criterion in sets.worst_first(last)[:3]:
        if criterion.verdict.value != "PASS":
            told = f"{kit.safe(criterion.id)}: {kit.safe(claim(criterion))}"
            st.markdown(f"- {kit.badge(criterion.verdict.value)} {told}")
    kit.go(f"History of {last.gate}", "gates", gate=last.gate)


# Tokens and scores ----------------------------------------------------------------------------------


def _tokens(found: DataSets, cells: pd.DataFrame) -> None:
    tokens = sets.part(found.facts(MERGE), "tokens")
    if not tokens or not len(cells) or not cells["Share of trained tokens"].notna().any():
        return
    st.header("Token shares")
    kit.asked("tokens", list(_TOKENS))
    column = _TOKENS[st.selectbox("Tokens of", list(_TOKENS), key="tokens", bind="query-params")]
    counted = kit.safe(str(tokens.get("counted_by", "–")))
    total = sets.part(tokens, "total")
    sums = ", ".join(f"{_told(sets.number(total, name))} of {name}s" for name in ("question", "answer"))
    st.caption(f"{sums}, {_told(sets.number(total, 'reasoning'))} of reasoning. Counted by: {counted}.")
    kit.figure(
        plots.token_bars(cells, column, kit.colours()),
        column,
        cells[["Cell", "Question tokens", "Answer tokens", "Reasoning tokens", "Share of rows", column]],
        f"Stacked bars by domain, easy and hard: {column.lower()}; a diamond is its share of the rows.",
        key="shares",
    )
    lengths = tables.length_table(found)
    if len(lengths):
        with st.expander("Lengths of single rows, in tokens"):
            kit.frame(lengths, "lengths in tokens", key="lengths")


def _scores(found: DataSets) -> None:
    scores = tables.score_table(found)
    known = {name: column for name, column in _SCORES.items() if scores[column].notna().any()}
    if not known:
        return
    st.header("A judge's scores")
    kit.asked("scores", list(known))
    column = known[st.selectbox("Questions", list(known), key="scores", bind="query-params")]
    judge = found.made_by(sets.VALIDATE)
    lowest = sets.number(found.settings(sets.VALIDATE), "min_score")
    named = kit.safe(str(judge.settings.get("judge", "–"))) if judge else "–"
    means = sets.part(judge.facts, "mean_scores") if judge else {}
    told = ", ".join(
        f"{aspect} {value:.2f}"
        for aspect in tables.ASPECTS
        if (value := sets.number(means, aspect)) is not None
    )
    st.caption(
        f"Judge: {named}. "
        + (
            f"Means of all that were judged: {told}; of every question and no sample, so without intervals."
            if told
            else ""
        )
    )
    kit.figure(
        plots.score_bars(scores, column, lowest, kit.colours()),
        f"judge scores {column}",
        scores,
        "Bars: questions by score from 1 to 10, for quality, relevance and clarity.",
        key="judged",
    )
