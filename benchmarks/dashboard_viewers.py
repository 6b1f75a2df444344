"""Viewers of the dashboard without a browser: sessions on Streamlit's own websocket, as its pages open them.

Twenty headless browsers on one machine would time the browsers. These sessions ask the server for the same
pages and take the same messages, so what they time is the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

_LARGEST = 256 * 2**20


@dataclass(slots=True)
class Viewed:
    """What a viewer saw of one page: seconds until it was whole, its headings, and what went wrong."""

    page: str
    seconds: float
    headings: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


async def _page(socket: Any, page: str, hashes: dict[str, str], query: str) -> Viewed:
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

    asked = BackMsg()
    asked.rerun_script.query_string = query
    asked.rerun_script.page_script_hash = hashes.get(page, "")
    asked.rerun_script.page_name = page
    asked.rerun_script.context_info.timezone = "UTC"
    asked.rerun_script.context_info.locale = "en-GB"
    start = time.perf_counter()
    await socket.send(asked.SerializeToString())
    seen = Viewed(page, 0.0)
    began = False
    while True:
        told = ForwardMsg.FromString(await socket.recv())
        kind = told.WhichOneof("type")
        # What an earlier rerun still sends comes before this one's session message.
        began = began or kind == "new_session"
        if kind == "navigation":
            hashes.update({one.url_pathname: one.page_script_hash for one in told.navigation.app_pages})
        elif kind == "delta":
            _take(told.delta, seen)
        elif kind == "script_finished" and began:
            if told.script_finished == ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                # The plan's estimate came in while the page was drawn: it is drawn again at once.
                seen, began = Viewed(page, 0.0), False
                continue
            seen.seconds = time.perf_counter() - start
            if told.script_finished != ForwardMsg.FINISHED_SUCCESSFULLY:
                seen.broken.append(f"ended with {told.script_finished}")
            return seen


def _take(delta: Any, seen: Viewed) -> None:
    if delta.WhichOneof("type") != "new_element":
        return
    element = delta.new_element
    kind = element.WhichOneof("type")
    if kind == "heading":
        seen.headings.append(element.heading.body)
    elif kind == "exception":
        seen.broken.append(element.exception.message)
    elif kind == "alert" and ("cannot be drawn" in element.alert.body or "locked" in element.alert.body):
        seen.broken.append(element.alert.body)


async def _viewer(url: str, pages: Sequence[tuple[str, str]]) -> list[Viewed]:
    address = url.replace("http://", "ws://") + "/_stcore/stream"
    hashes: dict[str, str] = {}
    async with connect(
        address, subprotocols=[Subprotocol("streamlit")], max_size=_LARGEST, origin=url, proxy=None
    ) as socket:
        return [await _page(socket, page, hashes, query) for page, query in pages]


async def _together(url: str, pages: Sequence[tuple[str, str]], viewers: int) -> list[list[Viewed]]:
    return await asyncio.gather(*(_viewer(url, pages) for _ in range(viewers)))


def look(url: str, pages: Sequence[tuple[str, str]], viewers: int) -> list[Viewed]:
    """Return what ``viewers`` at the same time saw of these (page, query string), one page after another."""
    return [one for seen in asyncio.run(_together(url, pages, viewers)) for one in seen]
