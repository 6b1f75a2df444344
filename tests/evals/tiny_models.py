"""A model of 0.1 M parameters, trained for a moment: what the tests of backends run."""

from __future__ import annotations

import random
from pathlib import Path

from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.chat import ChatEncoder
from pipeline.training.data import Encoded, Example
from pipeline.training.loop import LoopConfig, Trainer
from pipeline.training.micro_model import BOS, CHAT_TEMPLATE, END, PAD, train_tokenizer
from pipeline.training.packing import StepSizes
from pipeline.training.sft_objective import SftObjective

WORDS = ("red", "green", "blue", "small", "large", "old", "new", "cold", "warm", "fast")
QUESTIONS = [f"Say {a} and {b}." for a in WORDS for b in WORDS]
CONTEXT = 64


class Silent:
    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        pass


def make_tiny(out: Path, scratch: Path) -> None:
    """Save a model that repeats two words, and stops, into ``out``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(iter(QUESTIONS * 2), 320),
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    encoder = ChatEncoder(tokenizer, frozenset({tokenizer.eos_token_id}), include_reasoning=False)
    rng = random.Random(0)
    rows: list[Encoded] = []
    for number, question in enumerate(QUESTIONS):
        words = question[4:-1].split(" and ")
        # Answers of several lengths, some of them near the limit that the tests set.
        answer = " ".join(words * rng.randint(1, 3))
        rows.append(encoder.encode(Example(str(number), "words", question, answer, None)))
    loop = LoopConfig(40, 1e-2, 4, 0.0, 1.0, 0, 40, None)
    sizes = StepSizes(1024, 1024)
    objective = SftObjective(AnswerLoss(model), rows, [], sizes, seed=0, device=torch.device("cpu"))
    Trainer(dict(model.named_parameters()), objective, loop, scratch=scratch).run(Silent())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
