"""Llamas of random weights in any shape, made in a moment: for what needs no knowledge in the weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pipeline.training.micro_model import BOS, CHAT_TEMPLATE, END, PAD, train_tokenizer

TEXTS = [f"Say {first} and {second}, then {first * 3}." for first in "abcdefgh" for second in "stuvwxyz"]


@cache
def tiny_tokenizer() -> Any:
    """A byte-level BPE of 300 tokens with a chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(iter(TEXTS), 300), bos_token=BOS, eos_token=END, pad_token=PAD
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_llama(folder: Path, **shape: Any) -> Path:
    """Save a Llama of 2 layers, width 64 and tied embeddings, unless ``shape`` says otherwise."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from evals.backends.loading import quiet_transformers

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "initializer_range": 0.1,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **shape,
        }
    )
    with quiet_transformers():
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
