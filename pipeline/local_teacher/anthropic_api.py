"""The Anthropic wire format: messages with prompt caching, and message batches.

Written after docs.anthropic.com/en/api. Not covered: streaming, tools, images, expiry of the cache.
"""

from __future__ import annotations

import functools
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.local_teacher.answers import Ask, Reply
from pipeline.local_teacher.batch_work import Outcome, Worked, work
from pipeline.local_teacher.state import short_digest
from pipeline.local_teacher.wire import (
    Service,
    WireError,
    conversation,
    json_body,
    number,
    page_limit,
    plain_text,
)

MESSAGES = "/v1/messages"
BATCH_REQUESTS = 100_000  # docs.anthropic.com, batch processing: requests a batch may hold
CACHE_MINIMUM_TOKENS = 1024  # docs.anthropic.com, prompt caching: shortest prefix of Sonnet models
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_STOPS = {"stop": "end_turn", "length": "max_tokens", "refusal": "refusal"}


class AnthropicApi:
    """The endpoints of one service in Anthropic's format."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Return the routes to mount."""
        table = (
            ("POST", MESSAGES, self.message),
            ("POST", "/v1/messages/batches", self.create_batch),
            ("GET", "/v1/messages/batches", self.list_batches),
            ("GET", "/v1/messages/batches/{id}", self.batch),
            ("GET", "/v1/messages/batches/{id}/results", self.results),
            ("POST", "/v1/messages/batches/{id}/cancel", self.cancel_batch),
        )
        return [
            Route(path, self._service.endpoint(handler, error_response), methods=[method])
            for method, path, handler in table
        ]

    def resume(self) -> None:
        """Take up the batches that an earlier process left unfinished."""
        for batch in self._service.state.batches("anthropic"):
            if batch["status"] == "in_progress":
                self._service.process_later(batch, self._process)

    async def message(self, request: Request) -> Response:
        """Answer one message."""
        ask = self._ask(await json_body(request))
        message, entry = self._complete(ask, await self._service.think(request, ask), None)
        self._service.state.answered([entry])
        return JSONResponse(message)

    async def create_batch(self, request: Request) -> Response:
        """Accept a batch and process it after the set delay."""
        requests = (await json_body(request)).get("requests")
        if not isinstance(requests, list) or not 1 <= len(requests) <= BATCH_REQUESTS:
            raise WireError(400, f"requests: a list of 1 to {BATCH_REQUESTS} requests is expected.")
        for item in requests:
            if not isinstance(item, dict) or not isinstance(item.get("params"), dict):
                raise WireError(400, "requests: each needs custom_id and params.")
        if len({str(item.get("custom_id")) for item in requests}) != len(requests):
            raise WireError(400, "requests: custom_id must be unique within a batch.")
        state = self._service.state
        content = "".join(json.dumps(item) + "\n" for item in requests).encode()
        file = state.save_file(content, filename="requests.jsonl", purpose="batch")
        batch = {
            "id": state.new_batch_id("msgbatch", file["id"]),
            "provider": "anthropic",
            "created": time.time(),
            "status": "in_progress",
            "input_file_id": file["id"],
            "counts": _counts(len(requests), Counter()),
            "output_file_id": None,
            "ended": None,
        }
        state.save_batch(batch)
        self._service.process_later(batch, self._process)
        return JSONResponse(_public(batch, request))

    async def list_batches(self, request: Request) -> Response:
        """List batches, the newest first, in pages."""
        limit = page_limit(request)
        batches = self._service.state.batches("anthropic")
        if after := request.query_params.get("after_id"):
            ids = [batch["id"] for batch in batches]
            batches = batches[ids.index(after) + 1 :] if after in ids else []
        page = [_public(batch, request) for batch in batches[:limit]]
        return JSONResponse(
            {
                "data": page,
                "has_more": len(batches) > limit,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
            }
        )

    async def batch(self, request: Request) -> Response:
        """Return a batch."""
        return JSONResponse(_public(self._known(request.path_params["id"]), request))

    async def results(self, request: Request) -> Response:
        """Return the results of an ended batch as JSONL."""
        batch = self._known(request.path_params["id"])
        if batch["output_file_id"] is None:
            raise WireError(404, f"Batch {batch['id']} has no available results.")
        content = self._service.state.content(batch["output_file_id"])
        return Response(content, media_type="application/x-jsonl")

    async def cancel_batch(self, request: Request) -> Response:
        """Cancel a batch that is not finished: all of its requests end as canceled."""
        batch = self._known(request.path_params["id"])
        if batch["status"] == "in_progress":
            outcome = Outcome()
            for line in self._lines(batch):
                row = {"custom_id": line["custom_id"], "result": {"type": "canceled"}}
                outcome.add(Worked("canceled", row, None))
            self._end(batch, outcome)
        return JSONResponse(_public(batch, request))

    def _process(self, batch: dict[str, Any]) -> None:
        state, batch_id = self._service.state, str(batch["id"])
        if self._known(batch_id)["status"] != "in_progress":
            return
        total = sum(batch["counts"].values())
        stop = total // 2 if self._service.happens("batch_expire", batch_id) else total

        def answer(index: int, line: dict[str, Any]) -> Worked:
            result: dict[str, Any] = {"type": "expired"}
            entry = None
            if index < stop:
                result, entry = self._one_of_batch(line["params"], batch_id)
            row = {"custom_id": line["custom_id"], "result": result}
            return Worked(result["type"], row, entry)

        def tell(kinds: Counter[str]) -> bool:
            state.count_batch(batch_id, _counts(total, kinds))
            return bool(self._known(batch_id)["status"] == "in_progress")

        outcome = work(state, batch_id, self._lines(batch), answer, tell)
        if outcome is not None and self._known(batch_id)["status"] == "in_progress":
            self._end(batch, outcome)

    def _end(self, batch: dict[str, Any], outcome: Outcome) -> None:
        state, batch_id = self._service.state, str(batch["id"])
        name = f"{batch_id}_results.jsonl"
        file = state.save_file(outcome.content(), filename=name, purpose="batch_output")
        if not state.has_answered_batch(batch_id):
            state.answered(outcome.entries)
        counts = _counts(sum(batch["counts"].values()), outcome.counts())
        batch |= {"counts": counts, "output_file_id": file["id"], "status": "ended", "ended": time.time()}
        state.save_batch(batch)
        state.partial(batch_id).unlink(missing_ok=True)

    def _one_of_batch(
        self, params: dict[str, Any], batch_id: str
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        try:
            ask = self._ask(params)
            if self._service.happens("batch_error", ask.digest):
                raise WireError(500, "Injected fault in a batch.")
            message, entry = self._complete(ask, self._service.reply(ask), batch_id)
        except WireError as error:
            return {"type": "errored", "error": _error_body(error)}, None
        return {"type": "succeeded", "message": message}, entry

    def _lines(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        content = io.BytesIO(self._service.state.content(batch["input_file_id"]))
        return (json.loads(line) for line in content)

    def _ask(self, body: dict[str, Any]) -> Ask:
        model, limit = body.get("model"), body.get("max_tokens")
        if not isinstance(model, str):
            raise WireError(400, "model: Field required")
        if type(limit) is not int or limit < 1:
            raise WireError(400, "max_tokens: a whole number of at least 1 is required")
        self._service.check_model(model)
        pairs = conversation(body.get("messages"))
        if pairs[0][0] != "user" or not all(text for _, text in pairs):
            raise WireError(400, "messages: the first role must be user, and no text may be empty")
        system = body.get("system", "")
        return Ask(
            model=model,
            system=plain_text(system),
            messages=pairs,
            max_tokens=limit,
            digest=short_digest(body),
            cached_prefix=_cached_prefix(system),
            temperature=number(body, "temperature", 1),
            top_p=number(body, "top_p", 1),
            stop=tuple(map(str, body.get("stop_sequences") or ())),
        )

    def _complete(
        self, ask: Ask, reply: Reply, batch_id: str | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        request_id = f"msg_{ask.digest}"
        prefix = ask.cached_prefix
        cached = self._service.answerer.count(prefix) if prefix else 0
        written = read = 0
        if prefix and cached >= CACHE_MINIMUM_TOKENS:
            first = self._service.state.writes_cache(ask.model, _prefix_digest(prefix), request_id)
            written, read = (cached, 0) if first else (0, cached)
        rest, output = max(0, reply.input_tokens - written - read), reply.output_tokens
        message = {
            "id": request_id,
            "type": "message",
            "role": "assistant",
            "model": ask.model,
            "content": _content(reply),
            "stop_reason": _STOPS[reply.finish],
            "stop_sequence": None,
            "usage": {
                "input_tokens": rest,
                "cache_creation_input_tokens": written,
                "cache_read_input_tokens": read,
                "output_tokens": output,
            },
        }
        entry = {"id": request_id, "endpoint": MESSAGES, "model": ask.model, "batch": batch_id}
        mark = _prefix_digest(prefix) if prefix and written else None
        return message, {**entry, "input": rest + written + read, "output": output, "prefix": mark}

    def _known(self, batch_id: str) -> dict[str, Any]:
        batch = self._service.state.batch(batch_id)
        if batch is None or batch["provider"] != "anthropic":
            raise WireError(404, f"No message batch found with id '{batch_id}'.")
        return batch


def error_response(error: WireError) -> JSONResponse:
    """Put an error into Anthropic's shape."""
    return JSONResponse(_error_body(error), status_code=error.status, headers=error.headers)


def _error_body(error: WireError) -> dict[str, Any]:
    kind = _KINDS.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": None}


@functools.lru_cache(maxsize=64)
def _prefix_digest(prefix: str) -> str:
    # Thousands of requests share one prefix, and hashing 5 KB takes longer than the answer.
    return short_digest(prefix)


def _counts(total: int, kinds: Counter[str]) -> dict[str, int]:
    found = {kind: kinds[kind] for kind in ("succeeded", "errored", "canceled", "expired")}
    return {"processing": total - sum(found.values()), **found}


def _content(reply: Reply) -> list[dict[str, str]]:
    return [{"type": "text", "text": reply.text}] if reply.text else []


def _cached_prefix(system: Any) -> str | None:
    # Everything up to the last block that carries cache_control belongs to the cached prefix.
    if not isinstance(system, list):
        return None
    marked = [
        index for index, block in enumerate(system) if isinstance(block, dict) and "cache_control" in block
    ]
    return plain_text(system[: marked[-1] + 1]) if marked else None


def _public(batch: dict[str, Any], request: Request) -> dict[str, Any]:
    ended = batch["status"] == "ended"
    base = str(request.base_url).rstrip("/")
    return {
        "id": batch["id"],
        "type": "message_batch",
        "processing_status": batch["status"],
        "request_counts": batch["counts"],
        "created_at": _moment(batch["created"]),
        "expires_at": _moment(batch["created"] + 86_400),
        "ended_at": _moment(batch["ended"]) if ended else None,
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": f"{base}/v1/messages/batches/{batch['id']}/results" if ended else None,
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
