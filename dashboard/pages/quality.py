"""Quality, size and speed: every model of the run in one plot, and which of them no other one beats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import streamlit as st

from dashboard import kit
from dashboard.models import Models, models_of
from dashboard.pareto import tie_groups
from dashboard.places import AXES, KL, QUALITY, Choice, Place, frontiers_by_name, places
from dashboard.plan_lines import (
    Line,
    Region,
    against_of,
    axis_lines,
    kl_lines,
    least_region,
    most_region,
    quality_lines,
    reference_level,
)
from dashboard.quality_plot import Frame, near_lines, quality_figure, value_told
from dashboard.relative import Standards
from dashboard.view import Kept, View
from reports.quality import ALPHA
from reports.text import short

_ALL_TASKS = "all tasks"
_THE_SCORE = "the score itself"
_NONE = "none"
_MOST_PROBLEMS = 3
_MOST_NAMES = 12

_PLACES: Kept[list[Place]] = Kept(32)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the controls say."""

    choice: Choice
    log: bool
    marks: str
    all_lines: bool
    zoom: bool


def draw(view: View) -> None:
    """Draw the page."""
    st.title("Quality, size, speed")
    models = models_of(view)
    problems = st.container()
    _draw(view, models)
    # Files are read as they are needed: by now all that matter were.
    with problems:
        tell_problems(models)


def _draw(view: View, models: Models) -> None:
    if not models.artifacts:
        kit.empty("This run has made no model yet.", "cogumi run")
        return
    if not _suites(models) and not models.frontiers:
        last = short(models.artifacts[-1].digest)
        kit.empty("No model of this run was measured yet.", f"cogumi eval {last} --suite general")
        return
    standards = Standards(view.workspace, models.profile, models.index)
    asked = _controls(models)
    found = _places(view, models, asked.choice, standards)
    if not any(place.drawn for place in found):
        _nothing(models, asked.choice)
        return
    frame = _frame(models, asked, standards)
    _headline(found, asked.choice, frame)
    fig = quality_figure(frame, found)
    table = _table(found, asked.choice, frame)
    chosen = kit.figure(
        fig,
        f"quality-{asked.choice.tasks}-{asked.choice.x}",
        table,
        _alt(found, asked.choice, frame),
        key="quality_plot",
        on_select=True,
    )
    _open(chosen)
    _notes(models, found, asked.choice, frame)
    _ties(found, asked.choice, frame)
    _missing(found, asked.choice)
    _links(found)


def tell_problems(models: Models) -> None:
    """Say in one line each what evidence could not be read."""
    for problem in models.problems[:_MOST_PROBLEMS]:
        st.warning(f"Left out: {kit.safe(problem)}")
    if len(models.problems) > _MOST_PROBLEMS:
        st.warning(f"and {len(models.problems) - _MOST_PROBLEMS:,} more files that cannot be read")


# Controls -----------------------------------------------------------------------------------------


def _select(label: str, options: Sequence[str], key: str, **more: str) -> str:
    kit.asked(key, options)
    chosen = st.selectbox(
        label, options, key=key, bind="query-params", format_func=kit.plain, help=more.get("help")
    )
    return str(chosen)


def _controls(models: Models) -> _Asked:
    suites = _suites(models)
    dense = list(frontiers_by_name(models))
    ys = [*([QUALITY] if suites else []), *([KL] if dense else []), "tokens a second", "seconds an answer"]
    left, middle, right = st.columns(3)
    with left:
        y = _select("Vertical axis", ys, "y")
        x = _select("Horizontal axis", [name for name in AXES if name != y], "x")
    with middle:
        choice = _of_what(models, suites, dense, Choice(x=x, y=y, suite=suites[0] if suites else ""))
    with right:
        marks = [name for name in ["tokens a second", *AXES, _NONE] if name not in (x, y)]
        mark = _select("Area of a mark", list(dict.fromkeys(marks)), "mark")
        third = st.toggle(
            "It counts for the frontier too",
            key="three",
            bind="query-params",
            disabled=mark == _NONE,
            help="A model is then beaten only by one that is no worse in all three numbers.",
        )
    with st.container(horizontal=True):
        log = st.toggle("Logarithmic horizontal axis", value=True, key="log", bind="query-params")
        all_lines = st.toggle(
            "All lines of the plan",
            key="lines",
            bind="query-params",
            help="Also those that lie far from every model, which squeezes the models together.",
        )
        zoom = st.toggle(
            "Zoom to the best",
            key="zoom",
            bind="query-params",
            help="Leaves out the part of the vertical axis below all models that are best or nearly so.",
        )
    if third and mark != _NONE:
        choice = replace(choice, third=mark)
    return _Asked(choice, log, "" if mark == _NONE else mark, all_lines, zoom)


def _of_what(models: Models, suites: Sequence[str], dense: Sequence[str], choice: Choice) -> Choice:
    if choice.y == KL:
        against = _select("Divergence from", dense, "dense") if len(dense) > 1 else dense[0]
        return replace(choice, dense=against)
    if choice.y != QUALITY:
        return choice
    suite = _select("Suite", suites, "suite")
    choice = replace(choice, suite=suite)
    tasks = _tasks(models, suite)
    task = _select("Task", [_ALL_TASKS, *tasks], "task") if len(tasks) > 1 else _ALL_TASKS
    choice = replace(choice, task=None if task == _ALL_TASKS else task)
    relative = _select(
        "As a share of what was scored by",
        [_THE_SCORE, *_references(models, choice)],
        "relative",
        help="On the same items. A reference of the profile, or any model of this run.",
    )
    return replace(choice, relative=None if relative == _THE_SCORE else relative)


def _suites(models: Models) -> list[str]:
    return list(dict.fromkeys(part.suite for one in models.artifacts for part in one.quality))


def _tasks(models: Models, suite: str) -> list[str]:
    parts = [part for one in models.artifacts for part in one.quality if part.suite == suite]
    return list(dict.fromkeys(task.task for part in parts for task in part.tasks))


def _references(models: Models, choice: Choice) -> list[str]:
    measured = [
        one.name
        for one in models.artifacts
        if any(part.suite == choice.suite and part.score for part in one.quality)
    ]
    return [*models.profile.references, *(name for name in measured if name not in models.profile.references)]


# What is drawn ------------------------------------------------------------------------------------


def _places(view: View, models: Models, choice: Choice, standards: Standards) -> list[Place]:
    workspace = view.workspace
    state = (str(workspace.root), view.run, workspace.ledger.state(), workspace.evidence_state, choice)
    return _PLACES.get(state, lambda: places(models, choice, against_of(models, standards, choice.relative)))


def _frame(models: Models, asked: _Asked, standards: Standards) -> Frame:
    choice, axis = asked.choice, AXES[asked.choice.x]
    return Frame(
        x=axis,
        y_label=_y_label(choice),
        better=choice.better,
        log=asked.log,
        x_lines=axis_lines(models, axis),
        y_lines=_y_lines(models, choice, standards),
        level=_level(models, choice, standards),
        x_region=least_region(models, axis),
        y_region=most_region(models, choice, standards),
        divergence=choice.y == KL,
        marks=asked.marks,
        colours=kit.colours(),
        all_lines=asked.all_lines,
        zoom=asked.zoom,
    )


def _y_label(choice: Choice) -> str:
    if choice.y == KL:
        return f"KL from {choice.dense}, nats a token"
    if choice.y != QUALITY:
        return AXES[choice.y].label
    if choice.relative is None:
        return f"Score on {choice.tasks}"
    return f"Ratio to {choice.relative} on {choice.tasks}"


def _y_lines(models: Models, choice: Choice, standards: Standards) -> list[Line]:
    if choice.y == QUALITY:
        return quality_lines(models, choice, standards)
    return kl_lines(models, choice) if choice.y == KL else axis_lines(models, AXES[choice.y])


def _level(models: Models, choice: Choice, standards: Standards) -> Line | None:
    if choice.y != QUALITY:
        return None
    if choice.relative is not None:
        return Line(1.0, f"1.000: {choice.relative}", asked=False)
    suite = next((one for one in models.references if one.suite == choice.suite), None)
    if suite is not None and choice.task is None:
        simulated = ", simulated" if suite.simulated else ""
        return Line(suite.score, f"{suite.score:.3f}: {suite.name}{simulated}", asked=False)
    for name in models.profile.references if choice.task is not None else ():
        level = reference_level(models, choice, standards.reference(name))
        if level is not None:
            return Line(level, f"{level:.3f}: {name}", asked=False)
    return None


def _simulated(models: Models, choice: Choice) -> bool:
    if choice.y != QUALITY or choice.relative not in models.profile.references:
        return False
    teacher = models.profile.references[choice.relative or ""].teacher
    return teacher is not None and models.profile.teachers[teacher].base_url == "local"


# Words --------------------------------------------------------------------------------------------


def _headline(found: Sequence[Place], choice: Choice, frame: Frame) -> None:
    drawn = [place for place in found if place.drawn]
    best = [place.name for place in drawn if place.standing == "best"]
    what = f"{frame.y_label} against {frame.x.label.lower()}"
    also = f" and {AXES[choice.third].label.lower()}" if choice.third is not None else ""
    together = "both" if choice.third is None else "all three"
    models = f"{len(drawn)} model{'s' if len(drawn) != 1 else ''}"
    st.markdown(f"{kit.safe(what + also)}: {models}. None beats {_named(best, 'or')} in {together} at once.")


def _named(names: Iterable[str], last: str) -> str:
    known = list(names)
    shown = [f"**{kit.safe(name)}**" for name in known[:_MOST_NAMES]]
    if len(known) > _MOST_NAMES:
        return f"{', '.join(shown)} and {len(known) - _MOST_NAMES} more"
    return f"{', '.join(shown[:-1])} {last} {shown[-1]}" if len(shown) > 1 else "".join(shown)


def _alt(found: Sequence[Place], choice: Choice, frame: Frame) -> str:
    drawn = [place for place in found if place.drawn]
    best = [place for place in drawn if place.standing == "best" and place.y is not None]
    told = "; ".join(
        f"{place.name} {value_told(place.y, divergence=frame.divergence)}" for place in best if place.y
    )
    return (
        f"Scatter plot of {frame.y_label} against {choice.x} of {len(drawn)} models. Beaten by none: {told}. "
        "All numbers stand in the table below it."
    )


def _open(chosen: Sequence[dict[str, object]]) -> None:
    """Go to the page of the model whose mark was clicked."""
    digest = next((str(one["artifact"]) for one in chosen if one.get("artifact")), None)
    if digest is not None:
        # The run is bound to the sidebar's box, which keeps it in the address.
        st.switch_page(st.Page(_elsewhere, url_path="artifact"), query_params={"artifact": digest})


def _elsewhere() -> None:
    """Stand for the page that ``app`` lists under the same path; never drawn."""


def _notes(models: Models, found: Sequence[Place], choice: Choice, frame: Frame) -> None:
    told = [
        f"Bars: bounds that hold with chance {1 - ALPHA:.0%} whenever one stops measuring; a score over all "
        "items is exact and has none."
    ]
    if choice.y == KL:
        told = [f"Bars: bounds over held-out rows, wrong with chance {ALPHA:.0%}."]
    elif choice.task is not None and choice.relative is None:
        told.append("A task's bounds hold together with those of its suite's other tasks.")
    if _simulated(models, choice):
        told.append(f"{choice.relative} is simulated: a local teacher stands for it.")
    if frame.marks:
        told.append(f"The area of a mark is its {frame.marks}.")
    shapes = {place.kind for place in found if place.drawn}
    if "gguf" in shapes:
        told.append("Squares are GGUF files, circles folders of weights.")
    if choice.x == "tokens a second" or choice.y in ("tokens a second", "seconds an answer"):
        told.append("Speed is that of the machine and backend that measured, and has no bounds.")
    low = [place.name for place in found if place.drawn and place.standing == "behind"]
    if frame.zoom and low:
        told.append(f"Zoomed to the best; behind these, and perhaps outside: {', '.join(low[:_MOST_NAMES])}.")
    told += [f"Shaded: no model can be there; {region.why}." for region in _regions(frame)]
    drawn = near_lines(frame, found)
    far = [line.label for line in frame.x_lines if line not in drawn]
    if far:
        told.append(f"Lines of the plan outside the plot: {'; '.join(far)}.")
    if drawn or frame.y_lines:
        told.append("Dashed lines: bars that this run is asked for; dotted: the plan's others.")
    st.caption(kit.safe(" ".join(told)))


def _regions(frame: Frame) -> list[Region]:
    return [region for region in (frame.x_region, frame.y_region) if region is not None]


def _ties(found: Sequence[Place], choice: Choice, frame: Frame) -> None:
    groups = tie_groups({place.key: place.y for place in found if place.drawn and place.y is not None})
    if not groups or choice.y not in (QUALITY, KL):
        return
    st.header("Not told apart")
    st.caption(
        f"Chains of models whose bounds of {kit.safe(frame.y_label.lower())} overlap: neighbours in a chain "
        "may be equally good."
    )
    by_key = {place.key: place for place in found}
    for group in groups:
        members = [by_key[key] for key in group]
        equal = all(one.y is not None and one.y.exact for one in members)
        told = ", ".join(
            f"**{kit.safe(one.name)}** {value_told(one.y, divergence=frame.divergence)}"
            for one in members
            if one.y is not None
        )
        st.markdown(f"- {told}{' (equal over all items)' if equal else ''}")


def _missing(found: Sequence[Place], choice: Choice) -> None:
    """Say which models lack a number, and so are not in the plot."""
    what = {
        QUALITY: f"score on {choice.tasks}" if choice.relative is None else f"ratio to {choice.relative}",
        KL: "divergence",
    }
    reasons: dict[str, list[str]] = {}
    for place in found:
        lacking = [name for name, value in ((choice.x, place.x), (choice.y, place.y)) if value is None]
        if lacking:
            told = " and ".join(f"no {what.get(name, name)}" for name in lacking)
            reasons.setdefault(told, []).append(place.name)
    for told, names in reasons.items():
        st.markdown(f"Not in the plot, {kit.safe(told)}: {_named(names, 'and')}.")


def _nothing(models: Models, choice: Choice) -> None:
    if choice.y == QUALITY and choice.relative is not None:
        st.info(f"No model of this run has items in common with {kit.safe(choice.relative)}.")
    elif choice.y == QUALITY:
        last = short(models.artifacts[-1].digest)
        kit.empty(
            f"No model of this run has a score on {choice.tasks} yet.",
            f"cogumi eval {last} --suite {choice.suite}",
        )
    else:
        st.info(f"No model of this run has both {kit.safe(choice.x)} and {kit.safe(choice.y)} known.")


def _links(found: Sequence[Place]) -> None:
    """The way by keyboard to what a click on a mark opens."""
    named = {f"{place.number} {place.name}": place.digest for place in found if place.digest is not None}
    if not named:
        return
    chosen = st.selectbox("Open a model", list(named), index=None, key="open", format_func=kit.plain)
    if chosen is not None:
        kit.go(f"Open {chosen}", "artifact", artifact=str(named[chosen]))


# The table ----------------------------------------------------------------------------------------


def _table(found: Sequence[Place], choice: Choice, frame: Frame) -> pd.DataFrame:
    """Return every model with all numbers, also those that the plot does not show."""
    groups = tie_groups({place.key: place.y for place in found if place.drawn and place.y is not None})
    tied = {key: f"{k + 1}" for k, group in enumerate(groups) for key in group}
    rows = []
    for place in found:
        y = place.y
        rows.append(
            {
                "Number": place.number,
                "Model": place.name,
                "Kind": place.kind,
                frame.y_label: y.value if y is not None else None,
                "lower bound": y.lower if y is not None else None,
                "upper bound": y.upper if y is not None else None,
                "items": place.n or None,
                "of": place.n_total or None,
                "bytes to download": place.numbers["download size"],
                "bytes in memory": place.numbers["size in memory"],
                **{name: place.numbers[name] for name in AXES if not AXES[name].is_bytes},
                "standing": place.standing or "–",
                "not told apart, chain": tied.get(place.key, ""),
                "recipe": place.recipe,
                "digest": place.digest or "",
            }
        )
    return pd.DataFrame(rows)
