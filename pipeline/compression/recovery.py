"""Stage ``compression.recover``: a low-rank adapter that gives a compressed model back what it lost.

Plan 3.4. The adapter starts as the closed-form correction of each layer (``pipeline.compression.eora``)
and is then trained to say what the uncompressed model says (LoRA on a frozen base, KL along the answers).
It is shipped beside the compressed weights and never merged: these keep every byte, a sparse model its
zeros, a quantised one its grid. Its bytes count as the model's. Covered: GGUF files of Llamas, folders that
are dense, pruned or compressed-tensors.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, model_validator

from cogumi.errors import UsageError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import disk_error
from pipeline.compression.hardest import HELD_OUT
from pipeline.training.data import Encoded, is_held_out, read_examples, training_file
from pipeline.training.distill import DistillSettings
from pipeline.training.launch import DevicesSettings

if TYPE_CHECKING:
    from cogumi.store import Artifact
    from pipeline.compression.eora import Corrected
    from pipeline.compression.gguf_adapter import AdapterType
    from pipeline.compression.row_divergence import RowDivergence

# Facts of the compressed model that hold for it with an adapter too.
_KEPT = ("type", "parameters", "tokenizer_digest", "trained_cells", "sparsity", "context", "vocab_size")


class RecoverSettings(Settings):
    """How large the adapter is, how it starts and how long it is trained."""

    rank: int = Field(default=16, gt=0)
    start: Literal["eora", "zero"] = "eora"
    """eora: the closed-form correction of each layer; zero: a fresh adapter, which changes nothing yet."""
    calibration_samples: int = Field(default=256, gt=0)
    """Training rows that the closed form looks at."""
    adapter_dtype: Literal["f16", "bf16", "f32", "q8_0"] = "f16"
    """Of the file. GGUF takes f16, f32 or q8_0 (B is then f16 unless the rank is a multiple of 32); a folder
    takes f16, bf16 or f32."""
    steps: int = Field(default=200, ge=0)
    """0: the closed form alone."""
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    batch_tokens: int = Field(default=4096, gt=0)
    """Tokens of one optimizer step."""
    micro_batch_tokens: int = Field(default=2048, gt=0)
    """Tokens that go through the model at once."""
    max_length: int | None = Field(default=None, gt=1)
    """Longest row in tokens, longer ones are left out; default: the model's context."""
    distill: DistillSettings = DistillSettings(weight=1.0)
    """How the uncompressed model teaches; weight 1 leaves the answers' own tokens out."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen base in training; bf16 on a GPU."""
    held_out_share: float = Field(default=0.02, ge=0, lt=0.5)
    eval_every: int = Field(default=50, gt=0)
    early_stop: int | None = Field(default=None, gt=0)
    """Looks without a better held-out loss before training stops; the best look's adapter is then kept."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance that the interval of the gain is wrong."""
    seed_offset: int = 0
    devices: DevicesSettings = DevicesSettings()

    @model_validator(mode="after")
    def _consistent(self) -> RecoverSettings:
        if self.start == "zero" and self.steps == 0:
            raise ValueError("start: zero without steps is no adapter; set steps, or start: eora")
        if self.early_stop is not None and self.held_out_share == 0:
            raise ValueError("early_stop needs a held_out_share above 0")
        return self


def run(settings: RecoverSettings, ctx: StageContext) -> StageResult:
    """Make an adapter for input ``compressed`` from inputs ``model`` and ``data``; the output holds both."""
    from pipeline.compression.adapter_training import (
        measured,
        round_adapter,
        start_adapter,
        torch_dtype,
        train_adapter,
    )
    from pipeline.compression.calibration_rows import calibration_rows
    from pipeline.compression.dense_view import dense_view, take_along

    model, compressed, data = (ctx.inputs[name] for name in ("model", "compressed", "data"))
    _check_dtype(settings, compressed)
    view = dense_view(compressed, model, ctx.scratch, dtype=torch_dtype(settings.dtype))
    held_out = _held_out(settings, data, model)
    adapters: dict[str, Path] = {}
    corrected: dict[str, Corrected] = {}
    if settings.start == "eora":
        ids = calibration_rows(
            data,
            model.path,
            samples=settings.calibration_samples,
            max_length=_longest(settings, model),
            seed=ctx.seed,
        )
        rows = [Encoded(tuple(row), len(row)) for row in ids]
        adapters["start"], corrected = start_adapter(settings, view, model.path, rows, ctx)
    training: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    final = adapters.get("start")
    if settings.steps:
        files = training_file(data), _held_out_file(data)
        final, training, metrics = train_adapter(settings, view, final, files, ctx)
    assert final is not None
    shipped = ctx.scratch / "shipped"
    shutil.rmtree(shipped, ignore_errors=True)
    try:
        shutil.copytree(final, shipped)
    except OSError as error:
        raise disk_error(error, shipped) from error
    round_adapter(shipped, settings.adapter_dtype)
    take_along(compressed, ctx.out)
    adapter = _write_adapter(settings, shipped, view, compressed, ctx.out)
    facts = _facts(compressed, settings, adapter, ctx.out) | {"start": _start_facts(corrected)}
    if training:
        facts["training"] = {key: training[key] for key in _TRAINING if key in training}
    if held_out:
        found = measured(settings, view, {**adapters, "after": shipped}, held_out, ctx)
        facts |= gain(found, settings.alpha)
    else:
        facts["unmeasured"] = {"recovery_gain": "no held-out rows; set held_out_share above 0"}
    return StageResult(compressed.kind, facts, metrics)  # type: ignore[arg-type]


_TRAINING = (
    "steps", "stopped_early", "rows", "too_long_rows", "tokens_seen", "first_train_loss", "last_train_loss",
    "looks", "layers",
)  # fmt: skip


def _check_dtype(settings: RecoverSettings, compressed: Artifact) -> None:
    taken = ("f16", "f32", "q8_0") if compressed.kind == "gguf" else ("f16", "bf16", "f32")
    if settings.adapter_dtype not in taken:
        raise UsageError(
            f"adapter_dtype: {settings.adapter_dtype} is none of a {compressed.kind}'s adapter; take one of "
            f"{', '.join(taken)}"
        )


def _longest(settings: RecoverSettings, model: Artifact) -> int:
    from cogumi.subjects import read_json_object

    context = int(read_json_object(model.path / "config.json")["max_position_embeddings"])
    return min(settings.max_length or context, context)


def _held_out_file(data: Artifact) -> Path | None:
    """Return the held-out rows that ``compression.hardest`` took along; None for other data."""
    return data.path / HELD_OUT if HELD_OUT in data.manifest["files"] else None


def _held_out(settings: RecoverSettings, data: Artifact, model: Artifact) -> list[Encoded]:
    """Return the rows that are measured along: those that no training sees."""
    from pipeline.compression.calibration_rows import chat_encoder

    file = _held_out_file(data) or training_file(data)
    if not file.stat().st_size:
        return []
    encoder = chat_encoder(model.path)
    encoded = (
        encoder.encode(each)
        for each in read_examples(file)
        if is_held_out(each.question_id, settings.held_out_share)
    )
    longest = _longest(settings, model)
    return sorted((row for row in encoded if len(row.ids) <= longest), key=lambda row: len(row.ids))


def _write_adapter(
    settings: RecoverSettings, shipped: Path, view: Path, compressed: Artifact, out: Path
) -> dict[str, Any]:
    """Write the adapter beside the model's files; return its size in bytes and its parameters."""
    from cogumi.subjects import GGUF_ADAPTER, GGUF_MODEL, read_json_object
    from evals.backends.adapters import ADAPTER_WEIGHTS, write_sidecar
    from evals.backends.loading import tensor_shapes
    from pipeline.compression.gguf_adapter import export_adapter

    parameters = sum(a * b for a, b in tensor_shapes(shipped / ADAPTER_WEIGHTS).values())
    if compressed.kind == "gguf":
        file, config = out / GGUF_ADAPTER, read_json_object(view / "config.json")
        # A type that GGUF has no adapters of was refused before.
        dtype = cast("AdapterType", settings.adapter_dtype)
        export_adapter(shipped, config, file, dtype=dtype, beside=out / GGUF_MODEL)
        size = file.stat().st_size
    else:
        try:
            shutil.copytree(shipped, out / "adapter")
        except OSError as error:
            raise disk_error(error, out / "adapter") from error
        write_sidecar(out / "adapter", base=compressed.digest, base_folder=view, beside=out)
        size = (out / "adapter" / ADAPTER_WEIGHTS).stat().st_size
    return {"bytes": size, "parameters": parameters}


def _facts(
    compressed: Artifact, settings: RecoverSettings, adapter: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Return what the model with its adapter is, its adapter's bytes among its own."""
    files = [file for file in out.rglob("*") if file.is_file()]
    weights = (".gguf", ".safetensors")
    resident = sum(file.stat().st_size for file in files if file.suffix in weights)
    facts = {key: compressed.facts[key] for key in _KEPT if key in compressed.facts}
    total = sum(file.stat().st_size for file in files)
    sizes: dict[str, float] = {"bytes": total, "bytes_resident": resident, "bytes_download": total}
    if "parameters" in facts:
        sizes["bits_per_weight"] = round(8 * resident / int(facts["parameters"]), 4)
    return {
        **facts,
        **sizes,
        "base_bytes": resident - int(adapter["bytes"]),
        "adapter": {
            **adapter,
            "rank": settings.rank,
            "dtype": settings.adapter_dtype,
            "start": settings.start,
        },
    }


def _start_facts(corrected: Mapping[str, Corrected]) -> dict[str, Any]:
    """Return how much of the layers' squared output error the closed form took away, and where least."""
    left = {name: each.after / each.before if each.before > 0 else 0.0 for name, each in corrected.items()}
    if not left:
        return {}
    worst = max(left, key=lambda name: left[name])
    return {
        "layers": len(left),
        "error_left_mean": round(sum(left.values()) / len(left), 6),
        "error_left_most": {"layer": worst, "share": round(left[worst], 6)},
    }


def gain(found: Mapping[str, Sequence[RowDivergence]], alpha: float) -> dict[str, Any]:
    """Return facts of the held-out rows ``before``, perhaps at the ``start``, and ``after``.

    ``metrics.recovery_gain`` is the paired gain of the score: the mean over rows of the share of answer
    tokens that are the model's likeliest, after over before, less 1; its interval is ``paired_gain``'s.
    """
    from pipeline.meta.gain import paired_gain

    tokens = sum(row.tokens for row in found["before"])

    def per_token(rows: Sequence[RowDivergence]) -> dict[str, float]:
        return {
            "kl": round(sum(row.kl for row in rows) / tokens, 8),
            "loss": round(sum(row.loss for row in rows) / tokens, 8),
            "accuracy": round(sum(row.right for row in rows) / tokens, 8),
        }

    told = {name: per_token(rows) for name, rows in found.items()}
    told["uncompressed"] = {
        "kl": 0.0, "loss": round(sum(row.baseline_loss for row in found["before"]) / tokens, 8)
    }  # fmt: skip
    facts: dict[str, Any] = {
        "held_out": {**told, "tokens": tokens, "rows": len(found["before"])},
        "metrics": {},
    }
    shares = {name: [row.right / row.tokens for row in found[name]] for name in ("before", "after")}
    paired = paired_gain(shares["after"], shares["before"], alpha)
    if paired is None:
        facts["unmeasured"] = {"recovery_gain": "the compressed model got no held-out token right"}
        return facts
    facts["metrics"]["recovery_gain"] = {
        "value": round(paired.value, 6),
        "lower": round(paired.lower, 6),
        "upper": None if paired.upper is None else round(paired.upper, 6),
        "n": len(found["before"]),
        "alpha": alpha,
        "note": (
            f"share of answer tokens that are the model's likeliest, on {len(found['before'])} held-out rows "
            "that nothing was trained on; paired by row, with the adapter over without"
        ),
    }
    return facts


RECOVER = Stage(
    name="compression.recover",
    version=2,
    title="Recover what compression lost, by an adapter",
    settings=RecoverSettings,
    run=run,
    inputs=("model", "compressed", "data"),
)
