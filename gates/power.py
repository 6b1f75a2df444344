"""How many items a verdict will need: the shipped test on simulated models, before anything is paid for.

A simulated model answers right or wrong with the chance that gives it the ratio of interest, independently of
which items the reference got right. Real models share their difficulties with the reference, which saves
items against a per-item reference: the plan is on the careful side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cogumi.errors import CogumiError, UsageError
from cogumi.verdict import Verdict
from gates.attempts import AttemptBook, alpha_of
from gates.betting import FloatArray
from gates.evidence import EvidenceSource
from gates.pairing import Docket, prospect, rule_of, with_sampling_error
from gates.spec import GateSpec
from gates.suites import Pair, Rule, judge, reference_means

# Around the bars of the plan (0.88 to 1.20): clearly below, near, clearly above.
RATIOS = (0.70, 0.80, 0.85, 0.90, 0.95, 1.00)
RUNS = 200
SEED = 20261123


@dataclass(frozen=True, slots=True)
class ItemCost:
    """What measuring one item takes on average; money is None where the price is unknown."""

    tokens: float
    usd: float | None = None


@dataclass(frozen=True, slots=True)
class PlanRow:
    """For a model whose true ratio is ``ratio``: how often each verdict comes, and after how many items.

    ``median_items`` and ``p90_items`` count all runs; one that never decides counts with all items.
    ``tokens`` and ``usd`` are for the median.
    """

    criterion: str
    ratio: float
    bar: float
    passes: float
    fails: float
    median_items: int
    p90_items: int
    n_total: int
    tokens: float | None = None
    usd: float | None = None


def plan_items(
    pairs: Sequence[Pair],
    rule: Rule,
    *,
    ratios: Sequence[float] = RATIOS,
    runs: int = RUNS,
    seed: int = SEED,
) -> list[PlanRow]:
    """Simulate ``runs`` models for each ratio against the references of a suite.

    ``pairs`` need no measured scores; ratios that would take a score above 1 are left out.
    """
    rng = np.random.default_rng(seed)
    total = sum(pair.population for pair in pairs)
    rows = []
    for ratio in ratios:
        low, high = reference_means(pairs, rule)
        if ratio * (low + high) / 2 > 1:
            continue
        verdicts, items = [], []
        for _ in range(runs):
            judgement = judge(_simulated(pairs, ratio, rng), rule, bounds=False)
            verdicts.append(judgement.verdict)
            decided = judgement.verdict is not Verdict.UNDECIDED
            items.append(sum(judgement.used) if decided else total)
        rows.append(
            PlanRow(
                criterion="",
                ratio=ratio,
                bar=rule.c,
                passes=verdicts.count(Verdict.PASS) / runs,
                fails=verdicts.count(Verdict.FAIL) / runs,
                median_items=int(np.median(items)),
                p90_items=int(np.quantile(items, 0.9)),
                n_total=total,
            )
        )
    return rows


def plan_gate(
    spec: GateSpec,
    evidence: EvidenceSource,
    book: AttemptBook,
    *,
    cost: ItemCost | None = None,
    ratios: Sequence[float] = RATIOS,
    runs: int = RUNS,
) -> tuple[list[PlanRow], dict[str, str]]:
    """Return rows for every criterion against a reference, and ``{criterion: why}`` for those without a plan.

    Thresholds and people are left out: what they need does not depend on a ratio. ``book`` is not asked: the
    plan is for a first attempt.
    """
    docket = Docket(spec, evidence, book, "", None)
    rows: list[PlanRow] = []
    unplanned: dict[str, str] = {}
    for criterion in spec.criteria:
        if criterion.threshold is not None or criterion.human is not None:
            continue
        try:
            pairs = prospect(docket, criterion)
            if not all(_has_reference(pair) for pair in pairs):
                unplanned[criterion.id] = "its baseline is not measured yet"
                continue
            pairs, rule = with_sampling_error(pairs, rule_of(docket, criterion, alpha_of(1, spec.alpha)))
            found = plan_items(pairs, rule, ratios=ratios, runs=runs)
        except UsageError:
            raise
        except CogumiError as error:
            unplanned[criterion.id] = str(error)
            continue
        rows += [_priced(replace(row, criterion=criterion.id), cost) for row in found]
    return rows, unplanned


def _has_reference(pair: Pair) -> bool:
    return pair.reference.items is None or len(pair.reference.items) > 0


def _simulated(pairs: Sequence[Pair], ratio: float, rng: np.random.Generator) -> list[Pair]:
    """Return the pairs with answers of a model whose score is ``ratio`` times each task's reference.

    A baseline that is measured in part is filled up with draws from that part.
    """
    made = []
    for pair in pairs:
        reference, items = pair.reference, pair.reference.items
        if items is not None and len(items) < pair.population:
            more = rng.choice(items, pair.population - len(items))
            reference = replace(reference, items=np.concatenate([items, more]))
        score = min(1.0, ratio * (pair.low + pair.high) / 2)
        made.append(replace(pair, x=_answers(score, pair.population, rng), reference=reference))
    return made


def _answers(score: float, n: int, rng: np.random.Generator) -> FloatArray:
    """Return ``n`` right-or-wrong answers in random order whose mean is ``score`` to the nearest item."""
    answers = np.zeros(n)
    answers[: round(score * n)] = 1.0
    return rng.permutation(answers)


def _priced(row: PlanRow, cost: ItemCost | None) -> PlanRow:
    if cost is None:
        return row
    usd = None if cost.usd is None else row.median_items * cost.usd
    return replace(row, tokens=row.median_items * cost.tokens, usd=usd)
