"""What the two SDKs share: the key, the address, the classes of their errors."""

from __future__ import annotations

import email.utils
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from cogumi.errors import RunError
from cogumi.stage import TeacherConfig
from cogumi.teachers.types import Failure, Provider

_KEY_PROBLEMS = {
    401: "the provider does not accept the key",
    402: "the account has no credit left",
    403: "the key may not use this model",
}
_CONNECTIONS = 32
# What is wrong with one request: its form, its size, or what the provider's content policy thinks of it.
REQUEST_PROBLEMS = {400, 413, 422}
# Anthropic says this with status 400, as if the request were at fault.
NO_CREDIT = "credit balance is too low"
# 408 timeout, 409 conflict, 425 too early, 429 rate limit; every 5xx may pass, 529 is "overloaded".
_TRANSIENT = {408, 409, 425, 429}


class GarbageError(Exception):
    """A success status around something that is no answer."""


def open_provider(config: TeacherConfig, timeout_seconds: float, concurrency: int) -> Provider:
    """Return the provider of a teacher; raises ``RunError`` when its SDK or its key is missing."""
    key = api_key(config)
    try:
        if config.api == "openai":
            from cogumi.teachers.openai_provider import OpenAIProvider

            return OpenAIProvider(config, key, timeout_seconds, concurrency)
        from cogumi.teachers.anthropic_provider import AnthropicProvider

        return AnthropicProvider(config, key, timeout_seconds, concurrency)
    except ImportError as error:
        raise RunError(
            f"teacher {config.name}: the package {error.name} is missing; pip install 'cogumi[all]'"
        ) from None


def api_key(config: TeacherConfig) -> str:
    """Return the teacher's key from the environment; a teacher without ``key_env`` needs none."""
    if config.key_env is None:
        return "none"
    key = os.environ.get(config.key_env, "").strip()
    if not key:
        where = config.base_url or config.api
        raise RunError(f"teacher {config.name}: {config.key_env} is not set; export the API key of {where}")
    return key


def clients(concurrency: int) -> int:
    """Return how many HTTP clients share so many calls: for each call one looks at all its connections."""
    return max(1, math.ceil(concurrency / _CONNECTIONS))


def http_options(sdk: Any, base_url: str | None, concurrency: int = _CONNECTIONS) -> dict[str, Any]:
    """Return how to talk to an address, for the HTTP client of an SDK, which is given as its module.

    An address on this machine is asked without a proxy, and plain HTTP without TLS.
    """
    from urllib.parse import urlsplit

    # The SDKs keep 100 connections alive and would open the others anew for every call.
    limits = type(sdk.DEFAULT_CONNECTION_LIMITS)(
        max_connections=2 * concurrency, max_keepalive_connections=2 * concurrency
    )
    parts = urlsplit(base_url or "")
    if parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        return {"limits": limits}
    # Loading the certificates takes 60 ms, which nothing encrypted would ever use.
    return {"limits": limits, "trust_env": False, "verify": parts.scheme != "http"}


def classify(error: Exception, sdk: Any, config: TeacherConfig, key: str) -> Failure | None:
    """Return what an exception of an SDK means; ``sdk`` is its module. The key never gets into it."""
    if isinstance(error, sdk.APIStatusError):
        status = int(error.status_code)
        headers: Mapping[str, str] = error.response.headers
        if status in _KEY_PROBLEMS:
            # The provider's own text is left out: it may quote a part of the key.
            named = f" (from {config.key_env})" if config.key_env else ""
            return Failure("key", f"HTTP {status}: {_KEY_PROBLEMS[status]}{named}", status)
        said = _provider_message(error).replace(key, "***")
        if NO_CREDIT in said:
            return Failure("key", f"HTTP {status}: {_KEY_PROBLEMS[402]}", status)
        if status in REQUEST_PROBLEMS:
            return Failure("request", f"HTTP {status}: {said}", status)
        kind = "retry" if status in _TRANSIENT or status >= 500 else "fatal"
        return Failure(kind, f"HTTP {status}: {said}", status, retry_after(headers))  # type: ignore[arg-type]
    if isinstance(error, sdk.APITimeoutError | TimeoutError):
        return Failure("retry", "no answer in time")
    if isinstance(error, sdk.APIError | GarbageError | ValueError) or _is_transport_error(error):
        # Dropped connections, bodies cut short, JSON that is none.
        return Failure("retry", f"{type(error).__name__}: {error}"[:200].replace(key, "***"))
    return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a response asks to wait (RFC 9110: seconds or a date), or None."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        moment = email.utils.parsedate_to_datetime(value) if "," in value else None
    return None if moment is None else max(0.0, moment.timestamp() - time.time())


def _is_transport_error(error: Exception) -> bool:
    # Both SDKs let errors of their HTTP library through while a result file is streamed, and which
    # library that is (httpx, httpx2) changes with their versions: the class is known by its name.
    return any(base.__name__ == "RequestError" for base in type(error).__mro__)


def _provider_message(error: Any) -> str:
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict) and inner.get("message"):
            return " ".join(str(inner["message"]).split())[:200]
    return " ".join(str(error).split())[:200]
