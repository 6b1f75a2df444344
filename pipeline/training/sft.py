"""Stage ``training.sft``: supervised fine-tuning on the merged data, in full or by LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cogumi.errors import UsageError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from pipeline.training.data import (
    ChatEncoder,
    EncodedSet,
    StepSizes,
    encode_all,
    epoch_steps,
    read_examples,
    training_file,
)

if TYPE_CHECKING:
    from evals.backends.loading import LoadedModel
    from pipeline.training.loop import LoopConfig, LoopResult


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685); rank 64 is the plan's (1.6)."""

    rank: int = Field(default=64, gt=0)
    alpha: float = Field(default=128, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class SftSettings(Settings):
    """How hard to train; exactly one of ``steps`` and ``epochs`` is set."""

    method: Literal["full", "lora"] = "full"
    lora: LoraSettings | None = None
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    batch_tokens: int = Field(default=1536, gt=0)
    """Tokens of one optimizer step, padding not counted."""
    micro_batch_tokens: int = Field(default=512, gt=0)
    """Tokens, with padding, that go through the model at once: bounds the memory, not the result."""
    max_length: int | None = Field(default=None, gt=1)
    """Longest row in tokens; default: the model's context."""
    learning_rate: float = Field(gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps with a rising rate; after it half a cosine down to zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    seed_offset: int = 0
    dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16: full training keeps float32 weights under autocast; LoRA freezes a bf16 base."""
    include_reasoning: bool = False
    """Train on ``<thinking>…</thinking><answer>…</answer>`` where a row has reasoning."""
    held_out_share: float = Field(default=0.02, ge=0, lt=0.5)
    eval_every: int = Field(default=100, gt=0)
    """Steps between two looks at the held-out loss; each look is a checkpoint."""
    early_stop: int | None = Field(default=None, gt=0)
    """Looks without improvement before training stops; the best look's weights are then kept."""

    @model_validator(mode="after")
    def _consistent(self) -> SftSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set exactly one of steps and epochs")
        if (self.method == "lora") != (self.lora is not None):
            raise ValueError("the block 'lora' goes with method: lora, and only with it")
        if self.early_stop is not None and self.held_out_share == 0:
            raise ValueError("early_stop needs a held_out_share above 0")
        return self


def run(settings: SftSettings, ctx: StageContext) -> StageResult:
    """Train the model of input ``model`` on input ``data``; the output is a dense safetensors folder."""
    import torch

    from evals.backends.loading import load_model, quiet_transformers
    from pipeline.training.loop import Trainer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    frozen_half = settings.method == "lora" and settings.dtype == "bf16"
    loaded = load_model(ctx.inputs["model"].path, dtype="bf16" if frozen_half else "fp32", device=device)
    encoder = ChatEncoder(loaded.tokenizer, loaded.stop_ids, include_reasoning=settings.include_reasoning)
    encoded = encode_all(
        read_examples(training_file(ctx.inputs["data"])),
        encoder,
        max_length=min(settings.max_length or loaded.context, loaded.context),
        held_out_share=settings.held_out_share,
    )
    config = _loop_config(settings, ctx.seed + settings.seed_offset, encoded)
    model = _with_adapters(loaded.model, settings.lora, config.seed) if settings.lora else loaded.model
    pad = loaded.tokenizer.pad_token_id
    trainer = Trainer(
        model, config, scratch=ctx.scratch, pad_id=min(loaded.stop_ids, default=0) if pad is None else pad
    )
    result = trainer.run(encoded.train, encoded.held_out, ctx.progress)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with quiet_transformers():
        _save(model, loaded.tokenizer, settings, ctx)
    facts = _facts(ctx.out, loaded, encoded, result) | {"trainable_parameters": trainable}
    metrics = {
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_here / result.seconds if result.tokens_here else 0.0,
        "peak_bytes": float(result.peak_bytes),
    }
    return StageResult("model", facts, metrics)


def _loop_config(settings: SftSettings, seed: int, encoded: EncodedSet) -> LoopConfig:
    from pipeline.training.loop import LoopConfig

    sizes = StepSizes(settings.batch_tokens, settings.micro_batch_tokens)
    steps = settings.steps
    if steps is None:
        per_epoch = len(epoch_steps(encoded.train, sizes, seed=seed, epoch=0))
        steps = max(1, round(per_epoch * (settings.epochs or 0)))
    return LoopConfig(
        steps=steps,
        sizes=sizes,
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        seed=seed,
        eval_every=settings.eval_every,
        early_stop=settings.early_stop,
        autocast=settings.dtype == "bf16",
    )


def _with_adapters(model: Any, lora: LoraSettings, seed: int) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    shared = {"embed_tokens", "lm_head"} & set(targets) if isinstance(targets, list) else set()
    if shared and getattr(model.config, "tie_word_embeddings", False):
        # Merged into the one, the adapter would also change the other: not the model that was trained.
        raise UsageError(f"lora.targets: {shared.pop()} shares its weights in this model; name other layers")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def _save(model: Any, tokenizer: Any, settings: SftSettings, ctx: StageContext) -> None:
    import torch

    from evals.backends.tokenization import save_tokenizer

    if settings.lora:
        _save_adapter(model, ctx)
        model = model.merge_and_unload()
    if settings.dtype == "bf16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(ctx.out)
    save_tokenizer(tokenizer, ctx.out)


def _save_adapter(model: Any, ctx: StageContext) -> None:
    """Save the adapter apart, naming its base by digest and not by a path of this machine."""
    from evals.backends.adapters import write_sidecar

    base = ctx.inputs["model"]
    folder = ctx.out / "adapter"
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base.digest
    # peft writes a set here, in an order that changes from process to process.
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_sidecar(folder, base=base.digest, base_folder=base.path)


def _facts(out: Path, loaded: LoadedModel, encoded: EncodedSet, result: LoopResult) -> dict[str, Any]:
    from evals.backends.tokenization import tokenizer_digest

    state = result.state
    return {
        "parameters": loaded.parameters,
        "steps": state.step,
        "stopped_early": state.stopped_early,
        "rows": len(encoded.train),
        "held_out_rows": len(encoded.held_out),
        "truncated_rows": encoded.truncated_rows,
        "dropped_rows": encoded.dropped_rows,
        "tokens_seen": state.tokens,
        "supervised_share": round(state.supervised / state.tokens, 6),
        "padding_share": round(state.padding / (state.tokens + state.padding), 6),
        "first_train_loss": round(state.first_loss, 6),
        "last_train_loss": state.looks[-1]["train_loss"],
        "looks": state.looks,
        "tokenizer_digest": tokenizer_digest(out / "tokenizer.json"),
        "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
    }


SFT = Stage(
    name="training.sft",
    version=1,
    title="Train on the teachers' answers",
    settings=SftSettings,
    run=run,
    inputs=("model", "data"),
)
