"""The plan's eight phases as one run stands in them: steps, gates, and what they come to in one sentence.

Made of the ledger's rows alone, so that the first page opens at once; nothing is measured or decided here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from cogumi.errors import CogumiError
from cogumi.gpu_cost import paid_hours
from cogumi.ledger import StepRow
from cogumi.profile import GateStep, MeasureStep, Profile, StageStep, Step
from cogumi.verdict import Verdict, combine
from gates.render import claim as gate_claim
from gates.spec import GateSpec, load_gate
from gates.verdicts import SIMULATED_RATERS, CriterionVerdict, GateVerdict
from reports.artifacts import artifact_names
from reports.text import size

PLAN = {
    1: ("Training", "2 weeks, $465"),
    2: ("Speed", "2 weeks, $140"),
    3: ("Compression", "5.5 weeks, $420"),
    4: ("Modifiers", "4 weeks, $610"),
    5: ("Router", "2 weeks, $75"),
    6: ("Meta-learning", "2 weeks, $70"),
    7: ("Deployment", "1 week, $0"),
    8: ("Validation", "1 week, $100"),
}
"""The owner's plan: each phase's name, and what its heading gives it in time and money."""

Reader = Callable[[str], Any]
"""Reads the document of a verdict by its digest: an old run has hundreds, and a page needs the last ones."""

OTHER = 0
"""Stands for steps and gates of no phase."""

WAITING, UNDER_WAY, NO_GATE, NOT_ASKED = "waiting", "under way", "no gate", "not in this run"
# How bad a verdict is, the worst first: the contract's own order, PASS at its end.
_WORST = (
    Verdict.FAIL,
    Verdict.INFEASIBLE,
    Verdict.ERROR,
    Verdict.BUDGET,
    Verdict.UNDECIDED,
    Verdict.PASS,
)


@dataclass(frozen=True, slots=True)
class StepState:
    """A step of the profile and what the ledger knows of it; ``seconds`` are of all its attempts."""

    step: str
    plan: str
    kind: str
    status: str
    """``waiting``, ``running``, ``done``, ``failed`` or ``stopped``."""
    attempt: int
    seconds: float | None
    note: str
    artifact: str | None
    gpu_hours: float | None


@dataclass(frozen=True, slots=True)
class GateState:
    """A gate as one step of the profile asks it, or as somebody asked it beside the steps."""

    gate: str
    title: str
    step: str | None
    of: str
    """The step whose artifact the profile asks it of; nothing for a gate that no step asks."""
    verdict: str | None
    """None while it has not been decided."""
    attempt: int
    artifact: str
    artifact_name: str
    decided: float | None
    decisions: int
    """How often this gate was decided in this run."""
    criteria: tuple[CriterionVerdict, ...]
    choice: str
    """``3 of 9 criteria, the profile's choice``; nothing where all were asked."""
    asks: tuple[tuple[str, str, float], ...]
    """Criterion, comparison and bar of what is asked, also where nothing was decided."""
    unreadable: str = ""

    @property
    def only_simulated_raters(self) -> bool:
        """Whether nothing but simulated raters keeps it from a verdict, as in a rehearsal."""
        undecided = [one for one in self.criteria if one.verdict is Verdict.UNDECIDED]
        people = bool(undecided) and all(one.simulated_part == SIMULATED_RATERS for one in undecided)
        return people and self.verdict == Verdict.UNDECIDED

    @property
    def worst(self) -> CriterionVerdict | None:
        """The criterion that says most about the verdict."""
        return worst(self.criteria)


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of the plan."""

    number: int
    steps: tuple[StepState, ...]
    gates: tuple[GateState, ...]

    @property
    def name(self) -> str:
        """The plan's name for it."""
        return PLAN[self.number][0] if self.number in PLAN else "Outside the plan's phases"

    @property
    def plan(self) -> str:
        """The time and money that the owner's plan gives it."""
        return PLAN[self.number][1] if self.number in PLAN else ""

    @property
    def state(self) -> str:
        """A verdict's word, or how far the phase is where its gates have none."""
        decided = [Verdict(gate.verdict) for gate in self.gates if gate.verdict in set(Verdict)]
        if decided and (len(decided) == len(self.gates) or combine(decided) is not Verdict.PASS):
            return combine(decided).value
        begun = bool(decided) or any(step.status != "waiting" for step in self.steps)
        if self.gates:
            return UNDER_WAY if begun else WAITING
        if not self.steps:
            return NOT_ASKED
        return NO_GATE if begun else WAITING

    @property
    def seconds(self) -> float | None:
        """Wall time of its steps."""
        known = [step.seconds for step in self.steps if step.seconds is not None]
        return sum(known) if known else None


def phases_of(
    profile: Profile,
    steps: Sequence[StepRow],
    verdicts: Iterable[Mapping[str, Any]],
    document: Reader,
    now: float,
) -> list[Phase]:
    """Return the plan's phases in order, and last what belongs to none, if anything does.

    ``verdicts``: the run's rows of the ledger, oldest first, without their documents; ``document`` reads one.
    ``now``: until when a step that has not ended has run, in seconds since 1970.
    """
    rows: dict[str, list[StepRow]] = {}
    for row in steps:
        rows.setdefault(row.step, []).append(row)
    states: dict[int, list[StepState]] = {}
    phase_of: dict[str, int] = {}
    current = OTHER
    for step in profile.steps:
        current = _number(step.plan) or current
        phase_of[step.id] = current
        states.setdefault(current, []).append(_step_state(step, rows.get(step.id, []), now))
    gates: dict[int, list[GateState]] = {}
    for gate in gate_states(profile, steps, verdicts, document):
        number = _gate_number(gate.gate) or phase_of.get(gate.step or "", OTHER)
        gates.setdefault(number, []).append(gate)
    numbers = [*PLAN, *([OTHER] if OTHER in states or OTHER in gates else [])]
    return [Phase(n, tuple(states.get(n, ())), tuple(gates.get(n, ()))) for n in numbers]


def _number(plan: str) -> int | None:
    first = plan.partition(".")[0]
    return int(first) if first.isdecimal() and int(first) in PLAN else None


def _gate_number(gate: str) -> int | None:
    found = re.match(r"phase(\d)(?!\d)", gate)
    return int(found[1]) if found and int(found[1]) in PLAN else None


def _step_state(step: Step, rows: Sequence[StepRow], now: float) -> StepState:
    last = max(rows, key=lambda row: row.started_at) if rows else None
    hours = [found for row in rows if (found := paid_hours(row)) is not None]
    kinds = {StageStep: "stage", MeasureStep: "measure", GateStep: "gate"}
    return StepState(
        step=step.id,
        plan=step.plan,
        kind=kinds[type(step)],
        status=last.status if last else "waiting",
        attempt=last.attempt if last else 0,
        seconds=sum(max(0.0, (row.finished_at or now) - row.started_at) for row in rows) if rows else None,
        note=last.note if last else "",
        artifact=last.artifact if last else None,
        gpu_hours=sum(hours) if hours else None,
    )


# Gates --------------------------------------------------------------------------------------------


def gate_states(
    profile: Profile, steps: Sequence[StepRow], verdicts: Iterable[Mapping[str, Any]], document: Reader
) -> list[GateState]:
    """Return every gate of the profile, once for each step that asks it, then those asked beside it."""
    names = artifact_names(steps)
    by_gate: dict[str, list[Mapping[str, Any]]] = {}
    for row in verdicts:
        by_gate.setdefault(str(row["gate"]), []).append(row)
    asking = [step for step in profile.steps if isinstance(step, GateStep)]
    times_asked = {step.gate: sum(other.gate == step.gate for other in asking) for step in asking}
    found = []
    for step in asking:
        decided = by_gate.get(step.gate, [])
        # One gate may be asked of several artifacts, of each a part: what it said of this one stands here.
        lone = times_asked[step.gate] == 1
        last = _last(decided, document) if lone else _last_of_step(step, steps, decided, document)
        found.append(_gate_state(step.gate, step, last, len(decided), names))
    for gate in dict.fromkeys([*profile.gates, *by_gate]):
        if gate not in times_asked:
            decided = by_gate.get(gate, [])
            found.append(_gate_state(gate, None, _last(decided, document), len(decided), names))
    return found


def _last(decided: Sequence[Mapping[str, Any]], document: Reader) -> Mapping[str, Any] | None:
    return {**decided[-1], "document": document(decided[-1]["digest"])} if decided else None


def _last_of_step(
    step: GateStep, steps: Sequence[StepRow], decided: Sequence[Mapping[str, Any]], document: Reader
) -> Mapping[str, Any] | None:
    """Return the last verdict on what the step asks of, about just the criteria that it asks."""
    artifacts = {row.artifact for row in steps if row.step == step.id and row.artifact}
    for row in reversed([row for row in decided if row["artifact"] in artifacts]):
        found = document(row["digest"])
        if not step.criteria or _criteria_of(found) == set(step.criteria):
            return {**row, "document": found}
    return None


def _criteria_of(document: Any) -> set[str]:
    try:
        return {str(one["id"]) for one in document["criteria"]}
    except (KeyError, TypeError):
        # A verdict of another version, whose shape nobody knows here.
        return set()


def _gate_state(
    gate: str,
    step: GateStep | None,
    last: Mapping[str, Any] | None,
    decisions: int,
    names: Mapping[str, str],
) -> GateState:
    title, asks = _spec(gate, step)
    document, unreadable = None, ""
    if last is not None:
        try:
            document = GateVerdict.from_json(last["document"])
        except (KeyError, TypeError, ValueError) as error:
            unreadable = (
                f"not readable by this version ({type(error).__name__}); ask again: cogumi gate {gate}"
            )
    if document is not None:
        asks = tuple((one.id, one.comparison, one.bar) for one in document.criteria)
        title = document.title or title
    return GateState(
        gate=gate,
        title=title,
        step=step.id if step else None,
        of=step.artifact if step else "",
        verdict=str(last["verdict"]) if last is not None else None,
        attempt=int(last["attempt"]) if last is not None else 0,
        artifact=str(last["artifact"]) if last is not None else "",
        artifact_name=names.get(str(last["artifact"]), "") if last is not None else "",
        decided=float(last["created_at"]) if last is not None else None,
        decisions=decisions,
        criteria=document.criteria if document is not None else (),
        choice=document.choice if document is not None else "",
        asks=asks,
        unreadable=unreadable,
    )


@cache
def _shipped(gate: str) -> GateSpec:
    # Of the installed program, so it changes no more; every page asks for all of them.
    return load_gate(gate)


def _spec(gate: str, step: GateStep | None) -> tuple[str, tuple[tuple[str, str, float], ...]]:
    try:
        spec = _shipped(gate).only(step.criteria if step else [])
    except CogumiError:
        # A gate that this version no longer has: the verdict in the ledger still tells its story.
        return "", ()
    return spec.title, tuple((one.id, one.comparison, one.bar) for one in spec.criteria)


def worst(criteria: Sequence[CriterionVerdict]) -> CriterionVerdict | None:
    """Return the criterion of the worst verdict; among equals the one furthest short of its bar.

    Where all hold, that is the one that holds by the least.
    """
    return min(criteria, key=lambda one: (_WORST.index(one.verdict), -_short(one)), default=None)


def _short(criterion: CriterionVerdict) -> float:
    """How far the value is short of the bar, as a share of the bar; below 0 where it is beyond.

    The value and not its bound: a sequential test ends as soon as the bound clears the bar.
    """
    if criterion.value is None:
        return 0.0
    gap = criterion.bar - criterion.value
    gap = gap if criterion.comparison == ">=" else -gap
    return gap / abs(criterion.bar) if criterion.bar else gap


# Words --------------------------------------------------------------------------------------------


def claim(criterion: CriterionVerdict) -> str:
    """Return what a criterion found, in the gate's own words, with its reference and its bytes for people."""
    told = gate_claim(criterion)
    if criterion.value is not None and criterion.measure.startswith("bytes"):
        told += f" ({size(criterion.value)}, bar {size(criterion.bar)})"
    if criterion.reference:
        told += f" relative to {criterion.reference}"
    parts = [criterion.simulated_part] if criterion.simulated else []
    if criterion.n_total > 1 and criterion.lower == criterion.upper == criterion.value is not None:
        parts.insert(0, "exact: all items")
    return f"{told} ({', '.join(parts)})" if parts else told


def headline(phases: Sequence[Phase], infeasible: Mapping[str, str]) -> str:
    """Say in a few plain sentences which gates hold, which do not and why: each by its worst criterion.

    ``infeasible``: ``{GATE/CRITERION: why}`` of the plan; told of gates that are not decided yet.
    """
    gates = [gate for phase in phases for gate in phase.gates]
    if not gates:
        return "This run asks no gate, so nothing is decided by it."
    held = [gate for gate in gates if gate.verdict == Verdict.PASS]
    broken = [gate for gate in gates if gate.verdict not in (None, Verdict.PASS)]
    waiting = [gate for gate in gates if gate.verdict is None]
    parts = [_held(held, len(gates))] if held or broken else []
    parts += [_broken(gate) for gate in broken]
    if waiting:
        parts.append(_waiting(waiting, len(gates), infeasible))
    close = worst([one for gate in held for one in gate.criteria])
    if held and not broken and close is not None:
        name = next(gate.gate for gate in held if close in gate.criteria)
        parts.append(f"The closest to its bar is {name}/{close.id}: {claim(close)}.")
    simulated = {one.simulated_part for gate in gates for one in gate.criteria if one.simulated}
    if simulated:
        what = ", ".join(sorted(part.removeprefix("simulated ") for part in simulated))
        parts.append(f"What is simulated here ({what}) makes this no claim about the real thing.")
    return " ".join(parts)


def _held(held: Sequence[GateState], total: int) -> str:
    if total == 1:
        return (
            f"The one gate of this run, {_names(held)}, holds." if held else "The one gate does not hold yet."
        )
    if not held:
        return f"None of {total} gates holds yet."
    which = f"All {total} gates hold" if len(held) == total else f"{len(held)} of {total} gates hold"
    return f"{which}: {_names(held)}."


def _waiting(waiting: Sequence[GateState], total: int, infeasible: Mapping[str, str]) -> str:
    if total == 1:
        told = f"The one gate of this run is not decided yet: {_names(waiting)}."
    elif len(waiting) == total:
        told = f"None of {total} gates is decided yet: {_names(waiting)}."
    else:
        told = f"Not decided yet: {_names(waiting)}."
    asked = {f"{gate.gate}/{name}" for gate in waiting for name, _, _ in gate.asks}
    impossible = [name for name in infeasible if name in asked]
    if impossible:
        told += f" Arithmetic rules out {', '.join(impossible)}."
    return told


def _names(gates: Sequence[GateState]) -> str:
    """Name gates; those that one gate's several steps ask of are counted behind its name."""
    counts: dict[str, int] = {}
    for gate in gates:
        counts[gate.gate] = counts.get(gate.gate, 0) + 1
    return ", ".join(name if n == 1 else f"{name} ({n} times)" for name, n in counts.items())


_SAYS: Mapping[str, str] = {
    Verdict.FAIL: "fails",
    Verdict.INFEASIBLE: "cannot be met",
    Verdict.ERROR: "could not be decided",
    Verdict.BUDGET: "ran out of money or time",
    Verdict.UNDECIDED: "is not decided by the items so far",
}
_PEOPLE = "cannot be decided by simulated raters"


def _broken(gate: GateState) -> str:
    of = f" of {gate.artifact_name}" if gate.artifact_name else ""
    says = _PEOPLE if gate.only_simulated_raters else _SAYS.get(str(gate.verdict), f"says {gate.verdict}")
    one = gate.worst
    if one is None:
        return f"{gate.gate}{of} {says}{f' ({gate.unreadable})' if gate.unreadable else ''}."
    why = one.note if one.verdict in (Verdict.INFEASIBLE, Verdict.ERROR) and one.note else claim(one)
    others = sum(other.verdict is not Verdict.PASS for other in gate.criteria) - 1
    more = f", and {others} more of {len(gate.criteria)} criteria" if others > 0 else ""
    return f"{gate.gate}{of} {says}: {one.id}, {why.rstrip('.')}{more}."
