"""What pages draw with: verdicts as sign and word, plots and tables with downloads, text that only reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dashboard.text import plain, safe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

__all__ = [
    "asked", "badge", "colours", "empty", "figure", "frame", "go", "plain", "safe", "said",
]  # fmt: skip

_SIGNS = {"PASS": "✓", "FAIL": "✗", "UNDECIDED": "?", "INFEASIBLE": "∅", "ERROR": "!", "BUDGET": "$"}
_LONGEST_CELL = 1_000
_UNKNOWN = "–"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_FILE = re.compile(r"[^A-Za-z0-9._-]+")


def badge(verdict: str | None) -> str:
    """Return a verdict as sign and word; a gate that was not decided is ``· waiting``."""
    if verdict is None:
        return "· waiting"
    return f"{_SIGNS.get(verdict, '•')} {safe(verdict)}"


def small(text: str) -> str:
    """Return a text as Markdown in a caption's size, its own Markdown taken as plain text."""
    return f":small[{safe(text)}]"


def colours() -> tuple[str, ...]:
    """Return the colours of series for the theme that the viewer sees, the most telling first."""
    import streamlit as st

    from dashboard.theme import palette

    return palette(st.context.theme.type == "dark")


def figure(
    fig: Any, name: str, table: pd.DataFrame | None, alt: str, *, key: str, on_select: bool = False
) -> list[dict[str, Any]]:
    """Draw a plotly figure with its image button, CSV and table; return the customdata of selected points.

    ``name``: of the files that it is saved as. ``table``: what the figure shows, as numbers. ``alt``: one
    sentence for who does not see it. With ``on_select``, give each trace one dict for each point as
    ``customdata``; a list comes back under the key ``values``.
    """
    import streamlit as st

    image = _image_format(key)
    # A finger that moves over a plot scrolls the page; the buttons above it zoom.
    fig.update_layout(dragmode=False)
    chosen: Any = st.plotly_chart(
        fig,
        key=key,
        alt=plain(alt, longest=1_000),
        on_select="rerun" if on_select else "ignore",
        selection_mode="points",
        config={
            "displaylogo": False,
            # Always shown: a button that appears under a mouse alone is no button for a finger or a key.
            "displayModeBar": True,
            "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
            "toImageButtonOptions": {"format": image.lower(), "filename": _file_name(name), "scale": 2},
        },
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.radio(
            "Camera button saves",
            _IMAGES,
            key=f"{key}-image",
            horizontal=True,
            help="The camera above the plot saves the picture in this format.",
        )
        if table is not None:
            _csv_button(table, name, key)
    if table is not None:
        with st.expander("As a table"):
            st.dataframe(
                _harmless(table),
                hide_index=True,
                key=f"{key}-table",
                placeholder=_UNKNOWN,
                alt=plain(name, longest=200),
            )
    points = chosen["selection"]["points"] if on_select else []
    return [_custom(point["customdata"]) for point in points if point.get("customdata") is not None]


_IMAGES = ("PNG", "SVG")


def _image_format(key: str) -> str:
    import streamlit as st

    found = st.session_state.get(f"{key}-image")
    return str(found) if found in _IMAGES else _IMAGES[0]


def _custom(data: Any) -> dict[str, Any]:
    return dict(data) if isinstance(data, dict) else {"values": data}


def frame(
    table: pd.DataFrame,
    name: str,
    *,
    key: str,
    column_config: Mapping[str, Any] | None = None,
    on_select: bool | str = False,
) -> list[int]:
    """Draw a table with a CSV button; return the positions of the selected rows.

    ``on_select``: True for one row at a time, ``"multi-row"`` for several. Cells hold text as it is, never
    Markdown, and are cut at 1,000 characters; the CSV is not.
    """
    import streamlit as st

    chosen: Any = st.dataframe(
        _harmless(table),
        hide_index=True,
        key=key,
        column_config=dict(column_config) if column_config is not None else None,
        on_select="rerun" if on_select else "ignore",
        selection_mode="multi-row" if on_select == "multi-row" else "single-row",
        placeholder=_UNKNOWN,
        alt=plain(name, longest=200),
    )
    _csv_button(table, name, key)
    if not on_select:
        return []
    return [row for row in chosen["selection"]["rows"] if row < len(table)]


def _harmless(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with text that any browser and Arrow can hold."""
    return table.rename(columns=lambda name: plain(str(name), longest=200)).map(
        lambda value: plain(value, longest=_LONGEST_CELL) if isinstance(value, str) else value
    )


def _csv_button(table: pd.DataFrame, name: str, key: str) -> None:
    import streamlit as st

    st.download_button(
        "Save as CSV",
        # Now, and not when asked for: a function gets a new address whenever the page is drawn, and a click
        # that comes in between fails.
        csv(table),
        file_name=f"{_file_name(name)}.csv",
        mime="text/csv",
        key=f"{key}-csv",
        on_click="ignore",
        icon=":material/download:",
        help=f"Saves {_file_name(name)}.csv",
    )


def csv(table: pd.DataFrame) -> bytes:
    """Return a table as CSV in UTF-8; no cell of it is a formula to a spreadsheet (OWASP, CSV injection)."""
    return _no_formulas(table).to_csv(index=False, lineterminator="\r\n").encode()


def _no_formulas(table: pd.DataFrame) -> pd.DataFrame:
    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.encode("utf-8", "replace").decode()
        return f"'{text}" if text.startswith(_FORMULA) else text

    return table.rename(columns=lambda name: cell(str(name))).map(cell)


def _file_name(name: str) -> str:
    return _FILE.sub("-", name).strip("-.") or "cogumi"


def said(text: str) -> None:
    """Show what a model was asked or answered: as it is, never as Markdown or HTML."""
    import streamlit as st

    st.code(plain(text), language=None, wrap_lines=True)


def empty(what: str, command: str) -> None:
    """Say what is missing, and what to type to have it."""
    import streamlit as st

    st.info(f"{safe(what)} Type:")
    st.code(command, language=None, wrap_lines=True)


def asked(name: str, known: Sequence[str]) -> str | None:
    """Return the URL's value of a parameter where it is one of ``known``; say so in one line where it is not.

    Call it before the widget that is bound to the parameter: the widget drops what it does not know.
    """
    import streamlit as st

    value = st.query_params.get(name)
    if value is None or value in known:
        return value
    st.warning(f"The address asks for {safe(name)} “{safe(plain(value, longest=80))}”, which is not here.")
    return None


def go(label: str, page: str, **params: str) -> None:
    """Draw a link to a page of ours with URL parameters; the run that is looked at stays."""
    import streamlit as st

    run = st.session_state.get("run")
    # A run in the address is bound to the sidebar's box, and the browser takes it along by itself: named
    # here as well it would stand there twice, and once more after every link.
    query = ({"run": str(run)} if run and "run" not in st.query_params else {}) | params
    target = st.Page(_elsewhere, title=page, url_path=page)
    st.page_link(target, label=safe(label), icon=":material/arrow_forward:", query_params=query)


def _elsewhere() -> None:
    """Stand for a page that ``app`` lists under the same path; never drawn."""
