"""The layers of a frozen Llama with LoRA adapters as one function, its backward pass written out.

Nothing is computed twice: for Llama-3.1-8B 141 kB a token and layer are kept for the backward pass, 37 GB for
8,192 tokens, which an accelerator of 80 GB has beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.training.attention import Rows, flash_backward, flash_forward, grouped_attention
from pipeline.training.fused.adapted import AdaptedProduct
from pipeline.training.fused.kernels import Kernels


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads of a model's attention, and the term in its norms."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float

    @property
    def queries(self) -> int:
        """Width of the queries."""
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """One decoder layer: four products and two norms."""

    qkv: AdaptedProduct
    out: AdaptedProduct
    gate_up: AdaptedProduct
    down: AdaptedProduct
    norm1: torch.Tensor
    norm2: torch.Tensor

    @property
    def products(self) -> tuple[AdaptedProduct, ...]:
        """The four products, in the order of the parameters."""
        return (self.qkv, self.out, self.gate_up, self.down)


@dataclass(frozen=True, slots=True)
class Stack:
    """All layers of a model."""

    layers: list[FusedLayer]
    shape: Shape
    kernels: Kernels

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Every adapter's A and B, layer after layer."""
        return [
            parameter
            for layer in self.layers
            for product in layer.products
            for parameter in product.parameters
        ]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tokens of a batch stand: cos and sin (T, d / 2) of their positions, and the rows' borders."""

    cos: torch.Tensor
    sin: torch.Tensor
    rows: Rows
    keep: bool = True
    """Whether a backward pass will follow, for which to keep what it needs."""


@dataclass(slots=True)
class _Kept:
    """What a layer's backward pass needs of its forward pass; narrow is x A', where it is not beside x."""

    h: torch.Tensor
    rstd1: torch.Tensor
    x_qkv: torch.Tensor
    qkv: torch.Tensor
    """(T, heads + 2 kv_heads, d), rotated."""
    attended: torch.Tensor
    """(T, heads, d)."""
    flash: tuple[torch.Tensor, ...]
    narrow_out: torch.Tensor
    h2: torch.Tensor
    rstd2: torch.Tensor
    x_gate_up: torch.Tensor
    gate_up: torch.Tensor
    x_down: torch.Tensor
    narrow_down: torch.Tensor


class StackFunction(torch.autograd.Function):
    """h (T, H) through all layers; gradients go to the adapters alone, weights and h are frozen."""

    @staticmethod
    def forward(ctx: Any, stack: Stack, h: torch.Tensor, place: Place, *parameters: torch.Tensor) -> Any:
        """Return the residual stream (T, H) after the last layer, before the final norm."""
        kept: list[_Kept] = []
        for layer in stack.layers:
            h, mine = _forward(stack, layer, h, place)
            if place.keep:
                kept.append(mine)
        ctx.stack, ctx.place, ctx.kept = stack, place, kept
        return h

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Return the gradients of the adapters."""
        stack: Stack = ctx.stack
        grads: list[list[torch.Tensor]] = []
        for number in range(len(stack.layers) - 1, -1, -1):
            layer = stack.layers[number]
            # Popped, so that a layer's tensors are free as soon as they are used.
            grad, mine = _backward(stack, layer, grad, ctx.kept.pop(), ctx.place, first=number == 0)
            grads.append(mine)
        return (None, None, None, *(one for mine in reversed(grads) for one in mine))


def _forward(stack: Stack, layer: FusedLayer, h: torch.Tensor, place: Place) -> tuple[torch.Tensor, _Kept]:
    shape, kernels, tokens = stack.shape, stack.kernels, len(h)
    width = h.shape[1]
    x_qkv = layer.qkv.room(tokens, width)
    rstd1 = kernels.rms_norm(h, layer.norm1, shape.eps, x_qkv[:, :width])
    raw = layer.qkv.forward(x_qkv).view(tokens, -1, shape.head_dim)
    qkv = torch.empty_like(raw)
    kernels.rotate(raw, place.cos, place.sin, shape.heads + shape.kv_heads, qkv)
    attended, flash = _attend(qkv, shape, place.rows)

    y, narrow_out = layer.out.forward_wide(attended.view(tokens, shape.queries))
    x_gate_up = layer.gate_up.room(tokens, width)
    h2, rstd2 = kernels.add_rms_norm(h, y, layer.norm2, shape.eps, x_gate_up[:, :width])
    gate_up = layer.gate_up.forward(x_gate_up)

    x_down = torch.empty_like(gate_up[:, : layer.down.inner], memory_format=torch.contiguous_format)
    kernels.swiglu(gate_up, x_down)
    y, narrow_down = layer.down.forward_wide(x_down)
    # The narrow parts are copied, or they would keep the products they lie in.
    return h2 + y, _Kept(
        h,
        rstd1,
        x_qkv,
        qkv,
        attended,
        flash,
        narrow_out.contiguous(),
        h2,
        rstd2,
        x_gate_up,
        gate_up,
        x_down,
        narrow_down.contiguous(),
    )


def _backward(
    stack: Stack, layer: FusedLayer, grad: torch.Tensor, kept: _Kept, place: Place, *, first: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the gradients of the layer's input, wide as the layer below wants it, and of its adapters."""
    shape, kernels, tokens, width = stack.shape, stack.kernels, len(grad), kept.h.shape[1]
    if grad.shape[1] != width + layer.down.rank:
        wide = layer.down.room(tokens, width)
        wide[:, :width] = grad
        grad = wide
    # Down projection and SwiGLU.
    inner = layer.down.backward(grad)
    down = layer.down.adapter_gradients(grad[:, :width], grad[:, width:], kept.x_down, kept.narrow_down)
    dy = torch.empty_like(kept.gate_up)
    kernels.swiglu_backward(kept.gate_up, inner, dy)
    del inner
    # Gate, up and the norm before them; the residual stream's gradient passes by.
    dx, narrow = layer.gate_up.backward_wide(dy)
    gate_up = layer.gate_up.adapter_gradients(
        dy, narrow, kept.x_gate_up[:, :width], kept.x_gate_up[:, width:]
    )
    dh = layer.out.room(tokens, width)
    kernels.rms_norm_backward(dx, kept.h2, kept.rstd2, layer.norm2, grad[:, :width], dh[:, :width])
    del dy, dx, narrow
    # Output projection and attention.
    upper = layer.out.backward(dh).view_as(kept.attended)
    attended = kept.attended.view(tokens, shape.queries)
    out = layer.out.adapter_gradients(dh[:, :width], dh[:, width:], attended, kept.narrow_out)
    states = _attend_backward(upper, kept, shape, place.rows)
    dy = layer.qkv.room(tokens, layer.qkv.outer)
    left = dy[:, : layer.qkv.outer].view(tokens, -1, shape.head_dim)
    start = 0
    for grads, turned in zip(states, (shape.heads, shape.kv_heads, 0), strict=True):
        end = start + grads.shape[1]
        kernels.rotate(grads, place.cos, place.sin, turned, left[:, start:end], -1.0)
        start = end
    # Queries, keys, values and the norm before them. Below the first layer nothing learns.
    below = layer.down.room(tokens, width)
    if first:
        layer.qkv.narrow_gradient(dy)
    else:
        dx = layer.qkv.backward(dy)
        kernels.rms_norm_backward(dx, kept.h, kept.rstd1, layer.norm1, dh[:, :width], below[:, :width])
    qkv = layer.qkv.adapter_gradients(
        dy[:, : layer.qkv.outer], dy[:, layer.qkv.outer :], kept.x_qkv[:, :width], kept.x_qkv[:, width:]
    )
    return below, [*qkv, *out, *gate_up, *down]


def _split(qkv: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    kv = shape.heads + shape.kv_heads
    return qkv[:, : shape.heads], qkv[:, shape.heads : kv], qkv[:, kv:]


def _attend(qkv: torch.Tensor, shape: Shape, rows: Rows) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    q, k, v = _split(qkv, shape)
    if qkv.is_cuda:
        out, lse, state, unused = flash_forward(q, k, v, rows, None)
        return out, (lse, state, unused)
    return grouped_attention(q, k, v, rows).contiguous(), ()


def _attend_backward(upper: torch.Tensor, kept: _Kept, shape: Shape, rows: Rows) -> tuple[torch.Tensor, ...]:
    q, k, v = _split(kept.qkv, shape)
    if upper.is_cuda:
        return flash_backward(upper, q, k, v, (kept.attended, *kept.flash), rows, None)
    with torch.enable_grad():
        q, k, v = (part.detach().requires_grad_() for part in (q, k, v))
        out = grouped_attention(q, k, v, rows)
    return torch.autograd.grad(out, (q, k, v), upper)
