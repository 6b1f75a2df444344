"""The rows themselves on the data page: a file, twenty rows at a time, one in full, and what lint finds."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import streamlit as st

from cogumi.errors import CogumiError
from dashboard import data_rows, kit
from dashboard.data_rows import LINT_BYTES, LINT_ROWS, LONGEST, PAGE_ROWS, DataFile, Filters, SampleRow
from dashboard.data_sets import MERGE
from evals.lint.findings import RULES

if TYPE_CHECKING:
    import pandas as pd

    from dashboard.data_sets import DataSets

_ALL = "all"
_PREVIEW = 160
_TEXTS = ("question", "answer", "reasoning")
_PICKED = "data-picked"


def draw_rows(found: DataSets) -> None:
    """Draw the choice of a file, a page of its rows, and its lint; a broken file is one line."""
    files = data_rows.data_files(found.steps)
    if not files:
        return
    st.header("Rows")
    merged = found.made_by(MERGE)
    best = next((at for at, file in enumerate(files) if merged and file.step == merged.step), 0)
    by_label = {file.label: file for file in files}
    kit.asked("file", list(by_label))
    chosen = st.selectbox(
        "File", list(by_label), index=best, key="file", bind="query-params", format_func=kit.plain
    )
    file = by_label[chosen]
    place = st.container()
    try:
        _sample(file)
    except CogumiError as error:
        st.error(kit.safe(str(error)), icon=":material/error:")
    else:
        fault = file.fault()
        if fault is not None:
            place.warning(kit.safe(fault))
    _lint(file)


def _sample(file: DataFile) -> None:
    domains, levels = data_rows.cells_of(file)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        filters = Filters(
            domain=_chosen("Domain", "domain", domains),
            difficulty=_chosen("Difficulty", "difficulty", levels),
            text=st.text_input(
                "Text in question, answer or reasoning", key="text", bind="query-params", max_chars=500
            )
            or "",
        )
        total = data_rows.sample(file, filters).total
        offset = _offset(total)
    found = data_rows.sample(file, filters, offset)
    if found.unreadable:
        st.warning(
            f"{found.unreadable:,} rows of this file cannot be read: no JSON object of ours, or no UTF-8. "
            "Lint below says more; filters leave them out."
        )
    if not found.rows:
        st.info("No row of this file fits: choose another domain or difficulty, or less text.")
        return
    last = found.offset + len(found.rows)
    st.caption(f"Rows {found.offset + 1:,} to {last:,} of {found.total:,}. Choose one to read it whole.")
    key = f"rows-{file.label}-{filters}-{found.offset}"
    picked = kit.frame(_table(found.rows), f"rows of {file.name}", key=key, on_select=True)
    _one(file, found.rows, (key, picked[0] if picked else None))


def _chosen(label: str, key: str, known: list[str]) -> str:
    """Return the chosen value, or nothing for all of them."""
    options = [_ALL, *(name for name in known if name != _ALL)]
    kit.asked(key, options)
    chosen = st.selectbox(label, options, key=key, bind="query-params", format_func=kit.plain)
    return "" if chosen == _ALL else chosen


def _offset(total: int) -> int:
    """Draw the choice of a page and return how many rows stand before it."""
    pages = max(1, -(-total // PAGE_ROWS))
    if "page" not in st.session_state:
        kit.asked("page", [str(number) for number in range(1, pages + 1)])
    elif st.session_state["page"] > pages:
        # A filter has left fewer pages than the one that was open.
        st.session_state["page"] = pages
    page = st.number_input(
        f"Page of {pages:,}", min_value=1, max_value=pages, step=1, key="page", bind="query-params"
    )
    return (int(page) - 1) * PAGE_ROWS


def _table(rows: tuple[SampleRow, ...]) -> pd.DataFrame:
    import pandas as pd

    held = [name for name in data_rows.COLUMNS if any(row.values[name] is not None for row in rows)]
    return pd.DataFrame(
        {
            "Line": row.line,
            **{
                name: _preview(row, name) if row.readable else ("(not readable)" if name == held[0] else None)
                for name in held
            },
        }
        for row in rows
    )


def _preview(row: SampleRow, name: str) -> str | None:
    value = row.values[name]
    if value is None or len(value) <= _PREVIEW:
        return value
    return f"{value[:_PREVIEW]}…"


def _one(file: DataFile, rows: tuple[SampleRow, ...], picked: tuple[str, int | None]) -> None:
    """Show one row whole: the one picked in the table, or named in the address, else the page's first."""
    at = picked[1]
    if at is not None and at < len(rows) and st.session_state.get(_PICKED) != picked:
        st.session_state["line"] = rows[at].line
    st.session_state[_PICKED] = picked
    line = st.number_input(
        "Line of the file to read whole",
        min_value=1,
        value=None,
        step=1,
        key="line",
        bind="query-params",
        placeholder="the first one of this page",
    )
    row = rows[0] if line is None else data_rows.row_at(file, int(line))
    if row is None:
        st.warning(f"{kit.safe(file.name)} has no line {int(line or 0):,}.")
        return
    _whole(row)


def _whole(row: SampleRow) -> None:
    values = row.values
    if not row.readable:
        st.warning(f"Line {row.line:,} is no JSON object of ours, or no UTF-8: there is nothing to show.")
        return
    named = [values["question_id"], values["domain"], values["difficulty"], values["model"]]
    told = " · ".join(kit.safe(kit.plain(name, longest=200)) for name in named if name)
    st.subheader(f"Line {row.line:,}")
    st.markdown(told or "This row has no name.")
    if values["scores"]:
        st.caption(f"Scores: {kit.safe(kit.plain(values['scores'], longest=400))}")
    for name in _TEXTS:
        text = values[name]
        if text is None:
            continue
        st.markdown(f"**{name.capitalize()}**")
        if text.strip():
            kit.said(text)
        else:
            st.caption("blank")
        length = row.lengths[name] or 0
        if length > LONGEST:
            st.caption(f"The first {LONGEST:,} of {length:,} characters.")


# Lint -----------------------------------------------------------------------------------------------


def _lint(file: DataFile) -> None:
    st.header("Lint")
    st.markdown(
        "Duplicates, near duplicates, cut answers, labels that contradict their row, and rows that cannot be "
        "read. Benchmark items are looked for when rows are merged and before each training, not here."
    )
    if file.lines is None:
        st.markdown("This file has no JSON lines beside it.")
    elif st.toggle(
        f"Lint this file now: its first {LINT_ROWS:,} rows, at most {LINT_BYTES / 1e6:.0f} MB",
        key="lint",
        bind="query-params",
        help="Takes some seconds, and is kept until the file changes.",
    ):
        try:
            with st.spinner("Linting…"):
                _findings(file)
        except CogumiError as error:
            st.error(kit.safe(str(error)), icon=":material/error:")
    st.caption("The whole file, with every finding:")
    st.code(f"cogumi data lint {shlex.quote(str(file.lines or file.path))}", language=None, wrap_lines=True)


def _findings(file: DataFile) -> None:
    import pandas as pd

    found = data_rows.lint(file)
    read = f"All {found.rows:,} rows" if found.whole else f"The first {found.rows:,} rows"
    if not found.counts:
        st.markdown(f"{read} were read, and nothing was found.")
        return
    told = sum(found.counts.values())
    st.markdown(f"{read} were read: {told:,} findings. Of each rule the first 20 are listed.")
    counted = [
        {"Rule": rule, "Findings": count, "Finds": RULES.get(rule, "")}
        for rule, count in sorted(found.counts.items(), key=lambda pair: -pair[1])
    ]
    kit.frame(pd.DataFrame(counted), f"lint of {file.name}", key="lint-counts")
    listed = [
        {"Line": one.line, "Severity": one.severity, "Rule": one.rule, "What": one.message}
        for one in sorted(found.findings, key=lambda one: (one.severity, one.line))
    ]
    kit.frame(pd.DataFrame(listed), f"lint findings of {file.name}", key="lint-findings")
    st.caption("A line's text: type its number in “Line of the file to read whole” above.")
