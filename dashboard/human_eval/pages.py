"""A rater's way through the rating app but for the items: link, consent, instructions, review, end."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Annotated

from fastapi import FastAPI, Form
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dashboard.human_eval import content
from dashboard.human_eval.desk import Desk, Refused, Visit, back_to, see_other, static_files, wants_json
from dashboard.human_eval.items import changed, next_open
from dashboard.human_eval.security import LOCALE_COOKIE, RATER_COOKIE, VISITOR
from dashboard.human_eval.text import language, shown
from evals.human.errors import DiskFull, Incomplete, NotFound, StudyClosed, StudyFull
from evals.human.rows import RATING, AssignmentRow, RaterRow

_TOKEN = re.compile("[A-Za-z0-9_-]{16,64}")
_WORKING = ("consented", *RATING)
_CACHED = "public, max-age=31536000, immutable"


class CsrfFields(BaseModel):
    """A form of one button."""

    csrf: str = ""


class ConsentFields(CsrfFields):
    """Consent, and the language of the text that was consented to."""

    agree: str = ""
    locale: str = ""


class WithdrawFields(CsrfFields):
    """Whether what a rater gave is erased."""

    erase: str = ""
    sure: str = ""


class LocaleFields(CsrfFields):
    """A choice of language, and where it was made."""

    locale: str = ""
    next: str = "/"


class RaterPages:
    """The routes of raters that show no item."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the app."""
        shown_at: dict[str, Callable[..., object]] = {
            "/": self.home,
            "/join": self.join,
            "/consent": self.consent,
            "/instructions": self.instructions,
            "/review": self.review,
            "/thanks": self.thanks,
            "/paused": self.paused,
            "/withdraw": self.withdrawal,
            "/static/{name}": self.static,
            "/healthz": self.health,
        }
        for path, shows in shown_at.items():
            app.add_api_route(path, shows, methods=["GET"])
        sent_to: dict[str, Callable[..., object]] = {
            "/consent": self.consented,
            "/instructions": self.instructed,
            "/finish": self.finish,
            "/pause": self.pause,
            "/withdraw": self.withdraw,
            "/locale": self.locale,
        }
        for path, takes in sent_to.items():
            app.add_api_route(path, takes, methods=["POST"])

    # Entering -------------------------------------------------------------------------------------

    def join(self, request: Request, t: str = "") -> Response:
        """Follow a personal link: from here on the cookie says who it is."""
        desk = self.desk
        desk.refuse_guessing(request)
        rater_id = desk.store.enter(t) if _TOKEN.fullmatch(t) else None
        if rater_id is None:
            raise desk.wrong_token(request)
        answer = see_other("/")
        desk.set_cookie(answer, RATER_COOKIE, desk.signer.sign(RATER_COOKIE, rater_id))
        return answer

    def home(self, request: Request) -> Response:
        """Lead to what comes next."""
        visit = self.desk.visit(request)
        rater, closed = visit.rater(), self.desk.store.closed
        if rater.state == "finished":
            return see_other("/thanks")
        if rater.state in ("withdrawn", "erased"):
            return see_other("/withdraw")
        if closed:
            raise Refused("410")
        if rater.state == "expired":
            raise Refused("expired")
        if rater.state in RATING:
            return see_other(next_open(self.desk.store.assignments(rater.id)))
        return see_other("/consent" if rater.state == "invited" else "/instructions")

    def consent(self, request: Request) -> Response:
        """Show what is consented to."""
        visit = self.desk.visit(request)
        if visit.rater().state != "invited":
            return see_other("/")
        self._refuse_closed()
        return self._consent_page(visit)

    def consented(self, request: Request, form: Annotated[ConsentFields, Form()]) -> Response:
        """Take a place for who agrees."""
        desk, visit = self.desk, self.desk.visit(request)
        rater = visit.rater()
        visit.check_form(form.csrf)
        if rater.state == "expired":
            raise Refused("expired")
        if form.agree != "yes" or form.locale not in desk.settings.languages:
            self._refuse_closed()
            told = visit.language.gettext("Please tick the box if you agree.")
            return self._consent_page(visit, status=422, problem=told)
        read = language(form.locale)
        try:
            desk.store.consent(rater.id, content.consent_sha256(desk.plan, read), read.code)
        except StudyFull:
            raise Refused("full") from None
        return see_other("/instructions")

    def _consent_page(self, visit: Visit, *, status: int = 200, problem: str | None = None) -> Response:
        text = content.consent(self.desk.plan, visit.language)
        return visit.page("consent.html", status=status, consent=text, problem=problem)

    def instructions(self, request: Request) -> Response:
        """Show how to rate."""
        visit = self.desk.visit(request)
        rater = visit.rater()
        if rater.state not in _WORKING:
            return see_other("/")
        self._refuse_closed()
        visit.looks_at()
        return visit.page(
            "instructions.html", example=content.example(visit.language), again=rater.state in RATING
        )

    def instructed(self, request: Request, form: Annotated[CsrfFields, Form()]) -> Response:
        """Go on to the items."""
        visit = self.desk.visit(request)
        visit.check_form(form.csrf)
        rater = visit.rater()
        self.desk.store.instructed(rater.id)
        return see_other(next_open(self.desk.store.assignments(rater.id)))

    # Ending ---------------------------------------------------------------------------------------

    def review(self, request: Request) -> Response:
        """Show all items with what was given."""
        visit = self.desk.visit(request)
        rater = visit.rater()
        if rater.state not in RATING:
            return see_other("/")
        self._refuse_closed()
        visit.looks_at()
        return self._review_page(visit, rater)

    def _review_page(
        self, visit: Visit, rater: RaterRow, *, status: int = 200, problem: str | None = None
    ) -> Response:
        rows = self.desk.store.assignments(rater.id)
        missing = [row.position for row in rows if row.rating is None]
        return visit.page(
            "review.html",
            status=status,
            problem=problem,
            rows=[_line(visit, row) for row in rows],
            total=len(rows),
            missing=len(missing),
            first_open=missing[0] if missing else None,
        )

    def finish(self, request: Request, form: Annotated[CsrfFields, Form()]) -> Response:
        """End the work of who has rated everything."""
        visit = self.desk.visit(request)
        visit.check_form(form.csrf)
        rater = visit.rater()
        try:
            code = self.desk.store.finish(rater.id)
        except Incomplete as error:
            told = visit.language.gettext("%(missing)s items are still open.") % {
                "missing": len(error.missing)
            }
            if wants_json(request):
                return JSONResponse({"detail": told, "missing": list(error.missing)}, 409)
            return self._review_page(visit, rater, status=409, problem=told)
        if wants_json(request):
            return JSONResponse({"code": code, "next": "/thanks"})
        return see_other("/thanks")

    def thanks(self, request: Request) -> Response:
        """Show the completion code."""
        visit = self.desk.visit(request)
        if visit.rater().state != "finished":
            return see_other("/")
        return visit.page("thanks.html", closed=self.desk.store.closed)

    def pause(self, request: Request, form: Annotated[CsrfFields, Form()]) -> Response:
        """Note a pause; the place is kept from now on as long as ever."""
        visit = self.desk.visit(request)
        visit.check_form(form.csrf)
        self.desk.store.pause(visit.rater().id)
        return see_other("/paused")

    def paused(self, request: Request) -> Response:
        """Say until when the place is kept."""
        visit = self.desk.visit(request)
        rater = visit.rater()
        if rater.state not in _WORKING or rater.lease_until is None:
            return see_other("/")
        self._refuse_closed()
        say = visit.language.gettext
        until = _day_and_time(rater.lease_until, visit)
        return visit.message(
            say("Paused"),
            say("What you have rated is stored. Go on whenever you like, here or with your personal link."),
            say("Your place is kept until %(when)s (UTC).") % {"when": until},
            go_on="/",
        )

    def withdrawal(self, request: Request) -> Response:
        """Ask what shall happen to what was given."""
        visit = self.desk.visit(request)
        if visit.rater().state == "invited":
            return see_other("/")
        return visit.page("withdraw.html", closed=self.desk.store.closed)

    def withdraw(self, request: Request, form: Annotated[WithdrawFields, Form()]) -> Response:
        """End a rater's part."""
        visit = self.desk.visit(request)
        visit.check_form(form.csrf)
        rater = visit.rater()
        if form.sure != "yes" or form.erase not in ("yes", "no"):
            told = visit.language.gettext("Please choose, and tick that you are sure.")
            return visit.page("withdraw.html", status=422, closed=self.desk.store.closed, problem=told)
        try:
            self.desk.store.withdraw(rater.id, form.erase == "yes")
        except StudyClosed:
            return visit.page("withdraw.html", status=410, closed=True)
        return see_other("/withdraw")

    # Everywhere -----------------------------------------------------------------------------------

    def locale(self, request: Request, form: Annotated[LocaleFields, Form()]) -> Response:
        """Change the language, of this device and of the rater."""
        desk, visit = self.desk, self.desk.visit(request)
        whom = VISITOR if visit.signed_in is None else visit.signed_in
        if not desk.signer.form_token_holds(form.csrf, whom):
            raise Refused("403")
        if form.locale not in desk.settings.languages:
            raise Refused("422")
        if visit.signed_in is not None:
            # The page that says why it cannot be kept is still to be read, in this device's language.
            with suppress(StudyClosed, NotFound, DiskFull):
                desk.store.set_locale(visit.signed_in, form.locale)
        answer = see_other(back_to(form.next))
        desk.set_cookie(answer, LOCALE_COOKIE, form.locale)
        return answer

    async def static(self, name: str) -> Response:
        """Return a style sheet, a script or the icon."""
        file = static_files().get(name)
        if file is None:
            raise Refused("404")
        return Response(file.body, media_type=file.media_type, headers={"Cache-Control": _CACHED})

    def health(self) -> Response:
        """Tell whether the app and its database answer."""
        return JSONResponse({"status": "ok", "closed": self.desk.store.closed})

    def _refuse_closed(self) -> None:
        if self.desk.store.closed:
            raise Refused("410")


def _line(visit: Visit, row: AssignmentRow) -> dict[str, object]:
    """Return an item as the review shows it."""
    say, given = visit.language.gettext, ""
    if row.rating is not None:
        words = {"left": say("Answer A"), "right": say("Answer B"), "tie": say("About equal")}
        given = words.get(row.rating.preference or "", "") or str(row.rating.score)
    practice = row.kind == "practice"
    prompt = content.practice(row.task_id, visit.language).prompt if practice else shown(row.prompt)
    return {
        "position": row.position,
        "prompt": " ".join(prompt[:400].split()),
        "given": given,
        "draft": row.draft is not None,
        "changed": changed(row),
        "practice": practice,
        "flag": row.rating is not None and row.rating.flag,
        "comment": row.rating is not None and bool(row.rating.comment),
    }


def _day_and_time(moment: str, visit: Visit) -> str:
    """Return a time in the rater's language, in UTC."""
    from babel.dates import format_date

    at = datetime.fromisoformat(moment)
    # Of English, what Europe writes: the day first and 24 hours.
    locale = "en_GB" if visit.language.code == "en" else visit.language.code
    return f"{format_date(at, 'long', locale=locale)}, {at:%H:%M}"
