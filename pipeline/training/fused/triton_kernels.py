"""The two passes of ``kernels`` that torch.compile cuts into several: rotation, and SwiGLU's backward pass.

Written in Triton (Tillet et al. 2019): each reads and writes every element once. Imported on accelerators
only.
"""

# Triton reads the annotations of its kernels itself, and knows none but constexpr.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_kernel(
    x,
    cos,
    sin,
    out,
    x_stride,
    out_stride,
    heads,
    turned,
    sign,
    half: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * block + tl.arange(0, block)
    head, column = index // half, index % half
    inside = head < heads
    turns = head < turned
    first = head * (2 * half) + column
    a = tl.load(x + row * x_stride + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + row * x_stride + first + half, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + row * half + column, mask=turns, other=1.0)
    s = tl.load(sin + row * half + column, mask=turns, other=0.0) * sign
    tl.store(out + row * out_stride + first, a * c - b * s, mask=inside)
    tl.store(out + row * out_stride + first + half, b * c + a * s, mask=inside)


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: int, out: torch.Tensor, sign: float = 1.0
) -> None:
    """``kernels.rotate``: x and out (T, heads, d), dense within a token."""
    tokens, heads, dim = x.shape
    half = dim // 2
    grid = (tokens, triton.cdiv(heads * half, _BLOCK))
    _rotate_kernel[grid](
        x, cos, sin, out, x.stride(0), out.stride(0), heads, turned, sign, half=half, block=_BLOCK
    )


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_backward_kernel(
    gate_up,
    grad,
    out,
    width,
    gate_up_stride,
    grad_stride,
    out_stride,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    gate = tl.load(gate_up + row * gate_up_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * gate_up_stride + width + column, mask=inside, other=0.0).to(tl.float32)
    upper = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    active = gate * sigmoid
    tl.store(out + row * out_stride + column, upper * up * (sigmoid + active * (1.0 - sigmoid)), mask=inside)
    tl.store(out + row * out_stride + width + column, upper * active, mask=inside)


def swiglu_backward(gate_up: torch.Tensor, grad: torch.Tensor, out: torch.Tensor) -> None:
    """``kernels.swiglu_backward``: gate_up and out (T, 2 I), grad (T, I)."""
    tokens, width = grad.shape
    grid = (tokens, triton.cdiv(width, _BLOCK))
    _swiglu_backward_kernel[grid](
        gate_up, grad, out, width, gate_up.stride(0), grad.stride(0), out.stride(0), block=_BLOCK
    )
