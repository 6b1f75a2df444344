"""Serving the rating app: one process, until SIGTERM or SIGINT, answers under way finished first."""

from __future__ import annotations

import dataclasses
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio.to_thread
import uvicorn

from cogumi.errors import UsageError
from dashboard.human_eval.app import AppSettings, build_app
from evals.human.store import StudyStore

THREADS = 8
"""Requests at work at once; more threads on few cores only wait for each other."""
_FINISH_S = 15
_IDLE_S = 15
_BACKLOG = 1024
_WILDCARDS = ("", "0.0.0.0", "::")


class _Server(uvicorn.Server):
    """Uvicorn's server that says when it listens, and returns when it is told to end."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End at a signal; uvicorn's own raises it again afterwards, which would end the command too."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def serve(
    store: StudyStore, settings: AppSettings, host: str, port: int, on_ready: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT; ``on_ready`` is called with the address once the socket listens.

    Port 0 takes a free one. Prints nothing. What a proxy says about the client's address is believed only
    where there is a public URL, from the addresses of ``FORWARDED_ALLOW_IPS`` (127.0.0.1). Raises
    ``UsageError`` where the address cannot be listened on.
    """
    if settings.public_url is None:
        here = "*" if host in _WILDCARDS else host
        settings = dataclasses.replace(settings, hosts=(*settings.hosts, here))
    config = uvicorn.Config(
        build_app(store, settings),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=settings.public_url is not None,
        lifespan="off",
        backlog=_BACKLOG,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_FINISH_S,
    )
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    try:
        _Server(config, lambda: on_ready(address)).run(sockets=[listening])
    finally:
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns off Nagle's algorithm only where it reads TCP here; with it
    # a page, which is written as head and body, waits 40 ms for the client's delayed acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise UsageError(
            f"cannot listen on {host} port {port} ({error.strerror or error}): choose another "
            "--port or --host"
        ) from None
    return listening
