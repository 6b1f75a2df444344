"""What the plan says of a plot's axes: bars of gates, tiers of size, and where no model can be at all.

Bars come from the gates' files, the least bytes from the profile's models by ``cogumi.feasibility``, the most
of a ratio from what the reference scored: a perfect score is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from cogumi.errors import CogumiError
from cogumi.feasibility import least_bytes
from cogumi.planned_model import PlannedModel
from cogumi.units import size
from dashboard.models import Models
from dashboard.places import AXES, KL, QUALITY, Axis, Choice
from dashboard.relative import Against, Standards, reference_score
from gates.spec import Criterion, known_gates, load_gate

_TIERS = "phase3-tiers"
_LEAST_ROOM = 1e-9
"""Two bars that differ by less are one line."""


@dataclass(frozen=True, slots=True)
class Line:
    """A bar or a tier of the plan on one axis; ``asked``: by a gate of this run."""

    at: float
    label: str
    asked: bool


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an axis where no model can be: all below or all above ``edge``, and the arithmetic."""

    edge: float
    below: bool
    why: str


def against_of(models: Models, standards: Standards, name: str | None) -> Against | None:
    """Return what a name of ``Choice.relative`` stands for: a reference of the profile, or a model."""
    if name is None:
        return None
    if name in models.profile.references:
        return standards.reference(name)
    part = next((one for one in models.artifacts if one.name == name), None)
    return standards.model(part.digest, name) if part is not None else None


def reference_level(models: Models, choice: Choice, against: Against | None) -> float | None:
    """Return what a reference scores over all that is chosen, None where nobody knows."""
    if against is None:
        return None
    for part in models.artifacts:
        suite = next((one for one in part.quality if one.suite == choice.suite), None)
        if suite is not None and (choice.task is not None or len(suite.tasks) == suite.tasks_total):
            tasks = [choice.task] if choice.task is not None else [task.task for task in suite.tasks]
            found = reference_score(models.index, part.digest, tasks, against)
            if found is not None:
                return found
    return None


# Bars ---------------------------------------------------------------------------------------------


def axis_lines(models: Models, axis: Axis) -> list[Line]:
    """Return the bars of all gates on a number that is no score, and of bytes also the plan's tiers."""
    asked = set(models.profile.gate_names())
    found = []
    for gate, criterion in _criteria():
        threshold = criterion.threshold
        if threshold is None:
            continue
        name = f"{gate}/{criterion.id}"
        if axis.is_bytes and gate == _TIERS:
            # Tiers are of the download; in memory they are a landmark, and no bar.
            of = "" if axis.metric == threshold.metric else " (of the download)"
            tiers = (threshold.tiers or {}).items()
            found += [Line(at, f"tier {tier}{of}", gate in asked) for tier, at in tiers]
        elif axis.metric == threshold.metric:
            found.append(Line(criterion.bar, name, gate in asked))
    told: Callable[[float], str] = size if axis.is_bytes else "{:g}".format
    return _joined(found, told)


def quality_lines(models: Models, choice: Choice, standards: Standards) -> list[Line]:
    """Return the bars of the gates that ask for the chosen suite, in the unit of the plot.

    A bar is told only where its own reference's score is known, and that of the plot's.
    """
    if choice.y != QUALITY or choice.task is not None:
        return []
    unit = _unit(models, choice, standards)
    if unit is None:
        return []
    asked, found = set(models.profile.gate_names()), []
    for gate, criterion in _criteria():
        if criterion.suite != choice.suite:
            continue
        for name in _standards_of(models, gate, criterion):
            level = reference_level(models, choice, against_of(models, standards, name))
            if level is not None:
                told = f"{gate}/{criterion.id}, {criterion.bar:g} of {name}"
                found.append(Line(criterion.bar * level / unit, told, gate in asked))
    return _joined(found, "{:.3f}".format)


def _unit(models: Models, choice: Choice, standards: Standards) -> float | None:
    """Return the score that is 1 on the y axis."""
    if choice.relative is None:
        return 1.0
    return reference_level(models, choice, against_of(models, standards, choice.relative))


def _standards_of(models: Models, gate: str, criterion: Criterion) -> Iterable[str]:
    """Return the names of what a criterion compares with in this run."""
    if criterion.relative is not None:
        return [criterion.relative.reference]
    if criterion.retention is None:
        return []
    steps = [step.baseline for step in models.profile.gate_steps(gate) if step.baseline is not None]
    return dict.fromkeys(name for step in steps if (name := _made_by(models, step)) is not None)


def _made_by(models: Models, step: str) -> str | None:
    """Return the name of the last model that a step made."""
    made = [part.name for part in models.artifacts if part.name == step or part.name.startswith(f"{step} (")]
    return made[-1] if made else None


def _criteria() -> Iterator[tuple[str, Criterion]]:
    for gate in known_gates():
        try:
            criteria = load_gate(gate).criteria
        except CogumiError:
            # A gate file that somebody is writing: `cogumi gate` says what is wrong with it.
            continue
        yield from ((gate, criterion) for criterion in criteria)


def _joined(lines: Iterable[Line], told: Callable[[float], str]) -> list[Line]:
    """Return one line for each place, the lowest first, with the names of all that lie there."""
    places: list[list[Line]] = []
    for line in sorted(lines, key=lambda one: (one.at, not one.asked, one.label)):
        if places and abs(line.at - places[-1][0].at) <= _LEAST_ROOM * max(1.0, abs(line.at)):
            places[-1].append(line)
        else:
            places.append([line])
    return [
        Line(
            here[0].at,
            f"{told(here[0].at)}: {'; '.join(dict.fromkeys(line.label for line in here))}",
            any(line.asked for line in here),
        )
        for here in places
    ]


# Where nothing can be -----------------------------------------------------------------------------


def least_region(models: Models, axis: Axis) -> Region | None:
    """Return the sizes that arithmetic rules out for every model of the profile's plan, by its own recipes.

    None where the plan names no recipe for this size.
    """
    bits = axis is AXES["bits a weight"]
    metric = AXES["download size"].metric if bits else axis.metric
    plan = models.profile.models
    least: list[tuple[float, str]] = []
    for gate, criterion in _criteria():
        if criterion.threshold is None or criterion.threshold.metric != metric:
            continue
        name = f"{gate}/{criterion.id}"
        owner = next((one for one in plan if name in _targets(one)), None)
        found = least_bytes(plan, name, criterion.bar)
        if owner is not None and found is not None:
            count, why = found
            least.append((8 * count / owner.parameters if bits else count, f"{owner.name}: {why}"))
    if not least:
        return None
    # By the plan's recipe for the least of them; a smaller one would be another recipe.
    edge, why = min(least)
    return Region(edge, below=True, why=why)


def _targets(model: PlannedModel) -> set[str]:
    return {model.criterion, *(target.criterion for target in model.targets)}


def most_region(models: Models, choice: Choice, standards: Standards) -> Region | None:
    """Return the qualities that no model can have: above a perfect score, in the unit of the plot."""
    unit = _unit(models, choice, standards) if choice.y == QUALITY else None
    if unit is None:
        return None
    if choice.relative is None:
        return Region(1.0, below=False, why="a perfect score is 1")
    told = f"{choice.relative} scores {unit:.3f}, so a perfect score is {1 / unit:.3f} of it"
    return Region(1 / unit, below=False, why=told)


def kl_lines(models: Models, choice: Choice) -> list[Line]:
    """Return the bars of gates on divergence."""
    if choice.y != KL:
        return []
    return axis_lines(models, Axis(KL, "less", "kl"))
