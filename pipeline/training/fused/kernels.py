"""The elementwise work of a Llama layer, forward and backward, each as one pass over its tensors.

Plain torch, so that a CPU in float64 can check it; on an accelerator each is one kernel.
Results go into ``out``, which may be a part of a wider matrix. Arithmetic is in float32 or better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import silu

from pipeline.training.answer_loss import softmax_loss


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def rms_norm(h: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> torch.Tensor:
    """Write the RMS norm of h (T, H) into ``out``; return 1 / RMS (T, 1). arXiv 1910.07467."""
    x = _wide(h)
    rstd = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    out.copy_(weight * (x * rstd).to(h.dtype))
    return rstd


def add_rms_norm(
    h: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add y to the residual stream h and write the sum's RMS norm into ``out``; return (sum, 1 / RMS)."""
    total = h + y
    return total, rms_norm(total, weight, eps, out)


def rms_norm_backward(
    grad: torch.Tensor,
    h: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write residual + d loss / d h into ``out``, from the gradient of the norm of h."""
    normed = _wide(h) * rstd
    scaled = _wide(grad) * _wide(weight)
    inner = (scaled * normed).mean(-1, keepdim=True)
    out.copy_(_wide(residual) + rstd * (scaled - normed * inner))


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: int, out: torch.Tensor, sign: float = 1.0
) -> None:
    """Write x (T, heads, d) into ``out``, the first ``turned`` heads rotated by position.

    RoPE (arXiv 2104.09864); cos and sin are (T, d / 2); ``sign`` -1 turns back, which is the backward pass.
    """
    half = x.shape[-1] // 2
    c, s = cos.unsqueeze(1), sin.unsqueeze(1) * sign
    first, second = _wide(x[:, :turned, :half]), _wide(x[:, :turned, half:])
    out[:, :turned, :half] = (first * c - second * s).to(x.dtype)
    out[:, :turned, half:] = (second * c + first * s).to(x.dtype)
    out[:, turned:] = x[:, turned:]


def swiglu(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """Write silu(gate) * up into ``out`` (T, I), of gate and up side by side (T, 2 I): arXiv 2002.05202."""
    gate, up = gate_up.chunk(2, dim=-1)
    out.copy_(silu(_wide(gate)) * _wide(up))


def swiglu_backward(gate_up: torch.Tensor, grad: torch.Tensor, out: torch.Tensor) -> None:
    """Write the gradients of gate and up side by side into ``out`` (T, 2 I), from that of silu(gate) * up."""
    gate, up = (_wide(part) for part in gate_up.chunk(2, dim=-1))
    upper = _wide(grad)
    sigmoid = torch.sigmoid(gate)
    active = gate * sigmoid
    width = gate.shape[-1]
    out[:, :width] = (upper * up * (sigmoid + active * (1 - sigmoid))).to(out.dtype)
    out[:, width:] = (upper * active).to(out.dtype)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The functions above, as they are or compiled."""

    rms_norm: Callable[..., Any] = rms_norm
    add_rms_norm: Callable[..., Any] = add_rms_norm
    rms_norm_backward: Callable[..., Any] = rms_norm_backward
    rotate: Callable[..., Any] = rotate
    swiglu: Callable[..., Any] = swiglu
    swiglu_backward: Callable[..., Any] = swiglu_backward
    softmax_loss: Callable[..., Any] = softmax_loss


PLAIN = Kernels()


def compiled() -> Kernels:
    """Return each as one kernel for an accelerator; the first call of each takes seconds."""
    from pipeline.training.fused import triton_kernels

    # The trainer's bins have one length, which stays a constant of the kernel; where a second one is seen,
    # None makes it dynamic. False would compile each length anew, and give up at the ninth.
    def one(work: Callable[..., Any], *, dynamic: bool | None = None) -> Callable[..., Any]:
        return torch.compile(work, dynamic=dynamic, fullgraph=True)

    return Kernels(
        rms_norm=one(rms_norm),
        add_rms_norm=one(add_rms_norm),
        rms_norm_backward=one(rms_norm_backward),
        rotate=triton_kernels.rotate,
        swiglu=one(swiglu),
        swiglu_backward=triton_kernels.swiglu_backward,
        # The last chunk of a batch has a length of its own.
        softmax_loss=one(softmax_loss, dynamic=True),
    )
