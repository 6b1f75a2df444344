"""A report as one HTML page that stands alone: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import confidence, frontier, plot, rows, stage_metrics, text
from reports.frontier_plot import frontier_plot
from reports.loss_plot import loss_plot
from reports.quality import ALPHA
from reports.reliability_plot import reliability_plot
from reports.schema import ArtifactPart, ConfidencePart, FrontierPart, Report

_SECTIONS = (
    ("verdicts", "Verdicts"),
    ("artifacts", "Models"),
    ("frontier", "Size against quality"),
    ("history", "Every verdict"),
    ("training", "Training"),
    ("confidence", "Confidence"),
    ("measured", "Measured by stages"),
    ("steps", "Steps"),
    ("money", "Money"),
    ("reproduce", "How to reproduce"),
    ("caveats", "Before you quote a number"),
)
_SIGNS = {"PASS": "✓", "FAIL": "✗", "UNDECIDED": "?", "INFEASIBLE": "∅", "ERROR": "!", "BUDGET": "$"}


def render_html(report: Report, *, card: bool = False) -> str:
    """Return the page; ``card``: a card of a model lies beside it, and the page links to it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=printable,
    )
    suites = rows.suite_columns(report)
    confidences = rows.confidences_of(report)
    measured = stage_metrics.table(rows.metrics_of(report))
    optional = {
        "frontier": report.frontiers,
        "training": rows.trainings_of(report),
        "confidence": confidences,
        "measured": measured,
    }
    empty = [name for name, found in optional.items() if not found]
    return environment.get_template("report.html.jinja").render(
        report=report,
        card=card,
        t=text,
        headline=rows.headline(report),
        sections=[one for one in _SECTIONS if one[0] not in empty],
        suites=suites,
        alpha=ALPHA,
        version=version("cogumi"),
        badge=badge,
        strip=_strip,
        plots=[found for suite in suites if (found := _plots(report, suite.name))],
        curves=list(_curves(report)),
        trainings=rows.trainings_of(report),
        training_table=rows.training_table(report),
        confidences=[(name, confidence.told(part), _reliability(name, part)) for name, part in confidences],
        confidence_alpha=max((part.alpha for _, part in confidences), default=0.0),
        measured=measured,
        measured_header=stage_metrics.HEADER,
        confidence_header=confidence.HEADER,
        confidence_table=confidence.table(confidences),
        frontiers=[(part, frontier.told(part), *_frontier(part)) for part in report.frontiers],
        frontier_header=frontier.HEADER,
        frontier_numbers=frontier.NUMBERS,
        frontier_table=frontier.table,
        by_task=list(rows.tasks_of(report)),
        history=list(rows.history_of(report)),
        key_figures=rows.key_figures,
        longest=max((step.seconds or 0.0 for step in report.steps), default=0.0) or 1.0,
        profile_text=json.dumps(report.reproduce.profile, indent=2, ensure_ascii=False),
    )


def printable(value: Any) -> Any:
    """Return what a template may print: text without characters that no page may hold."""
    return text.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def badge(verdict: str | None) -> Markup:
    """Return a verdict as a coloured word with a sign, so that colour alone tells nothing."""
    if verdict is None:
        return Markup('<span class="verdict">NOT DECIDED</span>')
    return Markup('<span class="verdict v-{}"><span aria-hidden="true">{} </span>{}</span>').format(
        verdict.lower(), _SIGNS.get(verdict, ""), verdict
    )


def _strip(criterion: Mapping[str, Any]) -> Markup:
    data = plot.Strip(
        value=criterion["value"],
        lower=criterion["lower"],
        upper=criterion["upper"],
        bar=criterion["bar"],
        at_least=criterion["comparison"] == ">=",
        share=text.is_share(criterion["measure"]),
    )
    return Markup(plot.strip(data, f"{criterion['id']}: {text.claim(criterion)}"))


@dataclass(frozen=True, slots=True)
class _Plots:
    suite: str
    levels: bool
    wide: Markup
    narrow: Markup


def _plots(report: Report, suite: str) -> _Plots | None:
    """Return the plot of a suite in two widths, or None for fewer than two models: a table says that."""
    points = [point for artifact in report.artifacts if (point := _point(artifact, suite))]
    if len(points) < 2:
        return None
    levels = [
        plot.Level(f"{one.name}{', simulated' if one.simulated else ''}", one.score)
        for one in report.references
        if one.suite == suite
    ]
    title = f"Quality on {suite} against bytes to download; the table of models holds the same figures"
    wide, narrow = (Markup(plot.scatter(points, levels, width, title)) for width in (1040, 380))
    return _Plots(suite, bool(levels), wide, narrow)


def _point(artifact: ArtifactPart, suite: str) -> plot.Point | None:
    part = next((part for part in artifact.quality if part.suite == suite), None)
    if part is None or part.score is None or not artifact.bytes_download:
        return None
    return plot.Point(
        number=artifact.number,
        name=artifact.name,
        x=float(artifact.bytes_download),
        y=part.score,
        lower=part.score if part.lower is None else part.lower,
        upper=part.score if part.upper is None else part.upper,
        speed=artifact.tokens_per_second,
        square=artifact.kind == "gguf",
    )


def _curves(report: Report) -> Iterator[tuple[str, str, Markup]]:
    """Yield name, words and picture of every training that was looked at more than once."""
    for name, part in rows.trainings_of(report):
        told = rows.losses_told(part)
        picture = loss_plot(part.looks, part.held_out_name, f"{name}: {told}")
        if picture:
            yield name, told, Markup(picture)


def _frontier(part: FrontierPart) -> tuple[Markup, Markup]:
    told = frontier.told(part)
    return Markup(frontier_plot(part.points, 1040, told)), Markup(frontier_plot(part.points, 380, told))


def _reliability(name: str, part: ConfidencePart) -> Markup:
    scalings = [(confidence.scaling_name(one.name), one) for one in confidence.shown(part)]
    return Markup(reliability_plot(scalings, f"{name}: {confidence.told(part)}"))
