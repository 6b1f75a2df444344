"""The report of a closed human study as one HTML page that stands alone: no script, nothing loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gates.people import Analysis
from reports import human_plot, human_rows
from reports.human_markdown import human_markdown
from reports.render_html import badge, printable

if TYPE_CHECKING:
    from evals.human.frozen import Frozen

__all__ = ["human_markdown", "human_report"]

WIDE, NARROW = 1040, 360
"""Widths in px of each plot, for screens and for phones."""

_SECTIONS = (
    ("mean", "The mean"),
    ("ratings", "Ratings"),
    ("tasks", "Tasks"),
    ("raters", "Raters"),
    ("agreement", "Agreement"),
    ("order", "Order and time"),
    ("plan", "Fixed beforehand"),
)


def human_report(analysis: Analysis, frozen: Frozen) -> str:
    """Return the page of an analysis; ``frozen`` is the study that it is of, for the texts of its tasks."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=printable,
    )
    return environment.get_template("human.html.jinja").render(
        a=analysis,
        rows=human_rows,
        frozen=frozen,
        sections=_SECTIONS,
        verdict=badge(analysis.verdict.value),
        side=badge,
        means=_both(analysis, "means"),
        histogram=_both(analysis, "histogram"),
        tasks=_both(analysis, "tasks"),
    )


def _both(analysis: Analysis, plot: str) -> tuple[Markup, Markup]:
    """Return a plot in two widths; empty where there is nothing to show."""
    if not analysis.judged.estimate.n:
        return Markup(""), Markup("")
    wide, narrow = (_drawn(analysis, plot, width) for width in (WIDE, NARROW))
    return Markup(wide), Markup(narrow)


def _drawn(analysis: Analysis, plot: str, width: int) -> str:
    found = analysis.tables
    if plot == "means":
        title = f"Intervals of the mean rating beside the bar; {human_rows.headline(analysis)}"
        return human_plot.intervals_plot(human_rows.estimates(analysis), analysis.bar, width, title)
    if plot == "histogram":
        told = ", ".join(f"{k}: {count}" for k, count in enumerate(found.histogram, 1))
        return human_plot.histogram_plot(found.histogram, width, f"Ratings by value: {told}")
    title = "Mean rating of every task; the table of tasks holds the same figures"
    return human_plot.tasks_plot(found.tasks, analysis.bar, width, title)
