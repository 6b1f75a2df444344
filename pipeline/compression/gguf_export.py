"""Stage ``compression.gguf``: a Llama folder as one GGUF file, quantised by llama.cpp.

Covered: every type of the installed llama.cpp, types by tensor, an importance matrix gathered from the run's
own data, an adapter beside the model. Written with the ``gguf`` package alone and quantised in process, no
llama.cpp binary. Not covered: other architectures, SentencePiece.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from cogumi.errors import RunError, UsageError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.subjects import GGUF_ADAPTER, GGUF_MODEL
from pipeline.compression.gguf_adapter import AdapterType, export_adapter
from pipeline.compression.gguf_quantize import file_type, needs_importance, quantize_gguf
from pipeline.compression.gguf_sizes import FLOAT_TYPES, PlannedSize, fallback_note, planned_size
from pipeline.compression.gguf_write import FloatType, check_disk, export_gguf, float_bytes, llama_config

if TYPE_CHECKING:
    from pipeline.compression.imatrix import Importance

_COUNTED = re.compile(r"\[ *(\d+)/ *(\d+)\]")

__all__ = ["GGUF", "GGUFSettings", "Recipe", "export_gguf", "file_type", "make_gguf", "quantize_gguf"]


class GGUFSettings(Settings):
    """``type`` is llama.cpp's name of a file type; ``dtype`` the precision of the file it is made from."""

    type: str = "Q4_K_M"
    dtype: FloatType = "f16"
    tensor_types: dict[str, str] = Field(default_factory=dict)
    """Tensor types by regular expressions of tensor names, the first that matches counts."""
    output_type: str | None = None
    embedding_type: str | None = None
    importance: bool = False
    """Gather an importance matrix from input ``data``, which is wanted then."""
    samples: int = Field(default=256, ge=1)
    """Calibration rows for it."""
    max_length: int = Field(default=512, ge=8)
    """Tokens of each at most."""
    adapter_dtype: AdapterType = "f16"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a folder becomes a GGUF file; the fields are those of ``GGUFSettings``."""

    type: str
    dtype: FloatType = "f16"
    tensor_types: dict[str, str] | None = None
    output_type: str | None = None
    embedding_type: str | None = None

    @property
    def is_float(self) -> bool:
        """Tell whether nothing is quantised."""
        return self.type.lower() in FLOAT_TYPES

    @property
    def choices(self) -> dict[str, Any]:
        """Return what chooses types by tensor, as ``quantize_gguf`` and ``planned_size`` want it."""
        return {
            "tensor_types": self.tensor_types,
            "output_type": self.output_type,
            "embedding_type": self.embedding_type,
        }


def run(settings: GGUFSettings, ctx: StageContext) -> StageResult:
    """Export input ``model`` as ``model.gguf`` of the wanted type, and ``adapter`` beside it."""
    from evals.backends.tokenization import tokenizer_digest

    source, out = ctx.inputs["model"].path, ctx.out / GGUF_MODEL
    recipe = Recipe(
        settings.type,
        settings.dtype,
        settings.tensor_types,
        settings.output_type,
        settings.embedding_type,
    )
    ctx.progress.update(0, 3)
    importance = _importance(settings, ctx)
    ctx.progress.update(1, 3)
    planned = make_gguf(source, out, recipe, scratch=ctx.scratch, importance=importance)
    ctx.progress.update(2, 3)
    facts: dict[str, Any] = {
        "type": settings.type.upper(),
        "bits_per_weight": round(planned.bits_per_weight, 4),
        "parameters": planned.parameters,
        "fallback_tensors": [f"{entry.tensor}: {entry.kind.upper()}" for entry in planned.fallbacks],
        "fallback_extra_bytes": sum(entry.extra_bytes for entry in planned.fallbacks),
        "fallback_note": fallback_note(settings.type, planned.fallbacks),
        "tokenizer_digest": tokenizer_digest(source / "tokenizer.json"),
    }
    if importance is not None:
        facts["importance"] = {"rows": settings.samples, "tokens": importance.tokens}
    if "adapter" in ctx.inputs:
        summary = export_adapter(
            ctx.inputs["adapter"].path,
            llama_config(source),
            ctx.out / GGUF_ADAPTER,
            dtype=settings.adapter_dtype,
        )
        facts["adapter"] = asdict(summary)
        facts["parameters"] += summary.parameters
    ctx.progress.update(3, 3)
    # What a device holds; until it is packaged, what travels is the same.
    resident = sum(path.stat().st_size for path in ctx.out.iterdir())
    facts |= {"bytes": resident, "bytes_resident": resident, "bytes_download": resident}
    return StageResult("gguf", facts)


def make_gguf(
    model: Path,
    out: Path,
    recipe: Recipe,
    *,
    scratch: Path,
    importance: Importance | None = None,
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> PlannedSize:
    """Export a folder as a GGUF file of the wanted type and return its plan, which the file was checked by.

    The float file that it is quantised from stands in ``scratch`` meanwhile. ``tell(what, done, total)`` is
    called with the tensors written and, after them, those quantised. Raises ``UsageError`` and
    ``RunError`` as ``quantize_gguf`` and ``export_gguf`` do, all that can be known before work before it.
    """
    from evals.backends.gguf import listening

    planned = planned_size(model, recipe.type, importance=importance is not None, **recipe.choices)
    if planned.needs_importance and importance is None:
        raise needs_importance(recipe.type, planned.needs_importance)
    check_disk(out, planned.bytes)
    if recipe.is_float:
        export_gguf(model, out, dtype=cast(FloatType, recipe.type.lower()), tell=partial(tell, "written"))
    else:
        intermediate = scratch / "unquantised.gguf"
        check_disk(intermediate, planned.bytes + float_bytes(llama_config(model), recipe.dtype))
        try:
            export_gguf(model, intermediate, dtype=recipe.dtype, tell=partial(tell, "written"))
            with listening(partial(_quantised, tell)):
                quantize_gguf(intermediate, out, recipe.type, importance=importance, **recipe.choices)
        finally:
            intermediate.unlink(missing_ok=True)
    _check_made(out, planned)
    return planned


def _quantised(tell: Callable[[str, int, int], None], piece: str) -> None:
    """Tell the tensors that llama.cpp's log counts."""
    if found := _COUNTED.match(piece):
        tell("quantised", int(found[1]), int(found[2]))


def _check_made(out: Path, planned: PlannedSize) -> None:
    """Read the file back: it must hold what was planned, or the facts would tell of another file."""
    from evals.backends.gguf_header import read_header

    made = {tensor.name: tensor.kind for tensor in read_header(out).tensors}
    if made != planned.kinds or out.stat().st_size != planned.bytes:
        differing = sorted(name for name in planned.kinds if made.get(name) != planned.kinds[name])
        raise RunError(
            f"{out}: {out.stat().st_size:,} bytes, {planned.bytes:,} were planned"
            f"{f'; {differing[0]} is another type' if differing else ''}; please report it"
        )


def _importance(settings: GGUFSettings, ctx: StageContext) -> Importance | None:
    """Gather the importance matrix, or read the one that an earlier, killed process left."""
    from pipeline.compression import imatrix
    from pipeline.compression.calibration_rows import calibration_rows

    if not settings.importance:
        return None
    if "data" not in ctx.inputs:
        raise UsageError("compression.gguf: 'importance' needs the input 'data', calibration rows")
    if settings.type.lower() in FLOAT_TYPES:
        raise UsageError(f"compression.gguf: type {settings.type} rounds nothing; leave 'importance' out")
    kept = ctx.scratch / "importance.gguf"
    if not kept.is_file():
        model = ctx.inputs["model"].path
        rows = calibration_rows(
            ctx.inputs["data"], model, samples=settings.samples, max_length=settings.max_length, seed=ctx.seed
        )
        imatrix.save(imatrix.gather_from(model, rows), kept)
    return imatrix.load(kept)


GGUF = Stage(
    name="compression.gguf",
    version=2,
    title="Export to GGUF and quantise",
    settings=GGUFSettings,
    run=run,
    inputs=("model",),
    optional_inputs=("data", "adapter"),
)
