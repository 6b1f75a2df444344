"""Anthropic's format over the ``anthropic`` SDK: messages, prompt caching, message batches.

Batches follow docs.anthropic.com, "Batch processing"; caching follows "Prompt caching".
"""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic

from cogumi.stage import TeacherConfig
from cogumi.teachers.providers import GarbageError, classify, http_options
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
_FINAL = {"invalid_request_error", "not_found_error", "permission_error", "request_too_large"}


class AnthropicProvider:
    """Messages and message batches of one teacher."""

    limits = BatchLimits(requests=100_000, bytes=256_000_000)

    def __init__(self, config: TeacherConfig, key: str, timeout_seconds: float) -> None:
        self._config = config
        self._key = key
        client = anthropic.DefaultAsyncHttpxClient(**http_options(config.base_url))
        self._sdk = anthropic.AsyncAnthropic(
            api_key=key, base_url=config.base_url, timeout=timeout_seconds, max_retries=0, http_client=client
        )

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
        """Ask once."""
        return _answer(await self._sdk.messages.create(**self.body(request)))

    async def submit(self, ticket: BatchTicket, bodies: list[dict[str, Any]]) -> str:
        """Create the batch; its custom ids let us find it again."""
        requests: Any = [
            {"custom_id": ticket.custom_id(index), "params": body} for index, body in enumerate(bodies)
        ]
        batch = await self._sdk.messages.batches.create(requests=requests)
        return batch.id

    async def find(self, ticket: BatchTicket, ignore: set[str]) -> str | None:
        """Look through the batches since the ticket's time for one with our custom ids.

        Only an ended batch shows its custom ids, so one of the right size is waited for.
        """
        async for batch in self._sdk.messages.batches.list(limit=100):
            if batch.created_at.timestamp() < ticket.since:
                return None
            counts = batch.request_counts
            total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
            if total == ticket.requests and batch.id not in ignore and await self._is_ours(batch.id, ticket):
                return batch.id
        return None

    async def _is_ours(self, batch_id: str, ticket: BatchTicket) -> bool:
        wait = 0.1
        while not (await self.status(batch_id)).ended:
            await asyncio.sleep(wait)
            wait = min(2 * wait, 60.0)
        async for row in await self._sdk.messages.batches.results(batch_id):
            return row.custom_id.startswith(ticket.prefix)
        return False

    async def status(self, batch_id: str) -> BatchStatus:
        """Return how far a batch is."""
        batch = await self._sdk.messages.batches.retrieve(batch_id)
        counts = batch.request_counts
        finished = counts.succeeded + counts.errored + counts.canceled + counts.expired
        return BatchStatus(ended=batch.processing_status == "ended", finished=finished)

    async def results(self, batch_id: str) -> list[BatchItem]:
        """Read the results of an ended batch."""
        return [_item(row) async for row in await self._sdk.messages.batches.results(batch_id)]

    def failure(self, error: Exception) -> Failure | None:
        """Classify an exception."""
        return classify(error, anthropic, self._config, self._key)

    async def close(self) -> None:
        """Close the connections."""
        await self._sdk.close()


def _answer(message: Any) -> Answer:
    try:
        usage = message.usage
        billed = Usage(
            input_tokens=int(usage.input_tokens),
            output_tokens=int(usage.output_tokens),
            cache_write_tokens=int(usage.cache_creation_input_tokens or 0),
            cache_read_tokens=int(usage.cache_read_input_tokens or 0),
        )
        text = "".join(block.text for block in message.content if block.type == "text")
        finish: Any = _FINISH.get(message.stop_reason, "other")
        return Answer(str(message.id), text, finish, billed)
    except (AttributeError, TypeError) as error:
        raise GarbageError(f"no message in a 200 answer ({error!r})") from None


def _item(row: Any) -> BatchItem:
    result = row.result
    if result.type == "succeeded":
        try:
            return BatchItem(row.custom_id, _answer(result.message))
        except GarbageError as error:
            return BatchItem(row.custom_id, None, str(error))
    if result.type == "errored":
        inner = result.error.error
        return BatchItem(row.custom_id, None, str(inner.message)[:200], final=inner.type in _FINAL)
    return BatchItem(row.custom_id, None, result.type)
