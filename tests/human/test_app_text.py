"""Languages of the rating app: every message in each of them, placeholders equal, choice by header."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from babel.messages.extract import extract
from babel.messages.pofile import read_po
from hypothesis import given
from hypothesis import strategies as st
from jinja2.ext import babel_extract

import dashboard.human_eval
from dashboard.human_eval.text import LANGUAGES, LOCALE_FOLDER, language, preferred, shown, typed

APP = Path(dashboard.human_eval.__file__).parent
PLACEHOLDER = re.compile(r"%\(\w+\)s|%")


@cache
def messages() -> frozenset[str]:
    """Every message of the app's code and templates."""
    found = set()
    marks = {"message": None, "gettext": None, "say": None}
    for path in APP.glob("*.py"):
        with path.open("rb") as file:
            found |= {str(one) for _, one, *_ in extract("python", file, keywords=marks)}
    for path in APP.glob("templates/*.html"):
        with path.open("rb") as file:
            # With values, the message is the first of several arguments.
            drawn = [one for _, _, one, _ in babel_extract(file, ("_",), (), {})]
            found |= {one if isinstance(one, str) else one[0] for one in drawn}
    assert len(found) > 100
    return frozenset(found)


@pytest.mark.parametrize("code", LANGUAGES[1:])
def test_every_message_is_translated_with_the_same_placeholders(code: str) -> None:
    with (LOCALE_FOLDER / f"{code}.po").open("rb") as file:
        catalogue = read_po(file, locale=code, abort_invalid=True)
    stored = {str(one.id): one for one in catalogue if one.id}
    assert set(stored) == messages()
    for one, entry in stored.items():
        told = str(entry.string)
        assert told.strip(), one
        assert not entry.fuzzy
        assert set(PLACEHOLDER.findall(told)) == set(PLACEHOLDER.findall(one)), one
        # Translations stand in attributes of HTML as they are.
        assert not set(told) & set('"<>&'), told


def test_messages_can_stand_in_attributes_and_are_no_markup() -> None:
    for one in messages():
        assert not set(one) & set('"<>&'), one
        assert Counter(PLACEHOLDER.findall(one))["%"] == 0, one


def test_languages_are_in_the_folder_and_differ() -> None:
    assert {path.stem for path in LOCALE_FOLDER.glob("*.po")} == set(LANGUAGES[1:])
    assert len({language(code).gettext("Finish") for code in LANGUAGES}) == len(LANGUAGES)
    assert [language(code).direction for code in LANGUAGES] == ["ltr", "ltr", "rtl"]
    with pytest.raises(KeyError):
        language("../de")


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("fr, ar;q=0.3, de;q=0.7", "de"),
        ("de;q=0, ar;q=0.1", "ar"),
        ("fr", "en"),
        ("*", "en"),
        (";;q=,,;q=x", "en"),
        ("DE-de;Q=1", "de"),
    ],
)
def test_the_browsers_language_is_chosen(header: str, wanted: str) -> None:
    assert preferred(header, LANGUAGES) == wanted


@given(st.text(max_size=200))
def test_any_text_becomes_one_that_can_be_stored_and_shown(text: str) -> None:
    once = typed(text)
    assert typed(once) == once
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", once)
    once.encode()
    seen = shown(text)
    seen.encode()
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", seen)
    assert shown(seen) == seen
