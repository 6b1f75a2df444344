"""Which parts of a Llama's width stay: MLP channels, attention heads in KV groups, hidden channels.

Every part is judged by what the layers that read it would lose: the mean square of its activation on
calibration rows times the squared norm of the column that reads it, the square of Wanda's score (Sun et al.
2023, arXiv 2306.11695) summed over a column. What is judged, and that hidden channels are the same ones in
all layers, is Minitron's (Muralidharan et al. 2024, arXiv 2407.14679; arXiv 2408.11796).

A norm divides by the root mean square of all hidden channels, so with fewer of them its output changes even
where the lost ones carry nothing. Its gain is therefore multiplied by sqrt(share * before / after), ``share``
being how much of the mean square the remaining channels hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError

if TYPE_CHECKING:
    import torch

    from pipeline.compression.activations import ColumnMoments


@dataclass(frozen=True, slots=True)
class Widths:
    """Sizes of a Llama; ``heads`` are those of the queries."""

    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def row_multiple(self) -> int:
        """The largest power of two that divides the rows of every matrix in the layers.

        Blocks of ggml's types lie along a row: 32 columns for Q4_0 and Q8_0, 256 for K- and I-quants.
        """
        rows = math.gcd(self.hidden_size, self.intermediate_size, self.heads * self.head_dim)
        return rows & -rows


@dataclass(frozen=True, slots=True)
class WidthChoice:
    """What stays, by number in the source and in rising order: int64 tensors, for each layer or for all."""

    mlp: list[torch.Tensor]
    kv_heads: list[torch.Tensor]
    hidden: torch.Tensor
    gains: Mapping[str, float]
    """What the gains of each norm are multiplied by, by the norm's module name."""
    kept: Mapping[str, float]
    """Share of the importance that stays, for ``mlp``, ``heads`` (means over the layers) and ``hidden``."""


def choose_widths(
    model: Any, moments: Mapping[str, ColumnMoments], source: Widths, target: Widths
) -> WidthChoice:
    """Choose what stays of a LlamaForCausalLM, from what its linear layers read (``column_moments``).

    Raises ``RunError`` for a model whose layers do not lie where a Llama's do.
    """
    import torch

    layers = range(model.config.num_hidden_layers)
    try:
        mlp = [_importance(model, moments, f"model.layers.{layer}.mlp.down_proj") for layer in layers]
        columns = [_importance(model, moments, f"model.layers.{layer}.self_attn.o_proj") for layer in layers]
        shares = [_shares(model, moments, readers) for readers in _readers(model).values()]
    except (KeyError, AttributeError) as error:
        raise RunError(f"{type(model).__name__}: no {error} in it; only a Llama is cut in width") from error
    # The heads of a group lie side by side: query head h reads KV head h // (heads / kv_heads).
    groups = [found.reshape(source.kv_heads, -1).sum(dim=1) for found in columns]
    hidden = torch.stack(shares).sum(dim=0)
    channels = [_largest(scores, target.intermediate_size) for scores in mlp]
    heads = [_largest(scores, target.kv_heads) for scores in groups]
    remaining = _largest(hidden, target.hidden_size)
    kept = {
        "mlp": _mean_share(mlp, channels),
        "heads": _mean_share(groups, heads),
        "hidden": _mean_share([hidden], [remaining]),
    }
    gains = {
        norm: _gain(model.get_submodule(norm).weight, moments[readers[0]], remaining)
        for norm, readers in _readers(model).items()
    }
    return WidthChoice(channels, heads, remaining, gains, kept)


def _readers(model: Any) -> dict[str, list[str]]:
    """Return the linear layers that read each norm's output."""
    found = {}
    for layer in range(model.config.num_hidden_layers):
        at = f"model.layers.{layer}"
        found[f"{at}.input_layernorm"] = [f"{at}.self_attn.{name}_proj" for name in "qkv"]
        found[f"{at}.post_attention_layernorm"] = [f"{at}.mlp.{name}_proj" for name in ("gate", "up")]
    found["model.norm"] = ["lm_head"]
    return found


def _importance(model: Any, moments: Mapping[str, ColumnMoments], name: str) -> torch.Tensor:
    """Return what each input column of a linear layer adds to its output, mean square, float64 (columns,)."""
    weight = model.get_submodule(name).weight.detach()
    squares = _mean_squares(moments[name])
    # In parts: an output head is 2 GB in half precision.
    norms: torch.Tensor = sum(part.double().square().sum(dim=0) for part in weight.split(4096))
    return squares * norms.cpu()


def _mean_squares(moments: ColumnMoments) -> torch.Tensor:
    import torch

    return torch.from_numpy(moments.mean_squares).double()


def _shares(model: Any, moments: Mapping[str, ColumnMoments], readers: list[str]) -> torch.Tensor:
    """Return each hidden channel's share in what a norm's readers put out; every norm counts the same."""
    import torch

    total = torch.stack([_importance(model, moments, name) for name in readers]).sum(dim=0)
    return total / total.sum().clamp_min(1e-300)


def _largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ``count`` largest scores' places in rising order; of equals the first ones."""
    order = scores.sort(descending=True, stable=True).indices[:count]
    return order.sort().values


def _mean_share(scores: list[torch.Tensor], chosen: list[torch.Tensor]) -> float:
    shares = [_share(found, kept) for found, kept in zip(scores, chosen, strict=True)]
    return sum(shares) / len(shares)


def _share(scores: torch.Tensor, chosen: torch.Tensor) -> float:
    total = float(scores.sum())
    return float(scores[chosen].sum()) / total if total else 1.0


def _gain(weight: torch.Tensor, read: ColumnMoments, remaining: torch.Tensor) -> float:
    """Return what a norm's gains are multiplied by when only the ``remaining`` channels are normalised."""
    import torch

    if len(remaining) == len(weight):
        return 1.0
    gains = weight.detach().double().cpu()
    # What was normalised, before the gain; a channel whose gain is 0 shows nothing of it.
    squares = torch.where(gains == 0, 0.0, _mean_squares(read) / gains.square().clamp_min(1e-300))
    return math.sqrt(_share(squares, remaining) * len(weight) / len(remaining))
