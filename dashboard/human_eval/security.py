"""What stands between the network and the pages: cookies, form tokens, headers, body sizes, guessing.

The rater's cookie and every form token are signed with the study's secret (itsdangerous, HMAC-SHA-256 under a
key of its own for each kind); a form token holds for one rater alone. Whoever has neither sees nothing
(default deny: each route asks, and a test lists the routes).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import anyio
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cogumi.errors import UsageError

RATER_COOKIE = "cogumi_rater"
ADMIN_COOKIE = "cogumi_admin"
LOCALE_COOKIE = "cogumi_locale"
COOKIE_SECONDS = 30 * 24 * 3600
MOST_BODY_BYTES = 64 * 1024
_BODY_SECONDS = 20.0
VISITOR = "visitor"
"""Whom a form token is bound to where there is no rater: the choice of language before the link is opened."""

_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""Headers of every answer; pages have ``Cache-Control: no-store`` besides."""

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::\d+)?")
_log = logging.getLogger("cogumi.humaneval.access")
_faults = logging.getLogger("cogumi.humaneval")


class Signer:
    """Signs and reads the cookies and form tokens of one study."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise UsageError("the study's secret is shorter than 16 bytes: make the study anew")
        self._serializers = {
            kind: URLSafeTimedSerializer(
                secret,
                salt=f"cogumi-humaneval-{kind}",
                signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
            )
            for kind in (RATER_COOKIE, ADMIN_COOKIE, "form")
        }
        # Without a date: the page of an unknown link and that of a revoked one are the same to the byte.
        self._visitor = hmac.new(secret, b"cogumi-humaneval-visitor", hashlib.sha256).hexdigest()

    def sign(self, kind: str, value: str | int) -> str:
        """Return the value, signed and dated."""
        return self._serializers[kind].dumps(value)

    def read(self, kind: str, signed: str | None) -> str | int | None:
        """Return what was signed within the last 30 days, or None."""
        if not signed or len(signed) > 1000:
            return None
        try:
            value = self._serializers[kind].loads(signed, max_age=COOKIE_SECONDS)
        except BadSignature:
            return None
        return value if isinstance(value, str | int) else None

    def form_token(self, whom: str | int) -> str:
        """Return the token that forms of this rater (or ``VISITOR``) carry."""
        return self._visitor if whom == VISITOR else self.sign("form", str(whom))

    def form_token_holds(self, token: str, whom: str | int) -> bool:
        """Tell whether the token was made for this very rater."""
        if whom == VISITOR:
            return same_secret(self._visitor, token)
        return self.read("form", token) == str(whom)


def same_secret(known: str, given: str) -> bool:
    """Compare two secrets in a time that tells nothing about either."""
    return hmac.compare_digest(known.encode(), given.encode("utf-8", "replace"))


def sha256(text: str) -> str:
    """Return the SHA-256 of a text's UTF-8, in hex."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


@dataclass
class GuessLimit:
    """Counts wrong tokens by address: after ``most`` within ``seconds``, no token of it is looked at.

    Valid ones are refused as well in that time, else guessing could go on at full speed. Addresses stay in
    memory for that time only and are never stored.
    """

    most: int = 10
    seconds: float = 60.0
    most_addresses: int = 10_000
    clock: Callable[[], float] = time.monotonic
    _wrong: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self, address: str) -> int:
        """Return for how many seconds the address must wait, 0 when it may try."""
        with self._lock:
            times = self._recent(address)
            return int(times[0] + self.seconds - self.clock()) + 1 if len(times) >= self.most else 0

    def wrong(self, address: str) -> None:
        """Note a wrong token."""
        with self._lock:
            times = self._recent(address)
            times.append(self.clock())
            self._wrong[address] = times
            self._wrong.move_to_end(address)
            while len(self._wrong) > self.most_addresses:
                self._wrong.popitem(last=False)

    def _recent(self, address: str) -> deque[float]:
        times = self._wrong.get(address, deque())
        while times and times[0] <= self.clock() - self.seconds:
            times.popleft()
        if not times:
            self._wrong.pop(address, None)
        return times


def hosts_of(public_url: str | None, more: tuple[str, ...]) -> list[str]:
    """Return the names that a request's ``Host`` may carry; raises ``UsageError`` on a URL without a name."""
    hosts = ["localhost", "127.0.0.1", "::1", *more]
    if public_url is not None:
        url = urlsplit(public_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UsageError(f"--public-url {public_url}: not a URL such as https://study.example.org")
        hosts.append(url.hostname)
    return hosts


class Guard:
    """ASGI middleware around everything: headers on every answer, checks of bodies, a log without secrets.

    ``problem(request, status)`` renders the page of a refusal. Bodies are read here, whole, at most 64 KiB
    and within 20 seconds, and only forms are let through. ``hosts``: the names that are answered to, which
    keeps other sites' names from being bound to this address. A fault of the program is logged and told as a
    page, never with a traceback.
    """

    def __init__(
        self, app: ASGIApp, problem: Callable[[Request, int], Response], hosts: Sequence[str]
    ) -> None:
        self.app = app
        self.problem = problem
        self.hosts = None if "*" in hosts else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._answer(scope, receive, send_on)
        except Exception:
            _faults.exception("a request failed")
            if not status:
                await self.problem(Request(scope), 500)(scope, receive, send_on)
        finally:
            # The route's pattern, never the path or the query: a link typed wrongly may hold a token.
            route = getattr(scope.get("route"), "path", "(no route)")
            _log.info(
                "%s %s %d %.1f ms", scope["method"], route, status, 1000 * (time.perf_counter() - began)
            )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(Headers(scope=scope), scope["method"])
        if refused is None and scope["method"] not in ("GET", "HEAD"):
            body: bytes | int = 408
            with anyio.move_on_after(_BODY_SECONDS):
                body = await _whole_body(receive)
            if isinstance(body, bytes):
                receive = _replay(body, receive)
            else:
                refused = body
        if refused is None:
            await self.app(scope, receive, send)
        elif refused:
            await self.problem(Request(scope), refused)(scope, receive, send)

    def _refusal(self, headers: Headers, method: str) -> int | None:
        if self.hosts is not None and _host_name(headers.get("host", "")) not in self.hosts:
            return 400
        if method in ("GET", "HEAD"):
            return None
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return 400
        if len(length) > 9 or int(length) > MOST_BODY_BYTES:
            return 413
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded" and (kind or int(length)):
            return 415
        # Browsers say where a request comes from; a form on another site is refused before its token is read.
        return 403 if headers.get("sec-fetch-site") in ("cross-site", "same-site") else None


def _host_name(host: str) -> str:
    """Return the name in a ``Host`` header, without port, brackets and capitals; empty for no such header."""
    found = _HOST.fullmatch(host.lower())
    return (found[1] or found[2]) if found else ""


async def _whole_body(receive: Receive) -> bytes | int:
    """Return the body, or 413 when it is too large, or 0 when the client has gone."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return 0
        body += message.get("body", b"")
        if len(body) > MOST_BODY_BYTES:
            return 413
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
