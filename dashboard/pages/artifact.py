"""One artifact: what it is, how it came to be, how large and good it is, and what gates said about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from cogumi.errors import CogumiError
from dashboard import kit
from dashboard.gate_history import Decided, history_rows, history_table, read_verdicts
from dashboard.lineage import Made, lineage
from dashboard.models import Models, models_of
from dashboard.pages.quality import tell_problems
from dashboard.places import numbers_of
from dashboard.quality_plot import number_told
from dashboard.view import View
from reports import text
from reports.quality import ALPHA
from reports.schema import ArtifactPart, FrontierPointPart, SuitePart

_UNKNOWN = text.UNKNOWN
_MOST_VERDICTS = 50
_ISO_MINUTE = len("2026-11-23T20:55")


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the page is drawn from."""

    view: View
    models: Models
    made: Sequence[Made]
    part: ArtifactPart | None
    """None for one that is no model, or that another run made."""

    @property
    def itself(self) -> Made:
        return self.made[-1]


def draw(view: View) -> None:
    """Draw the page."""
    st.title("Artifact")
    models = models_of(view)
    problems = st.container()
    digest = _chosen(view, models)
    if digest is not None:
        _draw(view, models, digest)
    with problems:
        tell_problems(models)


def _draw(view: View, models: Models, digest: str) -> None:
    made = lineage(view.workspace, digest, models.names)
    shown = _Shown(view, models, made, models.artifact(digest))
    _head(shown)
    _links(shown)
    _sizes(shown)
    _quality(shown)
    _divergence(shown)
    _verdicts(shown)
    _lineage(shown)
    _facts(shown)


# Which one ----------------------------------------------------------------------------------------


def _chosen(view: View, models: Models) -> str | None:
    """Return the digest that the address names, in full or by its start; else that of the last model made."""
    asked = st.query_params.get("artifact", "")
    digest = _found(view, models, asked) if asked else None
    if asked and digest is None:
        st.error(
            f"No artifact {kit.safe(kit.plain(asked, longest=80))} in this workspace; choose one below.",
            icon=":material/error:",
        )
    known = [part.digest for part in models.artifacts] or list(models.names)
    if not known and digest is None:
        kit.empty("This run has made nothing yet.", "cogumi run")
        return None
    options = list(dict.fromkeys([*known, *models.names, *([digest] if digest else [])]))
    # Only a link names an artifact that was not found; nothing is shown in its place.
    default = digest or (None if asked else known[-1])
    chosen = st.selectbox(
        "Made by this run",
        options,
        index=options.index(default) if default is not None else None,
        # Bound to the digest and not to a widget's text: links from everywhere name it.
        key=f"artifact-{default}",
        format_func=lambda one: kit.plain(f"{models.names.get(one, 'elsewhere')} · {text.short(one)}"),
        placeholder="Choose an artifact",
    )
    if chosen is not None and chosen != asked:
        st.query_params["artifact"] = chosen
    return chosen


def _found(view: View, models: Models, asked: str) -> str | None:
    hexed = asked.removeprefix("sha256:")
    known = [digest for digest in models.names if digest.removeprefix("sha256:").startswith(hexed)]
    if len(known) == 1 and len(hexed) >= 6:
        return known[0]
    if not hexed or not all(char in "0123456789abcdef" for char in hexed):
        # A path or a pattern is no digest.
        return None
    try:
        return view.workspace.store.get(asked).digest
    except CogumiError:
        pass
    measured = view.workspace.evidence / hexed
    return f"sha256:{hexed}" if len(hexed) == 64 and measured.is_dir() else None


# What it is ---------------------------------------------------------------------------------------


def _head(shown: _Shown) -> None:
    one = shown.itself
    st.header(kit.safe(one.name))
    if one.kind == "missing":
        st.warning("It is gone from the store, or its manifest cannot be read; what the ledger knows stands.")
    by = f"made by the stage {kit.safe(one.stage)}" if one.stage else "brought from elsewhere"
    version = f", version {kit.safe(one.version)}" if one.version else ""
    moment = text.when(one.created) if len(one.created) >= _ISO_MINUTE else one.created
    when = f", {kit.safe(moment)}" if moment else ""
    st.markdown(f"{kit.safe(one.kind)}, {by}{version}{when}")
    st.code(one.digest, language=None, wrap_lines=True)
    recipe = shown.models.recipes.get(one.digest)
    if recipe:
        st.markdown(f"Recipe: {kit.safe(recipe)}")


def _links(shown: _Shown) -> None:
    if shown.part is None:
        return
    digest = shown.itself.digest
    measured = [task.task for suite in shown.part.quality for task in suite.tasks]
    with st.container(horizontal=True):
        if measured:
            kit.go("Its items", "items", artifact=digest)
            baseline = _parent_measured(shown)
            if baseline is not None:
                kit.go(
                    f"Compare with {shown.models.names[baseline]}",
                    "compare",
                    **{"pinned": baseline, "with": digest},
                )
            else:
                kit.go("Compare it", "compare", pinned=digest)
        kit.go("In the plot of quality, size, speed", "quality")


def _parent_measured(shown: _Shown) -> str | None:
    """Return the nearest ancestor that was measured too: what a compressed model is compared with."""
    measured = {part.digest for part in shown.models.artifacts if part.quality}
    return next((one.digest for one in reversed(shown.made[:-1]) if one.digest in measured), None)


def _sizes(shown: _Shown) -> None:
    one, part = shown.itself, shown.part
    st.subheader("Size and speed")
    if part is None:
        told = _UNKNOWN if one.bytes is None else text.size(one.bytes)
        rows = one.facts.get("rows")
        counted = f", {rows:,} rows" if isinstance(rows, int) else ""
        st.markdown(f"Its files have {told}{counted}.")
        return
    numbers = numbers_of(shown.models.index, part)
    columns = {
        "To download": number_told("download size", numbers["download size"]),
        "In memory": number_told("size in memory", numbers["size in memory"]),
        "Bits a weight": number_told("bits a weight", numbers["bits a weight"]),
        "Weights": text.count(part.parameters),
        "Tokens a second": number_told("tokens a second", numbers["tokens a second"]),
        "Seconds an answer": number_told("seconds an answer", numbers["seconds an answer"]),
    }
    with st.container(horizontal=True):
        for label, told in columns.items():
            st.metric(label, told, border=True, width=170)
    st.caption(
        "Bytes to download and bytes in memory are two numbers: a packed file is unpacked before it is used. "
        "Speed is that of the machine that measured it."
    )


# How good it is -----------------------------------------------------------------------------------


def _quality(shown: _Shown) -> None:
    if shown.part is None:
        return
    st.subheader("Quality")
    if not shown.part.quality:
        kit.empty(
            "It was not measured on any suite.",
            f"cogumi eval {text.short(shown.itself.digest)} --suite general",
        )
        return
    scores = {one.suite: one.score for one in shown.models.references}
    rows = [row for suite in shown.part.quality for row in _suite_rows(suite, scores.get(suite.suite))]
    name = f"{shown.itself.name}-quality"
    kit.frame(pd.DataFrame(rows), name, key="quality", column_config=_score_columns())
    st.caption(
        f"A suite is the mean over its tasks. Bounds hold with chance {1 - ALPHA:.0%} for a suite with all "
        "its tasks at once, whenever one stops; where all items are measured the score is exact."
    )


def _suite_rows(suite: SuitePart, reference: float | None) -> list[dict[str, Any]]:
    simulated = " (simulated)" if suite.reference_simulated else ""
    whole = {
        "Suite": suite.suite,
        "Task": "all tasks" if len(suite.tasks) == suite.tasks_total else "not all tasks",
        "Score": suite.score,
        "Lower bound": suite.lower,
        "Upper bound": suite.upper,
        "Items": suite.n,
        "Of": suite.n_total,
        "Reference's score": text.share(reference),
        "Ratio": text.share(suite.ratio),
        "Reference": f"{suite.reference}{simulated}" if suite.reference else _UNKNOWN,
        "Cut off": sum(task.truncated for task in suite.tasks),
        "Failed": sum(task.errors for task in suite.tasks),
        "Tokens a second": None,
    }
    rows = [whole]
    if suite.tasks_total == 1 and suite.tasks and suite.tasks[0].task == suite.suite:
        return [{**whole, "Tokens a second": suite.tasks[0].tokens_per_second}]
    for task in suite.tasks:
        rows.append(
            {
                "Suite": suite.suite,
                "Task": task.task,
                "Score": task.score,
                "Lower bound": task.lower,
                "Upper bound": task.upper,
                "Items": task.n,
                "Of": task.n_total,
                "Reference's score": text.share(task.reference_score),
                "Ratio": _UNKNOWN,
                "Reference": whole["Reference"],
                "Cut off": task.truncated,
                "Failed": task.errors,
                "Tokens a second": task.tokens_per_second,
            }
        )
    return rows


def _score_columns() -> dict[str, Any]:
    share = st.column_config.NumberColumn(format="%.3f")
    names = ("Score", "Lower bound", "Upper bound")
    return dict.fromkeys(names, share) | {
        "Tokens a second": st.column_config.NumberColumn(format="%.1f", help="While it was measured."),
        "Cut off": st.column_config.NumberColumn(help="Answers that the token limit cut; they score 0."),
        "Failed": st.column_config.NumberColumn(help="Items that got no answer; they score 0."),
    }


def _divergence(shown: _Shown) -> None:
    if shown.part is None:
        return
    found = [
        (part.baseline, point)
        for part in shown.models.frontiers
        for point in part.points
        if point.number == shown.part.number
    ]
    if not found:
        return
    st.subheader("How far it is from the dense model")
    for baseline, point in found:
        st.markdown(f"- {_divergence_told(baseline, point)}")


def _divergence_told(baseline: str, point: FrontierPointPart) -> str:
    bounds = f"[{point.kl_lower:.3g}, {point.kl_upper:.3g}]"
    parts = [f"KL {point.kl:.3g} {bounds} nats a token from {kit.safe(baseline)}"]
    if point.tokens is not None and point.rows is not None:
        parts.append(f"along {point.tokens:,} answer tokens of {point.rows:,} held-out rows")
    if point.top1_agreement is not None:
        parts.append(f"{text.percent(point.top1_agreement)} of tokens have the same favourite")
    if point.perplexity is not None and point.baseline_perplexity is not None:
        parts.append(f"perplexity {point.perplexity:.4g}, the dense model's {point.baseline_perplexity:.4g}")
    return f"{'; '.join(parts)}. By download and divergence: {point.standing}."


# What gates said ----------------------------------------------------------------------------------


def _verdicts(shown: _Shown) -> None:
    st.subheader("Verdicts about it")
    found, broken = read_verdicts(shown.view.workspace.ledger, None)
    about = [one for one in found if one.verdict.artifact == shown.itself.digest]
    for line in broken[:1]:
        st.warning(kit.safe(line))
    if not about:
        st.markdown("No gate was asked about it.")
        return
    runs = any(one.run != shown.view.run for one in about)
    rows = history_rows(about[:_MOST_VERDICTS])
    kit.frame(
        history_table(rows, shown.models.names, runs=runs), f"{shown.itself.name}-verdicts", key="verdicts"
    )
    if len(about) > _MOST_VERDICTS:
        st.caption(f"The newest {_MOST_VERDICTS} of {len(about):,}.")
    for one in _of_this_run(about, shown.view.run):
        kit.go(
            f"How {one.verdict.gate} was decided: {one.verdict.verdict.value}",
            "gates",
            gate=one.verdict.gate,
            verdict=one.name,
        )


def _of_this_run(about: Sequence[Decided], run: str | None) -> list[Decided]:
    """Return the newest verdict of each gate of the run that is looked at."""
    newest: dict[str, Decided] = {}
    for one in about:
        if one.run == run:
            newest.setdefault(one.verdict.gate, one)
    return list(newest.values())


# How it came to be --------------------------------------------------------------------------------


def _lineage(shown: _Shown) -> None:
    st.subheader("How it came to be")
    st.caption("Everything that it was made of, the first first. Open a step for its settings.")
    numbers = {one.digest: k + 1 for k, one in enumerate(shown.made)}
    for k, one in enumerate(shown.made):
        what = one.stage or "brought from elsewhere"
        gone = ", gone from the store" if one.kind == "missing" else f", {one.kind}"
        size = f", {text.size(one.bytes)}" if one.bytes is not None else ""
        with st.expander(kit.safe(f"{k + 1}. {one.name}: {what}{gone}{size}")):
            if one.inputs:
                told = ", ".join(
                    f"{name} = {_parent(parent, numbers, shown)}" for name, parent in one.inputs.items()
                )
                st.markdown(f"Made of: {kit.safe(told)}")
            _settings(one.settings)
            if one.digest != shown.itself.digest:
                kit.go(f"Open {one.name}", "artifact", artifact=one.digest)


def _parent(digest: str, numbers: Mapping[str, int], shown: _Shown) -> str:
    name = shown.models.names.get(digest, text.short(digest))
    return f"{name} (step {numbers[digest]})" if digest in numbers else name


def _settings(settings: Mapping[str, Any]) -> None:
    if not settings:
        st.markdown("No settings.")
        return
    rows = [{"Setting": name, "Value": _value(value)} for name, value in settings.items()]
    st.table(
        pd.DataFrame([{key: kit.safe(cell) for key, cell in row.items()} for row in rows]).set_index(
            "Setting"
        )
    )


def _value(value: object) -> str:
    told = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return kit.plain(told, longest=2_000)


def _facts(shown: _Shown) -> None:
    st.subheader("What its stage says of it")
    facts = shown.itself.facts
    if not facts:
        st.markdown("Nothing.")
        return
    with st.expander(f"{len(facts)} facts of the manifest"):
        kit.said(json.dumps(dict(facts), indent=2, ensure_ascii=False))
