"""What every page of the rating app needs: who asks, in which language, and how a page is made."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from dashboard.human_eval import content
from dashboard.human_eval.security import (
    ADMIN_COOKIE,
    COOKIE_SECONDS,
    LOCALE_COOKIE,
    RATER_COOKIE,
    VISITOR,
    GuessLimit,
    Signer,
    same_secret,
    sha256,
)
from dashboard.human_eval.text import LANGUAGES, Language, language, preferred, shown
from evals.human.errors import DiskFull, NotFound
from evals.human.rows import RaterId, RaterRow
from evals.human.store import StudyStore

_HERE = Path(__file__).parent
_LOCALE_SECONDS = 365 * 24 * 3600
# Where a change of language may lead back to: pages of this app that a GET shows.
_PAGES = re.compile(r"/(?:consent|instructions|item/\d{1,4}|review|thanks|paused|withdraw)?")
_ALWAYS_JSON = re.compile(r"/admin/progress\.json|/item/\d+/draft")
_STATIC_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class AppSettings:
    """How the app is served.

    ``public_url``: what raters open, where that is not this server itself; cookies are ``Secure`` where it
    is https. ``secret``: the study's. ``hosts``: further names that a request's ``Host`` may carry;
    ``*`` is any.
    """

    public_url: str | None
    secret: bytes
    languages: tuple[str, ...] = LANGUAGES
    hosts: tuple[str, ...] = ()


class Refused(Exception):  # noqa: N818 - an answer on its way, not a fault
    """Ends a request with the page of this kind of ``content.PROBLEMS``."""

    def __init__(self, kind: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(kind)
        self.kind, self.headers = kind, headers


@dataclass(frozen=True)
class StaticFile:
    """A file of ``static/``, read once."""

    body: bytes
    media_type: str
    digest: str


@cache
def static_files() -> Mapping[str, StaticFile]:
    """Return the files of ``static/`` by name."""
    found = {}
    for path in sorted((_HERE / "static").iterdir()):
        body = path.read_bytes()
        found[path.name] = StaticFile(body, _STATIC_TYPES[path.suffix], sha256(body.decode())[:16])
    return found


def static_url(name: str) -> str:
    """Return the address of a static file, another one whenever its content changes."""
    return f"/static/{name}?v={static_files()[name].digest}"


@cache
def _environment(code: str) -> Environment:
    """Return the templates of one language; each is compiled once a process."""
    spoken = language(code)
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    # The extension adds this method to the class at run time.
    environment.install_gettext_callables(  # type: ignore[attr-defined]
        spoken.gettext, spoken.ngettext, newstyle=True
    )
    environment.filters["shown"] = shown
    environment.globals.update(static=static_url, rubric=content.rubric(spoken))
    return environment


def wants_json(request: Request) -> bool:
    """Tell whether the client asks for JSON and not for a page."""
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/html" not in accepted


def see_other(path: str) -> Response:
    """Return a redirect that is followed by a GET."""
    return RedirectResponse(path, 303)


class Desk:
    """One study as it is served."""

    def __init__(self, store: StudyStore, settings: AppSettings) -> None:
        self.store, self.settings = store, settings
        self.plan = store.plan
        self.signer = Signer(settings.secret)
        self.guesses = GuessLimit()
        self.languages = tuple(language(code) for code in settings.languages)
        self._secure = (settings.public_url or "").startswith("https://")

    def visit(self, request: Request) -> Visit:
        """Return the request with what is known about who sent it."""
        visit = getattr(request.state, "visit", None)
        if not isinstance(visit, Visit):
            visit = request.state.visit = Visit(self, request)
        return visit

    def set_cookie(self, answer: Response, name: str, value: str, *, path: str = "/") -> None:
        """Set a cookie that no script reads and no other site's form sends."""
        age = _LOCALE_SECONDS if name == LOCALE_COOKIE else COOKIE_SECONDS
        answer.set_cookie(
            name, value, max_age=age, path=path, secure=self._secure, httponly=True, samesite="lax"
        )

    def refuse_guessing(self, request: Request) -> None:
        """Raise ``Refused`` for an address that has tried too many wrong tokens."""
        wait = self.guesses.wait(_network(request))
        if wait:
            raise Refused("429", {"Retry-After": str(wait)})

    def wrong_token(self, request: Request) -> Refused:
        """Count a wrong token, and return the refusal: the same for unknown, revoked and none."""
        self.guesses.wrong(_network(request))
        return Refused("unknown link")

    def problem(self, request: Request, kind: str, headers: Mapping[str, str] | None = None) -> Response:
        """Return the page, or the JSON, of a refusal; asks nothing of the database."""
        visit = self.visit(request)
        told = content.problem(kind, visit.language)
        if wants_json(request) or _ALWAYS_JSON.fullmatch(request.url.path):
            answer: Response = JSONResponse(
                {"detail": " ".join([f"{told.headline}.", *told.paragraphs])}, told.status
            )
        else:
            answer = visit.message(
                told.headline, *told.paragraphs, status=told.status, go_on="/" if told.go_on else None
            )
        answer.headers.update(headers or {})
        return answer


def _network(request: Request) -> str:
    """Return what guesses are counted by: an IPv4 address, of IPv6 the 64 bits that a household has."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host


class Visit:
    """One request: its rater, its language, its forms' token, its pages."""

    def __init__(self, desk: Desk, request: Request) -> None:
        self.desk, self.request = desk, request
        self.known: RaterRow | None = None
        """The rater, once the store was asked."""

    # Who asks -------------------------------------------------------------------------------------

    @cached_property
    def _cookies(self) -> Mapping[str, str]:
        return self.request.cookies

    @cached_property
    def signed_in(self) -> RaterId | None:
        """The rater that the cookie names; whether there still is one, only the store knows."""
        value = self.desk.signer.read(RATER_COOKIE, self._cookies.get(RATER_COOKIE))
        return value if isinstance(value, int) else None

    @property
    def rater_id(self) -> RaterId:
        """The rater that the cookie names; raises ``Refused`` without a valid one."""
        if self.signed_in is None:
            raise Refused("401")
        return self.signed_in

    def rater(self) -> RaterRow:
        """Return the rater; raises ``Refused`` where there is none, or none any more."""
        if self.known is None:
            try:
                self.known = self.desk.store.rater(self.rater_id)
            except NotFound:
                raise Refused("401") from None
        return self.known

    def looks_at(self, position: int | None = None) -> None:
        """Note that the rater is here, or at an item; a page is shown also where that cannot be written."""
        store = self.desk.store
        with suppress(DiskFull):
            if position is None:
                store.seen(self.rater_id)
            else:
                store.shown(self.rater_id, position)

    def check_form(self, token: str) -> None:
        """Raise ``Refused`` unless the form was made for this very rater."""
        if not self.desk.signer.form_token_holds(token, self.rater_id):
            raise Refused("403")

    def check_admin(self) -> None:
        """Raise ``Refused`` unless the cookie was given for the admin token in force."""
        value = self.desk.signer.read(ADMIN_COOKIE, self._cookies.get(ADMIN_COOKIE))
        digest = self.desk.store.admin_digest()
        if not isinstance(value, str) or not digest or not same_secret(digest, value):
            raise Refused("admin")

    # Language -------------------------------------------------------------------------------------

    @property
    def language(self) -> Language:
        """What was chosen on this device, else by the rater on another, else what the browser likes."""
        codes = self.desk.settings.languages
        for wish in (self._cookies.get(LOCALE_COOKIE), self.known.locale if self.known else None):
            if wish in codes:
                return language(wish)
        return language(preferred(self.request.headers.get("accept-language", ""), codes))

    # Pages ----------------------------------------------------------------------------------------

    def page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """Return a page made of a template; ``problem``: a line that tells what was wrong."""
        return HTMLResponse(
            _environment(self.language.code).get_template(template).render(self._context(values)), status
        )

    def admin_page(self, template: str, **values: Any) -> Response:
        """Return a page for the study's researchers, which is in English."""
        context = {**self._context(values), "language": language(LANGUAGES[0]), "rater": None}
        return HTMLResponse(_environment(LANGUAGES[0]).get_template(template).render(context))

    def message(
        self, headline: str, *paragraphs: str, status: int = 200, go_on: str | None = None
    ) -> Response:
        """Return a page of a headline and some paragraphs."""
        return self.page("message.html", status=status, headline=headline, paragraphs=paragraphs, go_on=go_on)

    def _context(self, values: Mapping[str, Any]) -> dict[str, Any]:
        path, plan = self.request.url.path, self.desk.plan
        whom = VISITOR if self.signed_in is None else self.signed_in
        return {
            "language": self.language,
            "languages": self.desk.languages,
            "study": shown(plan.title),
            "csrf": self.desk.signer.form_token(whom),
            "here": back_to(path),
            "rater": self.known,
            "contact": plan.contact,
            "plan": plan,
            "problem": None,
            **values,
        }


def back_to(path: str) -> str:
    """Return the path if it is that of a page which a change of language may lead back to, else ``/``."""
    return path if _PAGES.fullmatch(path) else "/"
