"""The speeds that a profile's gates ask for, against what memory allows (``cogumi.bandwidth``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cogumi.bandwidth import (
    CARDS,
    bytes_per_token,
    cache_speedup,
    context_for_cache_speedup,
    draft_share_for,
    speculative_speedup,
    tokens_per_cycle,
    tokens_per_second,
)
from cogumi.feasibility import FORMATS, Format
from cogumi.planned_model import PlannedModel, Serving
from cogumi.units import size

FITTING = "Q4_K_M"
SMALL_ROWS = "Q4_0"
"""The format that speeds are told for, and the one where rows are no multiple of 256."""


PLAIN = "tokens_per_second"
"""The speed that is without speculation."""


@dataclass(frozen=True, slots=True)
class SpeedCheck:
    """A speed or speed-up that a gate asks for, against what memory allows."""

    criterion: str
    model: str
    bar: float
    best: float
    """At most, with the plan's own means: its draft at its acceptance, its context, its card."""
    reached: bool
    """Whether that reaches the bar. No verdict: another draft, context or card may."""
    why: str


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Tokens a second of one answer on each card, for a model in a format."""

    model: str
    format: str
    bytes_per_token: int
    tokens_per_second: dict[str, float]


def ceiling(model: PlannedModel) -> Ceiling:
    """Return the ceilings of a model in a 4-bit format that its rows admit."""
    fmt = _format(model)
    read = fmt.bytes_read(model)
    speeds = {card: tokens_per_second(card, read) for card in CARDS}
    return Ceiling(model.name, fmt.name, read, speeds)


def check_speeds(models: Sequence[PlannedModel], bars: Mapping[str, tuple[str, float]]) -> list[SpeedCheck]:
    """Compare the speeds that gates ask of the first model that is to be served; the others are its helpers.

    ``bars``: GATE/CRITERION to (metric, bar). Metrics that memory says nothing of are left out.
    """
    model = next((one for one in models if one.serving is not None), None)
    if model is None or model.serving is None:
        return []
    found = []
    for criterion, (metric, bar) in bars.items():
        if metric == "speculative_speedup":
            check = _speculation(criterion, model, model.serving, models, bar)
        elif metric == "kv_int4_speedup":
            check = _cache(criterion, model, model.serving, bar)
        elif metric.endswith(PLAIN):
            check = _speed(criterion, model, models, metric, bar, model.serving)
        else:
            check = None
        if check is not None:
            found.append(check)
    return found


def _format(model: PlannedModel) -> Format:
    names = (FITTING, SMALL_ROWS)
    return max((one for one in FORMATS if one.name in names and one.fits(model)), key=lambda one: one.linear)


def _draft_share(model: PlannedModel, how: Serving, models: Sequence[PlannedModel]) -> float | None:
    """Return what a step of the draft costs of one of the base, both at the same bits a weight."""
    draft = next((one for one in models if one.name == how.draft), None)
    return None if draft is None else draft.parameters / model.parameters


def _speculation(
    criterion: str, model: PlannedModel, how: Serving, models: Sequence[PlannedModel], bar: float
) -> SpeedCheck | None:
    share = _draft_share(model, how, models)
    if share is None:
        return None
    best = speculative_speedup(how.k, how.acceptance, share)
    needed = draft_share_for(bar, how.k, how.acceptance)
    mend = f"{bar:g} x needs a draft of {needed:.1%}" if needed > 0 else f"no draft gives {bar:g} x"
    why = (
        f"{how.k} drafted at {how.acceptance:.0%} are {tokens_per_cycle(how.k, how.acceptance):.2f} tokens a "
        f"cycle: {best:.2f} x at best with {how.draft}, {share:.1%} of the base; {mend}"
    )
    return SpeedCheck(criterion, model.name, bar, best, best >= bar, why)


def _cache(criterion: str, model: PlannedModel, how: Serving, bar: float) -> SpeedCheck | None:
    if model.config is None:
        return None
    fmt = _format(model)
    weights, token = fmt.bytes_read(model), model.config.cache_bytes_per_token()
    best = cache_speedup(weights, how.context * token)
    wanted = context_for_cache_speedup(bar, weights, token)
    mend = f"{bar:g} x needs {wanted:,.0f} tokens" if wanted is not None else f"4 bits never give {bar:g} x"
    why = (
        f"keys and values are {size(token)} a token: at {how.context:,} tokens of context 4 bits give "
        f"{best:.2f} x at best beside the {size(weights)} of {fmt.name}; {mend}"
    )
    return SpeedCheck(criterion, model.name, bar, best, best >= bar, why)


def _speed(
    criterion: str, model: PlannedModel, models: Sequence[PlannedModel], metric: str, bar: float, how: Serving
) -> SpeedCheck:
    fmt = _format(model)
    read = fmt.bytes_read(model)
    best = tokens_per_second(how.card, read)
    why = (
        f"a {how.card} reads {CARDS[how.card] / 1e9:,.0f} GB a second, so {bar:g} tokens a second may read "
        f"{size(bytes_per_token(how.card, bar))} each; {fmt.name} reads {size(read)}: {best:.0f} a second"
    )
    share = _draft_share(model, how, models)
    # All speeds but the plain one are with speculation (gates/metrics.py).
    if metric != PLAIN and share is not None:
        best *= max(1.0, speculative_speedup(how.k, how.acceptance, share))
        why += f", {best:.0f} with the draft"
    return SpeedCheck(criterion, model.name, bar, best, best >= bar, why)
