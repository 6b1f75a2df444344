"""Tests of "A and B are equally good" on the same items: exact McNemar, sign flips, Holm's correction.

Unlike the intervals of ``gates.intervals`` these speak at one look only, and of the family that the items
were drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# So many differing items take exact McNemar 10 ms in whole numbers; the time grows with their square.
MOST_WHOLE = 10_000
# What is smaller than this share of a sum of floats does not change it.
_ROUNDING = 2.0**-54
# From here on the series of Stirling's error is exact to a float: its next term is 1 / (1680 n^7).
_SERIES_FROM = 100
# So many non-zero differences have 65,536 patterns of signs, which are all tried; more are drawn by chance.
MOST_ENUMERATED = 16
# Drawn patterns: the smallest p-value they can show is 1e-4.
SIGN_DRAWS = 9_999
# Two sums of differences closer than this (per item) are equal: rounding must not break a tie.
_TIE = 1e-12


def exact_mcnemar(a_only: int, b_only: int) -> float:
    """Return the two-sided p-value of exact McNemar: twice the smaller binomial tail, at most 1.

    ``a_only``, ``b_only``: items that only A, only B answered rightly. In whole numbers up to ``MOST_WHOLE``
    of them together; beyond, where those would take seconds, the same tail in floats, to ten digits. Source:
    McNemar, "Note on the sampling error of the difference between correlated proportions" (Psychometrika
    1947), in the exact form.
    """
    n, fewer = a_only + b_only, min(a_only, b_only)
    if n > MOST_WHOLE:
        return min(1.0, 2 * _lower_tail(n, fewer))
    ways = total = 1
    for k in range(fewer):
        ways = ways * (n - k) // (k + 1)
        total += ways
    return min(1.0, float(2 * total / (1 << n)))


def _lower_tail(n: int, most: int) -> float:
    """Return the chance of at most ``most`` heads in ``n`` throws of a fair coin; ``most`` at most n / 2."""
    # Each term as a share of the largest, the last: some multiples of sqrt(n) matter.
    total = share = 1.0
    for k in range(most, 0, -1):
        ratio = k / (n - k + 1)
        share *= ratio
        total += share
        if share * ratio < _ROUNDING * total * (1 - ratio):
            break
    return math.exp(_log_chance(n, most)) * total


def _log_chance(n: int, k: int) -> float:
    """Return the logarithm of the chance of exactly ``k`` heads in ``n`` throws, ``k`` at most n / 2.

    By differences that stay small, where those of ``math.lgamma`` would lose digits. Source: Loader, "Fast
    and accurate computation of binomial probabilities" (2000).
    """
    if k == 0:
        return -n * math.log(2)
    off = (n - 2 * k) / n
    distance = n / 2 * ((1 - off) * math.log1p(-off) + (1 + off) * math.log1p(off))
    wide = 0.5 * math.log(n / (2 * math.pi * k * (n - k)))
    return wide + _stirling_error(n) - _stirling_error(k) - _stirling_error(n - k) - distance


def _stirling_error(n: int) -> float:
    """Return log n! minus Stirling's formula."""
    if n < _SERIES_FROM:
        return math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - 0.5 * math.log(2 * math.pi)
    return 1 / (12 * n) - 1 / (360 * n**3) + 1 / (1260 * n**5)


def sign_flip(differences: FloatArray, seed: int) -> float:
    """Return the two-sided p-value of the mean of paired ``differences`` (n,) when signs are exchangeable.

    All patterns of signs are tried up to ``MOST_ENUMERATED`` differences that are not 0, else ``SIGN_DRAWS``
    are drawn with ``seed`` and the observed one is counted among them, which keeps the p-value valid. Source:
    Phipson & Smyth, "Permutation p-values should never be zero" (2010).
    """
    sizes = np.abs(differences[differences != 0])
    observed = abs(float(differences.sum())) - _TIE * len(differences)
    if len(sizes) <= MOST_ENUMERATED:
        sums = np.zeros(1)
        for size in sizes:
            sums = np.concatenate([sums - size, sums + size])
        return float(np.mean(np.abs(sums) >= observed))
    rng = np.random.default_rng(seed)
    sums = np.zeros(SIGN_DRAWS)
    # Differences of one size: how many are positive is all that counts.
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        sums += size * (2.0 * rng.binomial(int(count), 0.5, SIGN_DRAWS) - count)
    return (1 + int((np.abs(sums) >= observed).sum())) / (1 + SIGN_DRAWS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order given.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
