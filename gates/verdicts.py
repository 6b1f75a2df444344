"""The one model of a verdict: what ``--json`` prints, the ledger keeps and every renderer reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from cogumi.verdict import Verdict, combine
from gates.metrics import DATA_METRICS, PEOPLE_METRICS

Comparison = Literal[">=", "<="]

SIMULATED_RATERS = "simulated raters"
"""What every verdict on made-up raters says."""


@dataclass(frozen=True, slots=True)
class TaskVerdict:
    """How one task of a criterion's suite stands; counts are over the items that the verdict used."""

    task: str
    reference: str | None
    value: float | None
    lower: float | None
    upper: float | None
    n_used: int
    n_total: int
    truncated: int
    errors: int


@dataclass(frozen=True, slots=True)
class CriterionVerdict:
    """What the engine says about one criterion.

    ``value``, ``lower``, ``upper`` and ``bar`` are in the unit of ``measure``: "ratio" to the reference, or
    the metric's own. Bounds are anytime-valid, each at level ``alpha``; None stands for unknown or unbounded.
    """

    id: str
    verdict: Verdict
    value: float | None
    bar: float
    comparison: Comparison
    lower: float | None
    upper: float | None
    alpha: float | None
    n_used: int
    n_total: int
    reference: str | None
    reference_kind: str | None
    protocol: str | None
    note: str
    measure: str = "ratio"
    attempt: int = 0
    simulated: bool = False
    truncated: int = 0
    errors: int = 0
    tasks: tuple[TaskVerdict, ...] = ()

    @property
    def simulated_part(self) -> str:
        """What of it is simulated: ``simulated reference``, raters, data or costs; else nothing."""
        return simulated_part(self.measure) if self.simulated else ""

    def to_json(self) -> dict[str, Any]:
        """Return the criterion as in the contract, then what we add to it."""
        data: dict[str, Any] = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        data["tasks"] = [{f.name: _plain(getattr(task, f.name)) for f in fields(task)} for task in self.tasks]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CriterionVerdict:
        """Rebuild a criterion from ``to_json``."""
        tasks = tuple(TaskVerdict(**task) for task in data["tasks"])
        return cls(**{**data, "verdict": Verdict(data["verdict"]), "tasks": tasks})


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The verdict of a gate on one artifact; ``attempt`` is 0 while nothing was measured."""

    gate: str
    run: str | None
    artifact: str
    attempt: int
    criteria: tuple[CriterionVerdict, ...]
    title: str = ""
    left_out: tuple[str, ...] = ()
    """Criteria of the gate that the profile does not ask for."""

    @property
    def verdict(self) -> Verdict:
        """Any FAIL is FAIL; else any INFEASIBLE, ERROR, BUDGET, UNDECIDED in that order; else PASS."""
        return combine(criterion.verdict for criterion in self.criteria)

    @property
    def choice(self) -> str:
        """``3 of 9 criteria, the profile's choice``; nothing where all were asked."""
        if not self.left_out:
            return ""
        asked = len(self.criteria)
        return f"{asked} of {asked + len(self.left_out)} criteria, the profile's choice"

    @property
    def only_simulated_raters(self) -> bool:
        """Whether it is UNDECIDED for nothing but that its raters are simulated, as in a rehearsal."""
        open_ones = [one for one in self.criteria if one.verdict is Verdict.UNDECIDED]
        return self.verdict is Verdict.UNDECIDED and all(
            one.simulated_part == SIMULATED_RATERS for one in open_ones
        )

    @property
    def exit_code(self) -> int:
        """The process exit code of the contract."""
        return self.verdict.exit_code

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``cogumi gate --json`` prints."""
        return {
            "gate": self.gate,
            "run": self.run,
            "artifact": self.artifact,
            "verdict": self.verdict.value,
            "exit_code": self.exit_code,
            "attempt": self.attempt,
            "criteria": [criterion.to_json() for criterion in self.criteria],
            "title": self.title,
            "left_out": list(self.left_out),
            "only_simulated_raters": self.only_simulated_raters,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GateVerdict:
        """Rebuild a verdict from ``to_json``, as recorded in a ledger."""
        return cls(
            gate=data["gate"],
            run=data["run"],
            artifact=data["artifact"],
            attempt=data["attempt"],
            criteria=tuple(CriterionVerdict.from_json(criterion) for criterion in data["criteria"]),
            title=data["title"],
            # A verdict recorded before profiles could leave criteria out has none.
            left_out=tuple(data.get("left_out", ())),
        )


def is_of_people(measure: str) -> bool:
    """Tell whether raters made a number of this name."""
    return measure == "rating" or measure in PEOPLE_METRICS


def simulated_part(measure: str) -> str:
    """Say what is simulated in a number of this name, where something is."""
    if is_of_people(measure):
        return SIMULATED_RATERS
    if measure not in DATA_METRICS:
        return "simulated reference"
    return "simulated costs" if measure.startswith("usd_") else "simulated data"


def _plain(value: Any) -> Any:
    """Return a JSON value: verdicts as text, floats to six decimals, infinity as None."""
    if isinstance(value, Verdict):
        return value.value
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
