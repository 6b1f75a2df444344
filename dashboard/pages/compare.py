"""Compare: models beside a pinned baseline on the same items: differences, flips, size, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from cogumi.errors import CogumiError
from dashboard import kit
from dashboard.catalogue import Catalogue, catalogue, file_state, names
from dashboard.choosing import choose, choose_some
from dashboard.compare_plot import forest
from dashboard.items import PAGE_ROWS, Answer, Filters, Items, Page
from dashboard.pairs import Compared, TaskPair, compare
from dashboard.view import Kept, View
from gates.compare import ALPHA
from reports.quality import Suite
from reports.text import interval

if TYPE_CHECKING:
    from reports.schema import ArtifactPart

_MOST_MODELS = 6
_MOST_LINES = 3
_SURE = f"{1 - ALPHA:.0%}".replace("%", " %")
_SIZES = {
    "bytes_download": ("MB to download", "Download, ratio to baseline"),
    "bytes_resident": ("MB in memory", "Memory, ratio to baseline"),
}

_COMPARED: Kept[Compared] = Kept(64)
_DIFFERING: Kept[Page] = Kept(32)


@dataclass(frozen=True, slots=True)
class _Beside:
    """One model beside the baseline."""

    digest: str
    name: str
    compared: Compared


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the page is drawn from."""

    baseline: str
    baseline_name: str
    suite: Suite
    models: tuple[_Beside, ...]


def draw(view: View) -> None:
    """Draw the page."""
    st.title("Compare")
    known = catalogue(view)
    for line in known.broken[:_MOST_LINES]:
        st.warning(kit.safe(line))
    if len(known.artifacts()) < 2:
        kit.empty("Two measured models are wanted.", "cogumi compare MODEL OTHER --suite SUITE")
        return
    shown = _choose(view, known)
    if not shown.models:
        st.info("Choose a model to compare with the baseline.")
        return
    _refusals(shown)
    able = [one for one in shown.models if one.compared.of is not None]
    if not able:
        return
    _sentences(shown, able)
    _suite(shown, able)
    _figure(shown, able)
    _tasks(shown, able)
    _sizes(view, shown, able)
    _items(shown, able)


# Choosing -----------------------------------------------------------------------------------------


def _choose(view: View, known: Catalogue) -> _Shown:
    called = names(view)
    labels = called.labels(known.artifacts())
    left, right = st.columns(2)
    with right:
        suites = _suites(known, called.suites)
        told = {name: _suite_told(one) for name, one in suites.items()}
        suite = choose("suite", "Suite", told, forget=["task"])
    tasks = suites[suite].tasks
    with left:
        baseline = choose(
            "pinned",
            "Baseline (pinned)",
            labels,
            default=_first_whole(known, [digest for digest in labels if digest in called.models], tasks),
            forget=["task"],
            help_="Differences are model minus baseline.",
        )
    others = {digest: label for digest, label in labels.items() if digest != baseline}
    whole = [digest for digest in others if set(tasks) <= set(known.tasks(digest))]
    made = [digest for digest in whole if digest in called.models]
    chosen = choose_some(
        "with",
        "Compared with it",
        others,
        default=(made or whole or list(others))[-2:],
        most=_MOST_MODELS,
        passed_over=[baseline],
        forget=["model"],
    )
    state = (str(view.workspace.root), view.workspace.evidence_state, baseline)
    models = []
    with st.spinner("Comparing the recorded items"):
        for digest in chosen:
            found = _COMPARED.get((*state, digest, tasks), _comparison(known, baseline, digest, tasks))
            models.append(_Beside(digest, labels[digest], found))
    return _Shown(baseline, labels[baseline], suites[suite], tuple(models))


def _comparison(known: Catalogue, a: str, b: str, tasks: Sequence[str]) -> Any:
    return lambda: compare(known, a, b, tasks)


def _suites(known: Catalogue, suites: Sequence[Suite]) -> dict[str, Suite]:
    """Return the run's suites, and each measured task that none of them has, as its own."""
    found = {suite.name: suite for suite in suites}
    listed = {task for suite in suites for task in suite.tasks}
    for task in sorted({task for _, task in known.found} - listed):
        found.setdefault(task, Suite(task, (task,), None))
    return found


def _first_whole(known: Catalogue, digests: Sequence[str], tasks: Sequence[str]) -> str | None:
    """Return the first model of which every item is known: most often those after it were made of it."""

    def whole(digest: str, task: str) -> bool:
        try:
            return any(one.file.count() == one.n_total for one in known.of(digest, task))
        except CogumiError:
            return False

    return next((digest for digest in digests if all(whole(digest, task) for task in tasks)), None)


def _suite_told(suite: Suite) -> str:
    return suite.name if suite.tasks == (suite.name,) else f"{suite.name} ({len(suite.tasks)} tasks)"


# The comparison -----------------------------------------------------------------------------------


def _refusals(shown: _Shown) -> None:
    for one in shown.models:
        reasons: dict[str, list[str]] = {}
        for refused in one.compared.refused:
            why = refused.why.replace("of A", f"of {shown.baseline_name}").replace("of B", f"of {one.name}")
            reasons.setdefault(why, []).append(refused.task)
        for why, tasks in reasons.items():
            told = ", ".join(tasks) if len(tasks) < len(shown.suite.tasks) else "no task"
            verb = "not paired" if len(tasks) < len(shown.suite.tasks) else "can be paired"
            st.warning(kit.safe(f"{one.name}: {told} {verb}: {why}"))


def _sentences(shown: _Shown, able: Sequence[_Beside]) -> None:
    for one in able:
        compared = one.compared.of
        if compared is None or not one.compared.whole:
            continue
        lost, gained = _flips(one.compared)
        known = (
            "over all items"
            if compared.lower == compared.upper
            else f"between {compared.lower:+.4f} and {compared.upper:+.4f} over all items, {_SURE} sure"
        )
        by = f"{abs(compared.difference):.4f} {'lower' if compared.difference < 0 else 'higher'} than"
        how = by if compared.difference else "the same as"
        st.markdown(
            f"**{kit.safe(one.name)}** scores {how} **{kit.safe(shown.baseline_name)}** ({known}): "
            f"{lost:,} items got worse, {gained:,} got better."
        )
    for note in dict.fromkeys(
        note.replace("A was", f"{shown.baseline_name} was").replace("B was", f"{one.name} was")
        for one in able
        for note in one.compared.notes
    ):
        st.caption(kit.safe(note[:1].upper() + note[1:]) + ".")


def _flips(compared: Compared) -> tuple[int, int]:
    """Return on how many items the model scored lower, and higher, than the baseline."""
    tasks = compared.of.tasks if compared.of is not None else ()
    return sum(task.a_only for task in tasks), sum(task.b_only for task in tasks)


def _suite(shown: _Shown, able: Sequence[_Beside]) -> None:
    st.header(f"Suite {kit.safe(shown.suite.name)}")
    rows = []
    for one in able:
        compared, whole = one.compared.of, one.compared.whole
        lost, gained = _flips(one.compared)
        if compared is None or one.compared.score_a is None or one.compared.score_b is None:
            continue
        rows.append(
            {
                "Model": kit.plain(one.name, longest=80),
                "Score": one.compared.score_b.score if whole else None,
                f"Score, {_SURE}": _bounds(one.compared.score_b.lower, one.compared.score_b.upper, whole),
                "Baseline": one.compared.score_a.score if whole else None,
                f"Baseline, {_SURE}": _bounds(one.compared.score_a.lower, one.compared.score_a.upper, whole),
                "Difference": compared.difference if whole else None,
                f"Difference, {_SURE}": _bounds(compared.lower, compared.upper, whole),
                "Got worse": lost,
                "Got better": gained,
                "Items compared": sum(task.n for task in compared.tasks),
                "Items in all": sum(task.n_total for task in compared.tasks),
                "Tasks": f"{len(one.compared.pairs)} of {len(shown.suite.tasks)}",
            }
        )
    kit.frame(pd.DataFrame(rows), f"compare-{shown.suite.name}", key="suite-table", column_config=_formats())
    st.caption(
        "Scores are means over the tasks, with equal weights, on the items that both answered. An interval "
        "is “exact” where every item of the suite is known. Got worse: right in the baseline and wrong here, "
        "or scored lower."
    )


def _bounds(lower: float, upper: float, whole: bool = True) -> str:
    return interval(lower, upper) if whole else "–"


def _formats() -> dict[str, Any]:
    three = st.column_config.NumberColumn(format="%.3f")
    return {
        "Score": three,
        "Baseline": three,
        "Difference": st.column_config.NumberColumn(format="%+.4f"),
        "p (Holm)": st.column_config.NumberColumn(
            format="%.3g", help="Chance of such a difference where there is none, corrected for the tasks."
        ),
    }


def _figure(shown: _Shown, able: Sequence[_Beside]) -> None:
    table = _task_table(able)
    kit.figure(
        forest({one.name: one.compared for one in able}, kit.colours()),
        f"compare-{shown.suite.name}-differences",
        None,
        f"Difference of {len(able)} models to {shown.baseline_name} on each task of {shown.suite.name}, with "
        f"intervals; the largest loss is {table['Difference'].min():+.3f}",
        key="differences",
    )


def _tasks(shown: _Shown, able: Sequence[_Beside]) -> None:
    st.header("Each task")
    kit.frame(
        _task_table(able), f"compare-{shown.suite.name}-tasks", key="task-table", column_config=_formats()
    )
    if len(shown.suite.tasks) > 1:
        st.caption(
            "Single tasks are exploratory: with several of them some difference comes by chance. p is exact "
            "McNemar's, or by sign flips where scores lie between 0 and 1."
        )


def _task_table(able: Sequence[_Beside]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for one in able:
        compared, ours, theirs = one.compared.of, one.compared.score_a, one.compared.score_b
        if compared is None or ours is None or theirs is None:
            continue
        for task, a, b in zip(compared.tasks, ours.tasks, theirs.tasks, strict=True):
            rows.append(
                {
                    "Task": kit.plain(task.task, longest=80),
                    "Model": kit.plain(one.name, longest=80),
                    "Score": b[0],
                    f"Score, {_SURE}": _bounds(b[1], b[2]),
                    "Baseline": a[0],
                    f"Baseline, {_SURE}": _bounds(a[1], a[2]),
                    "Difference": task.difference,
                    f"Difference, {_SURE}": _bounds(task.lower, task.upper),
                    "Got worse": task.a_only,
                    "Got better": task.b_only,
                    "p (Holm)": task.p_holm,
                    "Items compared": task.n,
                    "Items in all": task.n_total,
                }
            )
    tasks = dict.fromkeys(row["Task"] for row in rows)
    return pd.DataFrame([row for task in tasks for row in rows if row["Task"] == task])


# Size and speed -----------------------------------------------------------------------------------


def _sizes(view: View, shown: _Shown, able: Sequence[_Beside]) -> None:
    st.header("Size and speed")
    parts = _parts(view)
    mine = parts.get(shown.baseline)
    speed = next((one.compared.speed_a for one in able if one.compared.speed_a), None)
    rows = [_size_row(f"{shown.baseline_name} (baseline)", mine, mine, speed, None)]
    rows += [
        _size_row(one.name, parts.get(one.digest), mine, one.compared.speed_b, one.compared.speed_ratio)
        for one in able
    ]
    two = st.column_config.NumberColumn(format="%.2f")
    formats = dict.fromkeys((name for columns in _SIZES.values() for name in columns), two)
    formats["Speed, ratio to baseline"] = two
    formats["Tokens per second"] = st.column_config.NumberColumn(format="%.1f")
    kit.frame(
        pd.DataFrame(rows), f"compare-{shown.suite.name}-sizes", key="size-table", column_config=formats
    )
    told: dict[str, list[str]] = {}
    for one in able:
        if one.compared.speed_note:
            told.setdefault(one.compared.speed_note, []).append(one.name)
    for note, whose in told.items():
        st.caption(f"No ratio of speeds for {kit.safe(', '.join(whose))}: {kit.safe(note)}.")


def _parts(view: View) -> Mapping[str, ArtifactPart]:
    """Return what the run's report knows of its models; a line and nothing where there is no report."""
    if view.run is None:
        return {}
    try:
        return {part.digest: part for part in view.report().artifacts}
    except CogumiError as error:
        st.warning(f"Sizes are not known: {kit.safe(str(error))}")
        return {}


def _size_row(
    name: str,
    part: ArtifactPart | None,
    baseline: ArtifactPart | None,
    speed: float | None,
    speed_ratio: float | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"Model": kit.plain(name, longest=80)}
    for field, (amount, ratio) in _SIZES.items():
        size = getattr(part, field) if part is not None else None
        below = getattr(baseline, field) if baseline is not None else None
        row[amount] = size / 1e6 if size else None
        row[ratio] = size / below if size and below else None
    # On the items compared; floats also where all are unknown, so that the column stays one of numbers.
    row["Tokens per second"] = speed
    row["Speed, ratio to baseline"] = speed_ratio
    return {key: float("nan") if value is None else value for key, value in row.items()}


# Items --------------------------------------------------------------------------------------------


def _items(shown: _Shown, able: Sequence[_Beside]) -> None:
    st.header("Items where they differ")
    left, right = st.columns(2)
    by_digest = {one.digest: one for one in able}
    with left:
        told = {one.digest: one.name for one in reversed(able)}
        digest = choose("model", "Model", told, forget=["task"])
    one = by_digest[digest]
    pairs = {pair.task: pair for pair in one.compared.pairs}
    with right:
        task = choose("task", "Task", {name: name for name in pairs}, default=_most_flips(one))
    pair = pairs[task]
    link = {
        "artifact": one.digest,
        "with": shown.baseline,
        "task": task,
        "protocol": pair.b.file.key.protocol_digest,
    }
    of_task = (
        next(found for found in one.compared.of.tasks if found.task == task) if one.compared.of else None
    )
    if of_task is None or not of_task.flips:
        st.info(f"They scored the same on each of the {pair.n:,} items of {kit.safe(task)}.")
        return
    with st.container(horizontal=True):
        if of_task.a_only:
            kit.go(f"The {of_task.a_only:,} that got worse", "items", **link, differs="lost")
        if of_task.b_only:
            kit.go(f"The {of_task.b_only:,} that got better", "items", **link, differs="gained")
    page = _differing(pair)
    table = pd.DataFrame([_item_row(own, other) for own, other in page.rows if other is not None])
    picked = kit.frame(
        table, f"differing-{one.name}-{task}", key=f"differing-{digest[7:19]}-{task}", on_select=True
    )
    if page.total > PAGE_ROWS:
        st.caption(f"The first {PAGE_ROWS} of {page.total:,}; the links above show all.")
    if picked:
        item = page.rows[picked[0]][0].item_id
        kit.go(f"{kit.plain(item, longest=80)}, side by side", "items", **link, differs="differs", item=item)
    else:
        st.caption("Choose a row to open it side by side.")


def _differing(pair: TaskPair) -> Page:
    state = (file_state(pair.a.file), file_state(pair.b.file))
    return _DIFFERING.get(state, lambda: Items(pair.b.file, pair.a.file).page(Filters(change="differs")))


def _item_row(own: Answer, other: Answer) -> dict[str, Any]:
    return {
        "Item": kit.plain(own.item_id, longest=80),
        "Change": "↓ worse" if own.score < other.score else "↑ better",
        "Score": own.score,
        "Baseline": other.score,
        "Prompt": " ".join(kit.plain(own.prompt).split()),
        "Output": " ".join(kit.plain(own.output).split()),
        "Output of the baseline": " ".join(kit.plain(other.output).split()),
    }


def _most_flips(one: _Beside) -> str:
    tasks = one.compared.of.tasks if one.compared.of is not None else ()
    return max(tasks, key=lambda task: task.flips).task
