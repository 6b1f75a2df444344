"""What a run has paid for and what the plan expected, in rows to sort and draw, real and simulated apart.

The dollars of the local teacher are play money: no sum here has both. An unknown price is None, and never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cogumi.gpu_cost import gpu_usd, paid_hours
from cogumi.ledger import StepRow
from cogumi.profile import Profile, StageStep
from cogumi.steps import merge
from dashboard.plan import Plan, StepPlan

GROUPS = ("step", "tier", "provider", "model")
"""What spending can be grouped by."""

_TIERS = {
    "generation.questions": "questions",
    "generation.validate": "questions",
    "generation.answers_easy": "easy answers",
    "generation.answers_hard": "hard answers",
}
_JUDGE = "judging"


@dataclass(frozen=True, slots=True)
class Spent:
    """Calls of one step to one model, or of several added up; ``usd`` is of those with a known price."""

    step: str
    tier: str
    """What the profile has the teacher for: questions, judging, easy answers, hard answers."""
    provider: str
    model: str
    simulated: bool
    calls: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    """None where no call has a known price."""
    unpriced: int
    """Calls whose price nobody knows: in no sum of dollars."""


@dataclass(frozen=True, slots=True)
class CostRow:
    """One line of the table: what a group took, beside what the plan expects of it where it can be told."""

    name: str
    spent: Spent | None
    """None for what has not been asked yet."""
    usd_low: float | None = None
    usd: float | None = None
    usd_high: float | None = None
    calls: int | None = None
    says: str = ""


@dataclass(frozen=True, slots=True)
class GpuRow:
    """GPU hours of one step, taken and expected, and what they cost at the profile's price."""

    step: str
    hours: float | None
    usd: float | None
    planned_low: float | None
    planned: float | None
    planned_high: float | None
    planned_usd: float | None
    says: str


def spent_rows(profile: Profile, totals: Iterable[Mapping[str, Any]]) -> list[Spent]:
    """Return the ledger's totals (``Ledger.call_totals``) with the tier that each model stands in."""
    tiers = {step.id: _tiers(profile, step) for step in profile.steps if isinstance(step, StageStep)}
    return [
        Spent(
            step=str(row["step"]),
            tier=tiers.get(row["step"], {}).get(row["model"], "other"),
            provider=str(row["provider"]),
            model=str(row["model"]),
            simulated=bool(row["simulated"]),
            calls=int(row["calls"]),
            input_tokens=int(row["input_tokens"] or 0),
            output_tokens=int(row["output_tokens"] or 0),
            usd=float(row["cost_usd"]) if row["cost_usd"] is not None else None,
            unpriced=int(row["unpriced"]),
        )
        for row in totals
    ]


def _tiers(profile: Profile, step: StageStep) -> dict[str, str]:
    """Return ``{model: tier}`` of a step: what its settings have each of their teachers for."""
    settings = step.settings
    for attempt in step.attempts:
        settings = merge(settings, attempt)
    tier = _TIERS.get(step.uses, step.uses)
    found: dict[str, str] = {}
    for key, value in settings.items():
        names = value.values() if isinstance(value, Mapping) else [value]
        for name in names:
            if isinstance(name, str) and name in profile.teachers:
                # A judge that writes as well is counted as the judge: the ledger knows the model only.
                model = profile.teachers[name].model
                found[model] = _JUDGE if key == "judge" or found.get(model) == _JUDGE else tier
    return found


def grouped(rows: Sequence[Spent], by: str, plan: Plan, *, simulated: bool) -> list[CostRow]:
    """Return one row per group, the dearest first; the plan's figures where the estimate has this grouping.

    The plan estimates by step; for tiers, providers and models it has no figure, and none is made up.
    Raises ``ValueError`` for another grouping than those of ``GROUPS``.
    """
    if by not in GROUPS:
        raise ValueError(f"spending is not grouped by {by}")
    groups: dict[str, Spent] = {}
    for row in rows:
        if row.simulated is simulated:
            name = str(getattr(row, by))
            groups[name] = _added(groups[name], row) if name in groups else row
    planned: dict[str, StepPlan] = {}
    if by == "step":
        planned = {
            name: step for name, step in plan.steps.items() if step.calls and step.simulated is simulated
        }
    found = []
    for name in dict.fromkeys([*groups, *planned]):
        line, step = CostRow(name, groups.get(name)), planned.get(name)
        if step is not None:
            low, high = step.usd_low, step.usd_high
            line = replace(line, usd_low=low, usd=step.usd, usd_high=high, calls=step.calls, says=step.says)
        found.append(line)
    return sorted(found, key=lambda line: -((line.spent.usd if line.spent else None) or line.usd or 0.0))


def _added(one: Spent, other: Spent) -> Spent:
    known = [usd for usd in (one.usd, other.usd) if usd is not None]
    return replace(
        one,
        calls=one.calls + other.calls,
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        usd=sum(known) if known else None,
        unpriced=one.unpriced + other.unpriced,
    )


def total(rows: Sequence[Spent], *, simulated: bool) -> Spent | None:
    """Return all calls of one kind added up, or None where there are none."""
    found: Spent | None = None
    for row in rows:
        if row.simulated is simulated:
            found = row if found is None else _added(found, row)
    return found


def replayed(steps: Iterable[StepRow]) -> dict[str, int]:
    """Return by step how many answers it took from the ledger instead of asking again, where it says so."""
    found: dict[str, int] = {}
    for row in steps:
        count = row.metrics.get("calls_from_ledger")
        if isinstance(count, int | float):
            found[row.step] = found.get(row.step, 0) + int(count)
    return found


def gpu_rows(profile: Profile, steps: Iterable[StepRow], plan: Plan) -> list[GpuRow]:
    """Return the steps that took GPU hours, or of which the plan expects some, in the profile's order."""
    hours: dict[str, float] = {}
    for row in steps:
        taken = paid_hours(row)
        if taken is not None:
            hours[row.step] = hours.get(row.step, 0.0) + taken
    expected = {name: step for name, step in plan.steps.items() if step.gpu_hours is not None}
    order = [step.id for step in profile.steps]
    names = sorted({*hours, *expected}, key=lambda name: order.index(name) if name in order else len(order))
    found = []
    for name in names:
        step = expected.get(name)
        found.append(
            GpuRow(
                name,
                hours.get(name),
                gpu_usd(hours.get(name), profile.gpu),
                step.gpu_hours_low if step else None,
                step.gpu_hours if step else None,
                step.gpu_hours_high if step else None,
                step.gpu_usd if step else None,
                step.says if step else "",
            )
        )
    return found
