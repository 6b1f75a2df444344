"""``cogumi report``: a run as a page, as Markdown, as JSON, as a model card and as a CI summary."""

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

CARD = "model-card.md"

_HELP = """Tell a run in HTML, Markdown and JSON: verdicts first, then models, steps, money, how to reproduce.

The page stands alone: it can be mailed, printed and archived. Beside it lies a card of the model that the run
ships (model-card.md), in the hub's format. Without --run, the latest run.

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
    artifact: Annotated[
        str | None,
        typer.Option(
            "--artifact", "-a", help="Model of the card: name, number or digest (what the run ships)."
        ),
    ] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", help="Write all gates as short Markdown, for a CI job.")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write all forms and say where."""
    from reports.model import build_report

    where = place(context, workspace)
    name = _chosen(where, run)
    if out is None:
        out = where.workspace.root / "reports" / check_run_name(name)
    found = build_report(where.workspace, name)
    card = _card(where.workspace, found, artifact)
    page = _write(found, out, card)
    if summary is not None:
        from reports.summary import render_summary

        write_atomic(summary.absolute(), render_summary(found).encode("utf-8", "replace"))
        say(f"written: {summary}")
    also = f"report.md{', report.json and' if card else ' and'} {CARD if card else 'report.json'}"
    if as_json:
        echo_json(found.model_dump(mode="json"))
        say(f"written: {page} (with {also})")
        return
    for gate in found.gates:
        typer.echo(f"{gate.gate}: {gate.verdict or 'not decided'}")
    typer.echo(f"written: {page} (with {also})")


def write_report(workspace: Workspace, run: str, out: Path) -> Path:
    """Write all forms into ``out`` and return the path of ``report.html``.

    Raises ``UsageError`` for an unknown run, ``RunError`` when the folder cannot be written.
    """
    from reports.model import build_report

    found = build_report(workspace, run)
    return _write(found, out, _card(workspace, found, None))


def _card(workspace: Workspace, found: Report, named: str | None) -> str | None:
    """Return the card of the model that is named, else of the one that the run ships; None without models."""
    from reports.card_head import chosen
    from reports.model_card import render_model_card
    from reports.origins import origin_of

    part = chosen(found, named)
    return None if part is None else render_model_card(found, part, origin_of(workspace, part.digest))


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


def _write(found: Report, out: Path, card: str | None) -> Path:
    from reports.render_html import render_html
    from reports.render_json import render_json
    from reports.render_markdown import render_markdown

    folder = out.absolute()
    forms = {"report.json": render_json(found), "report.md": render_markdown(found)}
    if card is not None:
        forms[CARD] = card
    # The page is written last: whoever finds it finds the forms that it links to.
    forms["report.html"] = render_html(found, card=card is not None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if card is None:
            # One of another run would tell of another model.
            (folder / CARD).unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    for name, document in forms.items():
        write_atomic(folder / name, document.encode("utf-8", "replace"))
    return out / "report.html"
