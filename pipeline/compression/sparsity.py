"""How sparse each layer shall be, and how sparse it is: counting, N:M groups, outlier-weighed ratios (OWL).

OWL: Yin et al. 2023, arXiv 2310.05175: layers with more outliers among |weight| times the norm of its input
keep more weights. llmcompressor 0.14 computes such ratios itself but cannot apply them (it looks layers up in
a list where it made a mapping), so they are computed here and handed over one for each layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from math import ceil
from typing import TYPE_CHECKING

from cogumi.errors import RunError, UsageError
from pipeline.compression.llmc import layer_number

if TYPE_CHECKING:
    import torch

    from pipeline.compression.activations import ColumnMoments


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Zeros counted over linear layers; shares are of their weights."""

    weights: int
    zeros: int
    lowest: float
    """Share of zeros in the linear layer that has the fewest."""
    highest: float
    by_layer: tuple[float, ...]
    """Share of zeros in each decoder layer."""

    @property
    def share(self) -> float:
        """Zeros of all weights."""
        return self.zeros / self.weights


def count_zeros(layers: Mapping[str, torch.nn.Linear]) -> Sparsity:
    """Count exact zeros; biases are no weights."""
    counted = {
        name: (int((module.weight == 0).sum()), module.weight.numel()) for name, module in layers.items()
    }
    depth = max(map(layer_number, counted)) + 1
    zeros, weights = [0] * depth, [0] * depth
    for name, (nought, size) in counted.items():
        zeros[layer_number(name)] += nought
        weights[layer_number(name)] += size
    shares = [nought / size for nought, size in counted.values()]
    return Sparsity(
        weights=sum(weights),
        zeros=sum(zeros),
        lowest=min(shares),
        highest=max(shares),
        by_layer=tuple(nought / size for nought, size in zip(zeros, weights, strict=True)),
    )


def check_groups(layers: Mapping[str, torch.nn.Linear], zeros: int, group: int) -> None:
    """Raise ``RunError`` unless each group of ``group`` weights along a row has at least ``zeros`` zeros."""
    for name, module in layers.items():
        groups = (module.weight == 0).reshape(-1, group).sum(dim=1)
        short = int((groups < zeros).sum())
        if short:
            raise RunError(
                f"{name}: {short} of {groups.numel()} groups of {group} weights have fewer than {zeros} zeros"
            )


def reachable(target: float, columns: Sequence[int]) -> float:
    """Return the share to ask for so that whole weights of each row of any of these widths reach ``target``.

    Wanda prunes each row apart and rounds down: 65 % of 576 columns would be 64.93 %.
    """
    share = Fraction(str(target))
    wanted = max(Fraction(ceil(width * share), width) for width in set(columns))
    # A little more, since the product with the width is rounded down again.
    return min(float(wanted) + 1e-9, 1 - 1e-9)


def outlier_shares(
    layers: Mapping[str, torch.nn.Linear], moments: Mapping[str, ColumnMoments], factor: float
) -> list[float]:
    """Return for each decoder layer the share of weights whose score is above ``factor`` times the mean.

    The score is |weight| times the 2-norm of the weight's input, as Wanda's. The mean is that of the layer.
    """
    import torch

    def scores(names: list[str]) -> Iterator[torch.Tensor]:
        for name in names:
            norm = torch.from_numpy(moments[name].sum_squares).sqrt()
            yield layers[name].weight.detach().float().abs() * norm

    found = []
    for _, members in groupby(sorted(layers, key=layer_number), key=layer_number):
        # Twice over the layer, since its scores in float32 are more than the layer itself.
        names = list(members)
        size = sum(layers[name].weight.numel() for name in names)
        limit = factor * sum(float(score.double().sum()) for score in scores(names)) / size
        found.append(sum(int((score > limit).sum()) for score in scores(names)) / size)
    return found


def owl_targets(
    outliers: Sequence[float], weights: Sequence[int], target: float, spread: float
) -> list[float]:
    """Return the sparsity of each layer: the more outliers, the less, and ``target`` over all ``weights``.

    Shares lie within ``2 * spread`` of each other (lambda of the paper). Layers with equal shares of outliers
    get ``target``. Raises ``UsageError`` where a layer would lose all or gain weights.
    """
    low, high = min(outliers), max(outliers)
    if high == low:
        return [target] * len(outliers)
    kept = [2 * spread * (share - low) / (high - low) for share in outliers]
    mean = sum(share * size for share, size in zip(kept, weights, strict=True)) / sum(weights)
    found = [target + mean - share for share in kept]
    if min(found) < 0 or max(found) >= 1:
        raise UsageError(
            f"owl.spread: {spread:g} around a sparsity of {target:g} asks a layer for "
            f"{max(found, key=lambda share: abs(share - 0.5)):.2f}; lower it"
        )
    return found
