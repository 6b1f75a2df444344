"""One training from files to files: model and data in, trained weights, adapter and facts out.

Apart from the stage, so that the processes of a training on many devices can each run it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cogumi.errors import UsageError
from cogumi.stage import Progress
from evals.backends.loading import LoadedModel, load_model, quiet_transformers
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.chat import ChatEncoder
from pipeline.training.data import EncodedSet, encode_all, read_examples
from pipeline.training.loop import LoopConfig, LoopResult, Trainer
from pipeline.training.packing import StepSizes, epoch_steps
from pipeline.training.sft_objective import SftObjective
from pipeline.training.world import ALONE, World

if TYPE_CHECKING:
    from pipeline.training.sft import LoraSettings, SftSettings


@dataclass(frozen=True, slots=True)
class FitJob:
    """Where a training reads and writes."""

    model: Path
    model_digest: str
    data: Path
    out: Path
    scratch: Path
    seed: int


def fit(
    settings: SftSettings, job: FitJob, progress: Progress, world: World = ALONE
) -> tuple[dict[str, Any], dict[str, float]]:
    """Train and save into ``job.out``; return the facts of the result and what was measured on the way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frozen_half = settings.method == "lora" and settings.dtype == "bf16"
    loaded = load_model(job.model, dtype="bf16" if frozen_half else "fp32", device=str(device))
    encoder = ChatEncoder(loaded.tokenizer, loaded.stop_ids, include_reasoning=settings.include_reasoning)
    encoded = encode_all(
        read_examples(job.data),
        encoder,
        max_length=min(settings.max_length or loaded.context, loaded.context),
        held_out_share=settings.held_out_share,
    )
    model = with_adapters(loaded.model, settings.lora, job.seed) if settings.lora else loaded.model
    sizes = StepSizes(settings.batch_tokens, settings.micro_batch_tokens)
    objective = SftObjective(
        AnswerLoss(model, autocast=settings.dtype == "bf16" and not frozen_half),
        encoded.train,
        encoded.held_out,
        sizes,
        seed=job.seed,
        device=device,
        world=world,
    )
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    config = _loop_config(settings, job.seed, encoded, sizes)
    result = Trainer(trainable, objective, config, scratch=job.scratch, world=world).run(progress)
    count = sum(parameter.numel() for parameter in trainable.values())
    with quiet_transformers():
        _save(model, loaded.tokenizer, settings, job)
    facts = _facts(job.out, loaded, encoded, result) | {"trainable_parameters": count}
    metrics = {
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_here / result.seconds if result.tokens_here else 0.0,
    }
    return facts, metrics


def _loop_config(settings: SftSettings, seed: int, encoded: EncodedSet, sizes: StepSizes) -> LoopConfig:
    steps = settings.steps
    if steps is None:
        per_epoch = len(epoch_steps(encoded.train, sizes, seed=seed, epoch=0))
        steps = max(1, round(per_epoch * (settings.epochs or 0)))
    return LoopConfig(
        steps=steps,
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        seed=seed,
        eval_every=settings.eval_every,
        early_stop=settings.early_stop,
    )


def with_adapters(model: Any, lora: LoraSettings, seed: int) -> Any:
    """Return the model with fresh LoRA adapters, its own weights frozen.

    Raises ``UsageError`` where an adapter would also change the other of two tied matrices.
    """
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


def _save(model: Any, tokenizer: Any, settings: SftSettings, job: FitJob) -> None:
    from evals.backends.tokenization import save_tokenizer

    if settings.lora:
        _save_adapter(model, job)
        model = model.merge_and_unload()
    if settings.dtype == "bf16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(job.out)
    save_tokenizer(tokenizer, job.out)


def _save_adapter(model: Any, job: FitJob) -> None:
    """Save the adapter apart, naming its base by digest and not by a path of this machine."""
    from evals.backends.adapters import write_sidecar

    folder = job.out / "adapter"
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = job.model_digest
    # peft writes a set here, in an order that changes from process to process.
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_sidecar(folder, base=job.model_digest, base_folder=job.model)


def _facts(out: Path, loaded: LoadedModel, encoded: EncodedSet, result: LoopResult) -> dict[str, Any]:
    from evals.backends.tokenization import tokenizer_digest

    state = result.state
    return {
        "parameters": loaded.parameters,
        "steps": state.step,
        "stopped_early": state.stopped_early,
        "rows": len(encoded.train),
        "held_out_rows": len(encoded.held_out),
        "too_long_rows": encoded.too_long_rows,
        "tokens_seen": state.tokens,
        "supervised_share": round(state.supervised / state.tokens, 6),
        "padding_share": round(state.padding / (state.tokens + state.padding), 6),
        "first_train_loss": round(state.first_loss, 6),
        "last_train_loss": state.looks[-1]["train_loss"],
        "looks": state.looks,
        "tokenizer_digest": tokenizer_digest(out / "tokenizer.json"),
        "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
    }
