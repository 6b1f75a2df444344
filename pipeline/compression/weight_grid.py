"""Settings of quantised weights that AWQ and GPTQ share: groups, bits of each layer, and what they cost.

A group is so many weights of one row that share a scale and, where the grid is not symmetric, a zero point.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError, UsageError
from pipeline.compression.llmc import layer_number

if TYPE_CHECKING:
    import torch

GROUPS = (128, 64, 32)
"""Group sizes that kernels know, the cheapest first; 128 is the plan's (3.2)."""

SCALE_BITS = 16
"""A scale is stored in the precision of the model, bf16."""

DENSE = 16
"""Bits that stand for: left as it is."""

# vLLM runs these layers as one, on one grid.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def group_size(layers: Mapping[str, torch.nn.Linear], wanted: int | None, told: object) -> int:
    """Return ``wanted``, or the largest of ``GROUPS`` that divides the columns of every layer.

    Raises ``RunError`` naming the layer and its columns where none divides them.
    """
    for size in GROUPS if wanted is None else (wanted,):
        odd = next((name for name, layer in layers.items() if layer.in_features % size), None)
        if odd is None:
            return size
    tried = "none of the groups 128, 64 and 32" if wanted is None else f"a group of {wanted} does not"
    verb = "divides" if wanted is None else "divide"
    raise RunError(f"{told}: {odd} has {layers[str(odd)].in_features} columns, which {tried} {verb}")


def bits_of_layers(names: Iterable[str], bits: int, patterns: Mapping[str, int]) -> dict[str, int]:
    """Return the bits of each linear layer: those of the last pattern that fits its name, else ``bits``.

    Patterns are those of a shell over module names, as ``*.down_proj`` or ``model.layers.0.*``. Raises
    ``UsageError`` for a pattern that fits no layer and where layers that are run as one would differ.
    """
    found = dict.fromkeys(names, bits)
    for pattern, other in patterns.items():
        fitting = [name for name in found if fnmatchcase(name, pattern)]
        if not fitting:
            raise UsageError(f"layers: no linear layer is called {pattern!r}; one is {next(iter(found))}")
        found.update(dict.fromkeys(fitting, other))
    for together in _FUSED:
        by_layer: dict[int, set[int]] = {}
        for name, each in found.items():
            if name.rpartition(".")[2] in together:
                by_layer.setdefault(layer_number(name), set()).add(each)
        torn = next((number for number, each in by_layer.items() if len(each) > 1), None)
        if torn is not None:
            raise UsageError(
                f"layers: {', '.join(together)} of layer {torn} are run as one and must have the same bits"
            )
    if all(each == DENSE for each in found.values()):
        raise UsageError("layers: every layer is left as it is; nothing to quantise")
    return found


def config_groups(bits: Mapping[str, int], group: int, *, symmetric: bool) -> dict[str, dict[str, Any]]:
    """Return llmcompressor's configuration: one group of layers for each number of bits.

    Layers are named where they differ; where they do not, the group is that of all linear layers, and the
    head is left out by ``ignore``. Layers of 8 bits are symmetric: a zero point would gain next to nothing.
    """
    counts = sorted({*bits.values()})
    return {
        f"bits_{count}": {
            "targets": ["Linear"] if len(counts) == 1 else [name for name in bits if bits[name] == count],
            "weights": {
                "num_bits": count,
                "type": "int",
                "symmetric": symmetric or count == 8,
                "strategy": "group",
                "group_size": group,
            },
        }
        for count in counts
        if count != DENSE
    }


def packed_bytes(weights: int, bits: int, group: int, *, symmetric: bool) -> int:
    """Return the bytes of ``weights`` codes with the scales and zero points of their groups."""
    per_group = SCALE_BITS + (0 if symmetric else bits)
    return -(-(weights * bits + weights // group * per_group) // 8)
