"""How many floating-point operations a training token takes, and how many an accelerator could do at best."""

from __future__ import annotations

import re
from typing import Any

_GATED = frozenset({"gemma", "llama", "mistral", "qwen2", "qwen3", "smollm3"})
"""Model types of the Llama shape: four attention projections and a gated feed-forward of three matrices."""

# FLOPs for a weight and a token: 2 in the forward pass, 2 for the gradient of the layer's input, 2 for the
# gradient of the weight itself.
_FORWARD, _FROZEN, _TRAINED = 2, 4, 6

# Dense peaks of the tensor cores in bf16, accumulated in float32, by the name that the driver tells. NVIDIA
# prints most of them with 2:4 sparsity, which is twice as much. The names are matched whole: a laptop's part
# and a MIG slice have other peaks.
_PEAKS: tuple[tuple[str, float, str], ...] = (
    (r"B200", 2250e12, "NVIDIA Blackwell datasheet: 4.5 PFLOPS sparse"),
    (r"H200|GH200( \w+)?", 989.4e12, "NVIDIA H200 datasheet: 1,979 TFLOPS sparse"),
    (r"H200 NVL|H100 NVL", 835.5e12, "NVIDIA H200 and H100 NVL datasheets: 1,671 TFLOPS sparse"),
    (r"H100( SXM5?)?( 80 ?GB)?( HBM3)?|H800", 989.4e12, "NVIDIA H100 datasheet, SXM: 1,979 TFLOPS sparse"),
    (r"H100 (80GB )?PCIe", 756.4e12, "NVIDIA H100 datasheet, PCIe: 1,513 TFLOPS sparse"),
    (r"A100([- ](SXM4?|PCIe))?([- ][48]0 ?GB)?( PCIe)?", 312e12, "NVIDIA A100 datasheet"),
    (r"A10", 125e12, "NVIDIA A10 datasheet"),
    (r"A30", 165e12, "NVIDIA A30 datasheet"),
    (r"A40", 149.7e12, "NVIDIA A40 datasheet"),
    (r"RTX A6000", 154.8e12, "NVIDIA Ampere GA102 whitepaper"),
    (r"L4", 121e12, "NVIDIA L4 datasheet: 242 TFLOPS sparse"),
    (r"L40", 181e12, "NVIDIA L40 datasheet: 362 TFLOPS sparse"),
    (r"L40S", 362e12, "NVIDIA L40S datasheet: 733 TFLOPS sparse"),
    (r"GeForce RTX 4090|RTX 4090", 165.2e12, "NVIDIA Ada whitepaper, appendix A: FP32 accumulate"),
    (r"GeForce RTX 3090|RTX 3090", 71e12, "NVIDIA Ampere GA102 whitepaper, appendix A: FP32 accumulate"),
    # Neither knows bf16; fp16 is what their tensor cores can do.
    (r"V100[- ]SXM[23][- ](16|32)GB|V100", 125e12, "NVIDIA V100 datasheet, fp16"),
    (r"T4", 65e12, "NVIDIA T4 datasheet, fp16"),
)


def linear_parameters(config: Any) -> int | None:
    """Count the weights of the linear layers between embedding and head, from a model's config alone.

    None for a model type whose layers are not known here.
    """
    if getattr(config, "model_type", None) not in _GATED:
        return None
    hidden = int(config.hidden_size)
    width = _head_width(config)
    queries = width * int(config.num_attention_heads)
    keys = width * int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    attention = hidden * (2 * queries + 2 * keys)
    return int(config.num_hidden_layers) * (attention + 3 * hidden * int(config.intermediate_size))


def flops_per_token(
    config: Any, trainable: int | None, *, supervised_share: float, row_tokens: float
) -> float | None:
    """Return the model FLOPs of one training token, forward and backward, without any recomputation.

    ``trainable`` is the number of weights in LoRA adapters on a frozen base, or None where every weight is
    trained. A matrix product costs 2 FLOPs for a weight and a token forward, 2 for its input's gradient and 2
    for its weight's: 6 N in full training (Chowdhery et al. 2022, PaLM, arXiv 2204.02311, app. B). A frozen
    weight has no gradient of its own, so LoRA (Hu et al. 2021, arXiv 2106.09685) takes 4 N for the base and 6
    for its adapters. The head counts for ``supervised_share`` of the tokens, whose logits the loss needs.
    Attention adds 12 x layers x heads x width x ``row_tokens`` (PaLM: 12 LHQT; squares, causal or not);
    ``row_tokens`` is the length of a token's own row in the mean over tokens, sum(n^2) / sum(n) over the row
    lengths n. Embedding look-ups, norms and activations are not counted.

    None for a model type whose layers are not known here.
    """
    linear = linear_parameters(config)
    if linear is None:
        return None
    attention = 12 * _attention_width(config) * row_tokens
    head = int(config.hidden_size) * int(config.vocab_size) * supervised_share
    if trainable is None:
        return _TRAINED * (linear + head) + attention
    return _FROZEN * (linear + head) + _TRAINED * trainable + attention


def forward_flops_per_token(config: Any, *, supervised_share: float, row_tokens: float) -> float | None:
    """Return the FLOPs of a token that only goes forward, as through the teacher of a distillation.

    Counted as ``flops_per_token`` counts. None for a model type whose layers are not known here.
    """
    linear = linear_parameters(config)
    if linear is None:
        return None
    head = int(config.hidden_size) * int(config.vocab_size) * supervised_share
    return _FORWARD * (linear + head) + 4 * _attention_width(config) * row_tokens


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _attention_width(config: Any) -> int:
    return int(config.num_hidden_layers) * int(config.num_attention_heads) * _head_width(config)


def peak_flops(device: Any) -> float | None:
    """Return the dense bf16 peak of a torch device in FLOP/s; None for a CPU or a GPU not listed."""
    if getattr(device, "type", str(device).partition(":")[0]) != "cuda":
        return None
    import torch

    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Return the dense bf16 peak in FLOP/s of an accelerator by its name; None for one that is not listed."""
    bare = re.sub(r"^(NVIDIA|Tesla)\s+", "", re.sub(r"^NVIDIA\s+", "", name.strip()))
    for pattern, peak, _ in _PEAKS:
        if re.fullmatch(pattern, bare, re.IGNORECASE):
            return peak
    return None
