"""Anthropic's format over the ``anthropic`` SDK: messages, prompt caching, message batches.

Batches follow docs.anthropic.com, "Batch processing"; caching follows "Prompt caching".
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import anthropic

from cogumi.stage import TeacherConfig
from cogumi.teachers.providers import NO_CREDIT, GarbageError, classify, clients, http_options
from cogumi.teachers.types import (
    Answer,
    BatchItem,
    BatchLimits,
    BatchStatus,
    BatchTicket,
    Failure,
    TeacherRequest,
    Usage,
)

_FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "refusal": "refusal"}
_REQUEST = {"invalid_request_error", "request_too_large"}
_FATAL = {"not_found_error", "permission_error", "authentication_error", "billing_error"}


class AnthropicProvider:
    """Messages and message batches of one teacher."""

    limits = BatchLimits(requests=100_000, bytes=256_000_000)
    names_batches = False

    def __init__(self, config: TeacherConfig, key: str, timeout_seconds: float, concurrency: int) -> None:
        self._config = config
        self._key = key
        self._sdks = [
            anthropic.AsyncAnthropic(
                api_key=key,
                base_url=config.base_url,
                timeout=timeout_seconds,
                max_retries=0,
                http_client=anthropic.DefaultAsyncHttpxClient(**http_options(anthropic, config.base_url)),
            )
            for _ in range(clients(concurrency))
        ]
        self._sdk = self._sdks[0]
        self._turns = itertools.cycle(self._sdks)

    def body(self, request: TeacherRequest) -> dict[str, Any]:
        """Return the body of a message; a cached system text is one block that carries cache_control."""
        messages = [{"role": message.role, "content": message.text} for message in request.messages]
        body: dict[str, Any] = {"model": self._config.model, "messages": messages}
        body["max_tokens"] = request.max_tokens
        if request.system:
            block: dict[str, Any] = {"type": "text", "text": request.system}
            if request.cache_system:
                block["cache_control"] = {"type": "ephemeral"}
            body["system"] = [block]
        if request.temperature is not None:
            body["temperature"] = request.temperature
        return body | dict(self._config.extra_body)

    async def ask(self, request: TeacherRequest) -> Answer:
        """Ask once, by the SDK's call for any path: see ``OpenAIProvider.ask``."""
        sdk = next(self._turns)
        return _answer(await sdk.post("/v1/messages", body=self.body(request), cast_to=object))

    async def upload(self, ticket: BatchTicket, bodies: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the body of the batch: its requests go with its creation."""
        requests = [
            {"custom_id": ticket.custom_id(index), "params": body} for index, body in enumerate(bodies)
        ]
        return {"requests": requests}

    async def submit(self, ticket: BatchTicket, uploaded: dict[str, Any]) -> str:
        """Create the batch; its custom ids let us find it again."""
        batch: Any = await self._sdk.post("/v1/messages/batches", body=uploaded, cast_to=object)
        try:
            return str(batch["id"])
        except (KeyError, TypeError) as error:
            raise GarbageError(f"no batch in a 200 answer ({error!r})") from None

    async def candidates(self, ticket: BatchTicket, ignore: set[str]) -> list[str]:
        """Look through the batches since the ticket's time for those of the right size.

        Only an ended batch shows its custom ids, and with them whether it is ours.
        """
        found = []
        async for batch in self._sdk.messages.batches.list(limit=100):
            if batch.created_at.timestamp() < ticket.since:
                break
            counts = batch.request_counts
            total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
            if total == ticket.requests and batch.id not in ignore:
                found.append(batch.id)
        return found

    async def status(self, batch_id: str) -> BatchStatus:
        """Return how far a batch is."""
        batch = await self._sdk.messages.batches.retrieve(batch_id)
        counts = batch.request_counts
        finished = counts.succeeded + counts.errored + counts.canceled + counts.expired
        ended = batch.processing_status == "ended"
        if ended and not batch.results_url:
            raise GarbageError("an ended batch without results")
        return BatchStatus(ended, finished, results=(batch.results_url,) if batch.results_url else ())

    async def results(self, place: str) -> list[BatchItem]:
        """Read the results of an ended batch."""
        text = await self._sdk.get(place, cast_to=str)
        return [_item(json.loads(line)) for line in text.split("\n") if line.strip()]

    def failure(self, error: Exception) -> Failure | None:
        """Classify an exception."""
        return classify(error, anthropic, self._config, self._key)

    async def close(self) -> None:
        """Close the connections."""
        for sdk in self._sdks:
            await sdk.close()


def _answer(message: Any) -> Answer:
    try:
        usage = message["usage"]
        billed = Usage(
            input_tokens=int(usage["input_tokens"]),
            output_tokens=int(usage["output_tokens"]),
            cache_write_tokens=int(usage.get("cache_creation_input_tokens") or 0),
            cache_read_tokens=int(usage.get("cache_read_input_tokens") or 0),
        )
        text = "".join(block["text"] for block in message["content"] if block["type"] == "text")
        finish: Any = _FINISH.get(message["stop_reason"], "other")
        return Answer(str(message["id"]), text, finish, billed)
    except (KeyError, AttributeError, TypeError) as error:
        raise GarbageError(f"no message in a 200 answer ({error!r})") from None


def _item(row: dict[str, Any]) -> BatchItem:
    custom_id, result = str(row["custom_id"]), row["result"]
    if result["type"] == "succeeded":
        try:
            return BatchItem(custom_id, _answer(result["message"]))
        except GarbageError as error:
            return BatchItem(custom_id, None, str(error))
    if result["type"] == "errored":
        inner = result["error"]["error"]
        message = str(inner["message"])[:200]
        if NO_CREDIT in message or inner["type"] in _FATAL:
            return BatchItem(custom_id, None, message, "fatal")
        return BatchItem(custom_id, None, message, "request" if inner["type"] in _REQUEST else "retry")
    # Expired or cancelled.
    return BatchItem(custom_id, None, str(result["type"]))
