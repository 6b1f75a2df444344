"""Stage ``compression.recipe``: a chain of stages as one attempt of a search for what is to be shipped.

A profile lists recipes as ``attempts``, the cheapest first, and a gate whose ``retry`` names this step: the
run goes on to the next recipe until the gate passes. Every attempt stays in the store with its sizes and its
distance from the dense model, so what is left behind is the whole frontier and not the winner alone. A part
that is finished is not made again after a kill.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from cogumi.errors import RunError
from cogumi.stage import ArtifactKind, Settings, Stage, StageContext, StageResult
from cogumi.store import Artifact, disk_error
from pipeline.compression.fidelity_stage import FIDELITY, FidelitySettings
from pipeline.compression.parts import RecipePart, check_part, run_part

_GIVEN = ("model", "data")


class RecipeSettings(Settings):
    """What is done, in order; the last part's model is the recipe's."""

    parts: tuple[RecipePart, ...] = Field(min_length=1)
    fidelity: FidelitySettings = FidelitySettings()
    """How its distance from the dense model is measured."""

    @model_validator(mode="after")
    def _possible(self) -> RecipeSettings:
        known = list(_GIVEN)
        for part in self.parts:
            check_part(part, known, never=RECIPE.name)
            known.append(part.id)
        return self


def run(settings: RecipeSettings, ctx: StageContext) -> StageResult:
    """Run the parts on inputs ``model`` and ``data``, then measure what the last one left against ``model``.

    Raises ``RunError`` naming the part that failed, or when the last part leaves no model.
    """
    made: dict[str, Artifact] = {name: ctx.inputs[name] for name in _GIVEN}
    total = len(settings.parts) + 1
    metrics: dict[str, float] = {}
    for number, part in enumerate(settings.parts):
        ctx.progress.update(number, total, part=part.id)
        made[part.id], measured = run_part(part, made, ctx)
        metrics |= {f"{part.id}.{name}": value for name, value in measured.items()}
    last = made[settings.parts[-1].id]
    if last.kind not in ("gguf", "model"):
        raise RunError(
            f"recipe: its last part, {settings.parts[-1].id}, leaves a {last.kind}, not a model; reorder it"
        )
    ctx.progress.update(total - 1, total, part="fidelity")
    measure = RecipePart(
        id="fidelity",
        uses=FIDELITY.name,
        inputs={"model": settings.parts[-1].id, "baseline": "model", "data": "data"},
        settings=settings.fidelity.model_dump(mode="json"),
    )
    fidelity, _ = run_part(measure, made, ctx)
    try:
        shutil.copytree(last.path, ctx.out, dirs_exist_ok=True)
    except OSError as error:
        raise disk_error(error, ctx.out) from error
    ctx.progress.update(total, total)
    return StageResult(_kind(last), _facts(settings, made, last, fidelity), metrics)


def _facts(
    settings: RecipeSettings, made: Mapping[str, Artifact], last: Artifact, fidelity: Artifact
) -> dict[str, Any]:
    """Return the last part's facts, with all parts' metrics and what each part was and weighs."""
    measured: dict[str, Any] = {}
    for part in settings.parts:
        measured |= made[part.id].facts.get("metrics", {})
    parts = [
        {"id": part.id, "uses": part.uses, "settings": part.settings, "bytes": made[part.id].bytes}
        for part in settings.parts
    ]
    sizes = {name: last.facts.get(name, last.bytes) for name in ("bytes_resident", "bytes_download")}
    return {
        **last.facts,
        **sizes,
        "recipe": parts,
        **{name: fidelity.facts[name] for name in ("fidelity", "baseline", "rows_digest")},
        "metrics": {**measured, **fidelity.facts["metrics"]},
    }


def _kind(artifact: Artifact) -> ArtifactKind:
    return "gguf" if artifact.kind == "gguf" else "model"


RECIPE = Stage(
    name="compression.recipe",
    version=1,
    title="Compress by one recipe",
    settings=RecipeSettings,
    run=run,
    inputs=("model", "data"),
)
