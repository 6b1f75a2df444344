"""People: what the gates ask of the human study, what is decided about it, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from cogumi.errors import CogumiError
from dashboard import kit
from dashboard.study_page import draw_artifact, draw_studies
from gates.metrics import METRICS
from gates.render import number
from gates.spec import BEST_RATING, Criterion, GateSpec, load_gate
from gates.verdicts import CriterionVerdict, GateVerdict
from reports.text import moment, when

if TYPE_CHECKING:
    import pandas as pd

    from dashboard.view import View

_PLAN_GATE = "phase8"
"""The plan's own gate on people, shown also where a run's profile does not ask for it."""
_METRICS = ("human_raters", "human_tasks")


@dataclass(frozen=True, slots=True)
class Asked:
    """What one gate asks of people, and the run's newest verdict on it; None where there is none."""

    spec: GateSpec
    criteria: tuple[Criterion, ...]
    of_run: bool
    """Whether the run's profile has this gate."""
    verdict: GateVerdict | None
    decided: str
    """When the verdict was decided; empty without one."""

    def found(self, criterion: Criterion) -> CriterionVerdict | None:
        """Return what the verdict says of a criterion, None where it says nothing."""
        known = self.verdict.criteria if self.verdict else ()
        return next((one for one in known if one.id == criterion.id), None)


def draw(view: View) -> None:
    """Draw the page."""
    st.title("People")
    faults: list[str] = []
    asked = asked_of_people(view, faults)
    for fault in faults:
        st.warning(kit.safe(fault))
    _summary(asked)
    for one in asked:
        _gate(one)
    _progress(view, asked)
    _next(view, asked)


def asked_of_people(view: View, faults: list[str]) -> list[Asked]:
    """Return the run's gates on people, and the plan's own; what cannot be read goes to ``faults``."""
    row = view.workspace.ledger.run(view.run) if view.run is not None else None
    named = _gates_of(row["profile"]) if row is not None else []
    decided = _verdicts(view, faults)
    found = []
    for name in dict.fromkeys([*named, _PLAN_GATE]):
        try:
            spec = load_gate(name)
        except CogumiError as error:
            faults.append(f"gate {name} of this run's profile cannot be read: {error}")
            continue
        criteria = tuple(one for one in spec.criteria if about_people(one))
        if criteria:
            verdict, moment_of = decided.get(spec.gate, (None, ""))
            found.append(Asked(spec, criteria, name in named, verdict, moment_of))
    return found


def about_people(criterion: Criterion) -> bool:
    """Tell whether a criterion is on people: their ratings, or how many they are."""
    metric = criterion.threshold.metric if criterion.threshold is not None else ""
    return criterion.human is not None or metric in _METRICS


def _gates_of(profile: Any) -> list[str]:
    """Return the gates that a recorded profile names, whichever version recorded it."""
    if not isinstance(profile, Mapping):
        return []
    steps, gates = profile.get("steps"), profile.get("gates")
    in_steps = (
        [step.get("gate") for step in steps if isinstance(step, Mapping)] if isinstance(steps, list) else []
    )
    listed = gates if isinstance(gates, list) else []
    return list(dict.fromkeys(name for name in [*listed, *in_steps] if isinstance(name, str)))


def _verdicts(view: View, faults: list[str]) -> dict[str, tuple[GateVerdict, str]]:
    """Return the run's newest verdict on each gate, with the moment at which it was decided."""
    found = {}
    for row in view.workspace.ledger.verdicts(view.run) if view.run is not None else ():
        try:
            found[str(row["gate"])] = (
                GateVerdict.from_json(row["document"]),
                when(moment(row["created_at"])),
            )
        except (KeyError, TypeError, ValueError):
            faults.append(f"a verdict of gate {row['gate']} is not readable by this version; decide it again")
    return found


def _rating(one: Asked) -> Criterion | None:
    return next((each for each in one.criteria if each.human is not None), None)


def _bar(asked: list[Asked]) -> float:
    """Return the bar of the first gate that has one on ratings, else the plan's."""
    from gates.people import BAR

    ratings = filter(None, map(_rating, asked))
    return next((one.bar for one in ratings), BAR)


def _least(one: Asked, metric: str) -> float | None:
    named = (each for each in one.criteria if each.threshold is not None and each.threshold.metric == metric)
    return next((each.bar for each in named), None)


def _summary(asked: list[Asked]) -> None:
    """Say in one sentence what is asked and whether it is known."""
    for one in asked:
        rating = _rating(one)
        if rating is None:
            continue
        verdict = one.found(rating)
        people, tasks = _least(one, "human_raters"), _least(one, "human_tasks")
        size = f"{people:,.0f} people × {tasks:,.0f} tasks" if people and tasks else "people"
        bar = f"a mean rating above **{rating.bar:g}** of {BEST_RATING}"
        known = verdict is not None and verdict.value is not None
        told = f"**{_sentence(verdict)}**" if verdict is not None and known else "Nothing is known yet."
        st.markdown(f"{kit.safe(one.spec.gate)} asks {size} for {bar}. {told}")


def _sentence(verdict: CriterionVerdict) -> str:
    bounds = f"{_number(verdict.lower)} to {_number(verdict.upper)}"
    simulated = f", {kit.safe(verdict.simulated_part)}" if verdict.simulated else ""
    return f"{kit.badge(verdict.verdict.value)}: mean rating {_number(verdict.value)} ({bounds}{simulated})."


def _gate(one: Asked) -> None:
    st.header(f"What {kit.safe(one.spec.gate)} asks of people")
    if not one.of_run:
        st.caption("The plan's own gate; this run's profile does not have it.")
    table = _table(one)
    kit.frame(table, f"{one.spec.gate} people", key=f"asked-{one.spec.gate}")
    for criterion in one.criteria:
        verdict = one.found(criterion)
        if verdict is not None and verdict.note:
            st.markdown(f"- {kit.safe(criterion.id)}: {kit.safe(verdict.note)}")
    if one.verdict is None:
        st.caption("No verdict of this gate is in the ledger for this run.")
    else:
        st.caption(
            f"Decided {kit.safe(one.decided)}; the whole gate says {kit.badge(one.verdict.verdict.value)}."
        )
        kit.go(f"History of {one.spec.gate}", "gates", gate=one.spec.gate)


def _table(one: Asked) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for criterion in one.criteria:
        verdict = one.found(criterion)
        metric = criterion.threshold.metric if criterion.threshold is not None else ""
        sign = "≥" if criterion.comparison == ">=" else "≤"
        rows.append(
            {
                "Criterion": criterion.id,
                "Bar": f"above {criterion.bar:g}" if criterion.human else f"{sign} {criterion.bar:,g}",
                "Verdict": kit.badge(verdict.verdict.value if verdict else None),
                "Value": _number(verdict.value if verdict else None),
                "From": _number(verdict.lower if verdict else None),
                "To": _number(verdict.upper if verdict else None),
                "What": METRICS.get(metric, f"lower bound of the mean rating, 1 to {BEST_RATING}"),
            }
        )
    return pd.DataFrame(rows)


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def _progress(view: View, asked: list[Asked]) -> None:
    """Draw the workspace's studies; without one say what is known: what the verdict above has, or nothing."""
    st.header("Progress and analysis")
    if draw_studies(view, _bar(asked)):
        return
    closed = [
        one
        for one in asked
        if (rating := _rating(one)) and (found := one.found(rating)) and found.value is not None
    ]
    judged = [one.verdict.artifact for one in closed if one.verdict is not None]
    drawn = [draw_artifact(view, digest, _bar(asked)) for digest in dict.fromkeys(judged)]
    if any(drawn):
        return
    if closed:
        st.markdown("The study is closed: its mean, bounds and verdict are those of the table above.")
        return
    st.info(
        "No study is recorded in this workspace, so there is no progress to show, and no rating is known. Of "
        "an open study nobody is shown a mean, here or elsewhere: who sees one while people rate can stop "
        "when it looks best.",
        icon=":material/lock:",
    )
    st.markdown(
        f"Ratings run from 1 to {BEST_RATING}. The gate passes when the lower bound of their mean lies above "
        "the bar, in a study that is closed. Simulated raters rehearse a study: their verdict is always "
        "UNDECIDED, and says so."
    )


def _next(view: View, asked: list[Asked]) -> None:
    import shlex

    st.header("What to type next")
    ours = next((one.spec.gate for one in asked if one.of_run), None)
    run = view.workspace.ledger.run(view.run) if view.run is not None else None
    if ours is not None and run is not None:
        st.markdown("Decide the gate on what is recorded; without a study its ratings stay UNDECIDED:")
        profile = shlex.quote(str(run["profile_name"]))
        command = f"cogumi gate {ours} --profile {profile} --run {shlex.quote(str(run['name']))}"
    else:
        st.markdown("The profile of the whole plan has this gate; see what its run would take:")
        command = "cogumi plan --profile llama-3.1-8b"
    st.code(command, language=None, wrap_lines=True)
