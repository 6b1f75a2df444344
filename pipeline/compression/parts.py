"""One stage inside a recipe: checked before work, run once, found again after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cogumi.digest import digest_of, tree_files
from cogumi.errors import RunError, nearest
from cogumi.stage import Stage, StageContext
from cogumi.store import Artifact, disk_error, manifest_digest, write_atomic
from cogumi.strict_yaml import explain

RESULT = "result.json"
"""In a part's folder once the part is finished."""


class RecipePart(BaseModel):
    """One stage of a recipe; ``inputs`` name the recipe's own, ``model`` and ``data``, or earlier parts."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    id: str
    uses: str
    inputs: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)


def run_part(
    part: RecipePart, made: Mapping[str, Artifact], ctx: StageContext
) -> tuple[Artifact, dict[str, float]]:
    """Run a part on what was ``made`` before, by id, or find it finished in ``ctx.scratch``.

    Returns its output, outside the store, and what it measured on this machine. Raises ``RunError`` naming
    the part when it fails.
    """
    stage = stages()[part.uses]
    inputs = {name: made[source] for name, source in part.inputs.items()}
    work = _work(part, made, ctx)
    folder = part_folder(part, made, ctx)
    if not (folder / RESULT).is_file():
        out, scratch = folder / "payload", folder / "scratch"
        shutil.rmtree(out, ignore_errors=True)
        for each in (out, scratch):
            each.mkdir(parents=True, exist_ok=True)
        if stage.check:
            stage.check(inputs)
        settings = stage.settings.model_validate(part.settings)
        try:
            result = stage.run(settings, replace(ctx, inputs=inputs, out=out, scratch=scratch))
        except OSError as error:
            raise disk_error(error, folder) from error
        except RunError as error:
            raise RunError(f"recipe part {part.id}: {error}") from error
        manifest = {
            "kind": result.kind,
            "made_by": work,
            "facts": dict(result.facts),
            "files": tree_files(out),
        }
        document = {"manifest": manifest, "metrics": dict(result.metrics)}
        write_atomic(folder / RESULT, json.dumps(document, sort_keys=True).encode())
        shutil.rmtree(scratch, ignore_errors=True)
    document = json.loads((folder / RESULT).read_text())
    manifest = document["manifest"]
    return Artifact(manifest_digest(manifest), folder / "payload", manifest), document["metrics"]


def part_folder(part: RecipePart, made: Mapping[str, Artifact], ctx: StageContext) -> Path:
    """Return the folder in ``ctx.scratch`` where a part is made; ``scratch`` in it is the part's own."""
    return ctx.scratch / f"{part.id}-{digest_of(_work(part, made, ctx))[7:23]}"


def _work(part: RecipePart, made: Mapping[str, Artifact], ctx: StageContext) -> dict[str, Any]:
    """Return all that decides what a part leaves."""
    stage = stages()[part.uses]
    return {
        "stage": [stage.name, stage.version],
        "settings": part.settings,
        "inputs": {name: made[source].digest for name, source in part.inputs.items()},
        "seed": ctx.seed,
    }


def stages() -> Mapping[str, Stage[Any]]:
    """Return the stages that a part may use, and all others."""
    from pipeline import all_stages

    return all_stages()


def check_part(part: RecipePart, known: Sequence[str], never: str) -> None:
    """Raise ``ValueError`` for a part that could not run after those ``known``; ``never`` is no part."""
    if part.id in known:
        raise ValueError(f"part {part.id}: this id is taken")
    registered = stages()
    stage = registered.get(part.uses)
    if stage is None or stage.teachers or part.uses == never:
        fit = [name for name, each in registered.items() if not each.teachers and name != never]
        raise ValueError(
            f"part {part.id}: uses: no stage '{part.uses}' fits here{nearest(part.uses, sorted(fit))}"
        )
    for name, source in part.inputs.items():
        if name not in (*stage.inputs, *stage.optional_inputs):
            raise ValueError(f"part {part.id}: {stage.name} has no input {name!r}")
        if source not in known:
            raise ValueError(f"part {part.id}: inputs.{name}: no '{source}'{nearest(source, list(known))}")
    missing = [name for name in stage.inputs if name not in part.inputs]
    if missing:
        raise ValueError(f"part {part.id}: {stage.name} wants input {missing[0]!r}")
    try:
        stage.settings.model_validate(part.settings)
    except ValidationError as error:
        raise ValueError(f"part {part.id}: settings: {explain(error, stage.settings)}") from None
