"""A recovery adapter, made: started in closed form or at zero, trained on a frozen base, rounded, measured.

Apart from the stage, which loads no torch. The base is the dense view of a compressed model and is never
changed; the training is that of ``pipeline.training`` with the uncompressed model as its teacher.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from cogumi.devices import compute_device
from cogumi.errors import RunError
from evals.backends.adapters import ADAPTER_WEIGHTS
from evals.backends.loading import load_model, quiet_transformers
from pipeline.compression.eora import Corrected, fill_adapters
from pipeline.compression.row_divergence import RowDivergence, compared
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.data import Encoded
from pipeline.training.fit import load_adapter, save_adapter, with_adapters
from pipeline.training.loop import deterministic
from pipeline.training.sft import LoraSettings

if TYPE_CHECKING:
    from cogumi.stage import StageContext
    from pipeline.compression.recovery import RecoverSettings

Precision = Literal["fp32", "bf16"]
AdapterDType = Literal["f16", "bf16", "f32", "q8_0"]


def torch_dtype(dtype: Precision) -> str:
    """Return torch's name of a precision."""
    return {"fp32": "float32", "bf16": "bfloat16"}[dtype]


def load_pair(
    candidate: Path, baseline: Path, dtype: Precision
) -> tuple[AnswerLoss, AnswerLoss, torch.device]:
    """Load two model folders for ``compared``, and say on which device.

    Raises ``RunError`` when one cannot be read, or their vocabularies are not of one size.
    """
    device = torch.device(compute_device())
    first, second = (
        load_model(path, dtype=dtype, device=str(device)).model for path in (candidate, baseline)
    )
    sizes = [int(model.get_input_embeddings().weight.shape[0]) for model in (first, second)]
    if sizes[0] != sizes[1]:
        raise RunError(
            f"a compressed model of {sizes[0]:,} tokens and an uncompressed one of {sizes[1]:,}; name the "
            "model that it was compressed from"
        )
    return AnswerLoss(first), AnswerLoss(second), device


def start_adapter(
    settings: RecoverSettings, view: Path, original: Path, rows: Sequence[Encoded], ctx: StageContext
) -> tuple[Path, dict[str, Corrected]]:
    """Save the closed-form adapter of ``view``; return its folder, and the errors of each layer."""
    device = torch.device(compute_device())
    folder = ctx.scratch / "start"
    shutil.rmtree(folder, ignore_errors=True)
    with deterministic(device, ctx.seed):
        model = with_adapters(
            load_model(view, dtype=settings.dtype, device=str(device)).model, lora(settings), ctx.seed
        )
        done = fill_adapters(
            model,
            original,
            rows,
            capacity=settings.micro_batch_tokens,
            tell=lambda at, of: ctx.progress.update(at, of, unit="layers"),
        )
    with quiet_transformers():
        save_adapter(model, folder, base=ctx.inputs["compressed"].digest, base_folder=view)
    return folder, done


def lora(settings: RecoverSettings) -> LoraSettings:
    """Return the adapters' shape: alpha is the rank, so that what is saved is what is added."""
    return LoraSettings(rank=settings.rank, alpha=settings.rank)


def train_adapter(
    settings: RecoverSettings,
    view: Path,
    start: Path | None,
    data: tuple[Path, Path | None],
    ctx: StageContext,
) -> tuple[Path, dict[str, Any], dict[str, float]]:
    """Train on ``data``, a file of rows and one of held-out rows; return adapter, facts and metrics."""
    from pipeline.training.fit import FitJob
    from pipeline.training.fit_many import fit_on_devices
    from pipeline.training.sft import SftSettings

    _free()
    out, scratch = ctx.scratch / "trained", ctx.scratch / "training"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    scratch.mkdir(exist_ok=True)
    training = SftSettings(
        method="lora",
        lora=lora(settings),
        distill=settings.distill,
        steps=settings.steps,
        batch_tokens=settings.batch_tokens,
        micro_batch_tokens=settings.micro_batch_tokens,
        max_length=settings.max_length,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        dtype=settings.dtype,
        held_out_share=settings.held_out_share,
        eval_every=settings.eval_every,
        early_stop=settings.early_stop,
        devices=settings.devices,
    )
    job = FitJob(
        model=view,
        model_digest=ctx.inputs["compressed"].digest,
        data=data[0],
        out=out,
        scratch=scratch,
        seed=ctx.seed + settings.seed_offset,
        teacher=ctx.inputs["model"].path,
        start=start,
        held_out=data[1],
        merged=False,
    )
    facts, metrics = fit_on_devices(training, job, ctx.progress)
    return out / "adapter", facts, metrics


def _free() -> None:
    """Give back the memory of models that are done with, whose layers refer to one another."""
    gc.collect()
    torch.cuda.empty_cache()


def round_adapter(folder: Path, dtype: AdapterDType) -> None:
    """Round the weights of a peft adapter to what its file will hold, in place.

    f16 and bf16 are stored so, q8_0 (blocks of 32 along a row, other rows as f16) in float32. Raises
    ``RunError`` when a weight is not finite.
    """
    from safetensors.torch import load_file, save_file

    file = folder / ADAPTER_WEIGHTS
    weights = {name: rounded(values, dtype) for name, values in sorted(load_file(file).items())}
    broken = next((name for name, values in weights.items() if not bool(torch.isfinite(values).all())), None)
    if broken is not None:
        raise RunError(
            f"{file}: {broken} is not finite in {dtype}; lower learning_rate, or take another dtype"
        )
    partial = file.with_name(f".{file.name}.partial")
    save_file(weights, partial, metadata={"format": "pt"})
    partial.replace(file)


def rounded(values: torch.Tensor, dtype: AdapterDType) -> torch.Tensor:
    """Return a weight as a file of this type will hold it."""
    if dtype == "q8_0" and values.shape[1] % 32 == 0:
        import gguf

        kind = gguf.GGMLQuantizationType.Q8_0
        blocks = gguf.quants.quantize(values.float().numpy(), kind)
        return torch.from_numpy(gguf.quants.dequantize(blocks, kind).copy())
    kinds = {"f16": torch.float16, "q8_0": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
    return values.to(kinds[dtype])


def measured(
    settings: RecoverSettings,
    view: Path,
    adapters: Mapping[str, Path],
    rows: Sequence[Encoded],
    ctx: StageContext,
) -> dict[str, list[RowDivergence]]:
    """Return the divergences from the uncompressed model: ``before`` any adapter, and with each."""
    _free()
    candidate, baseline, device = load_pair(view, ctx.inputs["model"].path, settings.dtype)
    adapted = with_adapters(candidate.base, lora(settings), ctx.seed)
    candidate = AnswerLoss(adapted)
    capacity = max(settings.micro_batch_tokens, max(len(row.ids) for row in rows))

    def read() -> list[RowDivergence]:
        return [row for batch in compared(candidate, baseline, rows, capacity=capacity) for row in batch]

    with deterministic(device, ctx.seed):
        with adapted.disable_adapter():
            found = {"before": read()}
        for name, folder in adapters.items():
            load_adapter(adapted, folder)
            found[name] = read()
    return found
