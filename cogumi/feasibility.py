"""Arithmetic on sizes that needs no model: bits a weight, and what a recipe costs at least.

Source: Shannon's entropy of a Bernoulli mask and his rate-distortion function of a Gaussian source; the
figures for Llama-3.1-8B stand in the research note on the pipeline's stages, section 1. Not covered: whether
a size that arithmetic admits keeps the quality, which a gate measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cogumi.planned_model import CODED_BITS, PlannedModel, SizeTarget
from cogumi.units import size

# A tier that is missed by no more than this share at the next half bit is worth a word, up to so many bits.
_JUST_OVER = 0.01
_MOST_BITS = 8


@dataclass(frozen=True, slots=True)
class SizeCheck:
    """A planned model's size against arithmetic; bytes are decimal."""

    model: str
    parameters: int
    target_bytes: int | None
    bits_per_weight: float | None
    mask_bytes: int | None
    """What the places of the non-zero weights cost, by entropy, before a single weight is stored."""
    feasible: bool
    why: str
    criterion: str
    embedding_parameters: int = 0
    linear_parameters: int = 0
    embedding_bytes_4: int = 0
    embedding_bytes_4_5: int = 0
    """Embedding and head at 4.0 and 4.5 bits a weight."""
    cache_bytes_per_token: float | None = None
    """Of keys and values at 16 bits; None where the profile gives no config."""


@dataclass(frozen=True, slots=True)
class TargetCheck:
    """One size target of the profile, of a gate's criterion, against the least that its recipe needs."""

    criterion: str
    model: str
    target_bytes: int
    bits_per_weight: float
    energy_lost: float
    """Share of the energy of Gaussian weights that any code of so many bits loses at least."""
    least_bytes: int | None
    """None where the plan names no recipe."""
    feasible: bool
    why: str


@dataclass(frozen=True, slots=True)
class TierCheck:
    """What a tier leaves of a model: bits a weight, and the largest known format that fits."""

    model: str
    tier: str
    tier_bytes: int
    bits_per_weight: float
    format: str | None
    format_bytes: int | None
    note: str


@dataclass(frozen=True, slots=True)
class Format:
    """A quantised format of llama.cpp by bits a weight: linear layers (mean of the mix), embedding, head."""

    name: str
    linear: float
    embedding: float
    head: float
    blocks_of: int = 256
    """Rows must be multiples of it."""

    def fits(self, model: PlannedModel) -> bool:
        """Tell whether the rows of a model's layers are multiples of the format's blocks."""
        if model.config is None:
            return True
        return not any(
            width % self.blocks_of for width in (model.config.hidden_size, model.config.intermediate_size)
        )

    def bytes(self, model: PlannedModel) -> int:
        """Return about how large a model's file is; tied, the one matrix has the head's type."""
        tied = model.config is None or model.config.tie_word_embeddings
        matrix = model.embedding_parameters if tied else model.embedding_parameters // 2
        bits = model.linear_parameters * self.linear + matrix * self.head
        return round((bits if tied else bits + matrix * self.embedding) / 8)

    def bytes_read(self, model: PlannedModel) -> int:
        """Return the bytes that one token reads; of an embedding that is not also the head it is one row."""
        if model.config is None or model.config.tie_word_embeddings:
            return self.bytes(model)
        return self.bytes(model) - round(model.config.matrix_parameters * self.embedding / 8)


FORMATS = (
    Format("IQ1_M", 1.858, 2.625, 5.5),
    Format("IQ2_XXS", 2.130, 2.625, 5.5),
    Format("IQ2_M", 2.698, 3.4375, 5.5),
    Format("Q2_K", 2.943, 2.625, 6.5625),
    Format("IQ3_XXS", 3.072, 3.4375, 5.5),
    Format("IQ3_M", 3.577, 3.4375, 6.5625),
    Format("IQ4_XS", 4.317, 4.25, 6.5625),
    Format("Q4_0", 4.5, 4.5, 8.5, 32),
    Format("Q4_K_M", 4.799, 4.5, 6.5625),
    Format("Q5_K_M", 5.655, 5.5, 6.5625),
    Format("Q6_K", 6.5625, 6.5625, 6.5625),
    Format("Q8_0", 8.5, 8.5, 8.5, 32),
    Format("BF16", 16.0, 16.0, 16.0, 1),
)
"""In order of size. Linear layers: what llama.cpp's table for Llama-3.1-8B (tools/quantize/README.md, read
2026-11-23; Q4_K_M is 4.8944 over all weights) leaves for them with the types of embedding and head there.
Llama-3.2-1B's Q4_K_M comes to 799 MB by this, its file has 808 MB with the vocabulary."""


def mask_entropy_bits(sparsity: float) -> float:
    """Return the entropy in bits a weight of an unstructured mask that keeps ``1 - sparsity``."""
    keep = 1 - sparsity
    return -(sparsity * math.log2(sparsity) + keep * math.log2(keep))


def mask_reason(model: PlannedModel, mask_bytes: int) -> str:
    """Return in words what the mask of a pruned model costs."""
    megabytes = f"{mask_bytes / 1e6:.0f} MB"
    return f"the {model.sparsity:.0%} mask alone has an entropy of {megabytes} over the linear layers"


def energy_lost(bits: float) -> float:
    """Return the share of Gaussian weights' energy that any code of ``bits`` a weight loses at least.

    2^(-2 bits): Shannon's rate-distortion function. Training for few bits re-chooses the weights and may do
    better in what a model says; no way of storing given weights does.
    """
    return math.exp2(-2 * bits)


def _mask_bytes(model: PlannedModel) -> int | None:
    if model.sparsity is None:
        return None
    return math.ceil(mask_entropy_bits(model.sparsity) * model.linear_parameters / 8)


def check_size(model: PlannedModel) -> SizeCheck:
    """Compare a planned model's target size with the least that its own recipe needs."""
    target = model.download_bytes_at_most
    bits = 8 * target / model.parameters if target else None
    mask = _mask_bytes(model)
    feasible, why = True, ""
    if target is not None and mask is not None and mask > target:
        feasible = False
        why = f"{mask_reason(model, mask)}, the target is {target / 1e6:.0f} MB ({bits:.2f} bits a weight)"
    elif bits is not None:
        why = f"{bits:.2f} bits a weight"
    return SizeCheck(
        model.name,
        model.parameters,
        target,
        bits,
        mask,
        feasible,
        why,
        model.criterion,
        embedding_parameters=model.embedding_parameters,
        linear_parameters=model.linear_parameters,
        embedding_bytes_4=round(model.embedding_parameters / 2),
        embedding_bytes_4_5=round(model.embedding_parameters * 4.5 / 8),
        cache_bytes_per_token=model.config.cache_bytes_per_token() if model.config else None,
    )


# Targets ------------------------------------------------------------------------------------------


def check_targets(models: Sequence[PlannedModel], bars: Mapping[str, float]) -> list[TargetCheck]:
    """Compare every size target of the models with its recipe; ``bars``: GATE/CRITERION to bytes."""
    found = []
    for model in models:
        for target in _targets_of(model):
            bar = bars[target.criterion]
            held = [model, *_named(models, target.together_with)]
            bits = 8 * bar / sum(one.parameters for one in held)
            least = _least(model, target, models, bar)
            feasible = least is None or least[0] <= bar
            why = "" if least is None else least[1]
            found.append(
                TargetCheck(
                    target.criterion,
                    " + ".join(one.name for one in held),
                    round(bar),
                    bits,
                    energy_lost(bits),
                    None if least is None else least[0],
                    feasible,
                    why,
                )
            )
    return found


def least_bytes(models: Sequence[PlannedModel], criterion: str, bar: float) -> tuple[float, str] | None:
    """Return the least bytes that the plan's recipe for a criterion can have, with the arithmetic.

    None where no target of the profile names the criterion, or the plan names no recipe.
    """
    for model in models:
        for target in _targets_of(model):
            if target.criterion == criterion:
                least = _least(model, target, models, bar)
                return None if least is None else (float(least[0]), least[1])
    return None


def _targets_of(model: PlannedModel) -> Iterable[SizeTarget]:
    named = {target.criterion for target in model.targets}
    if model.criterion and model.download_bytes_at_most is not None and model.criterion not in named:
        yield SizeTarget(criterion=model.criterion)
    yield from model.targets


def _named(models: Sequence[PlannedModel], names: Iterable[str]) -> list[PlannedModel]:
    by_name = {model.name: model for model in models}
    return [by_name[name] for name in names]


def _least(
    model: PlannedModel, target: SizeTarget, models: Sequence[PlannedModel], bar: float
) -> tuple[int, str] | None:
    """Return the mask's bytes where these alone pass the bar, else those of the whole recipe."""
    mask = _mask_bytes(model)
    if mask is not None and (mask > bar or target.bits is None):
        return mask, mask_reason(model, mask)
    if target.bits is None:
        return None
    bits = CODED_BITS[round(target.bits)] if target.coded else target.bits
    parts: list[tuple[str, float]] = []
    for one in (model, *_named(models, target.together_with)):
        parts += _parts(one, bits, of=f" of {one.name}" if target.together_with else "")
    total = math.ceil(sum(count for _, count in parts))
    coded = f" ({target.bits:g} bits hold that much, coded)" if target.coded else ""
    told = " + ".join(f"{size(count)} {name}" for name, count in parts)
    return total, f"{told} at {bits:.3g} bits{coded}" + (f": {size(total)}" if len(parts) > 1 else "")


def _parts(model: PlannedModel, bits: float, of: str) -> list[tuple[str, float]]:
    """Return what must be stored of a model, by name; norms and biases are left out, as too few to matter."""
    linear, embedding = model.linear_parameters, model.embedding_parameters
    if model.sparsity is None:
        return [(f"for {linear + embedding:,} weights{of}", (linear + embedding) * bits / 8)]
    return [
        (f"{model.sparsity:.0%} mask{of}", mask_entropy_bits(model.sparsity) * linear / 8),
        (f"for the {1 - model.sparsity:.0%} kept", (1 - model.sparsity) * linear * bits / 8),
        ("for embedding and head", embedding * bits / 8),
    ]


# Tiers --------------------------------------------------------------------------------------------


def check_tiers(model: PlannedModel, tiers: Mapping[str, float]) -> list[TierCheck]:
    """Return what each tier, a name with its bytes, leaves of a model; the smallest first."""
    fitting = [one for one in FORMATS if one.fits(model)]
    found = []
    for tier, limit in sorted(tiers.items(), key=lambda entry: entry[1]):
        bits = 8 * limit / model.parameters
        best = max(
            (one for one in fitting if one.bytes(model) <= limit), key=lambda one: one.linear, default=None
        )
        found.append(
            TierCheck(
                model.name,
                tier,
                round(limit),
                bits,
                best.name if best else None,
                best.bytes(model) if best else None,
                _just_over(model, bits, limit),
            )
        )
    return found


def _just_over(model: PlannedModel, bits: float, limit: float) -> str:
    half = math.ceil(2 * bits) / 2
    wanted = model.parameters * half / 8
    if half > _MOST_BITS or not limit < wanted <= limit * (1 + _JUST_OVER):
        return ""
    return f"{half:g} bits a weight are {size(wanted)}: {100 * (wanted / limit - 1):.1f} % over"
