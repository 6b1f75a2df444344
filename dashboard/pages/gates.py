"""Gates: every verdict with its terms, the way it was reached, what one will cost, and alpha spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from cogumi.verdict import Verdict
from dashboard import kit
from dashboard.evidence_path import account
from dashboard.evidence_plot import (
    capital_figure,
    drawn,
    estimate_figure,
    history_figure,
    path_table,
    plan_figure,
)
from dashboard.gate_history import (
    NO_RUN,
    Attempt,
    Decided,
    artifact_name,
    attempts_table,
    gate_alpha,
    history_rows,
    history_table,
    read_attempts,
    read_verdicts,
)
from dashboard.gate_source import followed, planned
from dashboard.view import View
from gates.attempts import alpha_of
from gates.paths import EvidencePath
from gates.power import PlanRow
from gates.render import claim
from gates.verdicts import CriterionVerdict, is_of_people
from reports.artifacts import artifact_names

_ALL = "all gates"
_MOST_LINES = 5
_RUNS = (50, 100, 200)
_SIGNS = " ".join(kit.badge(verdict.value) for verdict in Verdict)


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the page is drawn from."""

    view: View
    decided: Sequence[Decided]
    names: Mapping[str, str]
    gate: str | None


def draw(view: View) -> None:
    """Draw the page."""
    st.title("Gates")
    everything = _choose_runs(view)
    found, broken = read_verdicts(view.workspace.ledger, None if everything else view.run)
    for line in broken[:_MOST_LINES]:
        st.warning(kit.safe(line))
    if len(broken) > _MOST_LINES:
        st.warning(f"and {len(broken) - _MOST_LINES:,} more verdicts that are not readable")
    if not found:
        kit.empty("No gate has been decided yet.", "cogumi gate phase1")
        return
    gate = _choose_gate(found)
    shown = _Shown(
        view,
        [one for one in found if gate in (None, one.verdict.gate)],
        artifact_names(view.workspace.ledger.steps(view.run)) if view.run else {},
        gate,
    )
    _history(shown, everything)
    left, right = st.columns(2)
    with left:
        chosen = _choose_verdict(shown)
    with right:
        criterion = _choose_criterion(chosen)
    _verdict(shown, chosen, criterion)
    _path(shown, chosen, criterion)
    _over_attempts(shown, chosen, criterion)
    attempts = read_attempts(view.workspace.ledger)
    _attempts(shown, attempts, chosen)
    _plan(shown, chosen, criterion)


# Choosing -----------------------------------------------------------------------------------------


def _choose_runs(view: View) -> bool:
    told = "Verdicts of all runs" if view.run else "Verdicts of all runs (there is none yet)"
    everything = st.toggle(
        told, key="all", bind="query-params", help="Also those that `cogumi gate --artifact` brought."
    )
    return everything or view.run is None


def _choose_gate(found: Sequence[Decided]) -> str | None:
    gates = list(dict.fromkeys(one.verdict.gate for one in reversed(found)))
    kit.asked("gate", [_ALL, *gates])
    gate = st.selectbox("Gate", [_ALL, *gates], key="gate", bind="query-params")
    return None if gate == _ALL else gate


def _choose_verdict(shown: _Shown) -> Decided:
    names = [one.name for one in shown.decided]
    _default("verdict", names, lambda: _linked(shown.decided).name)
    name = st.selectbox(
        "Verdict (gate, attempt, artifact)",
        names,
        index=None,
        key="verdict",
        required=True,
        bind="query-params",
        help="Or choose a row of the table above.",
    )
    return next((one for one in shown.decided if one.name == name), shown.decided[0])


def _linked(decided: Sequence[Decided]) -> Decided:
    """Return the newest verdict that the address means by attempt and artifact, else the newest."""
    attempt, artifact = st.query_params.get("attempt"), st.query_params.get("artifact", "")
    short = artifact.removeprefix("sha256:")
    fitting = [
        one
        for one in decided
        if attempt in (None, "", str(one.verdict.attempt))
        and one.verdict.artifact.removeprefix("sha256:").startswith(short)
    ]
    if not fitting:
        st.warning("The address asks for an attempt or artifact that no verdict here is about.")
    return (fitting or list(decided))[0]


def _choose_criterion(chosen: Decided) -> CriterionVerdict:
    criteria = {one.id: one for one in chosen.verdict.criteria}
    told = list(criteria)
    # The first that keeps the gate from passing, else the first that bets decide.
    open_ones = [one.id for one in criteria.values() if one.verdict is not Verdict.PASS]
    tested = [one.id for one in criteria.values() if one.alpha is not None and one.n_used > 1]
    _default("criterion", told, lambda: (open_ones or tested or told)[0])
    name = st.selectbox("Criterion", told, index=None, key="criterion", required=True, bind="query-params")
    return criteria[name or told[0]]


def _default(key: str, options: Sequence[str], default: Callable[[], str]) -> None:
    """Set a box that is about to be drawn where neither the viewer nor the address says what it holds.

    Boxes have no default of their own (``index=None``): Streamlit leaves defaults out of the address, and a
    link must go on meaning the same when another verdict is the newest.
    """
    known = key in st.session_state
    if known and st.session_state[key] in options:
        return
    # What a box held for another gate is not what the address asks for.
    if known or kit.asked(key, options) is None:
        st.session_state[key] = default()


# History ------------------------------------------------------------------------------------------


def _history(shown: _Shown, everything: bool) -> None:
    st.header("Every verdict")
    gates = len({one.verdict.gate for one in shown.decided})
    count = f"{len(shown.decided):,} verdicts of {gates} {'gate' if gates == 1 else 'gates'}"
    st.caption(
        f"{count}, newest first; one row a criterion. {_SIGNS}. Choose a row to see how it was decided."
    )
    rows = history_rows(shown.decided)
    table = history_table(rows, shown.names, runs=everything)
    key = f"history-{shown.gate or 'all'}-{everything}"
    picked = kit.frame(table, "verdicts", key=key, on_select=True)
    # A row is an order once, when it is chosen; afterwards the boxes below may say something else.
    if picked and st.session_state.get("history-taken") != (key, picked[0]):
        decided, criterion = rows[picked[0]]
        st.session_state["verdict"], st.session_state["criterion"] = decided.name, criterion.id
    st.session_state["history-taken"] = (key, picked[0]) if picked else None


def _verdict(shown: _Shown, chosen: Decided, criterion: CriterionVerdict) -> None:
    told = chosen.verdict
    st.header(f"{kit.safe(told.gate)}: {kit.badge(told.verdict.value)}")
    about = [
        told.title,
        f"attempt {told.attempt}" if told.attempt else "",
        artifact_name(told.artifact, shown.names),
        f"run {chosen.run}" if chosen.run else NO_RUN,
        chosen.when,
        told.choice,
    ]
    st.markdown(kit.safe("; ".join(filter(None, about))))
    st.markdown(
        f"**{kit.safe(criterion.id)}** {kit.badge(criterion.verdict.value)}: {kit.safe(claim(criterion))}"
    )
    if criterion.note:
        st.caption(kit.safe(criterion.note))
    if criterion.tasks:
        with st.expander(f"The {len(criterion.tasks)} tasks of {kit.safe(criterion.id)}"):
            kit.frame(_tasks_table(criterion), f"{told.gate}-{criterion.id}-tasks", key="tasks")
    with st.container(horizontal=True):
        kit.go("The artifact", "artifact", artifact=told.artifact)
        if is_of_people(criterion.measure):
            kit.go("The study", "people")
        elif criterion.tasks or criterion.protocol:
            asked = {"task": criterion.tasks[0].task} if criterion.tasks else {}
            kit.go("Its items", "items", artifact=told.artifact, **asked, **_beside(criterion, shown.names))


def _beside(criterion: CriterionVerdict, names: Mapping[str, str]) -> dict[str, str]:
    """Return what the items of a criterion stand beside: the baseline that it was compared with, if one."""
    if criterion.reference_kind != "baseline":
        return {}
    called = str(criterion.reference)
    found = [one for one, name in names.items() if name == called or name.startswith(f"{called} (attempt")]
    return {"with": found[-1]} if found else {}


def _tasks_table(criterion: CriterionVerdict) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "Task": task.task,
                "Items used": task.n_used,
                "Items in all": task.n_total,
                "Value": task.value,
                "Lower bound": task.lower,
                "Upper bound": task.upper,
                "Reference": task.reference or "–",
                "Cut off": task.truncated,
                "Failed": task.errors,
            }
            for task in criterion.tasks
        ]
    )


# The evidence path --------------------------------------------------------------------------------


def _path(shown: _Shown, chosen: Decided, criterion: CriterionVerdict) -> None:
    st.subheader("How the evidence decided")
    with st.spinner("Asking the engine again on the recorded items"):
        found = followed(shown.view, chosen, criterion)
    if not found.paths:
        st.info(kit.safe(found.why))
        return
    if found.doubt:
        st.warning(kit.safe(found.doubt))
    path = found.paths[0] if len(found.paths) == 1 else _choose_task(found.paths)
    st.markdown(kit.safe(account(path, criterion)))
    name = f"{chosen.name}-{criterion.id}" + (f"-{path.task}" if path.task else "")
    _draw_path(path, criterion, name)


def _choose_task(paths: Sequence[EvidencePath]) -> EvidencePath:
    tasks = [path.task for path in paths]
    _default("task", tasks, lambda: tasks[0])
    task = st.selectbox(
        "Task",
        tasks,
        index=None,
        key="task",
        required=True,
        bind="query-params",
        help="Each task is tested by itself.",
    )
    return next((path for path in paths if path.task == task), paths[0])


def _draw_path(path: EvidencePath, criterion: CriterionVerdict, name: str) -> None:
    told = account(path, criterion)
    table = path_table(path)
    st.caption(
        "Two gamblers start with 1 and bet on every draw, one that the claim holds, one that it does not. "
        "One who is wrong ever reaches 1/alpha with chance alpha at most, however often one looks. Less than "
        "1/10,000 is drawn as that."
    )
    kit.figure(
        capital_figure(path), f"{name}-capital", table, f"Capital against draws. {told}", key="capital"
    )
    st.caption(
        "The estimate after every draw, in bounds that hold at all draws at once: each is wrong with chance "
        "alpha at most. A verdict falls where a bound passes the bar."
    )
    kit.figure(
        estimate_figure(path, criterion),
        f"{name}-estimate",
        None,
        f"Running estimate with its bounds against the bar of {criterion.bar:g}. {told}",
        key="estimate",
    )
    points = len(drawn(path))
    if points < len(path):
        st.caption(f"{points:,} of {len(path):,} draws are drawn: of each stretch its ends and extremes.")


# Attempts -----------------------------------------------------------------------------------------


def _over_attempts(shown: _Shown, chosen: Decided, criterion: CriterionVerdict) -> None:
    rows = [
        (decided, one)
        for decided, one in reversed(history_rows(shown.decided))
        if (decided.verdict.gate, one.id, one.measure)
        == (chosen.verdict.gate, criterion.id, criterion.measure)
        and one.value is not None
    ]
    if not rows:
        return
    st.subheader(f"{kit.safe(criterion.id)} from attempt to attempt")
    labels = [
        f"attempt {decided.verdict.attempt or '–'}<br>{kit.plain(_brief(decided, shown.names))}"
        for decided, _ in rows
    ]
    told = ", ".join(f"{one.value:,.4g} {one.verdict.value}" for _, one in rows)
    kit.figure(
        history_figure(rows, labels),
        f"{chosen.verdict.gate}-{criterion.id}-attempts",
        history_table(rows, shown.names, runs=True),
        f"{criterion.id} with its bounds, oldest first, against the bar of {criterion.bar:,g}: {told}",
        key="attempts-plot",
    )


def _brief(decided: Decided, names: Mapping[str, str]) -> str:
    digest = decided.verdict.artifact
    return names.get(digest) or digest.removeprefix("sha256:")[:8]


def _attempts(shown: _Shown, attempts: Sequence[Attempt], chosen: Decided) -> None:
    st.header("Attempts and alpha spent")
    gate = chosen.verdict.gate
    mine = [one for one in attempts if shown.gate in (None, one.gate)]
    if not mine:
        st.info("No gate has judged an artifact on items yet, so no alpha is spent.")
        return
    st.caption(
        "Attempt j on the same items may be wrong with chance 6 alpha / (pi² j²), so that all attempts "
        "together, however many, stay within alpha; fresh items begin again at 1. Attempts count over all "
        "runs of this workspace, and alpha is that of one criterion."
    )
    ours, _ = read_verdicts(shown.view.workspace.ledger, None)
    kit.frame(attempts_table(mine, ours, shown.names), "attempts", key="attempts-table")
    whole = gate_alpha(gate)
    if whole is not None and chosen.verdict.attempt:
        following = _next_attempt(attempts, gate)
        st.markdown(
            f"Attempt {following} of {kit.safe(gate)} on the same items would have "
            f"{alpha_of(following, whole):.3g} of its alpha of {whole:g}."
        )


def _next_attempt(attempts: Sequence[Attempt], gate: str) -> int:
    return 1 + max((one.number for one in attempts if one.gate == gate), default=0)


# The plan -----------------------------------------------------------------------------------------


def _plan(shown: _Shown, chosen: Decided, criterion: CriterionVerdict) -> None:
    st.header("Power plan")
    gate = chosen.verdict.gate
    about = f"{kit.safe(gate)} / {kit.safe(criterion.id)}"
    if criterion.measure != "ratio":
        st.info(
            "There is a plan only for criteria against a reference; what this one needs depends on no ratio."
        )
        return
    st.caption(
        f"How many items the next verdict on {about} will need: simulated models of known true value go "
        "through the same test, at the alpha of the next attempt."
    )
    if not st.toggle("Simulate", key="plan", bind="query-params"):
        return
    runs = st.radio("Models for each true value", _RUNS, key="models", bind="query-params", horizontal=True)
    attempt = _next_attempt(read_attempts(shown.view.workspace.ledger), gate)
    with st.spinner("Simulating"):
        rows, why = planned(shown.view, chosen, criterion, (attempt, int(runs)))
    for reason in why.values():
        st.info(kit.safe(f"No plan: {reason}."))
    if rows:
        _draw_plan(rows, f"{gate}-{criterion.id}", attempt)


def _draw_plan(rows: Sequence[PlanRow], name: str, attempt: int) -> None:
    table = pd.DataFrame(
        [
            {
                "True ratio": row.ratio,
                "Bar": row.bar,
                "PASS": f"{row.passes:.0%}",
                "FAIL": f"{row.fails:.0%}",
                "Undecided": f"{max(0.0, 1 - row.passes - row.fails):.0%}",
                "Items, half within": row.median_items,
                "Items, nine in ten within": row.p90_items,
                "Items in all": row.n_total,
            }
            for row in rows
        ]
    )
    near = min(rows, key=lambda row: abs(row.ratio - row.bar))
    kit.figure(
        plan_figure(rows),
        f"{name}-plan",
        None,
        f"Items until a verdict against the true ratio, for attempt {attempt}; at {near.ratio:g} half of the "
        f"verdicts come within {near.median_items:,} of {near.n_total:,} items",
        key="plan-plot",
    )
    kit.frame(table, f"{name}-plan", key="plan-table")
