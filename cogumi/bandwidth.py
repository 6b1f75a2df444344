"""How fast a model can answer at best: every weight is read from memory once for each step.

One answer at a time, so that tokens a second are at most bandwidth over the bytes read for a token. Covered:
weights and cache, speculative decoding with a draft of known size, a cache of 4 bits. Not covered: batches of
many answers, compute, and what a real program loses (a tenth to a half).
"""

from __future__ import annotations

CARDS: dict[str, float] = {
    "T4": 320e9,
    "L4": 300e9,
    "A10G": 600e9,
    "RTX 4090": 1008e9,
    "A100 80GB": 2039e9,
    "H100 SXM": 3350e9,
    "H200": 4800e9,
}
"""Bytes a second of memory, from NVIDIA's data sheets of these cards (A10G: the A10's)."""


def tokens_per_second(card: str, bytes_per_token: float) -> float:
    """Return the ceiling of decoding one answer on a card of ``CARDS``."""
    return CARDS[card] / bytes_per_token


def bytes_per_token(card: str, speed: float) -> float:
    """Return the most bytes that a token may read for so many tokens a second."""
    return CARDS[card] / speed


def tokens_per_cycle(k: int, acceptance: float) -> float:
    """Return the tokens of one cycle of speculation: the accepted ones of ``k``, and the base's own.

    Each drafted token is accepted with chance ``acceptance``, up to the first that is not: 1 + a + ... + a^k
    (Leviathan, Kalman and Matias 2023, arXiv 2211.17192, equation 1).
    """
    return sum(acceptance**accepted for accepted in range(k + 1))


def speculative_speedup(k: int, acceptance: float, draft_share: float) -> float:
    """Return the best speed-up; ``draft_share`` is what a step of the draft costs of one of the base.

    The check of ``k`` tokens costs one step of the base, the drafts ``k`` of the draft (theorem 3.8 there).
    """
    return tokens_per_cycle(k, acceptance) / (1 + k * draft_share)


def draft_share_for(speedup: float, k: int, acceptance: float) -> float:
    """Return the largest ``draft_share`` that allows a speed-up; negative where none does."""
    return (tokens_per_cycle(k, acceptance) / speedup - 1) / k


def cache_speedup(weight_bytes: float, cache_bytes: float, bits: float = 4) -> float:
    """Return the best speed-up by a cache of ``bits`` in place of 16, if reading it costs nothing more."""
    return (weight_bytes + cache_bytes) / (weight_bytes + cache_bytes * bits / 16)


def context_for_cache_speedup(
    speedup: float, weight_bytes: float, cache_per_token: float, bits: float = 4
) -> float | None:
    """Return the tokens of context at which ``cache_speedup`` reaches a bar; None where it never does."""
    gain = 1 - speedup * bits / 16
    return None if gain <= 0 else (speedup - 1) * weight_bytes / (gain * cache_per_token)
