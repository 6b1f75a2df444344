"""What the rating app says at length: consent, scale, examples, practice items, refusals.

Texts stand here in English, marked by ``message``; ``locale/*.po`` holds them in the other languages. The
consent that a rater gives is to the very text in the very language that was shown: its SHA-256 is stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashboard.human_eval.text import Language
    from evals.human.plan import StudyPlan


def message(text: str) -> str:
    """Return the text: this only marks it for translation."""
    return text


# Consent ------------------------------------------------------------------------------------------

_CONSENT = (
    (
        message("What this is about"),
        message(
            "You read questions and answers, and say how good each answer is. Computer programs wrote the "
            "answers, and the ratings serve to judge one of them. You are not told which answer is whose."
        ),
    ),
    (
        message("What is asked of you"),
        message(
            "%(items)s items, one after the other; at a minute each that takes %(items)s minutes. Some of "
            "them are there to check how reliable ratings are. You can pause at any time and go on with "
            "the same link, on another device too. If you stay away for more than %(hours)s hours, your "
            "place may go to somebody else."
        ),
    ),
    (
        message("What is stored"),
        message(
            "Your ratings, comments and flags; when you opened and rated each item, and how long its page "
            "was in front of you; the language; when you gave this consent. All of it stands under a "
            "pseudonym. Your name, your e-mail address and the address of your device are not stored here."
            " The people who invited you know to whom they sent a link, so please do not pass yours on. "
            "Cookies keep you signed in and remember the language; they serve nothing else."
        ),
    ),
    (
        message("How long"),
        message(
            "When the study is closed, the ratings and comments are frozen without names. They are then "
            "kept without limit, so that the result can be checked, and may be published. Please write "
            "nothing about yourself or other people in a comment."
        ),
    ),
    (
        message("It is voluntary"),
        message(
            "You can stop at any time and need give no reason. The link Withdraw, below on every page, "
            "ends your part. You choose there whether what you gave is kept or erased. It can be erased "
            "until the study is closed."
        ),
    ),
    (message("Questions"), message("Write to %(contact)s.")),
)


def consent(plan: StudyPlan, language: Language) -> tuple[tuple[str, str], ...]:
    """Return the consent's headings and paragraphs for a study in a language."""
    values = {
        "items": plan.length,
        "hours": f"{plan.lease_hours:g}",
        "contact": plan.contact,
    }
    return tuple((language.gettext(head), language.gettext(text) % values) for head, text in _CONSENT)


def consent_sha256(plan: StudyPlan, language: Language) -> str:
    """Return the SHA-256, in hex, of the consent's version, language, study and whole text."""
    shown = [plan.consent_version, language.code, plan.title, consent(plan, language)]
    return hashlib.sha256(json.dumps(shown, ensure_ascii=False).encode()).hexdigest()


# The scale ----------------------------------------------------------------------------------------

_RUBRIC = (
    (1, message("useless: wrong, or no answer to the question")),
    (4, message("poor: partly right, with serious errors or gaps")),
    (7, message("good: right in the main, with small gaps")),
    (10, message("excellent: correct, complete and clear")),
)


def rubric(language: Language) -> tuple[tuple[int, str], ...]:
    """Return the scale's four anchors."""
    return tuple((score, language.gettext(words)) for score, words in _RUBRIC)


@dataclass(frozen=True)
class Example:
    """A question with answers, each with its score and the reason."""

    prompt: str
    answers: tuple[tuple[int, str, str], ...]


_EXAMPLE = Example(
    message("How many days does February have, and why does that change?"),
    (
        (
            2,
            message("February has 30 days. It changes because of the moon."),
            message("Only the topic is right: the number is wrong and the reason is made up."),
        ),
        (
            5,
            message("February has 28 days, in leap years 29."),
            message("Correct, but half of the question, the why, is left open."),
        ),
        (
            9,
            message(
                "February has 28 days, in leap years 29. The Earth takes about a quarter of a day more "
                "than 365 days for its way round the Sun. So a day is added about every four years; "
                "without it the seasons would drift through the calendar."
            ),
            message(
                "Correct, complete and clear. The exception of full centuries is missing, which is a "
                "trifle here."
            ),
        ),
    ),
)


def example(language: Language) -> Example:
    """Return the worked example of the instructions."""
    say = language.gettext
    return Example(
        say(_EXAMPLE.prompt), tuple((score, say(text), say(why)) for score, text, why in _EXAMPLE.answers)
    )


# Practice -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Practice:
    """A practice item, and what the scale says about it."""

    prompt: str
    answer: str
    why: str


_PRACTICE: Mapping[str, Practice] = {
    "practice-1": Practice(
        message("Name three things that a plant needs to grow."),
        message(
            "A plant needs light, water and carbon dioxide, which it takes from the air. It also needs "
            "minerals, such as nitrogen, which the roots take up from the soil."
        ),
        message(
            "By the scale this is an 8 to 10: everything is right, all three things are there, and it is "
            "easy to read. That it names a fourth thing does no harm."
        ),
    ),
    "practice-2": Practice(
        message("In which year did people first walk on the Moon?"),
        message(
            "People first walked on the Moon in 1959. Neil Armstrong and Buzz Aldrin landed with Apollo "
            "11, while Michael Collins stayed in orbit. Hundreds of millions watched it on television."
        ),
        message(
            "By the scale this is a 1 to 3: it reads well, but the one fact that was asked for is wrong. "
            "It was 1969."
        ),
    ),
}


def practice(task_id: str, language: Language) -> Practice:
    """Return a practice item by the name that the store gives it; ``KeyError`` for another name."""
    item, say = _PRACTICE[task_id], language.gettext
    return Practice(say(item.prompt), say(item.answer), say(item.why))


# Refusals -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A page that says why something was not done: status, headline, paragraphs, and whether to go on."""

    status: int
    headline: str
    paragraphs: Sequence[str]
    go_on: bool = False


_UNKNOWN = message("This page does not exist")

PROBLEMS: Mapping[str, Problem] = {
    "400": Problem(
        400, message("This request was not understood"), [message("Please go back and try it again.")]
    ),
    "401": Problem(
        401,
        message("Please open your personal link"),
        [
            message(
                "Ratings are opened by the personal link that you were sent. Open it again, on any device,"
                " and you go on where you stopped."
            ),
            message(
                "If it has been opened before and now leads here, it may have been revoked: ask the people"
                " who sent it."
            ),
        ],
    ),
    "admin": Problem(
        401,
        message("Please open the admin link"),
        [
            message(
                "The progress of the study is opened by the link that was printed when the study was made."
            )
        ],
    ),
    "403": Problem(
        403,
        message("This form is no longer valid"),
        [
            message(
                "It was opened too long ago or by someone else. Go on to get a new one; what was submitted"
                " is stored."
            )
        ],
        go_on=True,
    ),
    "404": Problem(404, _UNKNOWN, [message("The address may have a typing error.")], go_on=True),
    "unknown link": Problem(
        404,
        message("This link is not valid"),
        [
            message(
                "Perhaps a part of it is missing, or it has been revoked. Copy the whole link, or ask the "
                "people who sent it."
            )
        ],
    ),
    "405": Problem(405, _UNKNOWN, [message("The address may have a typing error.")], go_on=True),
    "408": Problem(408, message("That took too long"), [message("Please go back and send it again.")]),
    "409": Problem(
        409,
        message("That is not possible now"),
        [
            message(
                "Your part has ended, your place was given to somebody else after a long pause, or a step "
                "before this one is still open."
            )
        ],
        go_on=True,
    ),
    "expired": Problem(
        409,
        message("Your place was given to somebody else"),
        [
            message(
                "You were away for longer than places are kept. What you had rated is stored, and you can "
                "have it erased under Withdraw. Thank you for your help."
            )
        ],
    ),
    "full": Problem(
        409,
        message("All places are taken"),
        [
            message(
                "Thank you for your readiness to help. A place may become free: you can try your link "
                "again later."
            )
        ],
    ),
    "410": Problem(
        410,
        message("The study is closed"),
        [
            message(
                "No more ratings are taken. What you submitted before is part of the result. Thank you for"
                " your help."
            )
        ],
    ),
    "413": Problem(413, message("That is too long"), [message("Please go back and shorten the comment.")]),
    "415": Problem(
        415, message("This request was not understood"), [message("Please go back and try it again.")]
    ),
    "422": Problem(
        422,
        message("Something is missing"),
        [message("Please go back, check what you entered and send it again.")],
    ),
    "429": Problem(
        429,
        message("Too many attempts"),
        [
            message(
                "From your address many links were tried that do not exist. Please wait a minute and open "
                "your link again."
            )
        ],
    ),
    "500": Problem(
        500,
        message("Something went wrong here"),
        [
            message(
                "It is our fault, not yours. Please go back and try it again; what was submitted before is"
                " stored."
            )
        ],
    ),
    "503": Problem(
        503,
        message("Not available for a moment"),
        [message("Nothing of this was stored. Please go back and send it again in a moment.")],
    ),
    "507": Problem(
        507,
        message("This could not be stored"),
        [
            message(
                "The computer of the study has no room left, so nothing of this was stored. What you "
                "submitted before is safe."
            ),
            message(
                "Please keep this page, tell the people who invited you, and go back and send it again later."
            ),
        ],
    ),
}
"""By status, or by name where one status has several reasons."""


def problem(kind: str, language: Language) -> Problem:
    """Return a refusal in a language; a kind without words of its own is a bad request."""
    found, say = PROBLEMS.get(kind, PROBLEMS["400"]), language.gettext
    return Problem(found.status, say(found.headline), [say(one) for one in found.paragraphs], found.go_on)
