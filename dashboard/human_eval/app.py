"""The rating app: its routes on one study, and what a fault of the study looks like to a rater."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dashboard.human_eval.admin import AdminPages
from dashboard.human_eval.desk import AppSettings, Desk, Refused
from dashboard.human_eval.items import ItemPages
from dashboard.human_eval.pages import RaterPages
from dashboard.human_eval.security import Guard, hosts_of
from evals.human.errors import (
    DiskFull,
    Invalid,
    NotFound,
    NotOpen,
    StudyClosed,
    StudyError,
    Unavailable,
)
from evals.human.store import StudyStore

__all__ = ["AppSettings", "build_app"]

_KINDS: tuple[tuple[type[StudyError], str], ...] = (
    (StudyClosed, "410"),
    (NotOpen, "409"),
    (NotFound, "401"),
    (Invalid, "422"),
    (DiskFull, "507"),
    (Unavailable, "503"),
)
_AGAIN_S = "2"


def build_app(store: StudyStore, settings: AppSettings) -> FastAPI:
    """Return the app on an open study; raises ``UsageError`` on settings that do not fit.

    It has no documentation in service; ``app.openapi()`` describes the routes for tests.
    """
    desk = Desk(store, settings)
    app = FastAPI(
        title="cogumi humaneval",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=Response,
        # Traces would carry addresses, and so tokens, to wherever the machine sends them.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    for pages in (RaterPages(desk), ItemPages(desk), AdminPages(desk)):
        pages.add_to(app)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return desk.problem(request, error.kind, error.headers)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return desk.problem(request, str(error.status_code), error.headers)

    async def unreadable(request: Request, _error: Exception) -> Response:
        return desk.problem(request, "422")

    async def study(request: Request, error: Exception) -> Response:
        kind = next((kind for one, kind in _KINDS if isinstance(error, one)), "500")
        return desk.problem(request, kind, {"Retry-After": _AGAIN_S} if kind == "503" else None)

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, unreadable)
    app.add_exception_handler(StudyError, study)
    app.add_middleware(
        Guard,
        problem=lambda request, status: desk.problem(request, str(status)),
        hosts=hosts_of(settings.public_url, settings.hosts),
    )
    return app
