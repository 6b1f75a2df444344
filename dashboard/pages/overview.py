"""Overview: which gates of a run hold and why, what runs now, time and money against the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from cogumi.held import is_held
from cogumi.ledger import StepRow
from cogumi.units import duration, usd
from cogumi.verdict import Verdict
from dashboard import costs, kit
from dashboard.gate_list import draw_gates
from dashboard.live import Running, running_now
from dashboard.phases import (
    NO_GATE,
    NOT_ASKED,
    UNDER_WAY,
    WAITING,
    Phase,
    headline,
)
from dashboard.plan import Plan, StepPlan
from dashboard.run_rows import RunRows, planned, read_phases, read_run, spent_of
from dashboard.view import View, open_view
from reports.text import moment, when

_LOOK_EVERY_S = 2.0
_PLAN_EVERY_S = 1.0
_STATUS = {"running": "→ running", "done": "✓ done", "stopped": "■ stopped", "failed": "✗ failed"}
_PHASE = {
    WAITING: "· waiting",
    UNDER_WAY: "→ under way",
    NO_GATE: "– no gate",
    NOT_ASKED: "– not in this run",
}
_STEP = {
    "waiting": "· waiting",
    "running": "→ running",
    "done": "✓ done",
    "failed": "✗ failed",
    "stopped": "■ stopped",
}
_UNKNOWN = "–"


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What the page is drawn from."""

    run: RunRows
    phases: Sequence[Phase]


def read_ahead() -> None:
    """Read the run that the page shows first, and have its plan estimated; raises as ``open_view`` does."""
    view = open_view(None, None)
    run = read_run(view)
    if run is not None:
        read_phases(view, run)


def draw(view: View) -> None:
    """Draw the page."""
    st.title("Overview")
    run = read_run(view)
    if run is None:
        kit.empty("There is no run in this workspace yet.", "cogumi run")
        return
    drawn = _Drawn(run, read_phases(view, run))
    _head(drawn)
    _now(view, run)
    _line(drawn)
    _against_plan(drawn)
    draw_gates(run, drawn.phases)
    _steps(drawn)


# The sentence, and what runs ----------------------------------------------------------------------


def _head(drawn: _Drawn) -> None:
    run, row = drawn.run, drawn.run.row
    gates = [gate for phase in drawn.phases for gate in phase.gates]
    told = kit.safe(headline(drawn.phases, run.known_plan.infeasible))
    if gates and all(gate.verdict == Verdict.PASS for gate in gates):
        st.success(told, icon=":material/check_circle:")
    elif any(gate.verdict not in (None, Verdict.PASS) and not gate.only_simulated_raters for gate in gates):
        st.error(told, icon=":material/cancel:")
    else:
        st.info(told, icon=":material/hourglass_empty:")
    code = f", exit {row['exit_code']}" if row["exit_code"] is not None else ""
    note = f": {row['note']}" if row["note"] else ""
    title = f" ({run.profile.title})" if run.profile.title else ""
    status = _STATUS.get(row["status"], str(row["status"]))
    began, last = when(moment(row["created_at"])), when(moment(row["updated_at"]))
    line = f"Run {run.name}{title}: {status}{code}{note}. Begun {began}, last entry {last}."
    st.markdown(kit.safe(line))
    if run.unreadable:
        st.error(kit.safe(run.unreadable))
    st.caption(
        "A gate is a claim of the plan with a bar. It holds when the bound of what was measured clears the "
        "bar, so that chance alone does not pass it."
    )


def _now(view: View, run: RunRows) -> None:
    """Draw what runs, and look again every two seconds for as long as something does."""
    if not run.running and run.plan is not None:
        return
    every = _LOOK_EVERY_S if run.running else _PLAN_EVERY_S
    st.fragment(partial(_look, view, run), run_every=every)()


def _look(view: View, drawn: RunRows) -> None:
    from dashboard.app import guard

    # Drawn again by itself, so outside of the guard around the page.
    with guard("overview"):
        _look_again(view, drawn)


def _look_again(view: View, drawn: RunRows) -> None:
    ledger = view.workspace.ledger
    found = ledger.run(drawn.name)
    if found is None:
        return
    row = dict(found)
    steps = ledger.steps(drawn.name) if drawn.running else drawn.steps
    estimated = drawn.plan is None and planned(row) is not None
    if estimated or row["status"] != drawn.row["status"] or _marks(steps) != _marks(drawn.steps):
        # The rest of the page is out of date: draw all of it, without a reload.
        st.rerun()
    if not drawn.running:
        return
    st.header("Running now")
    answers: dict[str, int] = {}
    for spent in spent_of(view, row, drawn.profile):
        answers[spent.step] = answers.get(spent.step, 0) + spent.calls
    expected = {name: step.calls for name, step in drawn.known_plan.steps.items() if step.calls}
    at_work = running_now(view.workspace, drawn.profile, steps, answers, expected)
    if is_held(view.workspace, drawn.name) is False:
        st.warning(
            "The ledger has this run as running, but no process that can be seen from here holds it. If it "
            "was killed, the command that started it goes on where it ended."
        )
    elif not at_work:
        st.markdown("The run is between two steps.")
    for one in at_work:
        _running(one)


def _marks(steps: Sequence[StepRow]) -> list[tuple[str, int, str]]:
    return [(row.step, row.attempt, row.status) for row in steps]


def _running(one: Running) -> None:
    with st.container(border=True):
        plan = f"{one.plan} " if one.plan else ""
        st.markdown(
            f"→ **{kit.safe(plan + one.step)}** ({one.kind}), attempt {one.attempt}, {duration(one.seconds)}"
        )
        if one.total:
            share = min(1.0, (one.done or 0) / one.total)
            st.progress(share, text=kit.safe(one.told))
        elif one.told:
            st.markdown(kit.safe(one.told))
        if one.silent is not None:
            st.caption(f"Last trace on the disk {duration(one.silent)} ago.")


# The line of phases -------------------------------------------------------------------------------


def _line(drawn: _Drawn) -> None:
    st.header("The plan's phases")
    with st.container(horizontal=True, gap="small"):
        for phase in drawn.phases:
            with st.container(border=True, width=164, height="stretch", gap="small"):
                number = f"{phase.number}. " if phase.number else ""
                state = _PHASE.get(phase.state) or kit.badge(phase.state)
                st.markdown(f"**{number}{phase.name}**\n\n{state}\n\n{kit.small(_phase_told(phase))}")


def _phase_told(phase: Phase) -> str:
    if phase.state == NOT_ASKED:
        return f"plan: {phase.plan}"
    parts = []
    if phase.gates:
        held = sum(gate.verdict == Verdict.PASS for gate in phase.gates)
        parts.append(f"{held} of {len(phase.gates)} {'gate' if len(phase.gates) == 1 else 'gates'}")
    if phase.steps:
        done = sum(step.status == "done" for step in phase.steps)
        parts.append(f"{done} of {len(phase.steps)} steps")
    if phase.seconds is not None:
        parts.append(duration(phase.seconds))
    if phase.plan:
        parts.append(f"plan: {phase.plan}")
    return " · ".join(parts)


# Time and money -----------------------------------------------------------------------------------


def _against_plan(drawn: _Drawn) -> None:
    run, plan = drawn.run, drawn.run.plan
    st.header("Time and money against the plan")
    with st.container(horizontal=True, gap="small"):
        taken = sum(phase.seconds or 0.0 for phase in drawn.phases)
        minutes = run.profile.limits.max_minutes
        limit = f"limit of the profile: {duration(60 * minutes)} a process" if minutes else "no time limit"
        _figure("Time of all steps", duration(taken) if run.steps else _UNKNOWN, limit)
        for simulated in (False, True):
            found = costs.total(run.spent, simulated=simulated)
            expected = run.known_plan.usd(simulated=simulated)
            if simulated and found is None and expected[1] is None:
                continue
            label = "Simulated, nothing is paid" if simulated else "Paid to providers"
            _figure(label, _spent(found), _range_told(expected, usd, plan))
        gpus = costs.gpu_rows(run.profile, run.steps, run.known_plan)
        if gpus:
            hours = [row.hours for row in gpus if row.hours is not None]
            told = f"{sum(hours):.3g} h" if hours else _UNKNOWN
            _figure("GPU time", told, _range_told(run.known_plan.gpu_hours(), _hours, plan))
    if plan is not None and plan.why:
        st.caption(kit.safe(f"No estimate: {plan.why}."))
    kit.go("Cost by step, provider, tier and model", "cost")


def _figure(label: str, value: str, told: str) -> None:
    with st.container(border=True, width=230, height="stretch", gap="small"):
        st.metric(label, value)
        st.caption(kit.safe(told))


def _spent(found: costs.Spent | None) -> str:
    if found is None:
        return usd(0.0)
    if found.usd is None:
        return "unknown"
    return f"{'at least ' if found.unpriced else ''}{usd(found.usd)}"


def _hours(hours: float) -> str:
    return f"{hours:.3g} h"


def _range_told(
    ends: tuple[float | None, float | None, float | None], told: Callable[[float], str], plan: Plan | None
) -> str:
    low, expected, high = ends
    if plan is None:
        return "the plan is being estimated"
    if expected is None:
        return "no estimate" if plan.why else "the plan expects none"
    between = f", {told(low)} to {told(high)}" if low is not None and high is not None and high > low else ""
    return f"the plan: {told(expected)} expected{between}"


# Steps --------------------------------------------------------------------------------------------


def _steps(drawn: _Drawn) -> None:
    run = drawn.run
    st.header("Steps")
    spent: dict[tuple[str, bool], costs.Spent] = {}
    for kind in (False, True):
        for row in costs.grouped(run.spent, "step", Plan(), simulated=kind):
            if row.spent is not None:
                spent[row.name, kind] = row.spent
    rows = []
    for phase in drawn.phases:
        for step in phase.steps:
            paid, play = spent.get((step.step, False)), spent.get((step.step, True))
            expected = run.known_plan.steps.get(step.step)
            rows.append(
                {
                    "Plan": step.plan,
                    "Step": kit.plain(step.step),
                    "Kind": step.kind,
                    "State": _STEP.get(step.status, step.status),
                    "Attempt": step.attempt or None,
                    "Time (s)": step.seconds,
                    "Calls": (paid.calls if paid else 0) + (play.calls if play else 0) or None,
                    "Paid ($)": paid.usd if paid else None,
                    "Simulated ($)": play.usd if play else None,
                    "GPU hours": step.gpu_hours,
                    "Planned calls": expected.calls or None if expected else None,
                    "Planned ($)": _dollars(expected, simulated=False),
                    "Planned, simulated ($)": _dollars(expected, simulated=True),
                    "Planned GPU hours": expected.gpu_hours if expected else None,
                    "The plan says": kit.plain(expected.says) if expected else "",
                    "Note": kit.plain(step.note),
                }
            )
    if not rows:
        kit.empty("The profile of this run has no steps.", "cogumi run")
        return
    table = pd.DataFrame(rows)
    # A column that no step of this run fills says nothing.
    keep = [name for name in table if name in _ALWAYS or table[name].replace("", None).notna().any()]
    kit.frame(table[keep], f"{run.name}-steps", key="steps", column_config=_columns())


def _dollars(expected: StepPlan | None, *, simulated: bool) -> float | None:
    asks = expected is not None and expected.calls and expected.simulated is simulated
    return expected.usd if expected is not None and asks else None


_ALWAYS = ("Plan", "Step", "Kind", "State", "Attempt", "Time (s)")


def _columns() -> dict[str, Any]:
    money = {
        name: st.column_config.NumberColumn(format="$%.4f")
        for name in ("Paid ($)", "Simulated ($)", "Planned ($)", "Planned, simulated ($)")
    }
    return {
        "Time (s)": st.column_config.NumberColumn(
            format="%.1f", help="Wall time of all attempts of the step"
        ),
        "GPU hours": st.column_config.NumberColumn(format="%.3g"),
        **money,
        **{name: st.column_config.NumberColumn(format="localized") for name in ("Calls", "Planned calls")},
    }
