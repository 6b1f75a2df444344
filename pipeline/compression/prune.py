"""Stage ``compression.prune``: a share of the weights set to zero by SparseGPT or Wanda, perhaps with OWL.

Covered: any share, unstructured, or 2 of 4 and 4 of 8 along a row; linear layers of the decoder alone, so
embeddings, head and norms stay. The output is stored dense, with exact zeros: ``compression.package`` stores
them for less.
Not covered: leaving out whole layers or columns.

Sources: SparseGPT, arXiv 2301.00774; Wanda, arXiv 2306.11695; OWL, arXiv 2310.05175; run by llmcompressor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cogumi.devices import compute_device
from cogumi.errors import RunError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from pipeline.compression.calibration_rows import calibration_rows
from pipeline.compression.llmc import (
    Tell,
    bytes_beside,
    check_tokens,
    folder_bytes,
    import_llmcompressor,
    layer_number,
    linear_layers,
    load_dense,
    replaced,
    run_recipe,
    save_dense,
    stored_dtype,
)
from pipeline.compression.sparsity import (
    Sparsity,
    check_groups,
    count_zeros,
    outlier_shares,
    owl_targets,
    reachable,
)

if TYPE_CHECKING:
    import torch

    from evals.backends.loading import LoadedModel
    from pipeline.compression.activations import ColumnMoments

GROUPS = {"2:4": (2, 4), "4:8": (4, 8)}
"""Zeros in each group of weights along a row."""


class OwlSettings(Settings):
    """Outlier-weighed layer sparsity; the defaults are the paper's for LLaMA at 70 % (arXiv 2310.05175)."""

    outlier: float = Field(default=5.0, gt=1)
    """A weight is an outlier when its score is above this many times its layer's mean (M of the paper)."""
    spread: float = Field(default=0.08, gt=0, lt=0.5)
    """Layers differ by twice as much at most (lambda of the paper)."""


class PruneSettings(Settings):
    """How many weights go, which, and on how much data that is decided."""

    method: Literal["sparsegpt", "wanda"] = "sparsegpt"
    """sparsegpt: by the inputs' second moments, and corrects what stays; wanda: quicker, corrects nothing."""
    sparsity: float = Field(default=0.65, gt=0, lt=1)
    """Share of the weights of linear layers; 0.65 is the plan's (3.1)."""
    structure: Literal["unstructured", "2:4", "4:8"] = "unstructured"
    """The latter two make half of the weights zero, in each group of 4 or 8."""
    owl: OwlSettings | None = None
    """Share out the sparsity among layers by their outliers."""
    samples: int = Field(default=512, gt=0)
    """Rows of the data that are looked at."""
    max_length: int = Field(default=2048, gt=1)
    """Tokens of a row; what is longer is cut."""
    dampening: float = Field(default=0.01, gt=0)
    """Added to the diagonal of SparseGPT's second moments, as a share of its mean."""

    @model_validator(mode="after")
    def _consistent(self) -> PruneSettings:
        if self.structure != "unstructured":
            if "sparsity" in self.model_fields_set and self.sparsity != 0.5:
                raise ValueError(f"structure {self.structure} is a sparsity of 0.5; leave sparsity out")
            if self.owl is not None:
                raise ValueError(f"structure {self.structure} leaves owl nothing to share out")
        return self

    @property
    def target(self) -> float:
        """Share of the weights that go."""
        return self.sparsity if self.structure == "unstructured" else 0.5


@dataclass(frozen=True, slots=True)
class PruneSummary:
    """What a pruning left."""

    sparsity: Sparsity
    parameters: int
    """Zeros among them."""
    bytes_sparse: int
    """Bytes of the weights when a zero costs one bit of a mask and no value."""
    uninvertible: int
    """Layers whose second moments SparseGPT could not invert, and so pruned by magnitude."""


def run(settings: PruneSettings, ctx: StageContext) -> StageResult:
    """Prune the model of input ``model`` on rows of input ``data``."""
    from evals.backends.loading import model_tokenizer_digest

    source = ctx.inputs["model"].path
    rows = calibration_rows(
        ctx.inputs["data"], source, samples=settings.samples, max_length=settings.max_length, seed=ctx.seed
    )
    found = prune_folder(source, rows, ctx.out, settings, ctx.progress.update)
    sparsity = found.sparsity
    facts = {
        "parameters": found.parameters,
        "sparsity": round(sparsity.share, 6),
        "sparsity_lowest": round(sparsity.lowest, 6),
        "sparsity_highest": round(sparsity.highest, 6),
        "sparsity_by_layer": [round(share, 6) for share in sparsity.by_layer],
        "pruned_weights": sparsity.zeros,
        "linear_weights": sparsity.weights,
        "uninvertible_layers": found.uninvertible,
        "calibration_rows": len(rows),
        "calibration_tokens": sum(map(len, rows)),
        "tokenizer_digest": model_tokenizer_digest(ctx.out),
        "bytes": folder_bytes(ctx.out),
        "bytes_sparse": found.bytes_sparse,
        "metrics": {"sparsity": sparsity.share, "pruned_bytes_download": found.bytes_sparse},
    }
    return StageResult("model", facts)


def prune_folder(
    model: Path, rows: Sequence[Sequence[int]], out: Path, settings: PruneSettings, tell: Tell
) -> PruneSummary:
    """Write the pruned model of the folder ``model`` into ``out``.

    Raises ``RunError`` for a model that is broken, quantised, or of widths that no group divides, for too
    little data, and where the sparsity that came out is not the one that was asked for.
    """
    loaded = load_dense(model)
    layers = linear_layers(loaded.model)
    widest = max(module.in_features for module in layers.values())
    odd = next((name for name, module in layers.items() if module.in_features % _group(settings)), None)
    if odd is not None:
        raise RunError(
            f"{model}: {odd} has {layers[odd].in_features} columns, which structure {settings.structure} "
            "does not divide; prune it unstructured"
        )
    if settings.method == "sparsegpt":
        check_tokens(rows, widest)
    targets = _targets(loaded, layers, rows, settings)
    uninvertible = _run(loaded, rows, targets, settings, model, tell)
    for layer in layers.values():
        # A mask times a negative weight is -0, which a sparse file would have to store as a value.
        layer.weight.data.masked_fill_(layer.weight.data == 0, 0.0)
    found = count_zeros(layers)
    if settings.structure in GROUPS:
        check_groups(layers, *GROUPS[settings.structure])
    if found.highest == 1:
        raise RunError(
            f"{model}: a linear layer has no weight left; ask for less, or calibrate on more samples"
        )
    if found.share < settings.target:
        raise RunError(
            f"{model}: {found.share:.4f} of the weights are zero, {settings.target:g} were asked for"
        )
    save_dense(loaded, model, out)
    width = stored_dtype(model).itemsize
    sparse = (found.weights - found.zeros) * width + ceil(found.weights / 8)
    size = sparse + bytes_beside(loaded.model, layers, width)
    return PruneSummary(found, loaded.parameters, size, uninvertible)


def _group(settings: PruneSettings) -> int:
    return GROUPS[settings.structure][1] if settings.structure in GROUPS else 1


def _targets(
    loaded: LoadedModel,
    layers: Mapping[str, torch.nn.Linear],
    rows: Sequence[Sequence[int]],
    settings: PruneSettings,
) -> list[float]:
    """Return the share to ask of each decoder layer."""
    sizes = Counter[int]()
    for name, module in layers.items():
        sizes[layer_number(name)] += module.weight.numel()
    targets = [settings.target] * len(sizes)
    if settings.owl is not None:
        moments = _moments(loaded.model, rows)
        outliers = outlier_shares(layers, moments, settings.owl.outlier)
        targets = owl_targets(outliers, list(sizes.values()), settings.target, settings.owl.spread)
    if settings.method == "wanda" and settings.structure == "unstructured":
        columns = [module.in_features for module in layers.values()]
        targets = [reachable(share, columns) for share in targets]
    return targets


def _moments(model: Any, rows: Sequence[Sequence[int]]) -> Mapping[str, ColumnMoments]:

    from pipeline.compression.activations import column_moments

    device = compute_device()
    found = column_moments(model.to(device), rows, device=device)
    model.to("cpu")
    return found


def _run(
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    targets: list[float],
    settings: PruneSettings,
    model: Path,
    tell: Tell,
) -> int:
    """Prune in place; return how many layers' second moments could not be inverted."""
    import_llmcompressor()
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier, sgpt_sparsify
    from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier

    common = {
        "sparsity": targets,
        "mask_structure": settings.structure if settings.structure in GROUPS else "0:0",
        # One entry for each of the shares, in the order of the layers.
        "targets": [r"re:^model\.layers\.\d+$"],
    }
    if settings.method == "wanda":
        run_recipe(loaded, rows, WandaPruningModifier(**common), model, tell)
        return 0
    failures = _Warnings()
    with replaced(sgpt_sparsify, "logger", failures):
        modifier = SparseGPTModifier(**common, dampening_frac=settings.dampening)
        run_recipe(loaded, rows, modifier, model, tell)
    return failures.count


class _Warnings:
    """Stands in for the logger of SparseGPT, which warns of one thing only: moments it could not invert."""

    def __init__(self) -> None:
        self.count = 0

    def warning(self, *_: Any) -> None:
        self.count += 1


PRUNE = Stage(
    name="compression.prune",
    version=1,
    title="Set weights to zero",
    settings=PruneSettings,
    run=run,
    inputs=("model", "data"),
)
