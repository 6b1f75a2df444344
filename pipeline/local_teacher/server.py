"""The local teacher's application and its life as a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from cogumi.errors import RunError
from cogumi.workspace import Workspace
from pipeline.local_teacher.answers import Answerer, Answers
from pipeline.local_teacher.anthropic_api import AnthropicApi
from pipeline.local_teacher.openai_api import OpenAIApi
from pipeline.local_teacher.options import READY, TeacherOptions
from pipeline.local_teacher.state import TeacherState
from pipeline.local_teacher.wire import Service


def create_app(options: TeacherOptions) -> Starlette:
    """Return the ASGI application: both wire formats, ``/counters`` and ``/health``."""
    service = Service(options, TeacherState(options.state), _answerer(options))
    apis = (OpenAIApi(service), AnthropicApi(service))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        for api in apis:
            api.resume()
        yield
        await asyncio.to_thread(service.answerer.close)

    async def counters(request: Request) -> JSONResponse:
        return JSONResponse(service.state.counters(ids="ids" in request.query_params))

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    own = [Route("/counters", counters), Route("/health", health)]
    return Starlette(routes=[*own, *(route for api in apis for route in api.routes())], lifespan=lifespan)


def _answerer(options: TeacherOptions) -> Answers:
    if options.gguf is None:
        return Answerer(options)
    from pipeline.local_teacher.gguf_answerer import GgufAnswerer, find_gguf

    return GgufAnswerer(find_gguf(options.gguf, Workspace.find(None)), options.context)


class _GatheringTransport:
    """Sends what is written within one turn of the loop at once: an answer's head and body are one packet."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        data, self._waiting = b"".join(self._waiting), []
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Protocol(H11Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_GatheringTransport(transport, self.loop))  # type: ignore[arg-type]


class _Server(uvicorn.Server):
    """Prints the address when it is ready and ends with exit code 0 on SIGTERM and SIGINT."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or []:
            host, port = each.getsockname()[:2]
            print(f"{READY}http://{host}:{port}", flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again after a clean shutdown, which would end us with code 143.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        yield

    def stop(self) -> None:
        self.should_exit = True


def serve(options: TeacherOptions, *, host: str, port: int, stop_with_stdin: bool) -> None:
    """Serve until SIGTERM, or until standard input ends; raises ``RunError`` when the port is taken."""
    config = uvicorn.Config(
        create_app(options),
        http=_Protocol,
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=60,
    )
    server = _Server(config)
    listener = _listen(host, port)
    if stop_with_stdin:
        threading.Thread(target=_stop_at_end_of_stdin, args=(server,), daemon=True).start()
    with listener:
        asyncio.run(server.serve(sockets=[listener]))


def _listen(host: str, port: int) -> socket.socket:
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer waits 40 ms for
    # the acknowledgement of its header.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise RunError(f"cannot listen on {host}:{port}: {error.strerror or error}; try --port 0") from None
    return listener


def _stop_at_end_of_stdin(server: _Server) -> None:
    # The parent holds the other end of the pipe: when it dies, however it dies, the read ends.
    # os.read, because a thread inside sys.stdin's lock would abort the interpreter at its end.
    while os.read(0, 4096):
        continue
    server.stop()
