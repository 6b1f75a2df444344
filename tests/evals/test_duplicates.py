"""Near duplicates: the index finds what comparing all pairs finds, stays small, and never stalls."""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.near_duplicate_texts import real_questions, with_variants
from benchmarks.near_duplicates import brute_force, by_index
from evals.lint import duplicates
from evals.lint.duplicates import Match, QuestionIndex, tokens_of
from evals.lint.stats import data_stats

TEXTS = st.lists(st.sampled_from(["a", "b", "c", "1", "2", "?"]), max_size=12).map(" ".join)
ASKED = st.tuples(TEXTS, st.sampled_from(["", "x", "y"]))
THRESHOLDS = st.sampled_from([0.3, 0.5, 2 / 3, 0.7, 0.8, 0.9, 1.0])


def trigrams(text: str) -> frozenset[tuple[str, ...]]:
    """Return the trigrams of a text, written anew from their definition."""
    tokens = tokens_of(text)
    return frozenset(tuple(tokens[at : at + 3]) for at in range(max(1, len(tokens) - 2)))


def brute(kept: Sequence[tuple[str, str]], text: str, group: str, threshold: float) -> Match | None:
    """Return what ``closest`` must, by comparing with all."""
    best = None
    threshold = threshold if threshold < 1 else math.inf
    for number, (other, theirs) in enumerate(kept):
        if theirs != group:
            continue
        if tokens_of(other) == tokens_of(text):
            return Match(number, 1.0)
        mine, its = trigrams(text), trigrams(other)
        similarity = len(mine & its) / len(mine | its)
        if similarity >= threshold - 1e-9 and (best is None or similarity > best.similarity):
            best = Match(number, similarity)
    return best


def check(questions: Sequence[tuple[str, str]], threshold: float) -> None:
    """Compare every answer of the index with brute force, added or only asked after."""
    index = QuestionIndex(threshold)
    kept: list[tuple[str, str]] = []
    for place, (text, group) in enumerate(questions):
        expected = brute(kept, text, group, threshold)
        exact = expected is not None and tokens_of(kept[expected.number][0]) == tokens_of(text)
        assert index.closest(text, group) == expected
        assert index.match(text, group) == (None if expected is None else "exact" if exact else "near")
        if place % 4 == 3:
            continue
        number = expected.number if exact and expected is not None else len(kept)
        assert index.add(text, group) == number
        if not exact:
            kept.append((text, group))
        assert len(index) == len(kept)


@settings(max_examples=200, deadline=None)
@given(st.lists(ASKED, max_size=40), THRESHOLDS)
def test_index_equals_brute_force(questions: list[tuple[str, str]], threshold: float) -> None:
    check(questions, threshold)


@settings(max_examples=100, deadline=None)
@given(st.lists(ASKED, max_size=30), THRESHOLDS, st.integers(1, 5))
def test_index_equals_brute_force_however_often_its_order_is_made_anew(
    questions: list[tuple[str, str]], threshold: float, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_WORTH", -1), ("_GROWN", 0.5), ("_BLOCK", block), ("_MANY", block)):
            patch.setattr(duplicates, name, value)
        check(questions, threshold)


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([0.5, 0.7, 0.8]))
def test_index_equals_brute_force_where_many_share_their_trigrams(
    rng: random.Random, threshold: float
) -> None:
    # Past 50 questions with one rare trigram in common another path sifts them.
    stem = [f"w{n}" for n in range(15)]
    questions = []
    for _ in range(150):
        words = stem[: rng.randint(8, len(stem))]
        for _ in range(rng.randint(0, 2)):
            words[rng.randrange(len(words))] = rng.choice("uvwxyz")
        questions.append((" ".join([*words, rng.choice("uvwxyz")]), ""))
    check(questions, threshold)


@pytest.mark.parametrize("others", [0, 100])
def test_of_equals_the_earliest_is_the_closest(others: int) -> None:
    # The later one is met first, because its trigrams are the rarer ones; others fill the lists.
    first, second = "a b c d e f", "g h i j k l"
    check(
        [(first, ""), (second, ""), *((f"d e f {n}", "") for n in range(others)), (f"{first} {second}", "")],
        0.3,
    )
    index = QuestionIndex(0.3)
    for text in (first, second, *(f"d e f {n}" for n in range(others))):
        index.add(text)
    assert index.closest(f"{first} {second}") == Match(0, 0.4)


def test_asking_leaves_nothing_behind() -> None:
    index = QuestionIndex(0.7)
    index.add("What is the purpose of a version control system?")
    rng = random.Random(1)
    texts = [" ".join(str(rng.random()) for _ in range(30)) for _ in range(500)]
    index.match(texts[0])
    tracemalloc.start()
    try:
        for text in texts:
            assert index.match(text) is None
            assert index.closest(text, "another passage") is None
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < 100_000
    assert index.match("what is the purpose of a version control system") == "exact"


def test_what_was_asked_after_is_added_as_it_is_even_when_others_came_between() -> None:
    index = QuestionIndex(0.7)
    first, second = "one two three four five six", "six five four three two one zero"
    assert index.closest(first) is None
    assert index.add(second) == 0
    assert index.add(first) == 1
    assert index.closest(f"{first} seven") == Match(1, 0.8)
    assert index.closest(f"{second} eight") == Match(0, 5 / 6)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many candidates each search has compared."""
    counts: list[int] = []
    candidates = QuestionIndex._candidates

    def counting(self: QuestionIndex, *arguments: Any) -> Iterator[int]:
        counts.append(0)
        for number in candidates(self, *arguments):
            counts[-1] += 1
            yield number

    monkeypatch.setattr(QuestionIndex, "_candidates", counting)
    return counts


def test_one_long_template_does_not_compare_all_with_all(counted: list[int]) -> None:
    # Without sifting again after a find, the last of 3,000 would be compared with nearly all before it.
    rng = random.Random(2)
    stem = "please summarize the following meeting notes for the team in three short sentences and name"
    index = QuestionIndex(0.7)
    for _ in range(3000):
        text = f"{stem} {rng.randrange(10**6)}"
        index.closest(text)
        index.add(text)
    assert len(counted) > 2900
    assert sum(counted) / len(counted) < 5


def test_texts_of_4000_characters(counted: list[int]) -> None:
    rng = random.Random(4)
    words = [f"word{n}" for n in range(300)]
    long = [" ".join(rng.choices(words, k=500))[:4000] for _ in range(60)]
    index = QuestionIndex(0.7)
    for text in long:
        assert index.closest(text) is None
        index.add(text)
    # Random trigrams meet now and then; 1,770 pairs there are.
    assert sum(counted) < 60
    for number, text in enumerate(long):
        found = index.closest(f"{text} and a word more")
        assert found is not None
        assert found.number == number
        assert found.similarity > 0.9
    repeated = "again " * 600
    assert index.match(repeated) is None
    index.add(repeated)
    assert index.closest("again " * 500) == Match(60, 1.0)


def test_real_questions_and_variants_against_sparse_products(tmp_path: Path, data_folder: Path) -> None:
    pytest.importorskip("scipy")
    real = [question.text for question in real_questions(data_folder)]
    texts = with_variants(random.Random(5).sample(real, 1500), 6000, seed=5)
    assert len(texts) == 6000
    assert texts == with_variants(random.Random(5).sample(real, 1500), 6000, seed=5)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(text) + "\n" for text in texts))
    truth = brute_force(texts, np.arange(6000))
    found = by_index(path).similar
    assert found == pytest.approx(np.where(truth >= 0.7 - 1e-9, truth, 0.0))
    # All similarities occur, so that agreement says something.
    for low in (0.3, 0.5, 0.6, 0.7, 0.8):
        assert np.sum((truth >= low) & (truth < low + 0.1)) > 50


def test_the_index_of_real_questions_is_small(data_folder: Path) -> None:
    texts = [question.text for question in real_questions(data_folder)][:5000]
    tracemalloc.start()
    try:
        index = QuestionIndex(0.7)
        for text in texts:
            index.add(text)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 300,000 of them within 400 MB are 1,333 bytes each; sets of Python objects took some 2,500.
    assert held / len(index) < 1000


def test_predecessors_broken_file_has_6685_distinct_rows(data_folder: Path) -> None:
    stats = data_stats(data_folder / "broken" / "questions_cumulative_coding.jsonl")
    assert (stats.rows, stats.distinct) == (10_000, 6685)
