"""Stage ``compression.gptq``: linear layers of 2, 3, 4 or 8 bits by GPTQ, a peer to compare with.

The output holds the values that the codes stand for, as a dense folder: packed files of 2 and 3 bits do not
load everywhere. What they would take is counted: codes, scales, zero points, and the rest in bf16 or at 8
bits. Source: Frantar et al. 2022, arXiv 2210.17323; run by llmcompressor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cogumi.stage import Settings, Stage, StageContext, StageResult
from pipeline.compression.calibration_rows import calibration_rows
from pipeline.compression.llmc import (
    Tell,
    bytes_beside,
    check_tokens,
    folder_bytes,
    import_llmcompressor,
    linear_layers,
    load_dense,
    other_linear_layers,
    replaced,
    run_recipe,
    save_dense,
)
from pipeline.compression.weight_grid import SCALE_BITS, config_groups, group_size, packed_bytes

if TYPE_CHECKING:
    import torch


class GPTQSettings(Settings):
    """How many bits, in which groups, decided on how much data."""

    bits: Literal[2, 3, 4, 8] = 4
    group_size: Literal[32, 64, 128] | None = None
    """Weights that share a scale; without it the largest of 128, 64 and 32 that divides every width."""
    symmetric: bool = False
    """Symmetric grids have no zero points: a few bytes less, and a little worse below 8 bits."""
    samples: int = Field(default=512, gt=0)
    """Rows of the data that are looked at."""
    max_length: int = Field(default=2048, gt=1)
    """Tokens of a row; what is longer is cut."""
    dampening: float = Field(default=0.01, gt=0)
    """Added to the diagonal of the second moments, as a share of its mean."""


@dataclass(frozen=True, slots=True)
class GPTQSummary:
    """What GPTQ left; bytes as the packed model would have, not those of the dense folder."""

    group_size: int
    layers: int
    parameters: int
    bytes_packed: int
    """With embeddings, head and norms in bf16."""
    bytes_packed_8bit: int
    """With embeddings and head at 8 bits, a scale for each row."""
    uninvertible: int = 0
    """Layers whose second moments had no inverse, and so rounded to the nearest."""


def run(settings: GPTQSettings, ctx: StageContext) -> StageResult:
    """Quantise the model of input ``model`` on rows of input ``data``."""
    from evals.backends.loading import model_tokenizer_digest

    source = ctx.inputs["model"].path
    rows = calibration_rows(
        ctx.inputs["data"], source, samples=settings.samples, max_length=settings.max_length, seed=ctx.seed
    )
    found = gptq_folder(source, rows, ctx.out, settings, ctx.progress.update)
    facts = {
        "parameters": found.parameters,
        "bits": settings.bits,
        "group_size": found.group_size,
        "symmetric": settings.symmetric or settings.bits == 8,
        "quantised_layers": found.layers,
        "uninvertible_layers": found.uninvertible,
        "bytes_packed": found.bytes_packed,
        "bytes_packed_8bit": found.bytes_packed_8bit,
        "calibration_rows": len(rows),
        "calibration_tokens": sum(map(len, rows)),
        "tokenizer_digest": model_tokenizer_digest(ctx.out),
        "bytes": folder_bytes(ctx.out),
    }
    return StageResult("model", facts)


def gptq_folder(
    model: Path, rows: Sequence[Sequence[int]], out: Path, settings: GPTQSettings, tell: Tell
) -> GPTQSummary:
    """Write the model of the folder ``model`` with the values of its quantised weights into ``out``.

    Raises ``RunError`` for a model that is broken, quantised, or of widths that no group divides, and for too
    little data.
    """
    loaded = load_dense(model)
    layers = linear_layers(loaded.model)
    group = group_size(layers, settings.group_size, model)
    check_tokens(rows, max(layer.in_features for layer in layers.values()))
    import_llmcompressor()
    from llmcompressor.modifiers.gptq import GPTQModifier

    groups = config_groups(dict.fromkeys(layers, settings.bits), group, symmetric=settings.symmetric)
    modifier = GPTQModifier(
        config_groups=groups,
        ignore=other_linear_layers(loaded.model),
        dampening_frac=settings.dampening,
    )
    rounded: list[str] = []
    # The names are forgotten after this.
    with replaced(
        GPTQModifier,
        "_log_rtn_fallback_summary",
        lambda each: rounded.extend(each._rtn_fallback_module_names),
    ):
        run_recipe(loaded, rows, modifier, model, tell)
    save_dense(loaded, model, out)
    found = _summary(loaded.model, layers, loaded.parameters, group, settings)
    return replace(found, uninvertible=len(rounded))


def _summary(
    model: Any,
    layers: Mapping[str, torch.nn.Linear],
    parameters: int,
    group: int,
    settings: GPTQSettings,
) -> GPTQSummary:
    symmetric = settings.symmetric or settings.bits == 8
    packed = sum(
        packed_bytes(layer.weight.numel(), settings.bits, group, symmetric=symmetric)
        for layer in layers.values()
    )
    tables = {
        id(table.weight): table.weight
        for table in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    saved = sum(table.numel() - table.shape[0] * SCALE_BITS // 8 for table in tables.values())
    return GPTQSummary(
        group_size=group,
        layers=len(layers),
        parameters=parameters,
        bytes_packed=packed + bytes_beside(model, layers),
        bytes_packed_8bit=packed + bytes_beside(model, layers) - saved,
    )


GPTQ = Stage(
    name="compression.gptq",
    version=1,
    title="Quantise by GPTQ",
    settings=GPTQSettings,
    run=run,
    inputs=("model", "data"),
)
