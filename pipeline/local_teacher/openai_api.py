"""The OpenAI wire format: chat completions, models, files and batches.

Written after platform.openai.com/docs/api-reference. Not covered: streaming, tools, other endpoints.
"""

from __future__ import annotations

import email.parser
import email.policy
import json
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.local_teacher.answers import REFUSAL, Ask, Reply, count_tokens
from pipeline.local_teacher.options import MODELS
from pipeline.local_teacher.state import short_digest
from pipeline.local_teacher.wire import Service, WireError, conversation, json_body, page_limit

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
        await self._service.think(request)
        completion, entry = self._complete(ask, None)
        self._service.state.answered([entry])
        return JSONResponse(completion)

    async def models(self, request: Request) -> Response:
        """List the models."""
        names = self._service.options.models or MODELS
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
        lines = _parse_lines(self._service.state.content(file["id"]))
        now = time.time()
        batch = {
            "id": self._service.state.new_batch_id("batch", [file["id"], body.get("metadata")]),
            "provider": "openai",
            "created": now,
            "status": "in_progress",
            "input_file_id": file["id"],
            "metadata": body.get("metadata"),
            "counts": {"total": len(lines), "completed": 0, "failed": 0},
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
        state = self._service.state
        if self._known_batch(batch["id"])["status"] == "cancelled":
            return
        lines = _parse_lines(state.content(batch["input_file_id"]))
        expired = self._service.happens("batch_expire", batch["id"])
        stop = len(lines) // 2 if expired else len(lines)
        outputs: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        entries: list[dict[str, Any]] = []
        for index, line in enumerate(lines):
            head = {"id": f"batch_req_{short_digest([batch['id'], index])}", "custom_id": line["custom_id"]}
            if index >= stop:
                gone = {"code": "batch_expired", "message": "This request could not be executed in time."}
                errors.append({**head, "response": None, "error": gone})
                continue
            status, body, entry = self._one_of_batch(line, batch["id"])
            row = {**head, "response": {"status_code": status, "request_id": head["id"], "body": body}}
            (outputs if status == 200 else errors).append({**row, "error": None})
            entries += [entry] if entry else []
        for name, rows in (("output", outputs), ("error", errors)):
            if rows:
                content = "".join(json.dumps(row) + "\n" for row in rows).encode()
                file = state.save_file(
                    content, filename=f"{batch['id']}_{name}.jsonl", purpose="batch_output"
                )
                batch[f"{name}_file_id"] = file["id"]
        if not state.has_answered_batch(batch["id"]):
            state.answered(entries)
        batch["counts"] = {"total": len(lines), "completed": len(outputs), "failed": len(errors)}
        batch |= {"status": "expired" if expired else "completed", "ended": time.time()}
        state.save_batch(batch)

    def _one_of_batch(
        self, line: dict[str, Any], batch_id: str
    ) -> tuple[int, dict[str, Any], dict[str, Any] | None]:
        try:
            ask = self._ask(line["body"])
            if self._service.happens("batch_error", ask.digest):
                raise WireError(500, "Injected fault in a batch.")
        except WireError as error:
            return error.status, _error_body(error), None
        completion, entry = self._complete(ask, batch_id)
        return 200, completion, entry

    def _ask(self, body: dict[str, Any]) -> Ask:
        model = body.get("model")
        if not isinstance(model, str):
            raise WireError(400, "you must provide a model parameter")
        self._service.check_model(model)
        pairs = conversation(body.get("messages"))
        limit = body.get("max_completion_tokens", body.get("max_tokens", 4096))
        if type(limit) is not int or limit < 1:
            raise WireError(400, "max_tokens must be a whole number of at least 1.")
        return Ask(
            model=model,
            system="\n".join(text for role, text in pairs if role == "system"),
            messages=tuple(pair for pair in pairs if pair[0] != "system") or (("user", ""),),
            max_tokens=limit,
            digest=short_digest(body),
        )

    def _complete(self, ask: Ask, batch_id: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        reply = self._service.answerer.reply(ask)
        prompt = count_tokens(ask.system + "".join(text for _, text in ask.messages))
        completion = count_tokens(reply.text)
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


def _parse_lines(content: bytes) -> list[dict[str, Any]]:
    lines = []
    for number, text in enumerate(content.decode("utf-8", "replace").split("\n"), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if line["method"] != "POST" or line["url"] != CHAT or not isinstance(line["body"], dict):
                raise ValueError("method, url or body")
            lines.append({"custom_id": str(line["custom_id"]), "body": line["body"]})
        except (ValueError, KeyError, TypeError):
            raise WireError(400, f"Line {number} of the batch file is no valid batch request.") from None
    if not lines or len(lines) > BATCH_REQUESTS:
        raise WireError(400, f"A batch file holds 1 to {BATCH_REQUESTS} requests; this one has {len(lines)}.")
    if len({line["custom_id"] for line in lines}) != len(lines):
        raise WireError(400, "The custom_id of each request in a batch must be unique.")
    return lines


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
