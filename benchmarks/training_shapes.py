"""What the training benchmarks train: Llama shapes with random weights, rows of the plan's mix of lengths.

Speed does not depend on the values of weights and tokens, so neither a model nor a data set must be fetched.
"""

from __future__ import annotations

import random
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
