"""Hostile text only reads: in Markdown, in tables, in CSV; verdicts are sign and word."""

from __future__ import annotations

import csv as csv_format
import io
import re
import unicodedata

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from streamlit.testing.v1 import AppTest

from dashboard import kit
from dashboard.kit import badge, csv, plain, safe
from dashboard.theme import DARK, LIGHT

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![picture](https://example.test/x.png)",
    "https://example.test www.example.test me@example.test",
    "# heading",
    "1. list",
    "- list",
    "> quote",
    "```code```",
    "| a | b |",
    "**bold** _it_ ~~gone~~ `x`",
    ":red[spoof] :material/check: :fire: :rainbow-background[x]",
    "$x^2$ $$y$$",
    "a\nb\n===\n",
    "&lt;b&gt; &#60;",
    "\\*not\\*",
    "\u202egnp.exe",
    "\x00\x07\x1b[31m",
    "\ud800",
    "    indented",
]
texts = st.one_of(
    st.text(st.characters(), max_size=200),
    st.text("ab:/[]()<>*_`~$|#&\\!-+=.1@w \n\t", max_size=60),
    st.sampled_from(HOSTILE),
)


@settings(deadline=None)
@given(texts)
def test_plain_text_can_be_shown_anywhere(text: str) -> None:
    shown = plain(text)
    shown.encode()
    hidden = [char for char in shown if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"]
    assert hidden == []
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]", shown)
    assert plain(shown) == shown


@settings(deadline=None)
@given(st.text("abc äß日本\n\t(){}<>.,", max_size=80))
def test_plain_text_of_ordinary_letters_is_as_it_was(text: str) -> None:
    assert plain(text) == text


def test_control_characters_and_what_nobody_sees_are_shown() -> None:
    assert plain("a\x00b\x1b[0m\r\nc\rd\x7f\x85") == "a␀b␛[0m\nc␍d␡\ufffd"
    assert plain("\u202eabc\u2066\ufeff\U000e0041") == "⟨U+202E⟩abc⟨U+2066⟩⟨U+FEFF⟩⟨U+E0041⟩"
    assert plain("\ud800x") == "\ufffdx"
    assert plain("العربية עברית 👩‍👧") == "العربية עברית 👩‍👧"


def test_a_long_text_is_cut_and_says_so() -> None:
    assert plain("x" * 1_048_576, longest=3) == "xxx… (1,048,576 characters, cut)"
    assert len(plain("\x00" * 10_000_000)) < 21_000


@settings(deadline=None)
@given(texts)
def test_markdown_of_a_hostile_text_shows_just_the_text(text: str) -> None:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(safe(text))
    assert [token.type for token in tokens] in ([], ["paragraph_open", "inline", "paragraph_close"])
    inside = [child for token in tokens for child in token.children or []]
    assert {child.type for child in inside} <= {"text", "text_special"}
    shown = "".join(child.content for child in inside)
    # But for the joiner that parts addresses, to the letter; runs of spaces are one on a page anyway.
    assert shown.replace("\u2060", "") == " ".join(plain(text).split())


@settings(deadline=None)
@given(texts)
def test_what_is_looked_for_after_markdown_is_not_found(text: str) -> None:
    # remark-gfm's addresses, Streamlit's icons and emoji: found in text nodes, whatever was escaped.
    (shown,) = ["".join(c.content for t in MarkdownIt().parse(safe(text)) for c in t.children or [])]
    assert not re.search(r"(https?:\/\/|www(?=\.))[-.\w]+", shown, re.IGNORECASE)
    assert not re.search(r"[-.\w+]+@[-\w]+(\.[-\w]+)+", shown)
    assert not re.search(r":[\w+/-]+:", shown)
    # A directive of remark needs a bare colon before a letter.
    assert not re.search(r"(?<!\\):[A-Za-z]", safe(text))


@pytest.mark.parametrize(
    ("verdict", "told"),
    [("PASS", "✓ PASS"), ("FAIL", "✗ FAIL"), ("INFEASIBLE", "∅ INFEASIBLE"), (None, "· waiting")],
)
def test_a_verdict_is_sign_and_word(verdict: str | None, told: str) -> None:
    assert badge(verdict) == told


def test_a_verdict_that_nobody_knows_is_only_text() -> None:
    assert badge("<b>*new*</b>") == r"• \<b\>\*new\*\</b\>"


@settings(deadline=None)
@given(st.lists(texts, max_size=5))
def test_no_cell_of_a_csv_is_a_formula(cells: list[str]) -> None:
    table = pd.DataFrame({"=name": pd.Series(cells, dtype=object), "n": range(len(cells))})
    rows = list(csv_format.reader(io.StringIO(csv(table).decode(), newline="")))
    assert rows[0] == ["'=name", "n"]
    assert all(not row[0].startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows[1:])


def test_numbers_stay_numbers_in_a_csv() -> None:
    table = pd.DataFrame({"value": [-1.5, None], "note": ["-1", "ok"]})
    assert csv(table).decode().split() == ["value,note", "-1.5,'-1", ",ok"]


def test_colours_of_a_theme_are_all_different() -> None:
    assert len(set(LIGHT)) == len(LIGHT) == len(DARK) == len(set(DARK))


def _everything() -> None:
    import pandas as pd
    import plotly.graph_objects as go
    import streamlit as st

    from dashboard import kit

    hostile = "<script>x</script>\x00\ud800\u202e :fire:"
    # Only a column of objects takes half a surrogate pair.
    table = pd.DataFrame({"name": pd.Series([hostile, "=1+1"], dtype=object), "value": [1.0, None]})
    kit.said(hostile + "y" * 1_000_000)
    st.markdown(kit.safe(hostile))
    kit.empty(hostile, "cogumi run")
    chosen = kit.frame(table, hostile, key="frame", on_select=True)
    points = kit.figure(
        go.Figure(go.Scatter(x=[1], y=[2], customdata=[{"artifact": "a"}])),
        hostile,
        table,
        hostile,
        key="plot",
        on_select=True,
    )
    st.caption(f"chosen {chosen} {points}")
    kit.go(hostile, "items", artifact="a")
    kit.asked("gate", ["phase1"])


def test_everything_is_drawn_with_hostile_text() -> None:
    app = AppTest.from_function(_everything, default_timeout=30)
    app.query_params["gate"] = "<b>"
    app.run()
    assert not app.exception
    assert app.code[0].value.startswith("<script>x</script>␀\ufffd⟨U+202E⟩ :fire:yyy")
    assert len(app.code[0].value) < 20_100
    assert app.markdown[0].value.startswith(r"\<script\>")
    assert app.caption[-1].value == "chosen [] []"
    assert app.warning[0].value == r"The address asks for gate “\<b\>”, which is not here."
    assert list(app.dataframe[0].value["name"]) == ["<script>x</script>␀\ufffd⟨U+202E⟩ :fire:", "=1+1"]


def test_an_address_that_is_known_is_taken() -> None:
    def script() -> None:
        import streamlit as st

        from dashboard import kit

        st.caption(f"{kit.asked('gate', ['phase1'])} {kit.asked('task', ['a'])}")

    app = AppTest.from_function(script)
    app.query_params["gate"] = "phase1"
    assert app.run().caption[0].value == "phase1 None"
    assert not app.warning


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ({}, "artifact=a&run=small"),
        ({"run": "older"}, "artifact=a"),
        ({"other": "x"}, "artifact=a&run=small"),
    ],
)
def test_a_link_names_the_run_that_the_address_does_not(address: dict[str, str], named: str) -> None:
    def script() -> None:
        import streamlit as st

        from dashboard import kit

        st.selectbox("Run", ["small", "older"], key="run", bind="query-params")
        kit.go("Its items", "items", artifact="a")

    app = AppTest.from_function(script)
    for name, value in address.items():
        app.query_params[name] = value
    (link,) = app.run().get("page_link")
    assert sorted(link.proto.query_string.split("&")) == named.split("&")


def test_the_address_of_a_file_is_the_same_when_the_page_is_drawn_again() -> None:
    def script() -> None:
        import pandas as pd

        from dashboard import kit

        kit.frame(pd.DataFrame({"n": [1]}), "rows", key="rows")

    app = AppTest.from_function(script).run()
    (first,) = app.get("download_button")
    (second,) = app.run().get("download_button")
    assert first.proto.url
    assert first.proto.url == second.proto.url
    assert not second.proto.deferred_file_id


def test_kit_names_what_pages_use() -> None:
    assert all(callable(getattr(kit, name)) for name in kit.__all__)
