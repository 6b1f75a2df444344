"""One run of a workspace, gathered from ledger, store and evidence; nothing is measured or decided here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cogumi.errors import RunError, UsageError, nearest
from cogumi.gpu_cost import gpu_usd, paid_hours
from cogumi.ledger import Ledger, StepRow
from cogumi.profile import GateStep, MeasureStep, Profile, parse_profile
from cogumi.workspace import Workspace
from gates.verdicts import GateVerdict
from reports.artifacts import artifact_names, artifact_parts, stored
from reports.caveats import caveats
from reports.confidence import confidence_part
from reports.frontier import frontier_parts
from reports.measured import EvidenceIndex
from reports.quality import References, reference_parts, suites_of
from reports.reproduce import reproduce_part
from reports.schema import (
    CallsPart,
    Decision,
    GatePart,
    GpuPart,
    MoneyPart,
    Report,
    RunPart,
    Scalar,
    StepPart,
)
from reports.stage_metrics import metric_parts
from reports.text import moment
from reports.training import training_part


def build_report(workspace: Workspace, run: str) -> Report:
    """Return everything that a page on this run says.

    Raises ``UsageError`` naming the nearest run when there is none so called, ``RunError`` when the evidence
    or a verdict in the ledger is broken.
    """
    ledger = workspace.ledger
    row = ledger.run(run)
    if row is None:
        raise UsageError(f"no run {run!r}{nearest(run, [str(found['name']) for found in ledger.runs()])}")
    about = dict(row)
    profile = parse_profile(about["profile"], f"of run {run}")
    steps = ledger.steps(run)
    names = artifact_names(steps)
    index = EvidenceIndex(workspace)
    suites = suites_of(profile)
    references = References(workspace, profile, index)
    artifacts = artifact_parts(workspace, steps, names, index, (suites, references))
    parts = {
        "run": _run_part(about, profile, steps),
        "gates": _gate_parts(profile, [dict(found) for found in ledger.verdicts(run)], names),
        "artifacts": artifacts,
        "references": reference_parts(suites, references),
        "frontiers": frontier_parts(workspace, names, artifacts),
        "steps": _step_parts(workspace, profile, steps),
        "money": _money_part(ledger, run, _gpu_part(profile, steps)),
        "reproduce": reproduce_part(workspace, profile, about, steps, index),
    }
    found = Report.model_validate({**parts, "caveats": []})
    return found.model_copy(update={"caveats": caveats(found, index)})


def _run_part(row: Mapping[str, Any], profile: Profile, steps: Sequence[StepRow]) -> RunPart:
    last = max([step.finished_at or step.started_at for step in steps], default=row["updated_at"])
    return RunPart(
        name=row["name"],
        profile=row["profile_name"],
        profile_title=profile.title,
        profile_digest=row["profile_digest"],
        status=row["status"],
        exit_code=row["exit_code"],
        note=row["note"],
        started=moment(row["created_at"]),
        as_of=moment(max(last, row["updated_at"])),
        seconds=sum(step.finished_at - step.started_at for step in steps if step.finished_at),
        accepted_infeasible=list(row["accepted_infeasible"]),
    )


def _gate_parts(
    profile: Profile, verdicts: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> list[GatePart]:
    decided: dict[str, list[Decision]] = {}
    titles: dict[str, str] = {}
    for row in verdicts:
        document = _document(row)
        titles[row["gate"]] = document["title"]
        decided.setdefault(row["gate"], []).append(
            Decision(
                verdict=document["verdict"],
                attempt=document["attempt"],
                artifact=document["artifact"],
                artifact_name=names.get(document["artifact"], ""),
                decided=moment(row["created_at"]),
                document=document,
            )
        )
    steps = {step.gate: step.id for step in profile.steps if isinstance(step, GateStep)}
    return [
        GatePart(
            gate=gate,
            title=titles.get(gate, ""),
            step=steps.get(gate),
            verdict=decided[gate][-1].verdict if gate in decided else None,
            decisions=decided.get(gate, []),
        )
        for gate in dict.fromkeys([*steps, *decided])
    ]


def _document(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded verdict in the shape of this version, whichever version wrote it."""
    try:
        return GateVerdict.from_json(row["document"]).to_json()
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"the ledger's verdict of gate {row['gate']} is not readable by this version "
            f"({type(error).__name__}: {error}); decide it again with cogumi gate {row['gate']}"
        ) from error


# Steps --------------------------------------------------------------------------------------------


def _step_parts(workspace: Workspace, profile: Profile, steps: Sequence[StepRow]) -> list[StepPart]:
    plan = {step.id: step for step in profile.steps}
    parts = []
    for row in steps:
        artifact = stored(workspace, row.artifact) if row.kind == "stage" else None
        facts = artifact.facts if artifact else {}
        seconds = row.finished_at - row.started_at if row.finished_at else None
        parts.append(
            StepPart(
                plan=plan[row.step].plan if row.step in plan else "",
                step=row.step,
                kind=row.kind,
                status=row.status,
                attempt=row.attempt,
                seconds=seconds,
                artifact=row.artifact,
                note=row.note,
                metrics=_scalars(
                    {name: v for name, v in row.metrics.items() if name not in ("seconds", "note")}
                ),
                facts=_scalars(facts),
                measured=metric_parts(facts),
                training=training_part(row, artifact, profile.gpu) if artifact else None,
                confidence=confidence_part(facts),
            )
        )
    started = {row.step for row in steps}
    return parts + [_waiting(step) for step in profile.steps if step.id not in started]


def _waiting(step: Any) -> StepPart:
    kind = "gate" if isinstance(step, GateStep) else "measure" if isinstance(step, MeasureStep) else "stage"
    return StepPart(
        plan=step.plan,
        step=step.id,
        kind=kind,
        status="waiting",
        attempt=0,
        seconds=None,
        artifact=None,
        note="",
        metrics={},
        facts={},
        measured=[],
        training=None,
        confidence=None,
    )


def _scalars(values: Mapping[str, Any]) -> dict[str, Scalar]:
    """Keep what fits into one cell; JSON knows no NaN and no infinity."""
    found: dict[str, Scalar] = {}
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            found[name] = str(value)
        elif value is None or isinstance(value, str | float | int | bool):
            found[name] = value
    return found


# Money --------------------------------------------------------------------------------------------


def _money_part(ledger: Ledger, run: str, gpu: GpuPart | None) -> MoneyPart:
    spent = ledger.spent(run)
    calls = [CallsPart.model_validate(dict(row)) for row in ledger.call_totals(run)]
    return MoneyPart(
        real_usd=spent[0],
        simulated_usd=spent[1],
        unpriced_calls=sum(row.unpriced for row in calls),
        calls=calls,
        gpu=gpu,
    )


def _gpu_part(profile: Profile, steps: Sequence[StepRow]) -> GpuPart | None:
    taken = [hours for row in steps if (hours := paid_hours(row)) is not None]
    if not taken:
        return None
    gpu = profile.gpu
    return GpuPart(
        name=gpu.name if gpu else "GPU",
        usd_per_hour=gpu.usd_per_hour if gpu else None,
        source=gpu.source if gpu else "the profile names no gpu",
        hours=sum(taken),
        usd=gpu_usd(sum(taken), gpu),
    )
