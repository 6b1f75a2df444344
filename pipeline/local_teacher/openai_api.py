"""The OpenAI wire format: chat completions, models, files and batches.

Written after platform.openai.com/docs/api-reference. Not covered: streaming, tools, other endpoints.
"""

from __future__ import annotations

import asyncio
import email.parser
import email.policy
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.local_teacher.answers import REFUSAL, Ask, Reply
from pipeline.local_teacher.batch_work import Worked, work
from pipeline.local_teacher.options import MODELS
from pipeline.local_teacher.state import short_digest
from pipeline.local_teacher.wire import Service, WireError, conversation, json_body, number, page_limit

CHAT = "/v1/chat/completions"
BATCH_REQUESTS = 50_000  # platform.openai.com/docs/guides/batch: requests a batch file may hold
_KINDS = {401: "invalid_request_error", 404: "invalid_request_error", 429: "rate_limit_exceeded"}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


class OpenAIApi:
    """The endpoints of one service in OpenAI's format."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Return the routes to mount."""
        table = (
            ("POST", CHAT, self.chat),
            ("GET", "/v1/models", self.models),
            ("POST", "/v1/files", self.upload),
            ("GET", "/v1/files/{id}", self.file),
            ("GET", "/v1/files/{id}/content", self.file_content),
            ("POST", "/v1/batches", self.create_batch),
            ("GET", "/v1/batches", self.list_batches),
            ("GET", "/v1/batches/{id}", self.batch),
            ("POST", "/v1/batches/{id}/cancel", self.cancel_batch),
        )
        return [
            Route(path, self._service.endpoint(handler, error_response), methods=[method])
            for method, path, handler in table
        ]

    def resume(self) -> None:
        """Take up the batches that an earlier process left unfinished."""
        for batch in self._service.state.batches("openai"):
            if batch["status"] in ("validating", "in_progress"):
                self._service.process_later(batch, self._process)

    async def chat(self, request: Request) -> Response:
        """Answer one chat completion."""
        ask = self._ask(await json_body(request))
        completion, entry = self._complete(ask, await self._service.think(request, ask), None)
        self._service.state.answered([entry])
        return JSONResponse(completion)

    async def models(self, request: Request) -> Response:
        """List the models."""
        options = self._service.options
        names = options.models or ((options.gguf,) if options.gguf else MODELS)
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "local"} for name in names]
        return JSONResponse({"object": "list", "data": data})

    async def upload(self, request: Request) -> Response:
        """Keep an uploaded file."""
        fields = _multipart(request.headers.get("content-type", ""), await request.body())
        if "file" not in fields or "purpose" not in fields:
            raise WireError(400, "A file upload needs the fields file and purpose.")
        content, filename = fields["file"]
        purpose = fields["purpose"][0].decode()
        file = self._service.state.save_file(content, filename=filename or "upload", purpose=purpose)
        return JSONResponse(file)

    async def file(self, request: Request) -> Response:
        """Return what is known of a file."""
        return JSONResponse(self._known_file(request.path_params["id"]))

    async def file_content(self, request: Request) -> Response:
        """Return a file's bytes."""
        file = self._known_file(request.path_params["id"])
        return Response(self._service.state.content(file["id"]), media_type="application/jsonl")

    async def create_batch(self, request: Request) -> Response:
        """Accept a batch and process it after the set delay."""
        body = await json_body(request)
        if body.get("endpoint") != CHAT or body.get("completion_window") != "24h":
            raise WireError(400, f"Only endpoint {CHAT} and completion_window 24h are supported.")
        file = self._known_file(str(body.get("input_file_id")))
        content = self._service.state.content(file["id"])
        # In a thread: reading tens of megabytes would hold every other answer up.
        total = await asyncio.to_thread(lambda: sum(1 for _ in _parse_lines(content)))
        now = time.time()
        batch = {
            "id": self._service.state.new_batch_id("batch", [file["id"], body.get("metadata")]),
            "provider": "openai",
            "created": now,
            "status": "in_progress",
            "input_file_id": file["id"],
            "metadata": body.get("metadata"),
            "counts": {"total": total, "completed": 0, "failed": 0},
            "output_file_id": None,
            "error_file_id": None,
            "ended": None,
        }
        self._service.state.save_batch(batch)
        self._service.process_later(batch, self._process)
        return JSONResponse(_public(batch))

    async def list_batches(self, request: Request) -> Response:
        """List batches, the newest first, in pages."""
        limit = page_limit(request)
        batches = self._service.state.batches("openai")
        if after := request.query_params.get("after"):
            ids = [batch["id"] for batch in batches]
            batches = batches[ids.index(after) + 1 :] if after in ids else []
        page = [_public(batch) for batch in batches[:limit]]
        document: dict[str, Any] = {"object": "list", "data": page, "has_more": len(batches) > limit}
        if page:
            document |= {"first_id": page[0]["id"], "last_id": page[-1]["id"]}
        return JSONResponse(document)

    async def batch(self, request: Request) -> Response:
        """Return a batch."""
        return JSONResponse(_public(self._known_batch(request.path_params["id"])))

    async def cancel_batch(self, request: Request) -> Response:
        """Cancel a batch that is not finished."""
        batch = self._known_batch(request.path_params["id"])
        if batch["status"] in ("validating", "in_progress"):
            batch |= {"status": "cancelled", "ended": time.time()}
            self._service.state.save_batch(batch)
        return JSONResponse(_public(batch))

    def _process(self, batch: dict[str, Any]) -> None:
        state, batch_id = self._service.state, str(batch["id"])
        if self._known_batch(batch_id)["status"] == "cancelled":
            return
        total = int(batch["counts"]["total"])
        expired = self._service.happens("batch_expire", batch_id)
        stop = total // 2 if expired else total

        def answer(index: int, line: dict[str, Any]) -> Worked:
            head = {"id": f"batch_req_{short_digest([batch_id, index])}", "custom_id": line["custom_id"]}
            if index >= stop:
                gone = {"code": "batch_expired", "message": "This request could not be executed in time."}
                return Worked("expired", {**head, "response": None, "error": gone}, None)
            status, body, entry = self._one_of_batch(line, batch_id)
            response = {"status_code": status, "request_id": head["id"], "body": body}
            kind = "succeeded" if status == 200 else "errored"
            return Worked(kind, {**head, "response": response, "error": None}, entry)

        def tell(kinds: Counter[str]) -> bool:
            state.count_batch(batch_id, _counts(total, kinds))
            return bool(self._known_batch(batch_id)["status"] == "in_progress")

        requests = _parse_lines(state.content(batch["input_file_id"]))
        outcome = work(state, batch_id, requests, answer, tell)
        if outcome is None or self._known_batch(batch_id)["status"] == "cancelled":
            return
        for name, kinds in (("output", ("succeeded",)), ("error", ("errored", "expired"))):
            if content := outcome.content(*kinds):
                file = state.save_file(content, filename=f"{batch_id}_{name}.jsonl", purpose="batch_output")
                batch[f"{name}_file_id"] = file["id"]
        if not state.has_answered_batch(batch_id):
            state.answered(outcome.entries)
        batch["counts"] = _counts(total, outcome.counts())
        batch |= {"status": "expired" if expired else "completed", "ended": time.time()}
        state.save_batch(batch)
        state.partial(batch_id).unlink(missing_ok=True)

    def _one_of_batch(
        self, line: dict[str, Any], batch_id: str
    ) -> tuple[int, dict[str, Any], dict[str, Any] | None]:
        try:
            ask = self._ask(line["body"])
            if self._service.happens("batch_error", ask.digest):
                raise WireError(500, "Injected fault in a batch.")
            completion, entry = self._complete(ask, self._service.reply(ask), batch_id)
        except WireError as error:
            return error.status, _error_body(error), None
        return 200, completion, entry

    def _ask(self, body: dict[str, Any]) -> Ask:
        model = body.get("model")
        if not isinstance(model, str):
            raise WireError(400, "you must provide a model parameter")
        self._service.check_model(model)
        pairs = conversation(body.get("messages"))
        limit = body.get("max_completion_tokens", body.get("max_tokens", 4096))
        stop = body.get("stop") or ()
        if type(limit) is not int or limit < 1:
            raise WireError(400, "max_tokens must be a whole number of at least 1.")
        return Ask(
            model=model,
            system="\n".join(text for role, text in pairs if role == "system"),
            messages=tuple(pair for pair in pairs if pair[0] != "system") or (("user", ""),),
            max_tokens=limit,
            digest=short_digest(body),
            temperature=number(body, "temperature", 2),
            top_p=number(body, "top_p", 1),
            seed=body["seed"] if isinstance(body.get("seed"), int) else None,
            stop=(stop,) if isinstance(stop, str) else tuple(map(str, stop)),
        )

    def _complete(
        self, ask: Ask, reply: Reply, batch_id: str | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        prompt, completion = reply.input_tokens, reply.output_tokens
        document = {
            "id": f"chatcmpl-{ask.digest}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": ask.model,
            "choices": [_choice(reply)],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }
        entry = {"id": document["id"], "endpoint": CHAT, "model": ask.model, "batch": batch_id}
        return document, {**entry, "input": prompt, "output": completion, "prefix": None}

    def _known_file(self, file_id: str) -> dict[str, Any]:
        file = self._service.state.file(file_id)
        if file is None:
            raise WireError(404, f"No such File object: {file_id}")
        return file

    def _known_batch(self, batch_id: str) -> dict[str, Any]:
        batch = self._service.state.batch(batch_id)
        if batch is None or batch["provider"] != "openai":
            raise WireError(404, f"No batch found with id '{batch_id}'.")
        return batch


def error_response(error: WireError) -> JSONResponse:
    """Put an error into OpenAI's shape."""
    return JSONResponse(_error_body(error), status_code=error.status, headers=error.headers)


def _error_body(error: WireError) -> dict[str, Any]:
    kind = _KINDS.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    code = _CODES.get(error.status)
    return {"error": {"message": error.message, "type": kind, "param": None, "code": code}}


def _choice(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
    if reply.finish == "refusal":
        message |= {"content": None, "refusal": REFUSAL}
    finish = "length" if reply.finish == "length" else "stop"
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}


def _public(batch: dict[str, Any]) -> dict[str, Any]:
    created = int(batch["created"])
    ended = int(batch["ended"]) if batch["ended"] else None
    return {
        "id": batch["id"],
        "object": "batch",
        "endpoint": CHAT,
        "errors": None,
        "input_file_id": batch["input_file_id"],
        "completion_window": "24h",
        "status": batch["status"],
        "output_file_id": batch["output_file_id"],
        "error_file_id": batch["error_file_id"],
        "created_at": created,
        "in_progress_at": created,
        "expires_at": created + 86_400,
        f"{batch['status']}_at": ended or created,
        "request_counts": batch["counts"],
        "metadata": batch["metadata"],
    }


def _counts(total: int, kinds: Counter[str]) -> dict[str, int]:
    return {"total": total, "completed": kinds["succeeded"], "failed": kinds["errored"] + kinds["expired"]}


def _parse_lines(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield the requests of a batch file one by one; raises 400 where one, or all together, are not valid."""
    seen: set[str] = set()
    for at, text in enumerate(io.BytesIO(content), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text.decode("utf-8", "replace"))
            if line["method"] != "POST" or line["url"] != CHAT or not isinstance(line["body"], dict):
                raise ValueError("method, url or body")
            found: dict[str, Any] = {"custom_id": str(line["custom_id"]), "body": line["body"]}
        except (ValueError, KeyError, TypeError):
            raise WireError(400, f"Line {at} of the batch file is no valid batch request.") from None
        if found["custom_id"] in seen:
            raise WireError(400, "The custom_id of each request in a batch must be unique.")
        seen.add(found["custom_id"])
        yield found
    if not 1 <= len(seen) <= BATCH_REQUESTS:
        raise WireError(400, f"A batch file holds 1 to {BATCH_REQUESTS} requests; this one has {len(seen)}.")


def _multipart(content_type: str, body: bytes) -> dict[str, tuple[bytes, str | None]]:
    """Return {field: (content, filename)} of a multipart/form-data body (RFC 7578)."""
    _, _, boundary = content_type.partition("boundary=")
    if not boundary:
        raise WireError(400, "A file upload must be multipart/form-data with a boundary.")
    fields: dict[str, tuple[bytes, str | None]] = {}
    parser = email.parser.BytesHeaderParser(policy=email.policy.HTTP)
    for part in body.split(b"--" + boundary.strip('"').encode())[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        disposition = parser.parsebytes(head + b"\r\n\r\n").get("content-disposition")
        parameters = getattr(disposition, "params", {})
        if "name" not in parameters:
            raise WireError(400, "A part of the upload has no name.")
        fields[parameters["name"]] = (content.removesuffix(b"\r\n"), parameters.get("filename"))
    return fields
