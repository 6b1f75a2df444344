"""What a report says of size against quality: every compressed model of the run whose divergence is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from cogumi.store import Artifact
from cogumi.workspace import Workspace
from gates.frontier import FrontierPoint, groups, standings
from reports import text
from reports.artifacts import stored
from reports.schema import ArtifactPart, FrontierPart, FrontierPointPart

_PACKAGE = "compression.package"
_SIZES = ("bytes_resident", "bytes_download")
_LONGEST_RECIPE = 8
# Settings that say what a step did, in the order in which they are told.
_TELLING = ("method", "sparsity", "structure", "type", "bits", "bytes_at_most", "layers", "rank", "level")


def frontier_parts(
    workspace: Workspace, names: Mapping[str, str], artifacts: Sequence[ArtifactPart]
) -> list[FrontierPart]:
    """Return one frontier for each dense model and set of rows that divergences were measured against.

    ``names`` is ``{digest: step}`` of all that the run made. A measurement may stand in the model's own facts
    or in a file of its own (``compression.fidelity``). A packaged model stands for the one inside it: no bit
    of it differs, and its download is the one that a user pays for.
    """
    known = {digest: stored(workspace, digest) for digest in names}
    packages = {_inputs(one).get("model", ""): one for one in known.values() if _stage(one) == _PACKAGE}
    measured = _measured(known, packages)
    numbers = {part.digest: part for part in artifacts}
    found = []
    for group, points in groups(point for point, _ in measured.values()).items():
        parts: list[FrontierPointPart] = []
        for point, standing in zip(points, standings(points), strict=True):
            facts, shown = measured[point.name, group][1], packages.get(point.name)
            digest = shown.digest if shown is not None else point.name
            part = numbers.get(digest) or numbers.get(point.name)
            told = {
                "number": part.number if part else None,
                "name": names.get(digest) or names.get(point.name) or text.short(point.name),
                "recipe": _recipe(workspace, stored(workspace, point.name), packaged=shown is not None),
                "bits_per_weight": _bits(facts, part),
                "standing": standing,
            }
            parts += _point_part(point, facts["fidelity"], told)
        if parts:
            parts.sort(key=lambda one: (one.bytes_download, one.kl))
            baseline = group.partition(" ")[0]
            found.append(FrontierPart(baseline=names.get(baseline, text.short(baseline)), points=parts))
    return found


def _measured(
    known: Mapping[str, Artifact], packages: Mapping[str, Artifact]
) -> dict[tuple[str, str], tuple[FrontierPoint, Mapping[str, Any]]]:
    """Return points, named by the digest of their model, and the facts that they stand in."""
    found: dict[tuple[str, str], tuple[FrontierPoint, Mapping[str, Any]]] = {}
    for digest, artifact in known.items():
        if _stage(artifact) == _PACKAGE:
            # It has the facts of the model inside it.
            continue
        model = str(artifact.facts.get("model", digest))
        sizes = packages[model].facts if model in packages else {}
        facts = {**artifact.facts, **{name: sizes[name] for name in _SIZES if name in sizes}}
        point = FrontierPoint.of_facts(model, facts)
        if point is not None:
            found[model, point.group] = point, facts
    return found


def _point_part(
    point: FrontierPoint, fidelity: Mapping[str, Any], told: Mapping[str, Any]
) -> Iterator[FrontierPointPart]:
    figures = ("perplexity", "baseline_perplexity", "top1_agreement", "tokens", "rows")
    shown = {name: getattr(point, name) for name in (*_SIZES, "kl", "kl_lower", "kl_upper")}
    shown |= {name: fidelity.get(name) for name in figures}
    try:
        yield FrontierPointPart.model_validate({**told, **shown})
    except ValidationError:
        # Another stage's facts of the same name.
        return


def _stage(artifact: Artifact) -> str:
    return str(artifact.manifest["made_by"].get("stage", ""))


def _inputs(artifact: Artifact) -> Mapping[str, str]:
    inputs: Mapping[str, str] = artifact.manifest["made_by"].get("inputs", {})
    return inputs


def _bits(facts: Mapping[str, Any], part: ArtifactPart | None) -> float | None:
    told = facts.get("bits_per_weight")
    if isinstance(told, int | float):
        return float(told)
    return part.bits_per_weight if part else None


def _recipe(workspace: Workspace, artifact: Artifact, *, packaged: bool) -> str:
    """Return the steps of the compression, the first one first, each with what it was told to do."""
    steps: list[str] = ["package"] if packaged else []
    for _ in range(_LONGEST_RECIPE):
        stage, inputs = _stage(artifact), _inputs(artifact)
        if not stage.startswith("compression."):
            break
        # A recipe was several stages in one.
        parts = artifact.facts.get("recipe")
        if not isinstance(parts, list):
            parts = [{"uses": stage, "settings": artifact.manifest["made_by"].get("settings", {})}]
        steps += [_step(part) for part in reversed(parts)]
        parent = inputs.get("compressed") or inputs.get("model")
        if parent is None:
            break
        artifact = stored(workspace, parent)
    return " → ".join(reversed(steps)) or text.UNKNOWN


def _step(part: Mapping[str, Any]) -> str:
    settings = part.get("settings", {})
    told = [str(settings[name]) for name in _TELLING if isinstance(settings.get(name), str | int | float)]
    return " ".join([str(part.get("uses", "")).partition(".")[2], *told])


# The table ------------------------------------------------------------------------------------------

HEADER = ("", "Model", "Recipe", "Download", "In memory", "Bits a weight", "KL", "Bounds",
          "Perplexity", "Same top", "Standing")  # fmt: skip
NUMBERS = range(3, 10)
"""Columns that hold numbers."""


def table(part: FrontierPart) -> list[list[str]]:
    """Return the rows of the table of one frontier, under ``HEADER``, the smallest download first."""
    return [
        [
            str(point.number or ""),
            point.name,
            point.recipe,
            text.size(point.bytes_download),
            text.size(point.bytes_resident),
            text.UNKNOWN if point.bits_per_weight is None else f"{point.bits_per_weight:.2f}",
            kl_told(point.kl),
            f"{kl_told(point.kl_lower)} to {kl_told(point.kl_upper)}",
            text.UNKNOWN if point.perplexity is None else f"{point.perplexity:.4g}",
            text.percent(point.top1_agreement),
            point.standing,
        ]
        for point in part.points
    ]


def kl_told(value: float) -> str:
    """Format a divergence with three digits that count."""
    return f"{value:.3g}"


def told(part: FrontierPart) -> str:
    """Say in words what the plot shows."""
    best = [point for point in part.points if point.standing == "best"]
    known = [point for point in part.points if point.tokens is not None and point.rows is not None]
    along = f"; along {known[0].tokens:,} answer tokens of {known[0].rows:,} held-out rows" if known else ""
    against = f" of {part.baseline}" if part.baseline != text.UNKNOWN else ""
    dense = next((p.baseline_perplexity for p in part.points if p.baseline_perplexity is not None), None)
    perplexity = "" if dense is None else f"; the dense model's perplexity is {dense:.4g}"
    return (
        f"{len(part.points)} compressed model{'s' if len(part.points) > 1 else ''}{against}; "
        f"beaten by none in bytes to download and divergence at once: {len(best)}{along}{perplexity}"
    )
