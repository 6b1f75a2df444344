"""Exact and near duplicates of questions, found while they arrive.

Two questions are near duplicates when the Jaccard similarity of their token trigrams reaches a threshold.
Trigrams keep the order of words and numbers, so "7 plus 5" and "5 plus 7" stay apart. Candidates come from
an inverted index with the prefix filter of Chaudhuri, Ganti and Kaushik (ICDE 2006) and Xiao et al.
(PPJoin, WWW 2008), which misses none: the outcome equals that of comparing all pairs. What it costs is in
docs/near-duplicates.md.
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_TOKEN = re.compile(r"\w+|[^\w\s]")
_SHINGLE = 3

NEAR_THRESHOLD = 0.8
"""Jaccard similarity from which lint calls two questions near duplicates; question writing uses the same."""
_MOST_COMPARED = 4000
_ROUNDING = 1e-9
_MANY = 32
"""Candidates of one shingle from which numpy sifts them faster than a loop."""
_WORD = 2**64 - 1
_TOKEN_BITS = 21
_PARITY_BYTES = 32
_SPREAD = 0x9E3779B97F4A7C15
_WORTH = 40
"""Candidates that may be looked at for each question held before the order of shingles is made anew."""
_BLOCK = 4096
_GROWN = 1.1
"""Questions must have become so many times as many since the last time."""


class Match(NamedTuple):
    """The most similar question that was added before, by its place among those added."""

    number: int
    similarity: float


def tokens_of(text: str) -> list[str]:
    """Return the tokens that are compared: case, spacing and closing punctuation do not count."""
    tokens = _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())
    while tokens and tokens[-1] in ".?!":
        tokens.pop()
    return tokens


def compared(text: str) -> str:
    """Return what lint compares of a text: of a very long one its first and last 2,000 characters."""
    if len(text) <= _MOST_COMPARED:
        return text
    return f"{text[: _MOST_COMPARED // 2]}\n{text[-_MOST_COMPARED // 2 :]}"


class QuestionIndex:
    """The questions so far; ``threshold`` 1 compares whole token sequences only.

    Questions of different ``group`` are never compared: the same words about another passage ask something
    else. Questions are held as numbers in flat arrays, and asking after one leaves nothing behind.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        # Numbers from 1 on, in the order of arrival; 0 fills up the one shingle of a very short question.
        self._vocabulary: dict[str, int] = {}
        self._group_numbers: dict[str, int] = {"": 0}
        self._exact: dict[bytes, int] = {}
        # The shingles of question n are those from _starts[n] to _starts[n + 1].
        self._shingles = array("Q")
        self._starts = array("Q", [0])
        # By shingle (and group): the questions that have it in their prefix; most often it is a single one.
        self._postings: dict[int, int | array[int]] = {}
        self._groups = array("I")
        # 32 bytes a question.
        self._parities = bytearray()
        self._counts = array("I", [0])
        """In how many questions each token is."""
        self._weights: list[int] = []
        """What orders the shingles: logarithms of those counts, as they were when last looked at."""
        self._ordered = 0
        """Questions that there were then."""
        self._looked = 0
        """Candidates that were looked at since."""
        self._latest: _Read | None = None

    def __len__(self) -> int:
        return len(self._exact)

    def match(self, text: str, group: str = "") -> Literal["exact", "near"] | None:
        """Tell how a question resembles one that was added before."""
        read, in_group = self._read(text), self._group_numbers.get(group)
        if in_group is None:
            return None
        if _digest(read.tokens, in_group) in self._exact:
            return "exact"
        return "near" if self._closest(read, in_group, first=True) else None

    def closest(self, text: str, group: str = "") -> Match | None:
        """Return the most similar question added before, the earliest of equals; None below the threshold."""
        read, in_group = self._read(text), self._group_numbers.get(group)
        if in_group is None:
            return None
        number = self._exact.get(_digest(read.tokens, in_group))
        return self._closest(read, in_group) if number is None else Match(number, 1.0)

    def add(self, text: str, group: str = "") -> int:
        """Remember a question and return its number; one whose tokens are known keeps its number."""
        read = self._read(text)
        self._vocabulary.update(read.unknown)
        in_group = self._group_numbers.setdefault(group, len(self._group_numbers))
        count = len(self._exact)
        number = self._exact.setdefault(_digest(read.tokens, in_group), count)
        if number == count:
            self._shingles.extend(read.shingles)
            self._starts.append(len(self._shingles))
            self._groups.append(in_group)
            self._parities += read.parity.to_bytes(_PARITY_BYTES, "little")
            for shingle in read.shingles[: self._prefix(len(read.shingles))]:
                self._post(_key(shingle, in_group), number)
            if self.threshold < 1:
                self._count(read.tokens)
        return number

    def _prefix(self, size: int) -> int:
        # Two sets that are similar enough must share an element of their first |A| - ceil(t|A|) + 1.
        return size - math.ceil(self.threshold * size - _ROUNDING) + 1

    def _count(self, tokens: list[int]) -> None:
        counts = self._counts
        counts.extend([0] * (len(self._vocabulary) + 1 - len(counts)))
        for token in set(tokens):
            counts[token] += 1
        count = len(self._groups)
        if count > _GROWN * self._ordered and self._looked > _WORTH * count:
            self._order_anew()

    def _order_anew(self) -> None:
        """Order all shingles by what is rare now, and post every question anew.

        The filter needs one fixed order of all shingles and is the faster the rarer the first ones are. Which
        are rare shows as questions arrive; so the order is taken from the counts anew when looking at
        candidates has cost more than that does.
        """
        import numpy as np

        self._ordered, self._looked = len(self._groups), 0
        self._weights = [_weight(count) for count in self._counts]
        self._latest = None
        self._postings = {}
        weights = np.array(self._weights, dtype=np.int64)
        for begin in range(0, len(self._groups), _BLOCK):
            self._order_block(begin, min(begin + _BLOCK, len(self._groups)), weights)

    def _order_block(self, begin: int, end: int, weights: npt.NDArray[np.int64]) -> None:
        # Some thousand questions at a time, as numpy's copies of all of them are larger than the index.
        import numpy as np

        starts = np.frombuffer(self._starts, dtype=np.int64)[begin : end + 1]
        shingles = np.frombuffer(self._shingles, dtype=np.uint64)[starts[0] : starts[-1]]
        sizes = np.diff(starts)
        questions = np.repeat(np.arange(begin, end), sizes)
        weight = np.sum([weights[_token(shingles, place)] for place in range(_SHINGLE)], axis=0)
        shingles[:] = shingles[np.lexsort((shingles, weight, questions))]
        prefixes = np.array([self._prefix(size) for size in sizes.tolist()])
        within = np.arange(len(shingles)) - np.repeat(starts[:-1] - starts[0], sizes)
        first = within < np.repeat(prefixes, sizes)
        for shingle, number in zip(shingles[first].tolist(), questions[first].tolist(), strict=True):
            self._post(_key(shingle, self._groups[number]), number)

    def _read(self, text: str) -> _Read:
        """Return a text's numbers; who asks after a question and then adds it has it read once."""
        if self._latest is not None and self._latest.text == text:
            return self._latest
        known, unknown = self._vocabulary, dict[str, int]()
        # A new token gets the number that it will have if this very question is added next. Should another
        # one be added first, that one is the latest and this is read anew.
        tokens = [
            known.get(token) or unknown.setdefault(token, len(known) + len(unknown) + 1)
            for token in tokens_of(text)
        ]
        shingles = self._rare_first(tokens) if self.threshold < 1 else []
        self._latest = _Read(text, tokens, unknown, shingles, _parity(shingles))
        return self._latest

    def _rare_first(self, tokens: list[int]) -> list[int]:
        """Return the distinct trigrams of a question, packed into 64 bits, the rare ones first.

        How rare one is, the counts of its tokens tell; tokens met since those were last looked at are rare.
        Two million distinct tokens are packed without loss; beyond these two trigrams may fall together.
        """
        if len(tokens) < _SHINGLE:
            tokens = [*[0] * (_SHINGLE - len(tokens)), *tokens]
        known, most = self._weights, len(self._weights)
        weights = [known[token] if token < most else 0 for token in tokens]
        windows = {
            (u + v + w, (a << 2 * _TOKEN_BITS) + (b << _TOKEN_BITS) + c & _WORD)
            for u, v, w, a, b, c in zip(
                weights, weights[1:], weights[2:], tokens, tokens[1:], tokens[2:], strict=False
            )
        }
        return [shingle for _, shingle in sorted(windows)]

    def _post(self, key: int, number: int) -> None:
        held = self._postings.setdefault(key, number)
        if not isinstance(held, int):
            held.append(number)
        elif held != number:
            self._postings[key] = array("I", (held, number))

    def _closest(self, read: _Read, group: int, *, first: bool = False) -> Match | None:
        search, mine = _Search(self.threshold - _ROUNDING), frozenset(read.shingles)
        checked: set[int] = set()
        for number in self._candidates(search, read, group):
            if number in checked:
                continue
            checked.add(number)
            start, stop = self._starts[number], self._starts[number + 1]
            common = len(mine.intersection(self._shingles[start:stop]))
            similarity = common / (len(mine) + stop - start - common)
            if search.wants(similarity, number):
                search.floor, search.best = similarity, Match(number, similarity)
                if first:
                    break
        return search.best

    def _candidates(self, search: _Search, read: _Read, group: int) -> Iterator[int]:
        """Yield the questions that may be what the search still wants, some more than once."""
        size, starts, parities = len(read.shingles), self._starts, self._parities
        for at, shingle in enumerate(read.shingles):
            # When two sets share this shingle and none before it, they share at most those that are left.
            left = size - at
            if left / size < search.floor:
                return
            held = self._postings.get(_key(shingle, group))
            if held is None:
                continue
            numbers = array("I", (held,)) if isinstance(held, int) else held
            if len(numbers) > _MANY:
                self._looked += _MANY + len(numbers) // 12
                yield from self._of_many(search, numbers, read, left)
                continue
            self._looked += len(numbers)
            for number in numbers:
                both = size + starts[number + 1] - starts[number]
                at_byte = _PARITY_BYTES * number
                theirs = int.from_bytes(parities[at_byte : at_byte + _PARITY_BYTES], "little")
                # At least so many shingles are in one of the two alone: for most candidates that settles it.
                apart = (read.parity ^ theirs).bit_count()
                common = min(left, (both - apart) // 2)
                if search.wants(common / (both - common), number):
                    yield number

    def _of_many(self, search: _Search, numbers: array[int], read: _Read, left: int) -> Iterator[int]:
        """Yield like ``_candidates``; when the search has found a better one, sift what is left again."""
        # Here, because most uses of the index are small and shall not load it.
        import numpy as np

        rest = np.array(numbers, dtype=np.uint32)
        starts = np.frombuffer(self._starts, dtype=np.int64)
        both = len(read.shingles) + starts[rest + 1] - starts[rest]
        mine = np.frombuffer(read.parity.to_bytes(_PARITY_BYTES, "little"), dtype=np.uint64)
        theirs = np.frombuffer(self._parities, dtype=np.uint64).reshape(-1, len(mine))[rest]
        apart = np.bitwise_count(mine ^ theirs).sum(axis=1)
        common = np.minimum(left, (both - apart) // 2)
        most = common / (both - common)
        while len(rest):
            wanted = most >= search.floor
            if search.best:
                wanted &= (most > search.floor) | (rest < search.best.number)
            rest, most = rest[wanted], most[wanted]
            floor, done = search.floor, 0
            for number in rest.tolist():
                yield number
                done += 1
                if search.floor > floor:
                    break
            rest, most = rest[done:], most[done:]


class _Read(NamedTuple):
    """A text in numbers; ``unknown`` are those of its tokens that no question added before has."""

    text: str
    tokens: list[int]
    unknown: dict[str, int]
    shingles: list[int]
    parity: int


class _Search:
    """What a search has found so far and still wants."""

    def __init__(self, floor: float) -> None:
        self.floor = floor
        self.best: Match | None = None

    def wants(self, similarity: float, number: int) -> bool:
        """Tell whether this similarity would be the best, of equals the earliest."""
        if similarity != self.floor or self.best is None:
            return similarity >= self.floor
        return number < self.best.number


def _digest(tokens: list[int], group: int) -> bytes:
    """Return 16 bytes that stand for a question; that two of 2^32 questions meet has chance 2^-65."""
    return blake2b(array("I", (group, *tokens)).tobytes(), digest_size=16).digest()


def _key(shingle: int, group: int) -> int:
    """Return a shingle's place in the postings: those of different groups are never compared."""
    return group << 64 | shingle if group else shingle


def _parity(shingles: list[int]) -> int:
    """Return which of 256 classes hold an odd number of these shingles, as bits.

    Two sets whose bits differ in d places differ in at least d elements.
    """
    parity = 0
    for shingle in shingles:
        parity ^= 1 << (shingle * _SPREAD >> 56 & 255)
    return parity


def _weight(count: int) -> int:
    return round(16 * math.log2(count)) if count else 0


def _token(shingles: npt.NDArray[np.uint64], place: int) -> npt.NDArray[np.int64]:
    """Return the tokens that stand at one of the three places of packed trigrams."""
    token: npt.NDArray[np.int64] = (shingles >> (_TOKEN_BITS * (_SHINGLE - 1 - place))).astype("int64")
    token &= 2**_TOKEN_BITS - 1
    return token
