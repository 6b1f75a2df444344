"""Simulated raters: what they say follows from a seed, and what they see from the page alone."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogumi.errors import UsageError
from evals.human.simulate_model import BEHAVIOURS, Behaviour, Mind, Mix, Seen, latent_mean, parse_mix
from evals.human.simulate_page import read_page
from evals.human.simulate_rater import squeezed

PAGE = """<!doctype html><html><body>
<form action="/locale" method="post"><input type="hidden" name="csrf" value="one">
<button name="locale" value="de"></form>
<div id="prompt">What is <b>2 &lt; 3</b>?
  Really</div><div id="answer">&lt;script&gt;alert(1)&lt;/script&gt;</div>
<form method="post" action="/item/4?x=1">
 <input type="hidden" name="csrf" value="two"><input type="hidden" name="key" value="k&amp;1">
 <input type="radio" name="score" value="1"><input type="radio" name="score" value="2" checked>
 <input type="checkbox" name="flag" value="yes">
 <textarea name="comment">
a &amp; b
c</textarea><input type="submit" name="go" value="x">
 <select name="pick"><option value="l">L<option value="r" selected>R</select>
</form></body></html>"""


def test_a_page_is_read_as_a_browser_reads_it() -> None:
    page = read_page("http://127.0.0.1:1/item/4", 200, PAGE)
    form = page.form("key")
    assert form is not None
    assert page.position == 4
    assert form.action == "/item/4"
    assert form.fields == {"csrf": "two", "key": "k&1", "score": "2", "comment": "a & b\nc", "pick": "r"}
    assert form.choices == {"score": ["1", "2"], "flag": ["yes"], "pick": ["l", "r"]}
    assert squeezed(page.texts["prompt"]) == "What is 2 < 3? Really"
    assert page.texts["answer"] == "<script>alert(1)</script>"
    assert form.filled(score="7", comment="") == {"csrf": "two", "key": "k&1", "score": "7", "pick": "r"}
    assert page.form("csrf", "/finish") is None


@pytest.mark.parametrize("path", ["/item/x", "/item/", "/items/3", "/review"])
def test_other_pages_show_no_item(path: str) -> None:
    assert read_page(f"http://h{path}", 200, "").position is None


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    read_page("http://h/", 200, text)
    assert squeezed(squeezed(text)) == squeezed(text)


def test_shares_become_raters_to_the_last_one() -> None:
    mix = parse_mix("honest=0.9, careless=0.05,straight=0.02,abandon=0.02,double=0.01")
    assert Counter(mix.dealt(100, 1)) == {
        "honest": 90,
        "careless": 5,
        "straight": 2,
        "abandon": 2,
        "double": 1,
    }
    assert mix.dealt(100, 1) == mix.dealt(100, 1) != mix.dealt(100, 2)


@given(st.lists(st.integers(0, 20), min_size=6, max_size=6).filter(any), st.integers(1, 300))
def test_every_share_is_dealt_within_one(weights: list[int], raters: int) -> None:
    total = sum(weights)
    shares: dict[Behaviour, float] = {
        name: weight / total for name, weight in zip(BEHAVIOURS, weights, strict=True)
    }
    dealt = Counter(Mix(shares).dealt(raters, 3))
    assert dealt.total() == raters
    assert all(abs(dealt[name] - shares[name] * raters) < 1 for name in BEHAVIOURS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("honst=0.9", "did you mean 'honest'"),
        ("honest", "NAME=SHARE"),
        ("honest=two", "a number from 0 to 1"),
        ("honest=nan", "a number from 0 to 1"),
        ("honest=0.9,careless=0.2", "add up to 1.1"),
        ("honest=0.1,honest=0.2", "twice"),
    ],
)
def test_a_wrong_mix_is_one_line(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        parse_mix(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wanted", [2.0, 5.5, 8.2, 9.3])
def test_honest_raters_have_the_mean_that_was_asked_for(wanted: float) -> None:
    scores = [
        Mind(5, rater, "honest", wanted).score(Seen(f"task {task}", "answer", True), task)
        for rater in range(60)
        for task in range(60)
    ]
    # 60 raters and tasks: the mean's standard error is about 0.15.
    assert fmean(scores) == pytest.approx(wanted, abs=0.5)
    assert set(scores) <= set(range(1, 11))


def test_a_mean_that_no_scores_have_is_refused() -> None:
    with pytest.raises(UsageError, match=r"1\.5 to 9\.5"):
        latent_mean(9.9)


def test_bad_answers_are_rated_low_and_repeats_close() -> None:
    bad, apart = [], []
    for number in range(300):
        mind = Mind(1, number, "honest", 8.2)
        seen = Seen("p", "a", True)
        first = mind.score(seen, 3)
        bad.append(mind.score(Seen("p", "else", False), 5))
        apart.append(abs(mind.score(seen, 9) - first))
    assert fmean(bad) < 4
    assert fmean(apart) < 1
    assert max(apart) < 4


def test_the_other_behaviours_do_as_they_are_called() -> None:
    seen = [Seen(f"p{n}", "a", n % 2 == 0) for n in range(200)]
    careless = Counter(Mind(1, 1, "careless", 8.2).score(one, n) for n, one in enumerate(seen))
    straight = Mind(1, 2, "straight", 8.2)
    assert set(careless) == set(range(1, 11))
    assert len({straight.score(one, n) for n, one in enumerate(seen)}) == 1
    assert straight.focus_ms(3) < 3000 < Mind(1, 3, "honest", 8.2).focus_ms(3)
    assert {straight.corrected(1), straight.corrected(10)} == {2, 9}


def test_preferences_do_not_follow_the_side() -> None:
    said = Counter(
        Mind(2, number, "honest", 8.2).preference(*pair, "ours", 1)
        for number in range(400)
        for pair in [("ours", "theirs"), ("theirs", "ours")]
    )
    assert abs(said["left"] - said["right"]) < 100
    assert said["tie"] > 50
