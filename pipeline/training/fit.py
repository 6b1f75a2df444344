"""One training from files to files: model and data in, trained weights, adapter and facts out.

Apart from the stage, so that the processes of a training on many devices can each run it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cogumi.devices import compute_device
from cogumi.errors import RunError, UsageError
from cogumi.stage import Progress
from evals.backends.loading import DType, LoadedModel, load_model, quiet_transformers
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.chat import ChatEncoder, check_vocabulary
from pipeline.training.data import EncodedSet, Example, encode_all, is_held_out, read_examples
from pipeline.training.distill import check_same_tokenizer
from pipeline.training.distill_loss import DistillLoss
from pipeline.training.equal_compute import steps_for
from pipeline.training.fused.kernels import PLAIN, compiled
from pipeline.training.fused.loss import FusedAnswerLoss, why_not_fused
from pipeline.training.loop import LoopConfig, LoopState, Trainer
from pipeline.training.meta_objective import MetaObjective
from pipeline.training.meta_tasks import trained_cells, without_held_out
from pipeline.training.meters import Meter, flops_per_token
from pipeline.training.objective import Objective
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
    model_facts: dict[str, Any] = field(default_factory=dict)
    """What the model's manifest says of it."""
    teacher: Path | None = None
    tokens: int | None = None
    """How many tokens to see, where that decides the number of steps."""
    start: Path | None = None
    """Folder of the adapter that LoRA starts from; default: a fresh one."""
    held_out: Path | None = None
    """Further rows, of which those that are held out are looked at and none is trained on."""
    merged: bool = True
    """Whether LoRA also writes the merged model; else its adapter and the tokenizer alone."""


def fit(
    settings: SftSettings, job: FitJob, progress: Progress, world: World = ALONE
) -> tuple[dict[str, Any], dict[str, float]]:
    """Train and save into ``job.out``; return the facts of the result and what was measured on the way.

    Raises ``RunError`` when data, model or memory do not suffice, with what to change.
    """
    if job.teacher is not None:
        check_same_tokenizer(job.model, job.teacher)
    device = torch.device(compute_device())
    try:
        return _fit(settings, job, progress, world, device)
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory on {device} while training: lower micro_batch_tokens or max_length, "
            "choose method: lora with dtype: bf16, or add devices"
        ) from error


def _fit(
    settings: SftSettings, job: FitJob, progress: Progress, world: World, device: torch.device
) -> tuple[dict[str, Any], dict[str, float]]:
    loaded = load_model(job.model, dtype=_precision(settings), device=world.loads_on(device))
    check_vocabulary(loaded.tokenizer, loaded.model, job.model_facts)
    encoder = ChatEncoder(loaded.tokenizer, loaded.stop_ids, include_reasoning=settings.include_reasoning)
    encoded = encode_all(
        _examples(settings, job),
        encoder,
        max_length=min(settings.max_length or loaded.context, loaded.context),
        held_out_share=settings.held_out_share,
    )
    model = with_adapters(loaded.model, settings.lora, job.seed) if settings.lora else loaded.model
    if job.start is not None:
        load_adapter(model, job.start)
    loss = answer_loss(model, settings, world, device)
    world.spread(loss)
    sizes = StepSizes(settings.batch_tokens, settings.micro_batch_tokens)
    objective = _objective(settings, job, loss, encoded, sizes, world, device)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    count = sum(parameter.numel() for parameter in trainable.values())
    fused = loss if isinstance(loss, FusedAnswerLoss) else None
    meter = _meter(job, model.config, count if settings.lora else None, encoded, world, device)
    config = _loop_config(settings, job, encoded, sizes)
    progress.update(0, config.steps, unit="steps", trainable=f"{count:,} of {loaded.parameters:,}")
    state = Trainer(
        trainable,
        objective,
        config,
        scratch=job.scratch,
        world=world,
        meter=meter,
        on_step=fused.refresh if fused is not None else lambda: None,
    ).run(progress)
    metrics = meter.metrics()
    if fused is not None:
        fused.release()
    if world.sharded:
        model = _joined(trainable, settings, job, world)
    if not world.first:
        return {}, {}
    with quiet_transformers():
        _save(model, loaded.tokenizer, settings, job)
    facts = _facts(job.out, loaded, encoded, state) | {
        "objective": settings.objective,
        "trainable_parameters": count,
        "layers": "fused" if fused is not None else "transformers",
        "trained_cells": trained_cells(encoded.train_examples, job.model_facts.get("trained_cells", ())),
    }
    if isinstance(objective, MetaObjective):
        facts |= objective.facts(state.step)
    return facts, metrics


def _examples(settings: SftSettings, job: FitJob) -> list[Example]:
    examples = read_examples(job.data)
    # An empty file has nothing to look at, which is no fault.
    if job.held_out is not None and job.held_out.stat().st_size:
        others = read_examples(job.held_out)
        examples += [each for each in others if is_held_out(each.question_id, settings.held_out_share)]
    families = settings.meta.families if settings.meta else settings.exclude_families
    return examples if families is None else without_held_out(examples, families)


def _precision(settings: SftSettings) -> DType:
    """Return what the weights are held in: LoRA may freeze them in half precision, full training may not."""
    return "bf16" if settings.method == "lora" and settings.dtype == "bf16" else "fp32"


def answer_loss(model: Any, settings: SftSettings, world: World, device: torch.device) -> AnswerLoss:
    """Return the model as its answer loss, through fused layers where they can stand for its own."""
    halved, gpu = settings.dtype == "bf16", device.type == "cuda"
    by_lora = settings.method == "lora" and settings.objective == "sft" and not world.sharded
    # Compiled they are made for half precision on a GPU, as they are for float32 on a CPU.
    if by_lora and halved == gpu and why_not_fused(model) is None:
        return FusedAnswerLoss(model, compiled() if gpu else PLAIN)
    # On a frozen half-precision base peft would take the adapters' products in float32: slow on a GPU.
    return AnswerLoss(model, autocast=halved and (gpu or settings.method == "full"))


def _objective(
    settings: SftSettings,
    job: FitJob,
    loss: AnswerLoss,
    encoded: EncodedSet,
    sizes: StepSizes,
    world: World,
    device: torch.device,
) -> Objective:
    if settings.objective != "sft" and settings.meta is not None:
        return MetaObjective(loss, encoded, settings.objective, settings.meta, seed=job.seed, world=world)
    longest = max(len(row.ids) for row in (*encoded.train, *encoded.held_out))
    # Compiled kernels are made for one shape.
    pad_to = sizes.bins(longest)[1] if isinstance(loss, FusedAnswerLoss) and device.type == "cuda" else 0
    whole: torch.nn.Module = loss
    if settings.distill is not None and job.teacher is not None:
        teacher = load_model(job.teacher, dtype=_precision(settings), device=str(device)).model
        whole = DistillLoss(loss, AnswerLoss(teacher, autocast=loss.autocast), settings.distill)
    return SftObjective(
        whole,
        encoded.train,
        encoded.held_out,
        sizes,
        seed=job.seed,
        device=device,
        pad_to=pad_to,
        world=world,
        # Comparable with a training without a teacher.
        look=loss,
    )


def _meter(
    job: FitJob,
    model_config: Any,
    adapters: int | None,
    encoded: EncodedSet,
    world: World,
    device: torch.device,
) -> Meter:
    lengths = [len(row.ids) for row in encoded.train]
    tokens = sum(lengths)
    supervised = sum(len(row.ids) - row.answer_start for row in encoded.train) / tokens
    flops = flops_per_token(
        model_config,
        adapters,
        supervised_share=supervised,
        row_tokens=sum(length * length for length in lengths) / tokens,
    )
    gpus = range(world.size) if device.type == "cuda" and world.size > 1 else ()
    return Meter(device, flops=flops, scratch=job.scratch if world.first else None, gpus=tuple(gpus))


def _loop_config(settings: SftSettings, job: FitJob, encoded: EncodedSet, sizes: StepSizes) -> LoopConfig:
    seed = job.seed
    if job.tokens is not None:
        steps = steps_for(job.tokens, encoded.train, sizes, seed=seed)
    elif settings.steps is not None:
        steps = settings.steps
    else:
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


def load_adapter(model: Any, folder: Path) -> None:
    """Set the adapters of a peft model to those in ``folder``.

    Raises ``RunError`` naming the file when they were made for another model or another rank.
    """
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from evals.backends.adapters import ADAPTER_WEIGHTS
    from evals.backends.tokenization import first_line

    file = folder / ADAPTER_WEIGHTS
    try:
        found = set_peft_model_state_dict(model, load_file(file))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise RunError(f"{file}: not an adapter of this model ({first_line(error)})") from error
    odd = [*(name for name in found.missing_keys if ".default" in name), *found.unexpected_keys]
    if odd:
        raise RunError(f"{file}: an adapter of another model: {', '.join(sorted(odd)[:3])}")


def _joined(
    trainable: Mapping[str, torch.nn.Parameter], settings: SftSettings, job: FitJob, world: World
) -> Any:
    """Return the trained model whole, on the CPU, in the first process; None in the others."""
    weights = {name: world.whole(parameter.detach()) for name, parameter in trainable.items()}
    if not world.first:
        return None
    model = load_model(job.model, dtype=_precision(settings)).model
    if settings.lora:
        model = with_adapters(model, settings.lora, job.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    return model


def _save(model: Any, tokenizer: Any, settings: SftSettings, job: FitJob) -> None:
    from evals.backends.tokenization import save_tokenizer

    save_tokenizer(tokenizer, job.out)
    if settings.lora:
        save_adapter(model, job.out / "adapter", base=job.model_digest, base_folder=job.model)
        if not job.merged:
            return
        model = model.merge_and_unload()
    if settings.dtype == "bf16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(job.out)


def save_adapter(model: Any, folder: Path, *, base: str, base_folder: Path) -> None:
    """Save the adapters of a peft model, naming their base by digest and not by a path of this machine."""
    from evals.backends.adapters import write_sidecar

    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    # peft writes a set here, in an order that changes from process to process.
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_sidecar(folder, base=base, base_folder=base_folder)


def _facts(out: Path, loaded: LoadedModel, encoded: EncodedSet, state: LoopState) -> dict[str, Any]:
    from evals.backends.tokenization import tokenizer_digest

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
