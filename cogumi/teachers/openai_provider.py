"""OpenAI's format over the ``openai`` SDK: OpenAI, OpenRouter, and every server that speaks it.

Batches follow platform.openai.com/docs/guides/batch.
"""

from __future__ import annotations

import itertools
import json
from typing import Any, Final, Literal

import openai

from cogumi.stage import TeacherConfig
from cogumi.teachers.providers import REQUEST_PROBLEMS, GarbageError, classify, clients, http_options
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

_CHAT: Final = "/v1/chat/completions"
_METADATA_KEY = "cogumi_key"
_QUEUE_FULL = "token_limit_exceeded"
"""Code of a batch that would put more tokens into the queue than the account may have there."""
_ENDED = {"completed", "expired", "cancelled"}


class OpenAIProvider:
    """Chat completions and batches of one teacher."""

    limits = BatchLimits(requests=50_000, bytes=200_000_000)
    names_batches = True

    def __init__(self, config: TeacherConfig, key: str, timeout_seconds: float, concurrency: int) -> None:
        self._config = config
        self._key = key
        base_url = config.base_url
        if base_url and config.simulated:
            # The local teacher has one address for both formats; this SDK wants the version in it.
            base_url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._sdks = [
            openai.AsyncOpenAI(
                api_key=key,
                base_url=base_url,
                timeout=timeout_seconds,
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(**http_options(openai, base_url)),
            )
            for _ in range(clients(concurrency))
        ]
        self._sdk = self._sdks[0]
        self._turns = itertools.cycle(self._sdks)

    def body(self, request: TeacherRequest) -> dict[str, Any]:
        """Return the body of a chat completion; ``max_tokens`` is what every compatible server knows."""
        messages = [{"role": message.role, "content": message.text} for message in request.messages]
        if request.system:
            messages.insert(0, {"role": "system", "content": request.system})
        body: dict[str, Any] = {"model": self._config.model, "messages": messages}
        body["max_tokens"] = request.max_tokens
        if request.temperature is not None:
            body["temperature"] = request.temperature
        return body | dict(self._config.extra_body)

    async def ask(self, request: TeacherRequest) -> Answer:
        """Ask once.

        The SDK's own call for any path: keys, errors and connections as ever, but no models built around
        what was asked and answered, which cost more than all the rest of a call.
        """
        sdk = next(self._turns)
        return _answer(await sdk.post("/chat/completions", body=self.body(request), cast_to=object))

    async def upload(self, ticket: BatchTicket, bodies: list[dict[str, Any]]) -> str:
        """Upload the requests as a file and return its id."""
        lines = (
            json.dumps({"custom_id": ticket.custom_id(index), "method": "POST", "url": _CHAT, "body": body})
            for index, body in enumerate(bodies)
        )
        content = "".join(line + "\n" for line in lines).encode()
        file = await self._sdk.files.create(file=("requests.jsonl", content), purpose="batch")
        return file.id

    async def submit(self, ticket: BatchTicket, uploaded: str) -> str:
        """Create the batch; its metadata lets us find it again."""
        batch = await self._sdk.batches.create(
            input_file_id=uploaded,
            endpoint=_CHAT,
            completion_window="24h",
            metadata={_METADATA_KEY: ticket.key},
        )
        return batch.id

    async def candidates(self, ticket: BatchTicket, ignore: set[str]) -> list[str]:
        """Look through the batches since the ticket's time for those with our metadata."""
        found = []
        async for batch in self._sdk.batches.list(limit=100):
            if batch.created_at < ticket.since:
                break
            if batch.id not in ignore and (batch.metadata or {}).get(_METADATA_KEY) == ticket.key:
                found.append(batch.id)
        return found

    async def status(self, batch_id: str) -> BatchStatus:
        """Return how far a batch is."""
        batch = await self._sdk.batches.retrieve(batch_id)
        counts = batch.request_counts
        finished = counts.completed + counts.failed if counts else 0
        if batch.status == "failed":
            errors = batch.errors.data if batch.errors and batch.errors.data else []
            problem = "; ".join(str(error.message) for error in errors[:3]) or "refused without a reason"
            return BatchStatus(
                ended=True,
                finished=finished,
                problem=problem.replace(self._key, "***"),
                queue_full=any(error.code == _QUEUE_FULL for error in errors),
            )
        files = (batch.output_file_id, batch.error_file_id)
        return BatchStatus(
            ended=batch.status in _ENDED,
            finished=finished,
            results=tuple(file_id for file_id in files if file_id),
        )

    async def results(self, place: str) -> list[BatchItem]:
        """Read the output file or the error file."""
        content = (await self._sdk.files.content(place)).text
        return [_item(json.loads(line)) for line in content.split("\n") if line.strip()]

    def failure(self, error: Exception) -> Failure | None:
        """Classify an exception."""
        return classify(error, openai, self._config, self._key)

    async def close(self) -> None:
        """Close the connections."""
        for sdk in self._sdks:
            await sdk.close()


def _answer(completion: Any) -> Answer:
    try:
        choice = completion["choices"][0]
        message, usage = choice["message"], completion["usage"]
        refusal = message.get("refusal")
        text = message.get("content") or refusal or ""
        reason = choice["finish_reason"]
        billed = Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
        answer_id = str(completion["id"])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        # Some servers answer 200 with an error object in it.
        raise GarbageError(f"no chat completion in a 200 answer ({error!r})") from None
    if refusal or reason == "content_filter":
        return Answer(answer_id, text, "refusal", billed)
    finish = {"stop": "stop", "length": "length"}.get(reason, "other")
    return Answer(answer_id, text, finish, billed)  # type: ignore[arg-type]


def _item(row: dict[str, Any]) -> BatchItem:
    custom_id = str(row["custom_id"])
    response = row.get("response") or {}
    status = response.get("status_code")
    if status == 200:
        try:
            return BatchItem(custom_id, _answer(response.get("body")))
        except GarbageError as error:
            return BatchItem(custom_id, None, str(error))
    inner = row.get("error") or (response.get("body") or {}).get("error") or {}
    message = str(inner.get("message") or inner.get("code") or f"HTTP {status}")
    return BatchItem(custom_id, None, message[:200], _kind(status))


def _kind(status: int | None) -> Literal["retry", "request", "fatal"]:
    # An expired request (no status) and an overloaded server may be asked again; a bad request may not.
    if status is None or status >= 500 or status in (408, 409, 429):
        return "retry"
    return "request" if status in REQUEST_PROBLEMS else "fatal"
