"""A human study as the people page draws it: counts while it is open, the analysis once it is closed."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import streamlit as st

from cogumi.errors import CogumiError
from cogumi.units import duration
from dashboard import kit
from dashboard.study import (
    Study,
    agreement_table,
    analysis_of,
    counts_table,
    flags_table,
    histogram_table,
    list_table,
    means_table,
    read_study,
    remarks_table,
    study_names,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dashboard.view import View
    from evals.human.frozen import Frozen
    from evals.human.rows import Progress
    from gates.crossed import MeanInterval
    from gates.people import Analysis

_MOST_TASKS_DRAWN = 60
_MOST_REASONS = 12


def draw_studies(view: View, bar: float) -> bool:
    """Draw the workspace's studies, the chosen one in full; False where there is none."""
    names = study_names(view.workspace.root)
    if not names:
        return False
    studies = [read_study(view.workspace.root, name) for name in names]
    if len(studies) > 1:
        kit.frame(list_table(studies), "studies", key="studies")
        kit.asked("study", names)
        chosen = str(st.selectbox("Study", names, key="study", bind="query-params", format_func=kit.plain))
    else:
        chosen = names[0]
    _draw(next(one for one in studies if one.name == chosen), bar)
    return True


def draw_artifact(view: View, digest: str, bar: float) -> bool:
    """Draw the analysis of the closed study that an artifact holds, as a rehearsal's does; False without."""
    from evals.human.frozen import FOLDER, STUDY_FILE, read_frozen

    try:
        payload = view.workspace.store.get(digest).path
    except CogumiError:
        # Deleted since, or from elsewhere: what its verdict says stands above.
        return False
    if not (payload / FOLDER / STUDY_FILE).is_file():
        return False
    _closed(read_frozen(payload), bar, in_workspace=False)
    return True


def _draw(study: Study, bar: float) -> None:
    title = f" ({study.plan.title})" if study.plan else ""
    st.subheader(f"{kit.safe(study.name)}{kit.safe(title)}")
    if study.progress is not None:
        _open(study, study.progress)
    elif study.frozen is not None:
        _closed(study.frozen, bar)
    else:
        st.error(kit.safe(study.why), icon=":material/error:")


# Open ---------------------------------------------------------------------------------------------


def _open(study: Study, progress: Progress) -> None:
    finished = progress.states.get("finished", 0)
    st.info(
        f"Open: {finished:,} of {progress.slots:,} raters have finished, {progress.items_done:,} of "
        f"{progress.items_wanted:,} ratings are in. Means stay hidden until it is closed: who sees one while "
        "people rate can stop when it looks best.",
        icon=":material/lock:",
    )
    if progress.simulated:
        st.warning(f"{progress.simulated:,} raters are simulated: the verdict will be UNDECIDED.")
    with st.container(horizontal=True):
        st.metric("Places free", f"{progress.free:,}")
        st.metric("Ratings an hour", _rate(progress.items_per_hour))
        left = progress.hours_left
        st.metric("Left at this pace", duration(left * 3600) if left else "–")
        median = progress.median_seconds
        st.metric("Seconds an item", f"{median:.0f}" if median is not None else "–")
    counts: dict[str, int] = {"links made": progress.invites, "links revoked": progress.revoked}
    counts.update((name, count) for name, count in progress.states.items() if count)
    kit.frame(counts_table(counts), f"{study.name} raters", key=f"states-{study.name}")
    if progress.dropped_at:
        told = ", ".join(f"{count:,} after item {at}" for at, count in sorted(progress.dropped_at.items()))
        st.markdown(f"Left before the end: {told}.")
    if progress.remarks:
        st.markdown("Flags and comments, the latest first:")
        kit.frame(remarks_table(progress), f"{study.name} remarks", key=f"remarks-{study.name}")
    st.code(f"cogumi humaneval status {shlex.quote(study.name)}", language="bash", wrap_lines=True)


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


# Closed -------------------------------------------------------------------------------------------


def _closed(frozen: Frozen, bar: float, *, in_workspace: bool = True) -> None:
    found = analysis_of(frozen, bar)
    name = frozen.plan.name
    closed = f" {frozen.closed_at}" if frozen.closed_at else ""
    st.markdown(f"**{_sentence(found)}** The study is closed{kit.safe(closed)}.")
    for reason in found.reasons[:_MOST_REASONS]:
        st.markdown(f"- {kit.safe(reason)}")
    _whole(found)
    if not found.judged.estimate.n:
        kit.frame(counts_table(frozen.counts), f"{name} raters", key=f"states-{name}")
        return
    colour = kit.colours()[0]
    scores = histogram_table(found.tables)
    kit.figure(
        _histogram(found, colour),
        f"{name} scores",
        scores,
        f"How often each score from 1 to 10 was given, of {found.judged.estimate.n:,} ratings.",
        key=f"scores-{name}",
    )
    ceiling = found.tables.ceiling_share
    if ceiling is not None:
        st.caption(f"{ceiling:.0%} of the ratings are 10, the ceiling.")
    _tasks(found, name, colour)
    _order(found)
    st.markdown("How far raters agree; reported, and no gate rests on it:")
    kit.frame(agreement_table(found), f"{name} agreement", key=f"agreement-{name}")
    _left_out(found, name)
    st.markdown("Raters:")
    kit.frame(counts_table(frozen.counts), f"{name} raters", key=f"states-{name}")
    _report(found, frozen, in_workspace=in_workspace)


def _sentence(found: Analysis) -> str:
    simulated = ", simulated raters" if found.simulated else ""
    return f"{kit.badge(found.verdict.value)}: {_told(found.judged.estimate)}{simulated}."


def _told(interval: MeanInterval, form: str = ".3f") -> str:
    if not interval.n:
        return "no mean"
    bounds = ""
    if interval.lower is not None and interval.upper is not None:
        bounds = f" ({interval.lower:{form}} to {interval.upper:{form}})"
    return f"mean {interval.mean:{form}}{bounds}"


def _whole(found: Analysis) -> None:
    estimate = found.judged.estimate
    over = "tasks like these" if found.estimand == "population" else "these tasks only"
    st.caption(
        f"Bar: above {found.bar:g}. {estimate.n:,} ratings by {estimate.raters:,} raters of "
        f"{estimate.tasks:,} tasks, a mean over raters like these and {over}; each bound is wrong with "
        f"chance {found.alpha:g} ({kit.safe(estimate.method)})."
    )


def _histogram(found: Analysis, colour: str) -> go.Figure:
    import plotly.graph_objects as go

    fig = go.Figure()
    fig.add_bar(x=list(range(1, 11)), y=list(found.tables.histogram), marker_color=colour)
    fig.update_layout(
        height=300,
        margin={"t": 30, "b": 40},
        xaxis={"title": "Score", "dtick": 1},
        yaxis={"title": "Ratings"},
    )
    return fig


def _tasks(found: Analysis, name: str, colour: str) -> None:
    table = means_table(found.tables.tasks)
    st.markdown("Mean of each task, the lowest first, with the bounds of its own raters:")
    if len(table) > _MOST_TASKS_DRAWN:
        kit.frame(table, f"{name} tasks", key=f"tasks-{name}")
        return
    kit.figure(
        _task_means(table, found.bar, colour),
        f"{name} tasks",
        table,
        f"Mean and bounds of {len(table):,} tasks against the bar {found.bar:g}.",
        key=f"tasks-{name}",
    )


def _task_means(table: Any, bar: float, colour: str) -> go.Figure:
    import plotly.graph_objects as go

    # Names of tasks are the author's text: numbers stand for them, and the table beside has them.
    rows = list(range(1, len(table) + 1))
    upper, lower = table["Upper bound"].fillna(table["Mean"]), table["Lower bound"].fillna(table["Mean"])
    fig = go.Figure()
    fig.add_scatter(
        x=rows,
        y=table["Mean"],
        mode="markers",
        marker={"color": colour, "size": 8},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": upper - table["Mean"],
            "arrayminus": table["Mean"] - lower,
        },
    )
    fig.add_hline(y=bar, line_dash="dash", annotation_text=f"bar {bar:g}")
    fig.update_layout(
        height=320,
        margin={"t": 30, "b": 40},
        xaxis={"title": "Task, as in the table"},
        yaxis={"title": "Mean score", "range": [0.5, 10.5]},
    )
    return fig


def _order(found: Analysis) -> None:
    order, times, preference = found.tables.order, found.tables.times, found.tables.preference
    if order is not None:
        bounds = ""
        if order.lower is not None and order.upper is not None:
            bounds = f" ({order.lower:+.3f} to {order.upper:+.3f})"
        st.markdown(f"Order: ratings change by {order.value:+.3f}{bounds} points from one item to the next.")
    if times is not None:
        st.markdown(
            f"Time: {times.median:.0f} s an item (a tenth below {times.p10:.0f} s, a tenth above "
            f"{times.p90:.0f} s), {times.minutes_per_rater:.0f} minutes a rater."
        )
    if preference is not None:
        who = kit.safe(found.reference or "the reference")
        st.markdown(f"Pairs: preferred to {who}, {_told(preference, '.1%')}, ties as halves.")


def _left_out(found: Analysis, name: str) -> None:
    judged = found.judged
    if not judged.flags:
        st.markdown("No rater met a rule of carelessness.")
        return
    who = "rater" if len(judged.flags) == 1 else "raters"
    st.markdown(
        f"{len(judged.flags):,} {who} met a rule of carelessness, {len(judged.excluded):,} met two and are "
        f"left out. With all raters: {_told(judged.everyone)}, {kit.badge(judged.verdicts[1].value)}."
    )
    kit.frame(flags_table(found), f"{name} rules", key=f"rules-{name}")


def _report(found: Analysis, frozen: Frozen, *, in_workspace: bool) -> None:
    from reports.human import human_report

    name = frozen.plan.name
    st.download_button(
        "Save the report",
        human_report(found, frozen).encode("utf-8", "replace"),
        file_name=f"{name}.html",
        mime="text/html",
        key=f"report-{name}",
        on_click="ignore",
        icon=":material/download:",
    )
    if not in_workspace:
        # A study within a run's artifact: the command knows only those of the workspace by name.
        return
    st.code(
        f"cogumi humaneval analyze {shlex.quote(name)} --html {shlex.quote(name)}.html",
        language="bash",
        wrap_lines=True,
    )
