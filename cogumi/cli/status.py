"""``cogumi status``: where a run stands."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogumi.cli.common import (
    JsonOption,
    Place,
    RunOption,
    WorkspaceOption,
    dollars,
    echo_json,
    existing_run,
    latest_run,
    place,
)
from cogumi.errors import UsageError
from cogumi.gpu_cost import gpu_usd, hours_told, paid_hours
from cogumi.held import is_held
from cogumi.profile import GateStep, Profile, parse_profile
from cogumi.units import duration

if TYPE_CHECKING:
    from cogumi.ledger import StepRow

_HELP = """Show where a run stands: its steps, verdicts, time and money. Without --run, the latest run.

Example: cogumi status --watch
"""
_WATCH_EVERY_S = 1.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status", help=_HELP)(status)


def status(
    context: typer.Context,
    run: RunOption = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the run until it ends.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Print a run's state, once or until it ends."""
    where = place(context, workspace)
    if as_json and watch:
        raise UsageError("give --json or --watch, not both")
    if run is None:
        run = latest_run(where)
        if run is None:
            if as_json:
                echo_json({"runs": []})
            else:
                typer.echo(f"no run in {where.workspace.root} yet; `cogumi run` starts the rehearsal")
            return
    while True:
        document = status_document(where, run)
        if as_json:
            echo_json(document)
            return
        if watch:
            typer.echo("\x1b[2J\x1b[H", nl=False)
        _print(document)
        if not watch or document["status"] != "running" or document["held"] is False:
            return
        time.sleep(_WATCH_EVERY_S)


def status_document(where: Place, run: str) -> dict[str, Any]:
    """Return a run's state as one JSON document."""
    row = existing_run(where, run)
    ledger = where.workspace.ledger
    profile = parse_profile(row["profile"], f"of run {run}")
    done: dict[str, list[StepRow]] = {}
    for step in ledger.steps(run):
        done.setdefault(step.step, []).append(step)
    verdicts: dict[str, list[Any]] = {}
    for found in ledger.verdicts(run):
        verdicts.setdefault(str(found["gate"]), []).append(found)
    real, simulated = ledger.spent(run)
    steps = [_step_row(profile, step.id, done.get(step.id, [])) for step in profile.steps]
    hours = [step["gpu_hours"] for step in steps if step["gpu_hours"] is not None]
    return {
        "run": run,
        "profile": row["profile_name"],
        "status": row["status"],
        "held": is_held(where.workspace, run) if row["status"] == "running" else None,
        "exit_code": row["exit_code"],
        "note": row["note"],
        "accepted_infeasible": row["accepted_infeasible"],
        "spent_usd": real,
        "spent_simulated_usd": simulated,
        "gpu_hours": sum(hours) if hours else None,
        "gpu_usd": gpu_usd(sum(hours) if hours else None, profile.gpu),
        "steps": steps,
        "gates": {
            gate: [
                {
                    "verdict": entry["verdict"],
                    "attempt": entry["attempt"],
                    "artifact": entry["artifact"],
                    "criteria": entry["document"]["criteria"],
                }
                for entry in entries
            ]
            for gate, entries in verdicts.items()
        },
    }


def _step_row(profile: Profile, step_id: str, rows: list[StepRow]) -> dict[str, Any]:
    step = next(step for step in profile.steps if step.id == step_id)
    last = max(rows, key=lambda row: row.attempt) if rows else None
    seconds = sum((row.finished_at or time.time()) - row.started_at for row in rows)
    taken = [hours for row in rows if (hours := paid_hours(row)) is not None]
    hours = sum(taken) if taken else None
    return {
        "step": step_id,
        "plan": step.plan,
        "kind": "gate" if isinstance(step, GateStep) else "measure" if hasattr(step, "measure") else "stage",
        "status": last.status if last else "waiting",
        "attempt": last.attempt if last else 0,
        "seconds": round(seconds, 3) if rows else None,
        "artifact": last.artifact if last else None,
        "note": last.note if last else "",
        "gpu_hours": hours,
        "gpu_usd": gpu_usd(hours, profile.gpu),
    }


_MARKS = {"done": "✓", "running": "→", "failed": "✗", "stopped": "■", "waiting": "·"}


def _print(document: dict[str, Any]) -> None:
    typer.echo(f"run {document['run']} (profile {document['profile']}): {document['status']}")
    if document["note"]:
        typer.echo(f"  {document['note']}")
    if document["held"] is False:
        typer.echo(
            "  no process that can be seen from here holds it: it was killed, or runs on another machine; "
            f"`cogumi run --run {document['run']}` goes on"
        )
    for row in document["steps"]:
        took = duration(row["seconds"]) if row["seconds"] is not None else ""
        artifact = (row["artifact"] or "").removeprefix("sha256:")[:12]
        name = f"{_MARKS[row['status']]} {row['plan']:<4} {row['step']:<18}"
        told = [row["note"]] if row["note"] else []
        if row["attempt"] > 1:
            told.append(f"attempt {row['attempt']}")
        if row["gpu_hours"] is not None:
            told.append(hours_told(row["gpu_hours"], row["gpu_usd"]))
        typer.echo(f"  {name} {took:>12}  {artifact:<12} {', '.join(told)}".rstrip())
    typer.echo(f"  spent {dollars(document['spent_usd'], document['spent_simulated_usd'])}")
    if document["gpu_hours"] is not None:
        typer.echo(f"  GPU time: {hours_told(document['gpu_hours'], document['gpu_usd'])}")
