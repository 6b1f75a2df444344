"""Exact and near duplicates of questions, found while they arrive.

Two questions are near duplicates when the Jaccard similarity of their token trigrams reaches a threshold.
Trigrams keep the order of words and numbers, so "7 plus 5" and "5 plus 7" stay apart. Candidates come from
an inverted index with the prefix filter of Chaudhuri, Ganti and Kaushik (ICDE 2006) and Xiao et al.
(PPJoin, WWW 2008), which misses none: the outcome equals that of comparing all pairs.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Literal

_TOKEN = re.compile(r"\w+|[^\w\s]")
_SHINGLE = 3


def tokens_of(text: str) -> list[str]:
    """Return the tokens that are compared: case, spacing and closing punctuation do not count."""
    tokens = _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())
    while tokens and tokens[-1] in ".?!":
        tokens.pop()
    return tokens


class QuestionIndex:
    """The questions so far; ``threshold`` 1 compares whole token sequences only."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._exact: set[tuple[str, ...]] = set()
        self._shingle_ids: dict[tuple[str, ...], int] = {}
        self._documents: list[frozenset[int]] = []
        self._postings: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._exact)

    def match(self, text: str) -> Literal["exact", "near"] | None:
        """Tell how a question resembles one that was added before."""
        tokens = tuple(tokens_of(text))
        if tokens in self._exact:
            return "exact"
        if self.threshold < 1 and self._near(self._shingles(tokens)):
            return "near"
        return None

    def add(self, text: str) -> None:
        """Remember a question."""
        tokens = tuple(tokens_of(text))
        if tokens in self._exact:
            return
        self._exact.add(tokens)
        if self.threshold < 1:
            shingles = self._shingles(tokens)
            number = len(self._documents)
            self._documents.append(frozenset(shingles))
            for shingle in self._prefix(shingles):
                self._postings.setdefault(shingle, []).append(number)

    def _shingles(self, tokens: tuple[str, ...]) -> list[int]:
        windows = {tokens[at : at + _SHINGLE] for at in range(max(1, len(tokens) - _SHINGLE + 1))}
        ids = self._shingle_ids
        # The filter needs one fixed order of all shingles. The latest first puts the rare ones first,
        # because a frequent shingle is met early; short lists of candidates follow.
        return sorted((ids.setdefault(window, len(ids)) for window in sorted(windows)), reverse=True)

    def _prefix(self, shingles: list[int]) -> list[int]:
        # Two sets that are similar enough must share an element of their first |A| - ceil(t|A|) + 1.
        return shingles[: len(shingles) - math.ceil(self.threshold * len(shingles) - 1e-9) + 1]

    def _near(self, shingles: list[int]) -> bool:
        mine = frozenset(shingles)
        checked: set[int] = set()
        for shingle in self._prefix(shingles):
            for number in self._postings.get(shingle, ()):
                if number in checked:
                    continue
                checked.add(number)
                other = self._documents[number]
                common = len(mine & other)
                if common >= self.threshold * (len(mine) + len(other) - common) - 1e-9:
                    return True
        return False
