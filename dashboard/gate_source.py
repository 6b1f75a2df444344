"""What the page Gates asks the engine again: paths and plans, each made once for a state of the workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogumi.errors import CogumiError, UsageError
from cogumi.profile import Profile, parse_profile
from cogumi.workspace import find_data
from dashboard.evidence_path import Trail, trail
from dashboard.gate_history import Decided
from dashboard.recorded import Place, PlanEvidence
from dashboard.view import Kept, View
from gates.attempts import alpha_of
from gates.power import PlanRow, plan_gate
from gates.service import NoAttempts
from gates.spec import load_gate
from gates.verdicts import CriterionVerdict

Planned = tuple[list[PlanRow], dict[str, str]]
"""Rows of a plan, and why a criterion has none."""

_BESIDE = (-0.2, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1)
"""True values of a plan, beside the bar: clearly below, near, clearly above."""

_TRAILS: Kept[Trail] = Kept(24)
_PLANS: Kept[Planned] = Kept(24)


def followed(view: View, chosen: Decided, criterion: CriterionVerdict) -> Trail:
    """Return the evidence path of a criterion; its arrays are shared, never change them."""
    state = (*_state(view), chosen.digest, criterion.id)
    return _TRAILS.get(state, lambda: trail(place_of(view, chosen.run), chosen.verdict, criterion))


def _state(view: View) -> tuple[object, ...]:
    workspace = view.workspace
    return (str(workspace.root), workspace.ledger.state(), workspace.evidence_state)


def place_of(view: View, run: str) -> Place:
    """Return where the evidence of a run's verdict is looked for; its own profile comes first."""
    ledger = view.workspace.ledger
    rows = sorted((dict(row) for row in ledger.runs()), key=lambda row: row["name"] != run)
    try:
        data = find_data(None)
    except UsageError:
        # A benchmark folder that is gone matters to those verdicts alone that name its answers.
        data = None
    profiles = [profile for row in rows if (profile := _profile(row)) is not None]
    steps = ledger.steps(run) if run else []
    return Place(view.workspace.root, view.workspace.evidence, data, profiles, steps)


def _profile(row: Mapping[str, Any]) -> Profile | None:
    try:
        return parse_profile(row["profile"], f"of run {row['name']}")
    except CogumiError:
        # Of another version: its verdicts say that they know no such teacher.
        return None


def planned(view: View, chosen: Decided, criterion: CriterionVerdict, how: tuple[int, int]) -> Planned:
    """Return the items that a verdict needs; ``how``: number of the attempt, and models for each value."""
    gate, (attempt, runs) = chosen.verdict.gate, how

    def make() -> Planned:
        place = place_of(view, chosen.run)
        if not place.profiles:
            return [], {
                criterion.id: "no run of this workspace has a profile that says what the reference is"
            }
        try:
            spec = load_gate(gate).only([criterion.id])
            source = PlanEvidence(place, place.profiles[0], _baseline_step(place, chosen), spec.scope)
            spec = spec.model_copy(update={"alpha": alpha_of(attempt, spec.alpha)})
            ratios = [round(spec.criteria[0].bar + beside, 3) for beside in _BESIDE]
            return plan_gate(spec, source, NoAttempts(), ratios=[r for r in ratios if r > 0], runs=runs)
        except CogumiError as error:
            return [], {criterion.id: str(error)}

    return _PLANS.get((*_state(view), chosen.run, gate, criterion.id, how), make)


def _baseline_step(place: Place, chosen: Decided) -> str | None:
    """Return which step made the baseline of the gate's step that judged this artifact."""
    made = {step.step for step in place.steps if step.artifact == chosen.verdict.artifact}
    steps = place.profiles[0].gate_steps(chosen.verdict.gate)
    mine = [step for step in steps if step.artifact in made] or steps
    return mine[0].baseline if mine else None
