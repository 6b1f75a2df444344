"""The item page of the rating app: an answer is read and rated, a draft kept, a rating corrected."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Form, Path
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dashboard.human_eval import content
from dashboard.human_eval.desk import Desk, Refused, Visit, see_other, wants_json
from dashboard.human_eval.text import shown, typed
from evals.human.errors import Invalid, KeyConflict, NotFound, StaleRevision
from evals.human.rows import COMMENT_CHARACTERS, RATING, AssignmentRow, Draft, Submission

_MOST_MS = 10**12
_MOST_SEQUENCE = 2**53 - 1
_SCORE = re.compile("[1-9]|10")
_PREFERENCES = ("left", "right", "tie")

Position = Annotated[str, Path(json_schema_extra={"pattern": "^[1-9][0-9]{0,3}$"})]


class _ItemFields(BaseModel):
    """What both forms of an item send: text, checked by hand, so that a page can say what is wrong."""

    csrf: str = ""
    revision: Annotated[str, Field(json_schema_extra={"pattern": "^[0-9]{1,9}$"})] = "0"
    score: Annotated[str, Field(json_schema_extra={"enum": ["", *map(str, range(1, 11))]})] = ""
    preference: Annotated[str, Field(json_schema_extra={"enum": ["", *_PREFERENCES]})] = ""
    comment: Annotated[str, Field(json_schema_extra={"maxLength": COMMENT_CHARACTERS})] = ""
    flag: str = ""
    focus_ms: str = "0"


class RatingFields(_ItemFields):
    """The rating form."""

    key: Annotated[str, Field(json_schema_extra={"pattern": "^[A-Za-z0-9_-]{1,100}$"})] = ""


class DraftFields(_ItemFields):
    """A draft; ``client_seq``: milliseconds of the browser's clock, so that of two tabs the later wins."""

    client_seq: Annotated[str, Field(json_schema_extra={"pattern": "^[0-9]{1,15}$"})] = ""


@dataclass(frozen=True)
class Entry:
    """What stands in the form when it is shown."""

    score: str = ""
    preference: str = ""
    comment: str = ""
    flag: bool = False
    focus_ms: int = 0
    sequence: int = 0
    unsent: bool = False
    """Whether this is a change to a rating that was not submitted yet."""


@dataclass(frozen=True)
class Feedback:
    """What stands above an item about the practice before it."""

    given: int | None
    why: str
    counts_now: bool


def next_open(rows: Sequence[AssignmentRow], position: int = 0) -> str:
    """Return the path of the next item without a rating, from a position on and round, else the review's."""
    missing = [row.position for row in rows if row.rating is None]
    if not missing:
        return "/review"
    return f"/item/{next((one for one in missing if one > position), missing[0])}"


def entry_of(row: AssignmentRow) -> Entry:
    """Return what stands in the form: the draft that was begun, else the rating."""
    draft, rating = row.draft, row.rating
    sequence = draft.client_seq if draft else 0
    given = draft if draft and draft.revision == row.revision else rating
    if given is None:
        return Entry(focus_ms=row.focus_ms, sequence=sequence)
    return Entry(
        "" if given.score is None else str(given.score),
        given.preference or "",
        given.comment,
        given.flag,
        row.focus_ms,
        sequence,
        unsent=rating is not None and given is draft and changed(row),
    )


def changed(row: AssignmentRow) -> bool:
    """Tell whether a rating's page holds a draft that says something else than the rating."""
    draft, rating = row.draft, row.rating
    if draft is None or rating is None or draft.revision != row.revision:
        return False
    names = ("score", "preference", "comment", "flag")
    return any(getattr(draft, name) != getattr(rating, name) for name in names)


class ItemPages:
    """The routes of items."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the app."""
        app.add_api_route("/item/{position}", self.show, methods=["GET"])
        app.add_api_route("/item/{position}", self.submit, methods=["POST"])
        app.add_api_route("/item/{position}/draft", self.draft, methods=["POST"])

    def show(self, request: Request, position: Position) -> Response:
        """Show an item, with what was entered."""
        visit, store = self.desk.visit(request), self.desk.store
        if visit.rater().state not in RATING:
            return see_other("/")
        if store.closed:
            raise Refused("410")
        rows = store.assignments(visit.rater_id)
        row = _find(rows, position)
        visit.looks_at(row.position)
        return self._page(visit, rows, row, entry_of(row))

    def submit(self, request: Request, position: Position, form: Annotated[RatingFields, Form()]) -> Response:
        """Store a rating; answered alike however often the same form is sent."""
        visit, store = self.desk.visit(request), self.desk.store
        visit.check_form(form.csrf)
        place = _number_of(position)
        try:
            told = store.submit(visit.rater_id, place, _submission(form))
        except (KeyConflict, StaleRevision):
            return self._conflict(visit, place)
        except Invalid as error:
            return self._invalid(visit, place, form, error)
        except NotFound:
            visit.rater()
            raise Refused("404") from None
        following = next_open(store.assignments(visit.rater_id), place)
        if wants_json(request):
            return JSONResponse(
                {"status": told.status, "position": place, "revision": told.revision, "next": following}
            )
        return see_other(following)

    def draft(self, request: Request, position: Position, form: Annotated[DraftFields, Form()]) -> Response:
        """Keep what is entered before it is submitted."""
        visit = self.desk.visit(request)
        visit.check_form(form.csrf)
        place = _number_of(position)
        try:
            sequence = _number(form.client_seq, _MOST_SEQUENCE)
            if sequence is None:
                raise Invalid("client_seq is a whole number from 0 to 2^53")
            saved = self.desk.store.save_draft(visit.rater_id, place, _draft(form, sequence))
        except Invalid as error:
            return JSONResponse({"detail": str(error)}, 422)
        except NotFound:
            visit.rater()
            raise Refused("404") from None
        return JSONResponse({"saved": saved, "client_seq": sequence})

    # Answers that are not yes ---------------------------------------------------------------------

    def _conflict(self, visit: Visit, place: int) -> Response:
        """Show what is stored, after another window or device has stored it."""
        visit.rater()
        rows = self.desk.store.assignments(visit.rater_id)
        row = _find(rows, str(place))
        rating = row.rating
        say = visit.language.gettext(
            "This item was rated in another window or on another device. Below stands what is stored. You "
            "can change it and save the change."
        )
        if wants_json(visit.request):
            stored = None
            if rating is not None:
                stored = {name: getattr(rating, name) for name in ("score", "preference", "comment", "flag")}
            return JSONResponse(
                {"detail": say, "position": place, "revision": row.revision, "stored": stored}, 409
            )
        entry = Entry(focus_ms=row.focus_ms)
        if rating is not None:
            score = "" if rating.score is None else str(rating.score)
            entry = Entry(score, rating.preference or "", rating.comment, rating.flag, row.focus_ms)
        return self._page(visit, rows, row, entry, status=409, problem=say)

    def _invalid(self, visit: Visit, place: int, form: RatingFields, error: Invalid) -> Response:
        """Show the form again with what was entered."""
        visit.rater()
        rows = self.desk.store.assignments(visit.rater_id)
        row = _find(rows, str(place))
        say = visit.language.gettext
        if len(typed(form.comment)) > COMMENT_CHARACTERS:
            told = say("The comment is too long: %(most)s characters at most.") % {"most": COMMENT_CHARACTERS}
        elif row.kind == "pair" and form.preference not in _PREFERENCES:
            told = say("Please choose one of the three.")
        elif row.kind != "pair" and not _SCORE.fullmatch(form.score):
            told = say("Please choose a score from 1 to 10.")
        else:
            told = say("This form could not be read. Please send it again.")
        if wants_json(visit.request):
            return JSONResponse({"detail": told, "reason": str(error)}, 422)
        kept = Entry(
            form.score,
            form.preference,
            typed(form.comment),
            form.flag == "yes",
            max(row.focus_ms, _number(form.focus_ms, _MOST_MS) or 0),
            entry_of(row).sequence,
        )
        return self._page(visit, rows, row, kept, status=422, problem=told)

    # The page -------------------------------------------------------------------------------------

    def _page(
        self, visit: Visit, rows: Sequence[AssignmentRow], row: AssignmentRow, entry: Entry, **more: Any
    ) -> Response:
        say, place, total = visit.language.gettext, row.position, len(rows)
        after = None
        if row.rating is not None:
            after = "/review" if place == total else f"/item/{place + 1}"
        return visit.page(
            "item.html",
            heading=say("%(position)s of %(total)s") % {"position": place, "total": total},
            position=place,
            total=total,
            pair=row.kind == "pair",
            practice=row.kind == "practice",
            feedback=_feedback(visit, rows, row),
            entry=entry,
            key=secrets.token_urlsafe(16),
            revision=row.revision,
            before=place - 1,
            after=after,
            most_comment=COMMENT_CHARACTERS,
            **_texts(visit, row),
            **more,
        )


def _texts(visit: Visit, row: AssignmentRow) -> dict[str, Any]:
    """Return what is read, fit to be shown."""
    if row.kind == "practice":
        item = content.practice(row.task_id, visit.language)
        return {"prompt": item.prompt, "answer": item.answer}
    told = {"prompt": shown(row.prompt)}
    if row.kind == "pair":
        return told | {"left": shown(row.answers[0]), "right": shown(row.answers[1])}
    return told | {"answer": shown(row.answers[0])}


def _feedback(visit: Visit, rows: Sequence[AssignmentRow], row: AssignmentRow) -> Feedback | None:
    """Return what is said about the practice that was just rated, until this item is rated too."""
    before = rows[row.position - 2] if row.position > 1 else None
    if before is None or before.kind != "practice" or before.rating is None or row.rating is not None:
        return None
    why = content.practice(before.task_id, visit.language).why
    return Feedback(before.rating.score, why, counts_now=row.kind != "practice")


def _find(rows: Sequence[AssignmentRow], position: str) -> AssignmentRow:
    place = _number_of(position)
    if not 1 <= place <= len(rows):
        raise Refused("404")
    return rows[place - 1]


def _number_of(position: str) -> int:
    """Return the number in the path; raises ``Refused`` where it is none."""
    if not re.fullmatch("[1-9][0-9]{0,3}", position):
        raise Refused("404")
    return int(position)


def _number(text: str, most: int) -> int | None:
    """Return a whole number from 0 to ``most``, else None."""
    if not re.fullmatch("[0-9]{1,16}", text) or int(text) > most:
        return None
    return int(text)


def _answer(form: _ItemFields) -> dict[str, Any]:
    """Return what both kinds of form say; raises ``Invalid``."""
    comment, revision = typed(form.comment), _number(form.revision or "0", 10**9)
    if len(comment) > COMMENT_CHARACTERS:
        raise Invalid(f"a comment has {COMMENT_CHARACTERS} characters at most")
    if form.score and not _SCORE.fullmatch(form.score):
        raise Invalid("a score is a whole number from 1 to 10")
    if form.preference not in ("", *_PREFERENCES):
        raise Invalid("a preference is left, right or tie")
    if revision is None:
        raise Invalid("a revision is a whole number")
    return {
        "revision": revision,
        "score": int(form.score) if form.score else None,
        "preference": form.preference or None,
        "comment": comment,
        "flag": form.flag == "yes",
        # Without JavaScript nobody counts; what cannot be read counts as that.
        "focus_ms": _number(form.focus_ms, _MOST_MS) or 0,
    }


def _submission(form: RatingFields) -> Submission:
    return Submission(key=form.key, **_answer(form))


def _draft(form: DraftFields, sequence: int) -> Draft:
    return Draft(client_seq=sequence, **_answer(form))
