"""What the commands share: workspace and data options, output on the right stream, formatting."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cogumi.errors import UsageError, nearest
from cogumi.profile import Profile, load_profile, parse_profile
from cogumi.workspace import Workspace, find_data

WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", help="Folder of ledger, artifacts and evidence (COGUMI_WORKSPACE; .cogumi)."),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder with benchmark data (COGUMI_DATA; else the hub).")
]
JudgeOption = Annotated[
    str | None, typer.Option("--judge", help="Who grades judged tasks: a model, or a teacher of the profile.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="First items of each task only.")]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", help="Profile name, or path of a YAML file.")
]
RunOption = Annotated[str | None, typer.Option("--run", "-r", help="Name of the run.")]
MaxCostOption = Annotated[
    float | None, typer.Option("--max-cost", min=0, help="Stop before spending more US dollars (exit 6).")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before real money is spent.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]

DEFAULT_PROFILE = "rehearsal"


@dataclass(frozen=True, slots=True)
class Common:
    """Options that may stand before or after the command."""

    workspace: Path | None = None
    data: Path | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command works."""

    workspace: Workspace
    data: Path | None


def place(context: typer.Context, workspace: Path | None, data: Path | None = None) -> Place:
    """Return workspace and data folder; options after the command win over those before it."""
    common = context.obj if isinstance(context.obj, Common) else Common()
    return Place(Workspace.find(workspace or common.workspace), find_data(data or common.data))


_printed: list[bool] = []


def echo_json(document: Any) -> None:
    """Print a JSON document on standard output."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
    _printed.append(True)


def json_was_printed() -> bool:
    """Tell whether this command has printed its one document, so that an error after it prints no second."""
    return bool(_printed)


def begin_printing() -> None:
    """Say that a command begins and has printed nothing yet."""
    _printed.clear()


def say(line: str = "") -> None:
    """Print a line for people on standard error, where progress and remarks belong."""
    typer.echo(line, err=True)


def on_terminal() -> bool:
    """Tell whether a person watches standard error."""
    return sys.stderr.isatty()


def profile_of(place: Place, run: str | None, profile: str | None, judge: str | None = None) -> Profile:
    """Return the profile of the run, else the one named, else the rehearsal; with another judge if given."""
    chosen = _profile_of(place, run, profile)
    return chosen if judge is None else chosen.model_copy(update={"judge": judge})


def _profile_of(place: Place, run: str | None, profile: str | None) -> Profile:
    if run is not None:
        row = existing_run(place, run)
        recorded = parse_profile(row["profile"], f"of run {run}")
        if profile is not None and load_profile(profile).profile != recorded.profile:
            raise UsageError(f"run {run} has the profile {recorded.profile}; leave --profile out")
        return recorded
    return load_profile(profile or DEFAULT_PROFILE)


def latest_run(place: Place) -> str | None:
    """Return the name of the run touched last; None in a workspace that has none, which is not created."""
    if not place.workspace.root.exists():
        return None
    rows = place.workspace.ledger.runs()
    return str(rows[0]["name"]) if rows else None


def existing_run(place: Place, run: str) -> Any:
    """Return a run's row; raises ``UsageError`` naming the nearest run."""
    row = place.workspace.ledger.run(run)
    if row is None:
        known = [str(found["name"]) for found in place.workspace.ledger.runs()]
        hint = nearest(run, known) or f" (the workspace {place.workspace.root} has none yet: cogumi run)"
        raise UsageError(f"no run {run!r}{hint}")
    return row


def dollars(real: float, simulated: float = 0.0) -> str:
    """Format spending; play money of a local teacher is named as such."""
    told = [f"${real:.2f}"] if real or not simulated else []
    if simulated:
        told.append(f"${simulated:.4f} simulated (nothing was paid)")
    return " and ".join(told)
