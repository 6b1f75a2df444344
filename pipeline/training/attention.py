"""Attention over packed rows: every row sees itself alone, and nothing is spent on the other rows.

Registered with transformers as ``cogumi_packed``, so that any of its models whose attention goes through the
common interface can train on packed batches. On a GPU in half precision FlashAttention's variable-length
kernel (Dao 2023, arXiv 2307.08691) takes the row borders; elsewhere rows of like length are padded together
for the attention product alone, which keeps every derivative (MAML needs the second).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from pipeline.training.packing import sent

PACKED = "cogumi_packed"

# Rows go into one product while padding them to the longest costs at most this many times their own cells.
_WASTE = 1.3
_LEAST = 64
"""Rows shorter than this always share a product: there a call costs more than its arithmetic."""


class Rows:
    """Borders of the rows of a packed batch of T tokens, in the forms that kernels want."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = tuple(lengths)
        self.device = device

    @cached_property
    def starts(self) -> torch.Tensor:
        """(rows + 1,) int32: where each row starts, and T."""
        ends = torch.tensor([0, *self.lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return sent(ends, self.device)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)

    @cached_property
    def groups(self) -> list[Group]:
        """Rows of like length, to be padded together."""
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        order = sorted(range(len(self.lengths)), key=lambda row: -self.lengths[row])
        groups: list[list[int]] = []
        for row in order:
            if groups and self.lengths[groups[-1][0]] <= max(_LEAST, _WASTE * self.lengths[row]):
                groups[-1].append(row)
            else:
                groups.append([row])
        return [self._group(members, starts) for members in groups]

    def _group(self, members: Sequence[int], starts: Sequence[int]) -> Group:
        width = self.lengths[members[0]]
        take = torch.zeros(len(members), width, dtype=torch.int64)
        real = torch.zeros(len(members), width, dtype=torch.bool)
        for index, row in enumerate(members):
            length = self.lengths[row]
            take[index, :length] = torch.arange(starts[row], starts[row] + length)
            # Behind its end a row repeats its last token: causal attention never looks there.
            take[index, length:] = starts[row] + length - 1
            real[index, :length] = True
        where = real.flatten().nonzero().flatten()
        return Group(
            take.flatten().to(self.device),
            where.to(self.device),
            take.flatten()[where].to(self.device),
            (len(members), width),
        )


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are padded to one width for an attention product."""

    take: torch.Tensor
    """(n * width,): tokens of the batch, padding included."""
    real: torch.Tensor
    """Which of them are no padding."""
    back: torch.Tensor
    """Where those stand in the batch."""
    shape: tuple[int, int]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within the given ``rows``: q (1, heads, T, d), k, v (1, kv_heads, T, d) -> (1, T, heads, d).

    The interface of transformers' attention functions; ``attention_mask`` is not used, the rows replace it.
    """
    rows: Rows = kwargs["rows"]
    scaling: float | None = kwargs.get("scaling")
    # (T, heads, d), as both roads want it.
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        out = FlashRows.apply(  # type: ignore[no-untyped-call]
            q.contiguous(), k.contiguous(), v.contiguous(), rows, scaling
        )
    else:
        out = grouped_attention(q, k, v, rows, scaling)
    return out.unsqueeze(0), None


def grouped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: Rows, scaling: float | None = None
) -> torch.Tensor:
    """Causal attention within each row: q (T, heads, d), k and v (T, kv_heads, d) -> (T, heads, d)."""
    parts, places = [], []
    for group in rows.groups:
        asked, keys, values = (
            states.index_select(0, group.take).view(*group.shape, *states.shape[1:]).transpose(1, 2)
            for states in (q, k, v)
        )
        seen = scaled_dot_product_attention(
            asked, keys, values, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        parts.append(seen.transpose(1, 2).flatten(0, 1).index_select(0, group.real))
        places.append(group.back)
    if len(parts) == 1 and len(rows.lengths) == 1:
        return parts[0]
    # Each place comes once, so gathering by the inverse order is exact and deterministic.
    order = torch.argsort(torch.cat(places))
    return torch.cat(parts).index_select(0, order)


class FlashRows(torch.autograd.Function):
    """FlashAttention's variable-length kernel as torch ships it; bf16 or fp16 on a GPU, first derivatives."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: Rows, scaling: float | None
    ) -> torch.Tensor:
        """Attend within rows: q (T, heads, d), k and v (T, kv_heads, d) -> (T, heads, d)."""
        out, lse, state, unused = flash_forward(q, k, v, rows, scaling)
        ctx.save_for_backward(q, k, v, out, lse, state, unused)
        ctx.rows, ctx.scaling = rows, scaling
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of q, k and v."""
        q, k, v, *kept = ctx.saved_tensors
        return (*flash_backward(grad, q, k, v, kept, ctx.rows, ctx.scaling), None, None)


def flash_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: Rows, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (out, log-sum-exp, random state, unused) of the kernel; no gradient is recorded."""
    found = torch.ops.aten._flash_attention_forward(
        q, k, v, rows.starts, rows.starts, rows.longest, rows.longest, 0.0, True, False, scale=scaling
    )
    return found[0], found[1], found[2], found[3]


def flash_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: Sequence[torch.Tensor],
    rows: Rows,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of q, k and v from what ``flash_forward`` returned."""
    out, lse, state, unused = kept
    found = torch.ops.aten._flash_attention_backward(
        grad.contiguous(),
        q,
        k,
        v,
        out,
        lse,
        rows.starts,
        rows.starts,
        rows.longest,
        rows.longest,
        0.0,
        True,
        state,
        unused,
        scale=scaling,
    )
    return found[0], found[1], found[2]


def register() -> None:
    """Make ``cogumi_packed`` known to transformers; again is harmless."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Stand in for the mask that the rows replace."""
