"""Stage ``models.micro``: a Llama-shaped model of about 1 M parameters, made on the spot, not yet trained.

The tokenizer is byte-level BPE trained on the data's own text (GPT-2's pre-tokeniser), or that of another
model, so that a draft shares its base's vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from cogumi.errors import RunError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from pipeline.training.data import read_examples, training_file

BOS, USER, ASSISTANT, END, PAD = "<|begin_of_text|>", "<|user|>", "<|assistant|>", "<|eot_id|>", "<|pad|>"

# As short as a chat can be: every special token costs a tenth of a 30-token example.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|eot_id|>' }}"
    "{% else %}{{ raise_exception('only user and assistant turns') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class MicroModelSettings(Settings):
    """Shape of the model; sizes that are multiples of 256 take K-quants without fallback."""

    hidden_size: int = Field(default=256, gt=0)
    layers: int = Field(default=3, gt=0)
    heads: int = Field(default=4, gt=0)
    kv_heads: int = Field(default=2, gt=0)
    intermediate_size: int = Field(default=256, gt=0)
    vocab_size: int = Field(default=768, ge=300)
    """At least the 256 bytes, the 5 special tokens and some merges; not used with ``tokenizer_from``."""
    context: int = Field(default=256, gt=0)
    """Longest sequence in tokens."""
    initializer_range: float = Field(default=0.06, gt=0)
    """Standard deviation of the first weights; about 1/sqrt(hidden_size).

    With the usual 0.02 attention starts so flat at this width that copying is learned late: held-out loss
    0.75 against 0.18 after the same 500 steps (of like lengths, 1,024 tokens each).
    """
    seed_offset: int = 0
    """Added to the run's seed, so that two models of one run start apart."""

    @model_validator(mode="after")
    def _divisible(self) -> MicroModelSettings:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError("hidden_size must be an even multiple of heads")
        if self.heads % self.kv_heads:
            raise ValueError("heads must be a multiple of kv_heads")
        return self


def run(settings: MicroModelSettings, ctx: StageContext) -> StageResult:
    """Train or copy the tokenizer, initialise the weights from the seed, save a safetensors folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from evals.backends.loading import quiet_transformers
    from evals.backends.tokenization import save_tokenizer, tokenizer_digest

    ctx.progress.update(0, 2)
    tokenizer = _tokenizer(settings, ctx)
    ctx.progress.update(1, 2)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=settings.context,
        initializer_range=settings.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(ctx.seed + settings.seed_offset)
        model = LlamaForCausalLM(config)
        model.save_pretrained(ctx.out)
        save_tokenizer(tokenizer, ctx.out)
    ctx.progress.update(2, 2)
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": len(tokenizer),
        "context": settings.context,
        "tokenizer_digest": tokenizer_digest(ctx.out / "tokenizer.json"),
        "bytes": sum(file.stat().st_size for file in ctx.out.rglob("*") if file.is_file()),
    }
    return StageResult("model", facts)


def _tokenizer(settings: MicroModelSettings, ctx: StageContext) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if "tokenizer_from" in ctx.inputs:
        source = ctx.inputs["tokenizer_from"]
        if "tokenizer.json" not in source.manifest["files"]:
            raise RunError(f"artifact {source.short}: no tokenizer.json to share")
        return AutoTokenizer.from_pretrained(source.path)
    trained = train_tokenizer(_texts(training_file(ctx.inputs["data"])), settings.vocab_size)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        model_max_length=settings.context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Any:
    """Train byte-level BPE with GPT-2's pre-tokeniser; any text can be encoded, none is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from evals.backends.tokenization import pre_tokenizer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer("gpt-2")
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, USER, ASSISTANT, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _texts(path: Path) -> Iterator[str]:
    for example in read_examples(path):
        yield example.question
        yield example.answer
        if example.reasoning is not None:
            yield example.reasoning


MICRO_MODEL = Stage(
    name="models.micro",
    version=1,
    title="Make a model of about 1 M parameters",
    settings=MicroModelSettings,
    run=run,
    inputs=("data",),
    optional_inputs=("tokenizer_from",),
)
