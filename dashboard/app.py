"""The dashboard's shell: pages, the choice of a run, and a guard that lets no page show a traceback.

``dashboard.entry.streamlit_app`` calls ``main`` for every viewer and click.
"""

from __future__ import annotations

import importlib
import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from cogumi.errors import CogumiError
from cogumi.workspace import WORKSPACE_ENV
from dashboard import kit
from dashboard.view import View, open_view

if TYPE_CHECKING:
    from sqlalchemy import RowMapping
    from streamlit.navigation.page import Page

PAGES = {
    "overview": ("Overview", ":material/timeline:"),
    "quality": ("Quality, size, speed", ":material/scatter_plot:"),
    "gates": ("Gates", ":material/verified:"),
    "compare": ("Compare", ":material/compare_arrows:"),
    "items": ("Items", ":material/list_alt:"),
    "data": ("Data", ":material/dataset:"),
    "people": ("People", ":material/groups:"),
    "cost": ("Cost", ":material/payments:"),
    "artifact": ("Artifact", ":material/deployed_code:"),
}
"""Title and icon of each page by its address; its module in ``dashboard.pages`` has the same name."""
_HIDDEN = {"artifact"}

# In the file itself: Streamlit fetches the icons that it knows by name from the network.
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">'
    '<circle cx="12" cy="12" r="11" fill="#0072B2"/>'
    '<path d="M6 12.5l4 4 8-9" fill="none" stroke="#fff" stroke-width="2.5"/></svg>'
)
_STATUS = {"running": "→ running", "done": "✓ done", "stopped": "■ stopped", "failed": "✗ failed"}

_log = logging.getLogger("dashboard")


def main(start: str = "overview", workspace: Path | None = None) -> None:
    """Draw the page that the address names; ``start`` is the one without an address."""
    views: list[View] = []
    # Before the pages are listed: else Streamlit fetches the icon of the listed page from the network.
    st.set_page_config(
        page_icon=_ICON,
        layout="wide",
        menu_items={"About": "Cogumi: what a run measured and what its gates decided. Read only."},
    )
    page = st.navigation([_listed(name, views, name == start) for name in PAGES] + [_named(start, views)])
    st.set_page_config(page_title=f"{page.title} · Cogumi")
    read = False
    with guard("sidebar"):
        # Outside the page, so that the run stays chosen from one page to the next.
        views += _chosen_view(workspace)
        read = True
    if not read:
        st.button("Read the ledger again", icon=":material/refresh:")
    page.run()


def _listed(name: str, views: list[View], default: bool) -> Page:
    title, icon = PAGES[name]
    return st.Page(
        _drawer(name, views),
        title=title,
        icon=icon,
        url_path="" if default else name,
        default=default,
        visibility="hidden" if name in _HIDDEN else "visible",
    )


def _named(name: str, views: list[View]) -> Page:
    """Return the default page under its own name: Streamlit knows it by the address ``/`` alone."""
    return st.Page(_drawer(name, views), title=PAGES[name][0], url_path=name, visibility="hidden")


def _drawer(name: str, views: list[View]) -> Callable[[], None]:
    def draw() -> None:
        for view in views:
            with guard(name):
                # Found by name and only when drawn: no viewer waits for pages that nobody opens.
                importlib.import_module(f"dashboard.pages.{name}").draw(view)

    return draw


@contextmanager
def guard(page: str) -> Iterator[None]:
    """Show an error as one line on the page; the traceback of a defect goes to the server's log."""
    try:
        yield
    except CogumiError as error:
        st.error(kit.safe(str(error)), icon=":material/error:")
    except Exception as error:
        _log.exception("page %s", page)
        st.error(
            f"The rest of this page cannot be drawn ({kit.safe(type(error).__name__)}). "
            "Reload it; if it stays so, the server's log tells why.",
            icon=":material/error:",
        )


def _chosen_view(workspace: Path | None) -> list[View]:
    """Draw the sidebar and return the view that it chooses; none after saying what is missing."""
    view = open_view(workspace, None)
    rows = {str(row["name"]): row for row in view.workspace.ledger.run_rows()}
    with st.sidebar:
        if rows:
            chosen = _chosen_run(list(rows))
            _tell_run(rows[chosen])
            view = View(view.workspace, chosen)
        st.caption(f"Workspace {kit.safe(str(view.workspace.root))}")
        st.caption("Read only. How to read it: `docs/dashboard.md`")
    warning = view.workspace.ledger.warning()
    if warning:
        st.warning(kit.safe(warning))
    if rows:
        return [view]
    _tell_empty(view)
    return []


def _chosen_run(names: list[str]) -> str:
    kit.asked("run", names)
    return str(st.selectbox("Run", names, key="run", bind="query-params", format_func=kit.plain))


def _tell_run(row: RowMapping) -> None:
    told = [_STATUS.get(row["status"], kit.safe(row["status"])), f"profile {kit.safe(row['profile_name'])}"]
    st.markdown(" · ".join(told))
    if row["note"]:
        st.caption(kit.safe(kit.plain(row["note"], longest=300)))


def _tell_empty(view: View) -> None:
    st.title("Nothing to show yet")
    root = view.workspace.root
    what = f"The workspace {root} has no run" if view.workspace.exists else f"There is no workspace {root}"
    kit.empty(
        f"{what}. The rehearsal makes one; it needs no key, no GPU and no network.",
        f"cogumi run --workspace {shlex.quote(str(root))}",
    )
    st.markdown(f"A workspace that lies elsewhere is named by `--workspace` or `{WORKSPACE_ENV}`.")
