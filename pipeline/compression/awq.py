"""Stage ``compression.awq``: linear layers of 4 bits by AWQ, some of 8 bits or as they are.

Two outputs: a compressed-tensors folder that vLLM and transformers load; or, with ``folded``, a dense folder
in which AWQ's scales are folded into neighbouring weights and nothing is quantised yet: the same function,
ready for GGUF's own types. Source: Lin et al. 2023, arXiv 2306.00978; run by llmcompressor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cogumi.errors import RunError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from pipeline.compression.calibration_rows import calibration_rows
from pipeline.compression.llmc import (
    SHARD_BYTES,
    Tell,
    check_finite,
    folder_bytes,
    import_llmcompressor,
    linear_layers,
    load_dense,
    other_linear_layers,
    run_recipe,
    save_dense,
    stored_dtype,
    take_along,
    undisturbed,
    writing,
)
from pipeline.compression.weight_grid import DENSE, bits_of_layers, config_groups, group_size

if TYPE_CHECKING:
    from evals.backends.loading import LoadedModel


class AWQSettings(Settings):
    """How many bits each layer has, and how much data the scales are found on."""

    layers: dict[str, Literal[4, 8, 16]] = Field(default_factory=dict)
    """Other bits than 4, by name: ``{"*.down_proj": 8, "model.layers.0.*": 16}``; 16 leaves a layer as it is.

    Where several patterns fit, the last one counts.
    """
    group_size: Literal[32, 64, 128] | None = None
    """Weights that share a scale; without it the largest of 128, 64 and 32 that divides every width."""
    symmetric: bool = False
    """Without zero points, as AWQ is not."""
    samples: int = Field(default=2000, gt=0)
    """Rows of the data that are looked at; 2,000 is the plan's (3.2)."""
    max_length: int = Field(default=2048, gt=1)
    """Tokens of a row; what is longer is cut."""
    grid: int = Field(default=20, gt=2)
    """Scales that are tried for each layer; 20 is the paper's."""
    folded: bool = False
    """Write the dense model with the scales folded in, for GGUF, in place of a quantised one."""
    role: Literal["base", "draft"] = "base"
    """Whose size it is: names the metric."""


@dataclass(frozen=True, slots=True)
class AWQSummary:
    """What AWQ left."""

    group_size: int
    bits: Mapping[str, int]
    """Bits of each linear layer, by name; 16 where it was left."""
    parameters: int
    bytes: int
    """Bytes of the folder."""


def run(settings: AWQSettings, ctx: StageContext) -> StageResult:
    """Quantise, or scale for quantisation, the model of input ``model`` on rows of input ``data``."""
    from evals.backends.loading import model_tokenizer_digest

    source = ctx.inputs["model"].path
    rows = calibration_rows(
        ctx.inputs["data"], source, samples=settings.samples, max_length=settings.max_length, seed=ctx.seed
    )
    found = awq_folder(source, rows, ctx.out, settings, tell=ctx.progress.update)
    kinds = Counter((name.rpartition(".")[2], bits) for name, bits in found.bits.items())
    facts = {
        "parameters": found.parameters,
        "folded": settings.folded,
        "group_size": found.group_size,
        "layers_by_bits": {f"{kind} at {bits}": count for (kind, bits), count in sorted(kinds.items())},
        "calibration_rows": len(rows),
        "calibration_tokens": sum(map(len, rows)),
        "tokenizer_digest": model_tokenizer_digest(ctx.out),
        "bytes": found.bytes,
        "metrics": {},
    }
    if not settings.folded:
        name = "awq_bytes_download" if settings.role == "base" else "draft_awq_bytes_download"
        facts["metrics"] = {name: found.bytes, "bits_per_weight": 8 * found.bytes / found.parameters}
    return StageResult("model", facts)


def awq_folder(
    model: Path,
    rows: Sequence[Sequence[int]],
    out: Path,
    settings: AWQSettings,
    *,
    tell: Tell = lambda done, total: None,
) -> AWQSummary:
    """Write the model of the folder ``model`` into the empty folder ``out``: quantised, or folded and dense.

    ``rows`` are token ids (``calibration_rows``). Raises ``RunError`` for a model that is broken, quantised,
    of widths that no group divides or of an architecture that AWQ does not know, and ``UsageError`` for
    layers that are not there.
    """
    if not any(rows):
        raise RunError(f"{model}: calibration data too short: no rows")
    loaded = load_dense(model)
    layers = linear_layers(loaded.model)
    bits = bits_of_layers(layers, 4, settings.layers)
    quantised = {name: layer for name, layer in layers.items() if bits[name] != DENSE}
    group = group_size(quantised, settings.group_size, model)
    import_llmcompressor()
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    recipe = [
        AWQModifier(
            mappings=_mappings(loaded, quantised),
            n_grid=settings.grid,
            # Else the inputs of a layer, of all rows, lie in the accelerator's memory several times.
            offload_device=_cpu(),
        ),
        QuantizationModifier(
            config_groups=config_groups(bits, group, symmetric=settings.symmetric),
            ignore=[*other_linear_layers(loaded.model), *(name for name in bits if bits[name] == DENSE)],
        ),
    ]
    run_recipe(loaded, rows, recipe, model, tell)
    if settings.folded:
        save_dense(loaded, model, out)
    else:
        _save_packed(loaded, model, out)
    return AWQSummary(group, bits, loaded.parameters, folder_bytes(out))


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


def _mappings(loaded: LoadedModel, quantised: Mapping[str, Any]) -> list[Any]:
    """Return llmcompressor's mappings of the architecture, by exact names, without those that gain nothing.

    A mapping none of whose layers is quantised would only be scaled for nothing, and the library divides by
    the number of those that are.
    """
    from compressed_tensors.utils import match_modules_set
    from llmcompressor.modifiers.transform.awq import AWQMapping
    from llmcompressor.modifiers.transform.awq.dynamic_mappings import get_layer_mappings_from_model

    names = {module: name for name, module in loaded.model.named_modules()}
    found = []
    for mapping in get_layer_mappings_from_model(loaded.model):
        for smooth, *balance in match_modules_set(
            loaded.model, (mapping.smooth_layer, *mapping.balance_layers)
        ):
            balanced = [names[module] for group in balance for module in group]
            if any(name in quantised for name in balanced):
                found.append(AWQMapping(names[smooth[0]], balanced))
    return found


def _save_packed(loaded: LoadedModel, source: Path, out: Path) -> None:
    """Save in compressed-tensors' packed format, without the recipe file, which nobody reads back."""
    from llmcompressor.transformers.utils import RECIPE_FILE_NAME

    from evals.backends.loading import quiet_transformers

    check_finite(loaded.model, f"{source.name}, quantised")
    loaded.model.to(dtype=stored_dtype(source))
    with writing(out), quiet_transformers(), undisturbed():
        loaded.model.save_pretrained(out, save_compressed=True, max_shard_size=SHARD_BYTES)
        (out / RECIPE_FILE_NAME).unlink(missing_ok=True)
    take_along(source, out)


AWQ = Stage(
    name="compression.awq",
    version=1,
    title="Quantise to 4 bits by AWQ",
    settings=AWQSettings,
    run=run,
    inputs=("model", "data"),
)
