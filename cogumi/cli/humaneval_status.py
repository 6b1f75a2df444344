"""``cogumi humaneval status`` and ``close``: how far a study is, without a mean; and ending it for good."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogumi.cli.common import JsonOption, WorkspaceOption, echo_json, say
from cogumi.cli.humaneval_study import DEFAULT_STUDY, DatabaseOption, StudyArgument, find_study, opened
from cogumi.errors import UsageError
from cogumi.units import duration

if TYPE_CHECKING:
    from evals.human.rows import Progress

_STATUS = """Say how far a study is.

Raters by state, ratings, pace, drop-out, flags; never a mean or a score.

Example: cogumi humaneval status --json
"""
_CLOSE = """Close a study for good.

Its ratings are frozen, and from then on its mean may be known. Nobody can rate, correct, withdraw or be
invited any more, and there is no way to open it again: a study that could go on after its mean was seen
would stop when the mean looks best.

Example: cogumi humaneval close --yes
"""
_REMARKS = 5


def register(group: typer.Typer) -> None:
    """Add the commands."""
    group.command("status", help=_STATUS)(status)
    group.command("close", help=_CLOSE)(close)


def status(
    context: typer.Context,
    study: StudyArgument = DEFAULT_STUDY,
    new_admin_token: Annotated[
        bool, typer.Option("--new-admin-token", help="Print a new admin token; the last one ends.")
    ] = False,
    url: DatabaseOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Print the study's progress."""
    _, folder = find_study(context, workspace, study)
    token = None
    with opened(folder, url, read_only=not new_admin_token) as store:
        if new_admin_token:
            token = store.new_admin_token()
        progress, invites = store.progress(), store.invites()
    if as_json:
        document: dict[str, Any] = {"study": study, **asdict(progress)}
        document["invitations"] = [asdict(one) for one in invites]
        echo_json(document | ({"admin_token": token} if token else {}))
        return
    for line in told(progress):
        typer.echo(line)
    if token is not None:
        typer.echo(f"admin token (shown once): {token}")


def told(progress: Progress) -> list[str]:
    """Return the lines that tell how far a study is."""
    state = f"closed {progress.closed_at}" if progress.closed_at else "open"
    raters = ", ".join(f"{count:,} {name}" for name, count in progress.states.items() if count)
    lines = [
        f"study {progress.name}: {state}",
        f"  invitations: {progress.invites:,}"
        + (f", {progress.revoked:,} of them revoked" if progress.revoked else ""),
        f"  raters: {raters or 'none yet'}; {progress.free:,} of {progress.slots:,} places free",
        f"  ratings: {progress.items_done:,} of {progress.items_wanted:,}" + _pace(progress),
    ]
    if progress.simulated:
        lines.append(f"  simulated raters: {progress.simulated:,}; its verdict will be UNDECIDED")
    if progress.overdue:
        lines.append(f"  {progress.overdue:,} raters were not seen for too long; their places may be taken")
    if progress.dropped_at:
        where = ", ".join(f"{count:,} after item {at}" for at, count in sorted(progress.dropped_at.items()))
        lines.append(f"  left: {where}")
    flags = sum(remark.flag for remark in progress.remarks)
    if progress.remarks:
        lines.append(f"  remarks: {len(progress.remarks):,}, {flags:,} of them flags; the latest:")
        for remark in progress.remarks[:_REMARKS]:
            mark = "flag " if remark.flag else ""
            text = "".join(one if one.isprintable() else " " for one in remark.comment)[:100]
            who = f"{remark.pseudonym} item {remark.position} {remark.task_id}"
            lines.append(f"    {who}: {mark}{text}".rstrip())
    if progress.closed_at is None:
        lines.append("  means: hidden until the study is closed")
    return lines


def _pace(progress: Progress) -> str:
    words = []
    if progress.items_per_hour is not None:
        words.append(f"{progress.items_per_hour:,.0f} an hour")
    if progress.hours_left:
        words.append(f"{duration(progress.hours_left * 3600)} left at this pace")
    if progress.median_seconds is not None:
        words.append(f"{progress.median_seconds:.0f} s an item")
    return f" ({', '.join(words)})" if words else ""


def close(
    context: typer.Context,
    study: StudyArgument = DEFAULT_STUDY,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: DatabaseOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Close the study."""
    _, folder = find_study(context, workspace, study)
    with opened(folder, url) as store:
        progress = store.progress()
        if progress.closed_at is None:
            _ask(progress, yes)
        frozen = store.close()
    if as_json:
        document = {"study": study, "closed_at": frozen.closed_at, "ratings_sha256": frozen.digest}
        echo_json(document | {"counts": dict(frozen.counts), "folder": str(frozen.folder)})
        return
    typer.echo(f"study {study}: closed {frozen.closed_at}, {frozen.table.num_rows:,} ratings frozen")
    typer.echo(f"  {frozen.folder / 'frozen'} ({frozen.digest[:19]})")
    typer.echo(f"next: cogumi humaneval analyze{'' if study == DEFAULT_STUDY else f' {study}'}")


def _ask(progress: Progress, yes: bool) -> None:
    """Say what cannot be undone, and ask; raises ``UsageError`` where nobody can answer."""
    finished = progress.states.get("finished", 0)
    begun = progress.states.get("active", 0) + progress.states.get("instructed", 0)
    what = (
        f"study {progress.name}: {finished:,} of {progress.slots:,} raters have finished, {begun:,} are "
        "under way. Closing cannot be undone: nobody rates, corrects or withdraws any more, and the "
        "ratings are frozen."
    )
    say(what)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("close cannot be undone: add --yes to agree")
    typer.confirm("Close the study?", abort=True, err=True)
