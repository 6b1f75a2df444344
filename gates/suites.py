"""One claim over the tasks of a suite: pairs of scores and references in, one judgement out.

Source of the rules: design "How a verdict is reached", section "Many benchmarks"; research note on evaluation
and gates, section 4.6. Items of different tasks are never pooled unless the gate file says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cogumi.verdict import Verdict
from evals.references.scores import ReferenceScores
from gates import draws
from gates.betting import TIE, FloatArray, RatioSample, SequentialResult, sequential_test
from gates.clusters import Blocks
from gates.spec import Combine, Scope

# How many more items are asked for at a time: a few, then an eighth of what is there, so that a gate
# overshoots its verdict by 12 % at most once there is something to overshoot. A hopeless model fails within
# five items, and an item may take half a minute; a backend that answers in batches fills its batch anyway.
CHUNK = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """A task's measured scores (n,) and what they are compared with.

    ``available``: items that can be measured at all. ``population``: items that the reference's score is
    over; larger than ``available`` when a published score covers more than the items at hand. ``blocks``: the
    clusters that are drawn as wholes, in scope population.
    """

    task: str
    x: FloatArray
    available: int
    population: int
    order_digest: str
    reference: ReferenceScores
    blocks: Blocks | None = None

    @property
    def known(self) -> int:
        """Items known on both sides."""
        items = self.reference.items
        return len(self.x) if items is None else min(len(self.x), len(items))

    @property
    def units(self) -> int:
        """How many draws the task has: its clusters, or its items."""
        return self.population if self.blocks is None else len(self.blocks)

    @property
    def known_units(self) -> int:
        """Draws that are known on both sides: of clusters only the complete ones."""
        return self.known if self.blocks is None else self.blocks.complete(self.known)

    def items_of(self, units: int) -> int:
        """Return how many items stand behind the first ``units`` draws."""
        return units if self.blocks is None else self.blocks.items(units)

    def columns(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return scores and references, as PASS and as FAIL take them, of the known draws (known_units,)."""
        known, items = self.known, self.reference.items
        high = np.full(known, min(1.0, self.high)) if items is None else items[:known]
        low = np.full(known, max(0.0, self.low)) if items is None else items[:known]
        if self.blocks is None:
            return self.x[:known], high, low
        return self.blocks.sums(self.x[:known]), self.blocks.sums(high), self.blocks.sums(low)

    @property
    def high(self) -> float:
        """Mean of the reference as PASS takes it: published score plus margin."""
        if self.reference.items is not None:
            return float(self.reference.items.mean())
        return self.reference.score + self.reference.margin

    @property
    def low(self) -> float:
        """Mean of the reference as FAIL takes it."""
        if self.reference.items is not None:
            return float(self.reference.items.mean())
        return self.reference.score - self.reference.margin


@dataclass(frozen=True, slots=True)
class Rule:
    """How a suite is judged: bar, error rate and the way its tasks become one claim."""

    c: float
    alpha: float
    scope: Scope
    combine: Combine
    weights: Mapping[str, float] | None

    def weight_of(self, task: str) -> float:
        """Return the weight of a task; equal weights where the gate file gives none."""
        return 1.0 if self.weights is None else self.weights[task]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a suite's evidence says: ``used`` items per task, and how many each task must have to go on.

    ``wants`` is empty where no more evidence can change the verdict, or there is no more.
    """

    verdict: Verdict
    value: float | None
    lower: float
    upper: float
    exact: bool
    used: tuple[int, ...]
    wants: Mapping[str, int]
    note: str
    parts: tuple[SequentialResult, ...] = ()
    """One result per task for all_of."""


def judge(pairs: Sequence[Pair], rule: Rule, *, bounds: bool = True) -> Judgement:
    """Judge "at least ``rule.c`` of the reference" over the tasks of a suite."""
    if len(pairs) > 1 and rule.combine == "all_of":
        return _judge_each(pairs, rule, bounds)
    sequence = sequence_of(pairs, rule)
    usable = sequence.usable([pair.known_units for pair in pairs])
    result = sequential_test(sample_of(pairs, rule, sequence, usable), rule.c, rule.alpha, bounds=bounds)
    units = sequence.items_behind(result.n_used, len(pairs))
    used = [pair.items_of(n) for pair, n in zip(pairs, units, strict=True)]
    note = _manner(pairs, rule, result.n_used, units)
    mixed = len(pairs) > 1 and rule.combine == "mean_of"
    if mixed and not result.final and rule.scope == "benchmark" and _complete(pairs):
        return replace(_compare_exactly(pairs, rule), note=note + ", then all items compared exactly")
    wants = {} if result.final else _next_items(pairs, sequence, usable, everything=mixed)
    return Judgement(
        result.verdict, result.value, result.lower, result.upper, result.exact, tuple(used), wants, note
    )


def reference_means(pairs: Sequence[Pair], rule: Rule) -> tuple[float, float]:
    """Return the suite's reference score as FAIL and as PASS take it, weighted as the rule combines tasks."""
    shares = _shares(pairs, rule)
    low = sum(share * pair.low for share, pair in zip(shares, pairs, strict=True))
    return low, sum(share * pair.high for share, pair in zip(shares, pairs, strict=True))


def _shares(pairs: Sequence[Pair], rule: Rule) -> list[float]:
    pooled = rule.combine == "pooled_items"
    weights = [float(pair.population) if pooled else rule.weight_of(pair.task) for pair in pairs]
    return [weight / sum(weights) for weight in weights]


def sequence_of(pairs: Sequence[Pair], rule: Rule) -> draws.Draws:
    """Return the order in which the items of a suite, or the clusters, are revealed."""
    sizes = [pair.units for pair in pairs]
    population = rule.scope == "population"
    if len(pairs) == 1:
        return draws.single(sizes[0], population=population)
    seed = draws.seed_of([pair.order_digest for pair in pairs])
    if rule.combine == "pooled_items":
        return draws.pooled(sizes, seed)
    weights = [rule.weight_of(pair.task) * _boost(pair) for pair in pairs]
    return draws.weighted(sizes, weights, seed, population=population)


def _boost(pair: Pair) -> float:
    """Return how much more often a clustered task is drawn, so that its items keep the task's weight.

    A cluster bets its sum over the largest size: on average mean size over largest size of an item's bet.
    """
    return 1.0 if pair.blocks is None else pair.blocks.largest / pair.blocks.mean_size


def sample_of(pairs: Sequence[Pair], rule: Rule, sequence: draws.Draws, usable: int) -> RatioSample:
    """Return the scores behind the first ``usable`` draws.

    Where every task has a published score only, each draw has the same expected reference score, and the bets
    are larger for it. Else a published score stands as a constant beside the per-item ones.
    """
    task, position = sequence.task[:usable], sequence.position[:usable]
    x, high, low = (np.zeros(usable) for _ in range(3))
    for k, pair in enumerate(pairs):
        mine = task == k
        at = position[mine]
        for column, of_pair in zip((x, high, low), pair.columns(), strict=True):
            column[mine] = of_pair[at]
    if all(pair.reference.items is None and pair.blocks is None for pair in pairs):
        mean_low, mean_high = reference_means(pairs, rule)
        return RatioSample(x, mean_high, mean_low, sequence.n_total)
    return RatioSample(x, high, low, sequence.n_total)


def _next_items(
    pairs: Sequence[Pair], sequence: draws.Draws, usable: int, *, everything: bool
) -> dict[str, int]:
    """Return how many items each task must have for the next chunk of draws; empty where there are no more.

    ``everything``: once the draws are used up, ask for all items, to compare exactly.
    """
    if usable < len(sequence.task):
        blocked = pairs[int(sequence.task[usable])]
        if blocked.known >= blocked.available:
            return {}
        size = 1.0 if blocked.blocks is None else blocked.blocks.mean_size
        target = usable + max(math.ceil(CHUNK / size), usable // 8)
        units = sequence.items_behind(min(target, len(sequence.task)), len(pairs))
        needed = [pair.items_of(n) for pair, n in zip(pairs, units, strict=True)]
    elif everything:
        needed = [pair.available for pair in pairs]
    else:
        return {}
    wanted = {pair.task: min(n, pair.available) for pair, n in zip(pairs, needed, strict=True)}
    return {pair.task: wanted[pair.task] for pair in pairs if wanted[pair.task] > pair.known}


def _complete(pairs: Sequence[Pair]) -> bool:
    return all(pair.known == pair.population for pair in pairs)


def _compare_exactly(pairs: Sequence[Pair], rule: Rule) -> Judgement:
    """Compare weighted means over all items of all tasks: no chance is left."""
    shares = _shares(pairs, rule)
    mean = sum(share * float(pair.x.mean()) for share, pair in zip(shares, pairs, strict=True))
    low, high = reference_means(pairs, rule)
    if mean >= rule.c * high - TIE:
        verdict = Verdict.PASS
    else:
        verdict = Verdict.FAIL if mean < rule.c * low - TIE else Verdict.UNDECIDED
    used = tuple(pair.known for pair in pairs)
    value = mean / ((low + high) / 2) if low + high > 0 else None
    lower, upper = mean / high if high > 0 else 0.0, mean / low if low > 0 else math.inf
    return Judgement(verdict, value, lower, upper, True, used, {}, "")


def _judge_each(pairs: Sequence[Pair], rule: Rule, bounds: bool) -> Judgement:
    """Judge every task by itself: PASS when each passes at alpha, FAIL when any fails at alpha / K."""
    parts, units = [], []
    for pair in pairs:
        sequence = draws.single(pair.units, population=rule.scope == "population")
        sample = sample_of([pair], rule, sequence, pair.known_units)
        found = sequential_test(sample, rule.c, rule.alpha, alpha_fail=rule.alpha / len(pairs), bounds=bounds)
        units.append(found.n_used)
        parts.append(replace(found, n_used=pair.items_of(found.n_used)))
    verdicts = {part.verdict for part in parts}
    verdict = Verdict.PASS if verdicts == {Verdict.PASS} else Verdict.UNDECIDED
    wants: dict[str, int] = {}
    if Verdict.FAIL in verdicts:
        verdict = Verdict.FAIL
    elif not any(part.final and part.verdict is Verdict.UNDECIDED for part in parts):
        # One task after the other: the first that fails ends it.
        for pair, part in zip(pairs, parts, strict=True):
            if not part.final and pair.known < pair.available:
                target = pair.known + max(CHUNK, pair.known // 8)
                if pair.blocks is not None:
                    target = pair.items_of(min(len(pair.blocks), pair.blocks.complete(target - 1) + 1))
                wants = {pair.task: min(target, pair.available)}
                break
    values = [part.value for part in parts if part.value is not None]
    told = [f"each of {len(parts)} tasks by itself, the lowest measured one is shown"]
    told += _clusters_told(pairs, units)
    return Judgement(
        verdict,
        min(values, default=None),
        min(part.lower for part in parts),
        min(part.upper for part in parts),
        all(part.exact for part in parts),
        tuple(part.n_used for part in parts),
        wants,
        "; ".join(told),
        tuple(parts),
    )


def _manner(pairs: Sequence[Pair], rule: Rule, draws_used: int, units: Sequence[int]) -> str:
    told = []
    if len(pairs) > 1:
        pooled = rule.combine == "pooled_items"
        told.append(
            f"items of {len(pairs)} tasks pooled"
            if pooled
            else f"mean of {len(pairs)} tasks, {draws_used} draws"
        )
    return "; ".join(told + _clusters_told(pairs, units))


def _clusters_told(pairs: Sequence[Pair], units: Sequence[int]) -> list[str]:
    return [
        f"{n} of {len(pair.blocks)} clusters of {pair.task}, drawn as wholes"
        for pair, n in zip(pairs, units, strict=True)
        if pair.blocks is not None and n
    ]
