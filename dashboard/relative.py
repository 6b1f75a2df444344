"""A model's score as a share of what a reference scored on the same items, with the gates' own bounds.

The share is that of the report: macro mean over macro mean, on the items that both have. Its bounds are those
of the gates' betting test, inverted at that share: valid whenever one stops. A share over all items is exact,
but for the protocol margin of a published score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cogumi.profile import Profile, ReferenceChoice
from cogumi.verdict import Verdict
from cogumi.workspace import Workspace
from dashboard.pareto import Value
from evals.references.registry import ReferenceRow, load_all
from evals.references.scores import ReferenceKind, ReferenceScores
from gates.betting import confidence_bounds
from gates.models import teacher_subject
from gates.suites import Pair, Rule, reference_means, sample_of, sequence_of
from reports.measured import EvidenceIndex, Measured
from reports.quality import ALPHA

_LEAST = 0.02
"""Where the search for the upper bound of a share of 0 begins: its doublings pass 1."""

_MEAN = Rule(1.0, ALPHA / 2, "benchmark", "mean_of", None)

Against = Callable[[Measured], ReferenceScores | None]
"""Gives what a reference scored on the items of a measurement; None where that is unknown."""


@dataclass(frozen=True, slots=True)
class Share:
    """Score over reference; ``most`` is what a perfect score would come to, None where nobody knows."""

    value: Value
    most: float | None
    simulated: bool


class Standards:
    """What ratios can be to: the references of a run's profile, and any model that was measured."""

    def __init__(self, workspace: Workspace, profile: Profile, index: EvidenceIndex) -> None:
        self._profile = profile
        self._index = index
        choices = profile.references.values()
        self._rows = load_all(workspace.root) if any(choice.rows for choice in choices) else {}

    def reference(self, name: str) -> Against:
        """Return the reference that a profile calls so."""
        choice = self._profile.references[name]

        def against(mine: Measured) -> ReferenceScores | None:
            row = self._rows.get(choice.rows.get(mine.task, ""))
            if row is not None and row.kind == "published":
                return row.published() if row.family == mine.family else None
            found = self._items(choice, row, mine.task)
            whole = found is not None and found.n == found.n_total
            return _scores(name, "per-item", found, mine, self._simulated(choice, row)) if whole else None

        return against

    def model(self, digest: str, name: str) -> Against:
        """Return an earlier model as the reference: what it scored, as far as it was measured."""
        return lambda mine: _scores(name, "baseline", self._index.best(digest, mine.task), mine, False)

    def _items(self, choice: ReferenceChoice, row: ReferenceRow | None, task: str) -> Measured | None:
        if choice.teacher is not None:
            return self._index.best(teacher_subject(self._profile, choice.teacher).digest, task)
        found = self._index.answered(task, "answers") if row is not None else []
        # Archived answers are named by their file's digest: taken only where nothing else can be meant.
        return found[0] if len(found) == 1 and row is not None and found[0].family == row.family else None

    def _simulated(self, choice: ReferenceChoice, row: ReferenceRow | None) -> bool:
        if choice.teacher is not None:
            return self._profile.teachers[choice.teacher].base_url == "local"
        return row is not None and row.simulated


def _scores(
    name: str, kind: ReferenceKind, found: Measured | None, mine: Measured, simulated: bool
) -> ReferenceScores | None:
    if found is None or found.items != mine.items or found.family != mine.family:
        return None
    return ReferenceScores(
        id=name,
        kind=kind,
        family=found.family,
        score=float(found.scores.mean()),
        n=found.n_total,
        items=found.scores,
        simulated=simulated,
    )


def share(
    index: EvidenceIndex, artifact: str, tasks: Sequence[str], against: Against, alpha: float = ALPHA
) -> Share | None:
    """Return an artifact's share of a reference over the tasks of a suite, with equal weights.

    None where a task was not measured, or the reference is unknown on its items, or scored nothing at all.
    ``alpha``: the chance that either of the bounds is wrong.
    """
    pairs = _pairs(index, artifact, tasks, against)
    return _share(pairs, alpha) if pairs else None


def reference_score(
    index: EvidenceIndex, artifact: str, tasks: Sequence[str], against: Against
) -> float | None:
    """Return what a reference scored over all items of the tasks that an artifact was measured on."""
    pairs = _pairs(index, artifact, tasks, against)
    most = _most(pairs) if pairs else None
    return None if most is None else 1 / most


def _pairs(index: EvidenceIndex, artifact: str, tasks: Sequence[str], against: Against) -> list[Pair] | None:
    pairs = []
    for task in tasks:
        mine = index.best(artifact, task)
        reference = against(mine) if mine is not None else None
        if mine is None or reference is None:
            return None
        pairs.append(_pair(mine, reference))
    return pairs


def _pair(mine: Measured, reference: ReferenceScores) -> Pair:
    published = reference.n if reference.kind == "published" else None
    population = max(mine.n_total, published or 0)
    order = str(mine.protocol.get("order", mine.task))
    return Pair(mine.task, mine.scores, mine.n_total, population, order, reference)


def _most(pairs: Sequence[Pair]) -> float | None:
    """Return what a perfect score would come to; None where the reference is not known over all items."""
    known = [pair.population if pair.reference.items is None else len(pair.reference.items) for pair in pairs]
    if any(n < pair.population for n, pair in zip(known, pairs, strict=True)):
        return None
    low, high = reference_means(pairs, _MEAN)
    return 2 / (low + high) if low + high > 0 else None


def _share(pairs: Sequence[Pair], alpha: float) -> Share | None:
    rule = replace(_MEAN, alpha=alpha / 2)
    simulated = any(pair.reference.simulated for pair in pairs)
    low, high = reference_means(pairs, rule)
    most = _most(pairs)
    columns = [pair.columns() for pair in pairs]
    if any(not len(x) for x, _, _ in columns):
        return None
    mean = float(np.mean([x.mean() for x, _, _ in columns]))
    over = float(np.mean([(above.mean() + below.mean()) / 2 for _, above, below in columns]))
    if over <= 0:
        return None
    value = mean / over
    if all(pair.known == pair.population for pair in pairs):
        return Share(Value(value, mean / high, mean / low if low > 0 else float("inf")), most, simulated)
    lower, upper = _bounds(pairs, rule, value)
    upper = upper if most is None else min(upper, most)
    return Share(Value(value, min(lower, value), max(upper, value)), most, simulated)


def _bounds(pairs: Sequence[Pair], rule: Rule, value: float) -> tuple[float, float]:
    sequence = sequence_of(pairs, rule)
    usable = sequence.usable([pair.known_units for pair in pairs])
    if not usable:
        return 0.0, float("inf")
    sample = sample_of(pairs, rule, sequence, usable)
    alphas = (rule.alpha, rule.alpha)
    # The test is inverted from the estimate on, which lies between the bounds; from 0 none would be found.
    start = sample.ratio or value or _LEAST
    lower, upper = confidence_bounds(sample, start, alphas, Verdict.UNDECIDED)
    if math.isinf(upper) and start < 1:
        upper = confidence_bounds(sample, 1.0, alphas, Verdict.UNDECIDED)[1]
    return (0.0, upper) if value == 0 else (lower, upper)
