"""``cogumi humaneval analyze`` and ``export``: what a closed study says, and its data for anybody."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogumi.cli.common import JsonOption, WorkspaceOption, echo_json, say
from cogumi.cli.humaneval_study import DEFAULT_STUDY, StudyArgument, closed_study, find_study
from cogumi.errors import UsageError
from cogumi.store import disk_error, write_atomic

if TYPE_CHECKING:
    from gates.people import Analysis

_ANALYZE = """Analyse a closed study.

Prints mean, interval, verdict and its reasons, and exits with the verdict's code. PASS when the lower bound
of the mean lies above the bar, FAIL when the upper bound lies below, else UNDECIDED; with under 100
complete raters, or any simulated one, always UNDECIDED. Refused while the study is open.

Example: cogumi humaneval analyze --html study.html
"""
_EXPORT = """Write a closed study's ratings.

As CSV, Parquet and JSON, with a data dictionary. Raters are numbers (r0001 and so on); comments stand as
they were written, so read them before you publish. Cells that a spreadsheet would take for formulas are
neutralised in the CSV. Refused while the study is open.

Example: cogumi humaneval export --out study-data
"""


def register(group: typer.Typer) -> None:
    """Add the commands."""
    group.command("analyze", help=_ANALYZE)(analyze)
    group.command("export", help=_EXPORT)(export)


def analyze(
    context: typer.Context,
    study: StudyArgument = DEFAULT_STUDY,
    bar: Annotated[float, typer.Option("--bar", min=1, max=10, help="What the mean must lie above.")] = 8.0,
    html: Annotated[Path | None, typer.Option("--html", help="Also write an HTML page.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Also write Markdown.")] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Analyse and exit with the verdict's code."""
    for target in (html, markdown):
        if target is not None and not target.absolute().parent.is_dir():
            raise UsageError(f"no such folder {target.parent} to write {target.name} into")
    where, _ = find_study(context, workspace, study)
    frozen = closed_study(where, study)
    from gates.people import analyse

    found = analyse(frozen, bar=bar)
    if html is not None:
        from reports.human import human_report

        write_atomic(html.absolute(), human_report(found, frozen).encode("utf-8", "replace"))
        say(f"written: {html}")
    if markdown is not None:
        from reports.human_markdown import human_markdown

        write_atomic(markdown.absolute(), human_markdown(found, frozen).encode("utf-8", "replace"))
        say(f"written: {markdown}")
    if as_json:
        echo_json(found.to_json())
    else:
        for line in told(found):
            typer.echo(line)
    raise typer.Exit(found.exit_code)


def told(found: Analysis) -> list[str]:
    """Return the lines that tell an analysis, the verdict first."""
    estimate, judged = found.judged.estimate, found.judged
    simulated = ", simulated raters" if found.simulated else ""
    bounds = _bounds(estimate.lower, estimate.upper)
    mean = f"mean {estimate.mean:.2f}{bounds}" if estimate.n else "no mean"
    lines = [
        f"study {found.study} {found.verdict}: {mean}, bar above {found.bar:g}, {estimate.n:,} ratings of "
        f"{estimate.raters:,} raters on {estimate.tasks:,} tasks{simulated}",
        *(f"  {reason}" for reason in found.reasons),
    ]
    if estimate.n:
        over = "tasks like these" if found.estimand == "population" else "these tasks only"
        lines.append(f"  over raters like these and {over}; {estimate.method}, alpha {found.alpha:g} a side")
    everyone = judged.everyone
    if judged.excluded:
        lines.append(
            f"  left out by rule: {len(judged.excluded)} raters; with them {everyone.mean:.2f}"
            f"{_bounds(everyone.lower, everyone.upper)}, {judged.verdicts[1]}"
        )
    lines += [
        f"  {one.name}: {one.value:.2f}{_bounds(one.lower, one.upper)}"
        for one in found.agreement
        if one.value is not None
    ]
    if found.tables.preference is not None:
        won = found.tables.preference
        bounds = _bounds(won.lower, won.upper, ".1%")
        lines.append(f"  preferred to {found.reference}: {won.mean:.1%}{bounds}")
    return lines


def _bounds(lower: float | None, upper: float | None, form: str = ".2f") -> str:
    return "" if lower is None or upper is None else f" in [{lower:{form}}, {upper:{form}}]"


def export(
    context: typer.Context,
    study: StudyArgument = DEFAULT_STUDY,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="New or empty folder to write into.")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the study's data."""
    if out is None:
        raise UsageError("--out DIR is missing: the folder that the data goes into")
    where, _ = find_study(context, workspace, study)
    frozen = closed_study(where, study)
    from evals.human.export import export_files

    folder = out.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{out} is not empty: name a new folder, data of two studies must not mix")
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{out} is a file, not a folder") from None
    except OSError as error:
        raise disk_error(error, out) from error
    files = export_files(frozen)
    for name, content in files.items():
        write_atomic(folder / name, content)
    if as_json:
        document = {"study": study, "folder": str(folder), "files": sorted(files)}
        echo_json(document | {"rows": frozen.table.num_rows})
    else:
        typer.echo(f"written: {out} ({frozen.table.num_rows:,} ratings; {', '.join(sorted(files))})")
