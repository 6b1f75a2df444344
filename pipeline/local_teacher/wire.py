"""What both wire formats share: keys, injected faults, errors, and the processing of batches."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from cogumi.errors import CogumiError
from cogumi.teacher_faults import STATUS_FAULTS, TRANSPORT_FAULTS
from pipeline.local_teacher.answers import Answers, Ask, EndingError, Reply, share
from pipeline.local_teacher.options import TeacherOptions
from pipeline.local_teacher.state import TeacherState


class WireError(Exception):
    """A refusal with an HTTP status; each provider puts it into its own shape."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


class DroppedResponse(Response):
    """Begins an answer and breaks the connection: fewer bytes than announced make the server close it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head and half a body."""
        headers = [(b"content-type", b"application/json"), (b"content-length", b"4096")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"id": "'})


class GarbageResponse(Response):
    """A whole answer with status 200 whose JSON ends in its middle, as a proxy in between may send it."""

    def __init__(self) -> None:
        super().__init__(b'{"id": "garbage", "object": "chat.completion", "choices": [{"index": 0, "mess')
        self.headers["content-type"] = "application/json"


Handler = Callable[[Request], Awaitable[Response]]
Shape = Callable[[WireError], JSONResponse]


@dataclass
class Service:
    """The parts that every endpoint needs."""

    options: TeacherOptions
    state: TeacherState
    answerer: Answers
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _attempts: Counter[str] = field(default_factory=Counter)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def endpoint(self, handler: Handler, shape: Shape) -> Handler:
        """Wrap a handler: count the request, check the key, inject faults, shape the errors."""

        async def run(request: Request) -> Response:
            self.state.received(f"{request.method} {_template(request)}")
            try:
                self._check_key(request)
                dropped = await self._misbehave(request)
                return dropped or await handler(request)
            except WireError as error:
                return shape(error)
            except EndingError:
                return shape(WireError(503, "The server is shutting down."))

        return run

    def check_model(self, model: str) -> None:
        """Raise 404 for a model that does not exist."""
        if self.options.models and model not in self.options.models:
            raise WireError(404, f"The model `{model}` does not exist or you do not have access to it.")

    async def think(self, request: Request, ask: Ask) -> Reply:
        """Answer after the set latency; who left meanwhile gets no answer, and none is counted."""
        if self.options.latency_ms:
            await asyncio.sleep(self.options.latency_ms / 1000)
        if self.options.gguf is None:
            await self._raise_if_gone(request)
            return self.reply(ask)
        # A model reads one prompt at a time; who waits longest comes next, and who left is not read.
        async with self._turn:
            await self._raise_if_gone(request)
            reply = await asyncio.to_thread(self.reply, ask)
        await self._raise_if_gone(request)
        return reply

    def reply(self, ask: Ask) -> Reply:
        """Answer one request, of a batch or not; raises 400 for one that cannot be answered."""
        try:
            return self.answerer.reply(ask)
        except CogumiError as error:
            raise WireError(400, str(error)) from None

    @staticmethod
    async def _raise_if_gone(request: Request) -> None:
        if await request.is_disconnected():
            raise WireError(499, "The client closed the connection.")

    def happens(self, fault: str, what: str) -> bool:
        """Decide whether a fault befalls this request now; asking again decides anew."""
        rate = self.options.faults.get(fault, 0.0)
        if rate == 0:
            return False
        self._attempts[fault + what] += 1
        hit = share(self.options.seed, "fault", fault, what, self._attempts[fault + what]) < rate
        if hit:
            self.state.fault(fault)
        return hit

    def process_later(self, batch: dict[str, Any], run: Callable[[dict[str, Any]], None]) -> None:
        """Process a batch in a thread after the set delay; ``run`` saves its outcome."""

        async def process() -> None:
            await asyncio.sleep(self.options.batch_delay)
            # One that the server's end cut off is taken up at the next start.
            with contextlib.suppress(EndingError):
                await asyncio.to_thread(run, batch)

        task = asyncio.get_running_loop().create_task(process())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _check_key(self, request: Request) -> None:
        wanted = self.options.require_key
        if wanted is None:
            return
        given = request.headers.get("x-api-key") or request.headers.get("authorization", "")
        if not secrets.compare_digest(given.removeprefix("Bearer ").encode(), wanted.encode()):
            raise WireError(401, "Incorrect API key provided.")

    async def _misbehave(self, request: Request) -> Response | None:
        if not self.options.faults:
            return None
        body = hashlib.sha256(await request.body()).hexdigest()
        what = f"{request.method} {request.url.path} {body}"
        for fault in TRANSPORT_FAULTS:
            if not self.happens(fault, what):
                continue
            if fault == "garbage":
                return GarbageResponse()
            if fault == "drop":
                return DroppedResponse()
            if fault == "stall":
                await asyncio.sleep(self.options.stall_seconds)
                return DroppedResponse()
            if fault in STATUS_FAULTS:
                headers = {"retry-after": f"{self.options.retry_after_seconds:g}"} if fault == "429" else {}
                raise WireError(int(fault), f"Injected fault {fault}.", headers)
        return None


async def json_body(request: Request) -> dict[str, Any]:
    """Return the request's JSON object; raises 400 when it has none."""
    try:
        value = json.loads(await request.body())
    except ValueError:
        raise WireError(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(value, dict):
        raise WireError(400, "The body of a request must be a JSON object.")
    return value


def number(body: Mapping[str, Any], name: str, most: float) -> float | None:
    """Return an optional number from 0 to ``most`` of a request's body; raises 400 for anything else."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise WireError(400, f"{name}: a number from 0 to {most:g} is expected.")
    return float(value)


def page_limit(request: Request) -> int:
    """Return how many rows a page of a list holds; both providers take 1 to 100 and default to 20."""
    text = request.query_params.get("limit", "20")
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise WireError(400, "limit must be a whole number from 1 to 100.")
    return int(text)


def plain_text(content: Any) -> str:
    """Return the text of a message's content: a string or a list of text blocks."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(block, dict) for block in content):
        return "".join(str(block.get("text", "")) for block in content)
    raise WireError(400, "A message's content must be a string or a list of text blocks.")


def conversation(messages: Any) -> tuple[tuple[str, str], ...]:
    """Return (role, text) per message; raises 400 on anything that is not a list of messages."""
    if not isinstance(messages, list) or not messages:
        raise WireError(400, "messages must be a list with at least one message.")
    pairs = []
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise WireError(400, "Each message needs a role (system, user or assistant) and content.")
        pairs.append((str(message["role"]), plain_text(message.get("content"))))
    return tuple(pairs)


def _template(request: Request) -> str:
    route = request.scope.get("route")
    return str(getattr(route, "path", request.url.path))
