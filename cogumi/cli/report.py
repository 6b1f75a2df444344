"""``cogumi report``: a run as a page, as Markdown and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogumi.cli.common import (
    JsonOption,
    Place,
    RunOption,
    WorkspaceOption,
    echo_json,
    existing_run,
    latest_run,
    place,
    say,
)
from cogumi.errors import UsageError
from cogumi.store import disk_error, write_atomic
from cogumi.workspace import Workspace, check_run_name

if TYPE_CHECKING:
    from reports.schema import Report

_HELP = """Tell a run in HTML, Markdown and JSON: verdicts first, then models, steps, money, how to reproduce.

The page stands alone: it can be mailed, printed and archived. Without --run, the latest run.

Example: cogumi report --run rehearsal --out results
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report", help=_HELP)(report)


def report(
    context: typer.Context,
    run: RunOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write into (WORKSPACE/reports/RUN).")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the three forms and say where."""
    from reports.model import build_report

    where = place(context, workspace)
    name = _chosen(where, run)
    if out is None:
        out = where.workspace.root / "reports" / check_run_name(name)
    found = build_report(where.workspace, name)
    page = _write(found, out)
    if as_json:
        echo_json(found.model_dump(mode="json"))
        say(f"written: {page} (with report.md and report.json)")
        return
    for gate in found.gates:
        typer.echo(f"{gate.gate}: {gate.verdict or 'not decided'}")
    typer.echo(f"written: {page} (with report.md and report.json)")


def write_report(workspace: Workspace, run: str, out: Path) -> Path:
    """Write ``report.html``, ``report.md`` and ``report.json`` into ``out`` and return the page's path.

    Raises ``UsageError`` for an unknown run, ``RunError`` when the folder cannot be written.
    """
    from reports.model import build_report

    return _write(build_report(workspace, run), out)


def _chosen(where: Place, run: str | None) -> str:
    nothing = f"no run in {where.workspace.root} yet; `cogumi run` starts the rehearsal"
    if not where.workspace.root.exists():
        raise UsageError(nothing if run is None else f"no run {run!r}: {nothing}")
    if run is not None:
        return str(existing_run(where, run)["name"])
    latest = latest_run(where)
    if latest is None:
        raise UsageError(nothing)
    return latest


def _write(found: Report, out: Path) -> Path:
    from reports.render_html import render_html
    from reports.render_json import render_json
    from reports.render_markdown import render_markdown

    folder = out.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    # The page is written last: whoever finds it finds the forms that it links to.
    for name, render in (
        ("report.json", render_json),
        ("report.md", render_markdown),
        ("report.html", render_html),
    ):
        write_atomic(folder / name, render(found).encode("utf-8", "replace"))
    return out / "report.html"
