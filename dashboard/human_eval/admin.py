"""The progress page of a study, behind the admin token: counts, pace, drop-out, remarks, never a score."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dashboard.human_eval.desk import Desk, see_other
from dashboard.human_eval.security import ADMIN_COOKIE

_SECONDS = 20
"""Between two refreshes."""
_MOST_TOKEN = 100
_DAY_H = 48


class AdminPages:
    """The routes of the study's researchers."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the app."""
        app.add_api_route("/admin", self.progress, methods=["GET"])
        app.add_api_route("/admin/progress.json", self.figures, methods=["GET"])

    def progress(self, request: Request, t: str | None = None, refresh: str = "on") -> Response:
        """Show the progress; with the token in the address, keep it in a cookie first."""
        if t is not None:
            return self._enter(request, t)
        visit = self.desk.visit(request)
        visit.check_admin()
        progress = self.desk.store.progress()
        return visit.admin_page(
            "admin.html",
            progress=progress,
            now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            hours_left=_time_left(progress.hours_left),
            refresh=refresh != "off",
            seconds=_SECONDS,
        )

    def figures(self, request: Request) -> Response:
        """Return the progress as JSON."""
        self.desk.visit(request).check_admin()
        return JSONResponse(dataclasses.asdict(self.desk.store.progress()))

    def _enter(self, request: Request, token: str) -> Response:
        desk = self.desk
        desk.refuse_guessing(request)
        if len(token) > _MOST_TOKEN or not desk.store.is_admin(token):
            raise desk.wrong_token(request)
        answer = see_other("/admin")
        # Bound to the token in force: a new one ends this cookie too.
        signed = desk.signer.sign(ADMIN_COOKIE, desk.store.admin_digest())
        desk.set_cookie(answer, ADMIN_COOKIE, signed, path="/admin")
        return answer


def _time_left(hours: float | None) -> str:
    if hours is None:
        return "–"
    return f"{hours:.1f} h" if hours < _DAY_H else f"{hours / 24:.1f} days"
