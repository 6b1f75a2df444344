"""Languages of the rating app: translations out of ``locale/*.po``, choice of language, harmless text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LOCALE_FOLDER = Path(__file__).parent / "locale"
LANGUAGES = ("en", "de", "ar")
"""The languages that the app speaks; the first is the one its messages are written in."""
LANGUAGE_NAMES = {"en": "English", "de": "Deutsch", "ar": "العربية"}
_RIGHT_TO_LEFT = {"ar"}

# Control characters but tab and line feed. What a terminal, a spreadsheet or PostgreSQL (NUL) would stumble
# over has no meaning in a comment; lone surrogates cannot be stored as UTF-8.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# Marks that turn the direction of text around could show another comment or answer than the one stored.
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Language:
    """One language: its code (BCP 47), its own name, its direction and its messages."""

    code: str
    messages: Mapping[str, str]

    @property
    def name(self) -> str:
        """The language's name in itself."""
        return LANGUAGE_NAMES[self.code]

    @property
    def direction(self) -> str:
        """``ltr`` or ``rtl``, as HTML's ``dir`` wants it."""
        return "rtl" if self.code in _RIGHT_TO_LEFT else "ltr"

    def gettext(self, message: str) -> str:
        """Return the message in this language, or as it is written where no translation stands."""
        return self.messages.get(message) or message

    def ngettext(self, one: str, many: str, count: int) -> str:
        """Return one of two messages; the app's messages need no plural forms, Jinja's callables do."""
        return self.gettext(one if count == 1 else many)


@cache
def language(code: str) -> Language:
    """Return a language by its code, its translations read once; ``KeyError`` for one that is not spoken."""
    if code not in LANGUAGES:
        raise KeyError(code)
    if code == LANGUAGES[0]:
        return Language(code, {})
    from babel.messages.pofile import read_po

    with (LOCALE_FOLDER / f"{code}.po").open("rb") as file:
        catalogue = read_po(file, locale=code)
    return Language(code, {str(m.id): str(m.string) for m in catalogue if m.id and m.string})


def preferred(accept_language: str, languages: Sequence[str]) -> str:
    """Return the language that an ``Accept-Language`` header (RFC 9110, 12.5.4) likes best, else the first.

    A region is ignored: ``de-AT`` is served ``de``.
    """
    wishes: list[tuple[float, int, str]] = []
    for place, part in enumerate(accept_language[:1000].split(",")):
        tag, _, quality = part.partition(";")
        weight = re.fullmatch(r"\s*q\s*=\s*(\d(?:\.\d{0,3})?)\s*", quality)
        wishes.append((-(float(weight[1]) if weight else 1.0), place, tag.strip().lower().partition("-")[0]))
    for quality_below, _, code in sorted(wishes):
        if quality_below < 0 and code in languages:
            return code
    return languages[0]


def typed(text: str) -> str:
    """Return what a person typed, fit to be stored: Unix line ends, no controls, no outer blanks."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def shown(text: str) -> str:
    """Return text of a model or a person, fit to be shown: what a reader could not see stands as U+FFFD."""
    return _TURNING.sub("\ufffd", _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n")))
