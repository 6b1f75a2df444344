"""The shapes in which measurements reach a gate: scores in the committed order, references, plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from cogumi.errors import CogumiError, RunError

Clusters = npt.NDArray[np.int64]
"""Cluster numbers (n_total,) in the committed order: 0, 0, 0, 1, 2, 2, ..."""

ReferenceKind = Literal["per-item", "published", "baseline"]


class NotMeasuredError(CogumiError):
    """Evidence that does not exist and that nobody here can measure: no model was given (exit 3)."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class PairedScores:
    """What is measured so far of one artifact on one task: a prefix of the committed order.

    ``scores``: (n,) in [0, 1]; an answer that failed or was cut short is 0 here, and marked in ``errors`` or
    ``truncated``, (n,) each. ``n_total``: items that the task has. ``items_digest`` names the set of items,
    ``order_digest`` the permutation in which they are revealed. ``clusters``: where whole clusters are
    revealed together, the cluster of every one of the ``n_total`` items, measured or not.
    """

    task: str
    family: str
    protocol_digest: str
    items_digest: str
    order_digest: str
    n_total: int
    scores: npt.NDArray[np.float64]
    truncated: npt.NDArray[np.bool_]
    errors: npt.NDArray[np.bool_]
    clusters: Clusters | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        if not (n == len(self.truncated) == len(self.errors) <= self.n_total):
            raise RunError(f"evidence of {self.task}: columns of unequal length, or more rows than items")
        check_scores(self.scores, f"evidence of {self.task}")
        check_clusters(self.clusters, self.n_total, f"evidence of {self.task}")

    def prefix(self, n: int) -> PairedScores:
        """Return the first ``n`` items, as if no more had been measured."""
        return replace(self, scores=self.scores[:n], truncated=self.truncated[:n], errors=self.errors[:n])


@dataclass(frozen=True, slots=True)
class ReferenceScores:
    """What a reference scored on one task.

    ``kind`` "published": only ``score``, give or take ``margin``, over ``n`` items (None where its source
    does not say). "per-item" and "baseline": ``items`` (n,) in the committed order of the same items; a
    per-item reference covers all of them, a baseline may be a prefix. ``id`` is the row's or the artifact's
    name.
    """

    id: str
    kind: ReferenceKind
    family: str
    score: float
    margin: float = 0.0
    n: int | None = None
    items: npt.NDArray[np.float64] | None = None
    items_digest: str | None = None
    order_digest: str | None = None
    simulated: bool = False
    clusters: Clusters | None = None
    """For items that are revealed by whole clusters, as in ``PairedScores``."""

    def __post_init__(self) -> None:
        if (self.items is None) != (self.kind == "published"):
            raise RunError(f"reference {self.id}: kind {self.kind} does not fit its scores")
        if self.items is not None:
            check_scores(self.items, f"reference {self.id}")


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A number that is no score: bytes, tokens per second, a rate; with the interval of its own measurement.

    An ``exact`` number (a count, a byte) has ``lower == value == upper``. ``best_possible`` is what
    arithmetic allows at best for this artifact, and ``why_not_better`` says so; a bar beyond it is
    INFEASIBLE.
    """

    value: float
    lower: float
    upper: float
    exact: bool
    n: int = 1
    protocol_digest: str | None = None
    note: str = ""
    simulated: bool = False
    best_possible: float | None = None
    why_not_better: str = ""
    undecided: str = ""
    """Why it decides nothing, wherever its interval lies; nothing where it may decide."""


def check_scores(scores: npt.NDArray[np.float64], where: str) -> None:
    """Raise ``RunError`` unless every score is a number in [0, 1]: the test's guarantee rests on it."""
    broken = ~((scores >= 0) & (scores <= 1))
    if broken.any():
        at = int(broken.argmax())
        raise RunError(
            f"{where}: item {at} in the committed order has the score {scores[at]}, not one in [0, 1]"
        )


def check_clusters(clusters: Clusters | None, n_total: int, where: str) -> None:
    """Raise ``RunError`` unless there is one number an item and clusters follow each other as 0, 1, 2, ..."""
    if clusters is None:
        return
    steps = np.diff(clusters, prepend=-1)
    if len(clusters) != n_total or not ((steps == 0) | (steps == 1)).all() or not steps[:1].all():
        raise RunError(f"{where}: {len(clusters)} cluster numbers that do not go through {n_total} items")
