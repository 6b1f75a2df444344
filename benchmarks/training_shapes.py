"""What the training benchmarks train: Llama shapes with random weights, rows of the plan's mix of lengths.

Speed does not depend on the values of weights and tokens, so neither a model nor a data set must be fetched.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.training.data import Encoded

SHAPES: dict[str, dict[str, int]] = {
    # config.json of meta-llama/Llama-3.1-8B-Instruct and Llama-3.2-1B-Instruct.
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    # config.json of HuggingFaceTB/SmolLM2-135M-Instruct.
    "smollm2": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "micro": {
        "vocab_size": 768,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def random_llama(shape: str, device: torch.device, *, seed: int = 0) -> Any:
    """Return a Llama of a shape with random weights: bf16 on an accelerator, else float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tied = {"tie_word_embeddings": shape != "8b", "max_position_embeddings": 4096, "rope_theta": 500000.0}
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            return LlamaForCausalLM(LlamaConfig(**SHAPES[shape], **tied))
    finally:
        torch.set_default_dtype(before)


def with_lora(model: Any, rank: int = 64) -> Any:
    """Return the model with the plan's adapters (1.6): rank 64 on all linear layers."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows padded on the right to the longest, as a collator makes them: each (rows, width)."""

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    """-100 but for answer tokens."""


def padded(rows: Sequence[Encoded], device: torch.device) -> PaddedBatch:
    """Return rows as plain transformers trains them."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        length = len(row.ids)
        ids[index, :length] = torch.tensor(row.ids)
        mask[index, :length] = 1
        labels[index, row.answer_start : length] = ids[index, row.answer_start : length]
    return PaddedBatch(ids.to(device), mask.to(device), labels.to(device))


def plan_rows(count: int, vocabulary: int, *, longest: int = 2048, seed: int = 0) -> list[Encoded]:
    """Return rows of random tokens with the plan's mix: 40 % easy, 60 % hard.

    Lengths with the template's 40 tokens around them: easy questions of about 60 tokens with answers of
    about 30, hard ones of about 80 with answers of 500 to 900 (plan 1.4 counts 750).
    """
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        if draw.random() < 0.4:
            question, answer = draw.lognormvariate(4.1, 0.4), draw.lognormvariate(3.4, 0.6)
        else:
            question, answer = draw.lognormvariate(4.4, 0.4), draw.lognormvariate(6.5, 0.35)
        start = 40 + int(question)
        length = min(longest, start + 1 + int(answer))
        rows.append(Encoded(tuple(draw.randrange(vocabulary) for _ in range(length)), min(start, length - 1)))
    return rows
