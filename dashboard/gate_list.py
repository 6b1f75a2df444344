"""The gates of a run, phase by phase: verdict, worst criterion, terms, and the way to more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from cogumi.verdict import Verdict
from dashboard import kit
from dashboard.phases import GateState, Phase, claim
from dashboard.run_rows import RunRows
from gates.render import number
from gates.verdicts import CriterionVerdict
from reports.text import moment, short, when

_ASKS_SHOWN = 3
_INFEASIBLE = Verdict.INFEASIBLE.value


def draw_gates(run: RunRows, phases: Sequence[Phase]) -> None:
    """Draw every gate of the run under its phase, then all criteria as one table."""
    st.header("Gates")
    asked = [phase for phase in phases if phase.gates]
    if not asked:
        kit.empty("The profile of this run has no gate.", f"cogumi gate phase1 --run {run.name}")
        return
    for phase in asked:
        st.subheader(f"Phase {phase.number}: {phase.name}" if phase.number else phase.name)
        for gate in phase.gates:
            _gate(run, gate)

    rows = [
        _criterion_row(phase, gate, one) for phase in asked for gate in phase.gates for one in gate.criteria
    ]
    if rows:
        st.subheader("Every criterion of these verdicts")
        figures = ("Value", "Lower bound", "Upper bound", "Bar")
        columns = {name: st.column_config.NumberColumn(format="localized") for name in figures}
        kit.frame(pd.DataFrame(rows), f"{run.name}-criteria", key="criteria", column_config=columns)


def _gate(run: RunRows, gate: GateState) -> None:
    impossible = {
        name: run.known_plan.infeasible[f"{gate.gate}/{name}"]
        for name, _, _ in gate.asks
        if f"{gate.gate}/{name}" in run.known_plan.infeasible
    }
    with st.container(border=True, gap="xsmall"):
        of = f" on {kit.safe(gate.of)}" if gate.of else ""
        title = f": {kit.safe(gate.title)}" if gate.title else ""
        told = [f"{kit.badge(gate.verdict)} **{kit.safe(gate.gate)}**{of}{title}"]
        told += [kit.safe(line) for line in _gate_lines(run, gate, impossible)]
        if gate.verdict is None:
            told.append(kit.small(_asks(run, gate)))
        terms = _gate_terms(gate)
        if terms:
            told.append(kit.small(terms))
        # One element for all of it: a browser takes some 3 ms for each, whatever it holds.
        st.markdown("\n\n".join(told))
        if gate.decisions:
            kit.go(f"History and evidence of {gate.gate}", "gates", gate=gate.gate)


def _gate_lines(run: RunRows, gate: GateState, impossible: Mapping[str, str]) -> list[str]:
    worst = gate.worst
    lines = [gate.unreadable] if gate.unreadable else []
    if worst is not None:
        held = worst.verdict is Verdict.PASS
        label = "Worst" if not held else "Closest to its bar" if len(gate.criteria) > 1 else "Criterion"
        lines.append(f"{label}: {worst.id}, {claim(worst)}.")
        if worst.note and not held:
            lines.append(worst.note)
    if gate.verdict is not None:
        return lines
    for name, why in impossible.items():
        accepted = f"{gate.gate}/{name}" in (run.row["accepted_infeasible"] or [])
        all_the_same = " (run all the same, as asked)" if accepted else ""
        lines.append(f"{_INFEASIBLE} by arithmetic: {name}, {why}{all_the_same}.")
    return lines


def _asks(run: RunRows, gate: GateState) -> str:
    asks = ", ".join(f"{name} {sign} {number(bar)}" for name, sign, bar in gate.asks[:_ASKS_SHOWN])
    more = len(gate.asks) - _ASKS_SHOWN
    told = f"Not decided yet. It asks {asks}{f' and {more} more' if more > 0 else ''}."
    if gate.step is None:
        told += f" No step asks it: cogumi gate {gate.gate} --run {run.name} --artifact …"
    return told


def _gate_terms(gate: GateState) -> str:
    if gate.verdict is None:
        return ""
    parts = [f"on {gate.artifact_name or 'an artifact from elsewhere'} {short(gate.artifact)}"]
    if gate.attempt:
        parts.append(f"attempt {gate.attempt}")
    if gate.decisions > 1:
        parts.append(f"decided {gate.decisions} times in this run")
    if gate.decided is not None:
        parts.append(when(moment(gate.decided)))
    if gate.choice:
        parts.append(gate.choice)
    worst = gate.worst
    if worst is not None and worst.n_total > 1:
        parts.append(f"n = {worst.n_used:,} of {worst.n_total:,} items")
    if worst is not None and worst.alpha is not None:
        parts.append(f"alpha {worst.alpha:.3g}")
    return " · ".join(parts)


def _criterion_row(phase: Phase, gate: GateState, one: CriterionVerdict) -> dict[str, Any]:
    return {
        "Phase": phase.number or None,
        "Gate": gate.gate,
        "Criterion": one.id,
        "Verdict": kit.badge(one.verdict.value),
        "Measure": one.measure,
        "Value": one.value,
        "Lower bound": one.lower,
        "Upper bound": one.upper,
        "Compared": one.comparison,
        "Bar": one.bar,
        "Items used": one.n_used,
        "Items": one.n_total,
        "Alpha": one.alpha,
        "Attempt": one.attempt or gate.attempt or None,
        "Relative to": kit.plain(one.reference or ""),
        "Simulated": one.simulated_part,
        "Artifact": kit.plain(gate.artifact_name or short(gate.artifact)),
        "Note": kit.plain(one.note),
    }
