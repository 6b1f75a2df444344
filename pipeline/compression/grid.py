"""Stage ``compression.grid``: a Llama as one GGUF file, rounded with compensation, bits where they matter.

The file is a plain GGUF that llama.cpp runs. Either one type for all matrices, or ``bytes_at_most`` and
candidate types, of which each tensor takes what lowers the expected KL divergence most for its bytes. Not
covered: biases, mixtures of experts.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from pydantic import Field, field_validator, model_validator

from cogumi.devices import compute_device
from cogumi.errors import InfeasibleError, RunError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.subjects import read_json_object
from pipeline.compression.allocation import allocate
from pipeline.compression.calibration_rows import calibration_rows
from pipeline.compression.ggml import bits_per_weight, canonical, fits
from pipeline.compression.gguf_tensors import GGUFFile, file_bytes, write_gguf
from pipeline.compression.grid_work import (
    Share,
    Work,
    measured_costs,
    measured_fisher,
    round_model,
    rounded_bytes,
)
from pipeline.compression.rounding import DAMPING, PASSES

KINDS = ("q2_0", "q2_K", "q3_K", "iq4_nl", "q4_K", "q5_0", "q5_K", "q6_K", "q8_0")
"""Candidates where the settings name none: each is the best of its size on some model width."""
_HEADER_BYTES = 4096
"""Room for what the header of the finished file holds beside that of the float one."""


class GridSettings(Settings):
    """Which sizes are wanted, and what is calibrated on."""

    type: str | None = None
    """One ggml type for all matrices; one whose rows do not fit takes the next larger of ``kinds``."""
    bytes_at_most: int | None = Field(default=None, gt=0)
    """Size of the whole file; each tensor takes one of ``kinds``."""
    kinds: tuple[str, ...] = Field(default=KINDS, min_length=1)
    embedding_kind: str | None = None
    """Type of the embedding, which is the head as well where they are tied; None: as the other tensors."""
    samples: int = Field(default=256, gt=0)
    """Training rows to calibrate on."""
    max_length: int = Field(default=1024, gt=1)
    """Longest row in tokens."""
    damping: float = Field(default=DAMPING, gt=0)
    """Added to the diagonal of second moments, as a share of its mean."""
    passes: int = Field(default=PASSES, ge=0)
    """Passes of coordinate descent after the rounding."""

    @field_validator("type", "embedding_kind")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return None if value is None else canonical(value)

    @field_validator("kinds")
    @classmethod
    def _all_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({canonical(kind) for kind in value}))

    @model_validator(mode="after")
    def _one_size(self) -> GridSettings:
        if (self.type is None) == (self.bytes_at_most is None):
            raise ValueError("give either type or bytes_at_most")
        return self


def run(settings: GridSettings, ctx: StageContext) -> StageResult:
    """Round input ``model`` into ``model.gguf``, calibrated on input ``data``.

    Raises ``InfeasibleError`` when not even the smallest types fit under ``bytes_at_most``, ``RunError`` for
    a model that cannot be exported, too little calibration data or a full disk.
    """
    from evals.backends.tokenization import tokenizer_digest
    from pipeline.compression.gguf_export import export_gguf

    begun = time.monotonic()
    folder, out = ctx.inputs["model"].path, ctx.out / "model.gguf"
    config = read_json_object(folder / "config.json")
    floats = ctx.scratch / "float.gguf"
    if not floats.is_file():
        export_gguf(folder, floats, dtype="f16")
    source = GGUFFile(floats)
    if settings.bytes_at_most is not None:
        _check_cap(source, settings)
    work = _loaded(settings, ctx)
    found = measured_fisher(work, ctx.seed)
    kinds = _types(source, settings, work, found)
    told = round_model(work, found, kinds)
    write_gguf(source, out, kinds, lambda name: rounded_bytes(work, name, config))
    for name in [floats, *ctx.scratch.glob("*.safetensors")]:
        name.unlink()
    resident = out.stat().st_size
    weights = sum(info.rows * info.columns for info in source.tensors.values())
    stored = sum(info.bytes for info in GGUFFile(out).tensors.values())
    facts = {
        "bytes": resident,
        "bytes_resident": resident,
        "bytes_download": resident,
        "parameters": weights,
        "bits_per_weight": round(8 * stored / weights, 4),
        "tensor_kinds": dict(sorted(Counter(kinds.values()).items())),
        "kinds": dict(sorted(kinds.items())),
        "expected_kl_plain": _rounded_sum(told, "plain"),
        "expected_kl": _rounded_sum(told, "compensated"),
        "calibration_tokens": sum(map(len, work.rows)),
        "tokenizer_digest": tokenizer_digest(folder / "tokenizer.json"),
    }
    return StageResult("gguf", facts, {"seconds": time.monotonic() - begun})


def measure(settings: GridSettings, ctx: StageContext, share: Share = (0, 1)) -> None:
    """Leave in ``ctx.scratch`` what outputs count and what each type costs, where a run finds both again.

    They hold for every ``type``, ``bytes_at_most`` and ``passes``. ``share``: of the blocks, see
    ``measured_costs``. Raises as ``run`` does.
    """
    work = _loaded(settings, ctx)
    measured_costs(work, measured_fisher(work, ctx.seed), _candidates(settings), share)


def _loaded(settings: GridSettings, ctx: StageContext) -> Work:
    """Return the model in memory, with the rows that it is calibrated on."""
    import torch

    from evals.backends.loading import load_model, prefill_dtype

    folder = ctx.inputs["model"].path
    config = read_json_object(folder / "config.json")
    rows = calibration_rows(
        ctx.inputs["data"],
        folder,
        samples=settings.samples,
        max_length=min(settings.max_length, int(config["max_position_embeddings"])),
        seed=ctx.seed,
    )
    device = torch.device(compute_device())
    model = load_model(folder, dtype=prefill_dtype(device, half="bf16"), device=str(device)).model
    tell = _teller(ctx, settings, model)
    return Work(model, rows, ctx.scratch, device, settings.damping, settings.passes, tell)


def _rounded_sum(told: dict[str, dict[str, float]], key: str) -> float:
    """Return the sum over tensors in nats per token, to six digits."""
    return float(f"{sum(entry[key] for entry in told.values()):.6g}")


def _matrices(source: GGUFFile) -> dict[str, int]:
    """Return the columns of each tensor that is rounded: matrices, but no vectors."""
    return {info.name: info.columns for info in source.tensors.values() if len(info.shape) > 1}


def _types(source: GGUFFile, settings: GridSettings, work: Work, found: Any) -> dict[str, str]:
    """Return the type of each matrix."""
    matrices = _matrices(source)
    if settings.type is not None:
        return {name: _fitting(name, columns, settings) for name, columns in matrices.items()}
    costs = measured_costs(work, found, _candidates(settings))
    for name, choices in costs.items():
        allowed = _allowed(name, settings)
        costs[name] = [choice for choice in choices if choice.kind in allowed]
        if not costs[name]:
            raise RunError(f"{name}: its rows of {matrices[name]} weights take no {', '.join(allowed)}")
    return allocate(costs, _room(source, settings))


def _candidates(settings: GridSettings) -> list[str]:
    """Return the types whose cost is measured."""
    return sorted({*settings.kinds, *([settings.embedding_kind] if settings.embedding_kind else [])})


def _allowed(name: str, settings: GridSettings) -> tuple[str, ...]:
    if name == "token_embd.weight" and settings.embedding_kind:
        return (settings.embedding_kind,)
    return settings.kinds


def _fitting(name: str, columns: int, settings: GridSettings) -> str:
    """Return the wanted type, or the smallest of ``kinds`` that has no fewer bits and fits the rows."""
    wanted = settings.type or ""
    if name == "token_embd.weight" and settings.embedding_kind:
        wanted = settings.embedding_kind
    if fits(wanted, columns):
        return wanted
    least = bits_per_weight(wanted)
    larger = [kind for kind in settings.kinds if fits(kind, columns) and bits_per_weight(kind) >= least]
    if not larger:
        raise RunError(
            f"{name}: its rows of {columns} weights take neither {wanted} nor a larger type of kinds; "
            "add one to kinds"
        )
    return min(larger, key=lambda kind: (bits_per_weight(kind), kind))


def _room(source: GGUFFile, settings: GridSettings) -> int:
    """Return the bytes that are left for matrices."""
    matrices = sum(source.tensors[name].bytes for name in _matrices(source))
    return (settings.bytes_at_most or 0) - (file_bytes(source, {}) - matrices) - _HEADER_BYTES


def _check_cap(source: GGUFFile, settings: GridSettings) -> None:
    """Raise ``InfeasibleError`` before any work when the smallest types do not fit."""
    kinds = {}
    for name, columns in _matrices(source).items():
        fitting = [kind for kind in _allowed(name, settings) if fits(kind, columns)]
        if not fitting:
            raise RunError(f"{name}: its rows of {columns} weights take none of {', '.join(settings.kinds)}")
        kinds[name] = min(fitting, key=lambda kind: (bits_per_weight(kind), kind))
    least = file_bytes(source, kinds) + _HEADER_BYTES
    if least > (settings.bytes_at_most or 0):
        raise InfeasibleError(
            f"bytes_at_most = {settings.bytes_at_most:,}: the file takes {least:,} bytes in the smallest of "
            "kinds; raise it or add a smaller type"
        )


def _teller(ctx: StageContext, settings: GridSettings, model: Any) -> Any:
    blocks = len(model.model.layers)
    total = 1 + (blocks + 1) * (1 if settings.type else 2)
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        done += 1
        ctx.progress.update(min(done, total), total, finished=what)

    return tell


GRID = Stage(
    name="compression.grid",
    version=1,
    title="Round to GGUF with compensation",
    settings=GridSettings,
    run=run,
    inputs=("model", "data"),
)
