"""What the data steps of a run made, from the manifests and report files of their artifacts.

No number is computed here but sums and shares of counts. A fact that is not there, or not of the shape that
its stage writes, is None: unknown, and never 0. Rows of the files are `dashboard.data_rows`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cogumi.errors import CogumiError
from cogumi.ledger import StepRow
from cogumi.store import Artifact
from gates.verdicts import CriterionVerdict, GateVerdict
from reports.artifacts import stored

if TYPE_CHECKING:
    from dashboard.view import View

QUESTIONS, VALIDATE, MERGE = "generation.questions", "generation.validate", "generation.merge"
ANSWERS = ("generation.answers_easy", "generation.answers_hard")
_STAGES = (QUESTIONS, VALIDATE, *ANSWERS, MERGE)
_WRITER = "writer.json"
# The writer's state has no rows; a larger file is none of its.
_LONGEST_REPORT = 4_000_000


@dataclass(frozen=True, slots=True)
class DataStep:
    """The last finished attempt of one data step, else its last; ``artifact`` is None before it is done."""

    step: str
    plan: str
    stage: str
    status: str
    """``waiting``, ``running``, ``done``, ``failed`` or ``stopped``."""
    attempts: int
    seconds: float | None
    note: str
    plan_says: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    """What the ledger has of its last process: seconds and calls."""
    artifact: Artifact | None
    gone: bool
    """Whether its artifact was made but is no longer in the store, or not readable."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage says about what it made; nothing where there is none."""
        return self.artifact.facts if self.artifact else {}


@dataclass(frozen=True, slots=True)
class DataSets:
    """The data steps of a run in the plan's order, and the cells that they fill."""

    steps: tuple[DataStep, ...]
    quotas: Mapping[str, int]
    """Rows wanted of every cell, ``coding/easy``, in the profile's order; empty where nobody says."""

    def made_by(self, *stages: str) -> DataStep | None:
        """Return the last step that uses one of the stages."""
        return next((step for step in reversed(self.steps) if step.stage in stages), None)

    def facts(self, *stages: str) -> Mapping[str, Any]:
        """Return the facts of the last such step; nothing while there is none."""
        step = self.made_by(*stages)
        return step.facts if step else {}

    def settings(self, *stages: str) -> Mapping[str, Any]:
        """Return the settings of the last such step; nothing while there is none."""
        step = self.made_by(*stages)
        return step.settings if step else {}

    @property
    def accounts(self) -> Mapping[str, Any]:
        """What became of offered questions, by cell: as 1.2 left them, which asks for more, else as 1.1."""
        judged = self.made_by(VALIDATE)
        report = _report(judged.artifact) if judged and judged.artifact else {}
        return part(report, "accounts") or part(self.facts(QUESTIONS), "accounts")


def data_sets(view: View) -> DataSets:
    """Return the data steps of the view's run, none without one; raises ``RunError`` on a broken ledger."""
    row = view.workspace.ledger.run(view.run) if view.run is not None else None
    if row is None:
        return DataSets((), {})
    ledger = view.workspace.ledger.steps(str(row["name"]))
    planned = _planned(row["profile"])
    found = []
    for name in dict.fromkeys([*planned, *(each.step for each in ledger)]):
        rows = [each for each in ledger if each.step == name and each.kind == "stage"]
        step = _step(view, name, planned.get(name, {}), rows)
        if step is not None:
            found.append(step)
    return DataSets(tuple(found), _quotas(found))


def _planned(profile: Any) -> dict[str, Mapping[str, Any]]:
    """Return the profile's steps by id, as they were recorded: a profile of another version is read too."""
    steps = profile.get("steps") if isinstance(profile, Mapping) else None
    return {
        str(step["id"]): step
        for step in (steps if isinstance(steps, list) else ())
        if isinstance(step, Mapping) and "id" in step
    }


def _step(view: View, name: str, planned: Mapping[str, Any], rows: Sequence[StepRow]) -> DataStep | None:
    """Return a step where it makes data: by its stage, or by the kind of what it made."""
    stage = str(planned.get("uses", ""))
    done = [row for row in rows if row.status == "done"]
    row = next(reversed(done or rows), None)
    artifact = stored(view.workspace, row.artifact) if row is not None and row.artifact else None
    gone = artifact is not None and artifact.kind == "missing"
    if artifact is not None and not gone:
        stage = str(part(artifact.manifest, "made_by").get("stage", stage))
    if stage not in _STAGES and (artifact is None or artifact.kind != "dataset"):
        return None
    made = part(artifact.manifest, "made_by", "settings") if artifact and not gone else {}
    return DataStep(
        step=name,
        plan=str(planned.get("plan", "")),
        stage=stage,
        status=row.status if row is not None else "waiting",
        attempts=len(rows),
        seconds=row.finished_at - row.started_at if row is not None and row.finished_at else None,
        note=row.note or "" if row is not None else "",
        plan_says=str(planned.get("plan_says", "")),
        settings=made or part(planned, "settings"),
        metrics=row.metrics or {} if row is not None else {},
        artifact=None if gone else artifact,
        gone=gone,
    )


def _quotas(steps: Sequence[DataStep]) -> dict[str, int]:
    """Return the wanted rows of every cell: as the run merged them, else as its questions' settings say."""
    asked = [step.settings.get("quotas") for step in steps if step.stage == QUESTIONS]
    wanted: dict[str, int] = {}
    for domain, levels in (asked[-1] or {}).items() if asked and isinstance(asked[-1], Mapping) else ():
        for level, rows in levels.items() if isinstance(levels, Mapping) else ():
            if (known := _count(rows)) is not None:
                wanted[f"{domain}/{level}"] = known
    merged = [counts(step.facts, "quotas") for step in steps if step.stage == MERGE]
    # A manifest sorts its keys; the settings of a waiting step have the plan's order.
    held = merged[-1] if merged and merged[-1] else wanted
    return {name: held[name] for name in sorted(held, key=plan_order)}


_PLAN = (
    "coding", "math", "tool_use", "reasoning", "reading", "summarization", "common_sense", "instruction",
)  # fmt: skip


def plan_order(cell: str) -> tuple[int, str]:
    """Sort cells as plan 1.1 lists them, others behind by name."""
    domain = cell.partition("/")[0]
    return (_PLAN.index(domain) if domain in _PLAN else len(_PLAN), cell)


def _report(artifact: Artifact) -> Mapping[str, Any]:
    """Return the writer's state that 1.2 keeps; nothing where it is gone, broken or too long."""
    try:
        path = artifact.file(_WRITER)
        with path.open("rb") as handle:
            text = handle.read(_LONGEST_REPORT + 1)
        found = json.loads(text) if len(text) <= _LONGEST_REPORT else None
    except (CogumiError, OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}


# Facts of any shape ---------------------------------------------------------------------------------


def part(facts: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """Return a mapping inside facts, an empty one where there is none."""
    found: Any = facts
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def number(facts: Mapping[str, Any], *path: str) -> float | None:
    """Return a finite number inside facts, or None."""
    found = part(facts, *path[:-1]).get(path[-1])
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return found


def counts(facts: Mapping[str, Any], *path: str) -> dict[str, int]:
    """Return the whole numbers of a mapping inside facts, by name."""
    found = {str(name): _count(value) for name, value in part(facts, *path).items()}
    return {name: value for name, value in found.items() if value is not None}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# Verdicts -------------------------------------------------------------------------------------------


def verdicts_about(view: View, step: DataStep) -> list[GateVerdict]:
    """Return the run's recorded verdicts on what a step made, oldest first; unreadable ones are left out."""
    if view.run is None or step.artifact is None:
        return []
    found = []
    for row in view.workspace.ledger.verdicts(view.run):
        if row["artifact"] == step.artifact.digest:
            try:
                found.append(GateVerdict.from_json(row["document"]))
            except (KeyError, TypeError, ValueError):
                continue
    return found


def worst_first(verdict: GateVerdict) -> list[CriterionVerdict]:
    """Return the criteria of a verdict, those that do not pass first."""
    return sorted(verdict.criteria, key=lambda one: one.verdict.value == "PASS")
