"""Items: what a model was asked and answered, item by item, beside what another one answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pandas as pd
import streamlit as st

from cogumi.errors import CogumiError
from dashboard import kit
from dashboard.catalogue import Catalogue, Names, catalogue, file_state, names
from dashboard.choosing import asked_number, choose, first_page, number
from dashboard.items import (
    PAGE_ROWS,
    Answer,
    Change,
    Filters,
    Items,
    Page,
    Pair,
    Place,
    Sort,
    Verdict,
)
from dashboard.items_export import MOST_BYTES, MOST_ROWS, Form, export
from dashboard.recorded import Stored
from dashboard.view import Kept, View
from reports.text import short

_NONE = "none"
_ALL = "all"
_VERDICTS: dict[str, str] = {_ALL: "All", "right": "✓ right", "wrong": "✗ wrong", "partly": "◐ partly right"}
_CHANGES: dict[str, str] = {
    _ALL: "All",
    "differs": "≠ scores differ",
    "lost": "↓ scored lower than beside",
    "gained": "↑ scored higher than beside",
}
_SORTS: dict[str, str] = {
    "order": "Committed order",
    "id": "Item",
    "score": "Score",
    "tokens": "Tokens of the answer",
    "seconds": "Seconds",
    "difference": "Difference to beside",
}
_MOST_LINES = 3

_PAGES: Kept[Page] = Kept(128)
_PLACES: Kept[Place | None] = Kept(128)
_TALLIES: Kept[dict[str, int]] = Kept(128)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Which answers are looked at, which stand beside them, and what both are called."""

    stored: Stored
    name: str
    beside: Stored | None
    beside_name: str

    @property
    def items(self) -> Items:
        """The items of both."""
        return Items(self.stored.file, self.beside.file if self.beside else None)

    @property
    def state(self) -> tuple[object, ...]:
        """What these items are, for a cache."""
        return (file_state(self.stored.file), file_state(self.beside.file) if self.beside else ())


def draw(view: View) -> None:
    """Draw the page."""
    st.title("Items")
    known = catalogue(view)
    for line in known.broken[:_MOST_LINES]:
        st.warning(kit.safe(line))
    if len(known.broken) > _MOST_LINES:
        st.warning(f"and {len(known.broken) - _MOST_LINES:,} more measurements that are not readable")
    if not known.found:
        kit.empty("Nothing has been measured yet.", "cogumi eval MODEL --suite SUITE")
        return
    chosen = _choose(known, names(view))
    filters = _filter(chosen)
    _list(chosen, filters)


# Choosing -----------------------------------------------------------------------------------------


def _choose(known: Catalogue, called: Names) -> _Chosen:
    labels = called.labels(known.artifacts())
    made = [digest for digest in labels if digest in called.models]
    left, middle, right = st.columns(3)
    with left:
        last = made[-1] if made else None
        artifact = choose("artifact", "Model", labels, default=last, forget=["protocol"])
    with middle:
        tasks = known.tasks(artifact)
        of_task = ["protocol", "item", "domain", "reason"]
        task = choose("task", "Task", {name: name for name in tasks}, forget=of_task)
    stored = _protocol(known.of(artifact, task))
    beside = _beside_options(known, called, stored)
    with right:
        digest = choose(
            "with",
            "Beside",
            {one: label for one, (label, _) in beside.items()},
            help_="Answers of another model to the same items, under the same protocol family.",
        )
    label, other = beside[digest]
    return _Chosen(stored, labels[artifact], _if_readable(other), label)


def _if_readable(beside: Stored | None) -> Stored | None:
    """Return what stands beside, or nothing and a line where it is broken: the items are shown without."""
    if beside is None:
        return None
    items = Items(beside.file)
    try:
        _PAGES.get(((file_state(beside.file), ()), Filters(), 0), lambda: items.page(Filters()))
    except CogumiError as error:
        st.warning(f"Nothing is shown beside: {kit.safe(str(error))}")
        return None
    return beside


def _protocol(found: Sequence[Stored]) -> Stored:
    """Draw the choice of a protocol where there are several; the address may name it by its digest."""
    if len(found) == 1:
        return found[0]
    options = {one.file.key.protocol_digest: one for one in sorted(found, key=_items_known, reverse=True)}
    labels = {
        digest: f"{one.told('family')}, {one.told('backend')}, {one.n_total:,} items ({short(digest)})"
        for digest, one in options.items()
    }
    return options[choose("protocol", "Protocol", labels)]


def _items_known(one: Stored) -> int:
    try:
        return one.file.count()
    except CogumiError:
        # Said where it is chosen.
        return 0


def _beside_options(known: Catalogue, called: Names, stored: Stored) -> dict[str, tuple[str, Stored | None]]:
    alike: dict[str, Stored] = {}
    for one in known.alike(stored):
        alike.setdefault(one.file.key.artifact, one)
    alike.pop(stored.file.key.artifact, None)
    labels = called.labels(list(alike))
    references = [digest for digest in labels if digest in called.references]
    others = [digest for digest in labels if digest not in called.references]
    found: dict[str, tuple[str, Stored | None]] = {
        digest: (labels[digest], alike[digest]) for digest in references
    }
    found[_NONE] = ("Nothing", None)
    return found | {digest: (labels[digest], alike[digest]) for digest in others}


def _filter(chosen: _Chosen) -> Filters:
    domains = _tally(chosen, "domain")
    reasons = _tally(chosen, "finish_reason")
    paired = chosen.beside is not None
    with st.container(border=True):
        text = st.text_input(
            "Text in prompt or output",
            key="text",
            bind="query-params",
            on_change=first_page,
            max_chars=1_000,
            placeholder="a plain text, in capitals or not",
        )
        first, second, third, fourth = st.columns(4)
        with first:
            verdict = choose("verdict", "Verdict", _VERDICTS)
        with second:
            change = choose("differs", "Against beside", _CHANGES if paired else {_ALL: "Nothing is beside"})
        with third:
            domain = choose("domain", "Domain", {_ALL: "All"} | _counted(domains))
        with fourth:
            reason = choose("reason", "Finish reason", {_ALL: "All"} | _counted(reasons))
        first, second = st.columns([3, 1], vertical_alignment="bottom")
        with first:
            sorts = {name: told for name, told in _SORTS.items() if paired or name != "difference"}
            sort = choose("sort", "Sort by", sorts)
        with second:
            down = st.toggle("Largest first", key="down", bind="query-params", on_change=first_page)
    return Filters(
        domain="" if domain == _ALL else domain,
        verdict=_one_of(Verdict, verdict),
        reason="" if reason == _ALL else reason,
        text=text or "",
        change=_one_of(Change, change),
        sort=_one_of(Sort, sort),
        descending=down,
    )


def _one_of(kind: Any, value: str) -> Any:
    """Return a value of a literal type; all of anything is the empty text."""
    return value if value in get_args(kind) else ""


def _tally(chosen: _Chosen, column: Any) -> dict[str, int]:
    state = (chosen.state[0], column)
    return _TALLIES.get(state, lambda: chosen.items.tally(column))


def _counted(tally: dict[str, int]) -> dict[str, str]:
    return {name: f"{name} ({n:,})" for name, n in tally.items()}


# The list -----------------------------------------------------------------------------------------


def _list(chosen: _Chosen, filters: Filters) -> None:
    page = _page(chosen, filters, (asked_number("page") - 1) * PAGE_ROWS)
    known = _items_known(chosen.stored)
    if not known:
        st.info("No item of it is known yet.")
    elif not page.total:
        st.info(f"None of the {known:,} known items fits. Widen the filter.")
    else:
        part = f"{known:,} known" + (
            f" of {chosen.stored.n_total:,}" if known < chosen.stored.n_total else ""
        )
        st.markdown(f"**{page.total:,}** of {part} items. Choose a row to read it.")
        _table(chosen, page)
        if page.total > PAGE_ROWS:
            pages = -(-page.total // PAGE_ROWS)
            number("page", f"Page (of {pages:,})", page.offset // PAGE_ROWS + 1, pages)
        _downloads(chosen, filters, page.total)
    _item(chosen, filters, page)


def _page(chosen: _Chosen, filters: Filters, offset: int) -> Page:
    return _PAGES.get((chosen.state, filters, offset), lambda: chosen.items.page(filters, offset))


def _table(chosen: _Chosen, page: Page) -> None:
    ids = [own.item_id for own, _ in page.rows]
    key = f"rows-{hash((chosen.state, page.offset, tuple(ids)))}"
    item = st.query_params.get("item")
    # The highlighted row follows the address: arrows below the table move it as well.
    marked = [ids.index(item)] if item in ids else []
    st.session_state[key] = {"selection": {"rows": marked, "columns": [], "cells": []}}
    st.dataframe(
        pd.DataFrame([_row(chosen, pair) for pair in page.rows]),
        key=key,
        hide_index=True,
        height=400,
        on_select=lambda: _select(key, ids),
        selection_mode="single-row",
        column_config={
            "Prompt": st.column_config.TextColumn(width="medium"),
            "Output": st.column_config.TextColumn(width="medium"),
            "Output beside": st.column_config.TextColumn(width="medium"),
        },
        alt=f"Items {page.offset + 1:,} to {page.offset + len(ids):,} of {page.total:,}",
    )


def _select(key: str, ids: Sequence[str]) -> None:
    rows = st.session_state[key]["selection"]["rows"]
    if rows and rows[0] < len(ids):
        st.query_params["item"] = ids[rows[0]]
    else:
        st.query_params.pop("item", None)


def _row(chosen: _Chosen, pair: Pair) -> dict[str, Any]:
    own, beside = pair
    told: dict[str, Any] = {"Item": kit.plain(own.item_id, longest=80), "Verdict": _sign(own)}
    if chosen.beside is not None:
        told["Beside"] = _sign(beside) if beside else "– unknown"
    told |= {"Prompt": _preview(own.prompt), "Output": _preview(own.output)}
    if chosen.beside is not None:
        told["Output beside"] = _preview(beside.output) if beside else "–"
    return told | {
        "Score": own.score,
        "Domain": kit.plain(own.domain, longest=40),
        "Finish": kit.plain(own.finish_reason, longest=40),
        "Tokens": own.completion_tokens,
        "Seconds": own.seconds,
    }


def _sign(answer: Answer) -> str:
    if answer.score >= 1:
        return "✓ right"
    return "✗ wrong" if answer.score <= 0 else "◐ partly"


def _preview(text: str) -> str:
    return " ".join(kit.plain(text).split())


def _downloads(chosen: _Chosen, filters: Filters, total: int) -> None:
    name = f"items-{chosen.name}-{chosen.stored.file.key.task}"
    cut = (
        f"The first {MOST_ROWS:,} of {total:,} items"
        if total > MOST_ROWS
        else f"All {total:,} items that fit"
    )
    mib = MOST_BYTES // 1024**2
    with st.container(horizontal=True, vertical_alignment="center"):
        _download(chosen, filters, "csv", name)
        _download(chosen, filters, "parquet", name)
        st.caption(f"{cut}, or as many as hold {mib} MiB of text: a file that is cut says so at its end.")


def _download(chosen: _Chosen, filters: Filters, form: Form, name: str) -> None:
    file = "".join(char if char.isalnum() or char in "._-" else "-" for char in name)
    st.download_button(
        f"Save as {'CSV' if form == 'csv' else 'Parquet'}",
        # Made when it is asked for, in a thread of its own.
        lambda: export(chosen.items, filters, form),
        file_name=f"{file}.{form}",
        mime="text/csv" if form == "csv" else "application/vnd.apache.parquet",
        key=f"save-{form}",
        on_click="ignore",
        icon=":material/download:",
    )


# One item -----------------------------------------------------------------------------------------


def _item(chosen: _Chosen, filters: Filters, page: Page) -> None:
    item_id = st.query_params.get("item")
    if item_id is None:
        return
    found = chosen.items.item(item_id)
    told = kit.safe(kit.plain(item_id, longest=80))
    if found is None:
        st.warning(f"The address asks for item “{told}”, which is not among the known ones.")
        return
    own, beside = found
    st.header(f"Item {told}")
    _steps(_place(chosen, filters, page, own), page.total)
    st.subheader("Prompt")
    kit.said(own.prompt)
    if chosen.beside is None:
        _answer(chosen.name, own)
    else:
        left, right = st.columns(2)
        with left:
            _answer(chosen.name, own)
        with right:
            if beside is None:
                st.subheader(kit.safe(chosen.beside_name))
                st.info("This item was not asked of it (yet).")
            else:
                _answer(chosen.beside_name, beside)


def _place(chosen: _Chosen, filters: Filters, page: Page, answer: Answer) -> Place | None:
    ids = [own.item_id for own, _ in page.rows]
    if answer.item_id in ids[1:-1]:
        # Its neighbours are on this page: no need to search again.
        at = ids.index(answer.item_id)
        return Place(page.offset + at + 1, ids[at - 1], ids[at + 1])
    state = (chosen.state, filters, answer.position)
    return _PLACES.get(state, lambda: chosen.items.place(filters, answer.position))


def _steps(place: Place | None, total: int) -> None:
    """Draw the arrows to the neighbours in the list, and where the item stands in it."""
    with st.container(horizontal=True, vertical_alignment="center"):
        for label, neighbour, rank in (
            ("← Previous", place.previous if place else None, place.rank - 1 if place else 0),
            ("Next →", place.following if place else None, place.rank + 1 if place else 0),
        ):
            st.button(
                label,
                key=f"step-{label}",
                disabled=neighbour is None,
                on_click=_go_to,
                args=(neighbour, rank),
            )
        if place is None:
            st.caption("It does not fit the filter above." if total else "Nothing fits the filter above.")
        else:
            st.caption(f"{place.rank:,} of {total:,} that fit")


def _go_to(item: str, rank: int) -> None:
    st.query_params["item"] = item
    st.query_params["page"] = str((rank - 1) // PAGE_ROWS + 1)


def _answer(name: str, answer: Answer) -> None:
    st.subheader(kit.safe(name))
    told = [
        _sign(answer),
        f"score {answer.score:.3g}",
        f"finished: {kit.safe(kit.plain(answer.finish_reason, longest=40))}",
        f"{answer.prompt_tokens:,} + {answer.completion_tokens:,} tokens",
        f"{answer.seconds:.3g} s",
    ]
    st.markdown(" · ".join(told))
    if answer.output:
        kit.said(answer.output)
    else:
        st.caption("The output is empty.")
    if answer.details not in ("", "{}"):
        with st.expander("Details of the score"):
            kit.said(answer.details)
