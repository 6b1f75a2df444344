"""A recipe: parts in order, each made once, the distance from the dense model measured at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from micro_stages import artifact, micro_data, run_stage
from pydantic import ValidationError

from cogumi.errors import RunError
from cogumi.stage import Stage
from cogumi.store import Artifact
from pipeline.compression import parts
from pipeline.compression.gguf_export import GGUF
from pipeline.compression.recipe import RECIPE, RecipeSettings
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings

Q8: dict[str, Any] = {"id": "small", "uses": "compression.gguf", "inputs": {"model": "model"}}
PACKED: dict[str, Any] = {"id": "packed", "uses": "compression.package", "inputs": {"model": "small"}}
FIDELITY = {"held_out_share": 1.0, "rows": 8}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("recipe")
    data = micro_data(folder / "data", 4)
    settings = MicroModelSettings(
        hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=64, vocab_size=300
    )
    _, model = run_stage(MICRO_MODEL, settings, folder / "model", {"data": data})
    return {"model": artifact(model.path, "model"), "data": data}


def settings(*parts: dict[str, Any]) -> RecipeSettings:
    return RecipeSettings.model_validate({"parts": parts, "fidelity": FIDELITY})


def test_a_recipe_leaves_its_last_part_with_sizes_and_distance(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    small = {**Q8, "settings": {"type": "Q8_0"}}
    result, made = run_stage(RECIPE, settings(small, PACKED), tmp_path, inputs)
    assert result.kind == "gguf"
    assert {"model.gguf", "download/manifest.json"} <= set(made.manifest["files"])
    facts = result.facts
    assert [part["id"] for part in facts["recipe"]] == ["small", "packed"]
    assert facts["bytes_resident"] == (made.path / "model.gguf").stat().st_size
    assert 0 < facts["bytes_download"] < facts["bytes_resident"]
    assert 0 <= facts["fidelity"]["kl"] < 0.01
    assert facts["metrics"]["kl"]["value"] == facts["fidelity"]["kl"]
    assert "zstd_bytes_download" in facts["metrics"]


def test_a_finished_part_is_not_made_again(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def watched(stage: Stage[Any], fail: bool) -> Stage[Any]:
        def work(settings: Any, ctx: Any) -> Any:
            made.append(stage.name)
            if fail:
                raise RunError("no space")
            return stage.run(settings, ctx)

        return Stage(stage.name, stage.version, stage.title, stage.settings, work, stage.inputs)

    real = parts.stages()

    def stages(fail: bool) -> dict[str, Stage[Any]]:
        names = ("compression.gguf", "compression.package")
        return {**real, **{name: watched(real[name], fail and name == names[1]) for name in names}}

    chain = settings({**Q8, "settings": {"type": "Q8_0"}}, PACKED)
    monkeypatch.setattr(parts, "stages", lambda: stages(True))
    with pytest.raises(RunError, match="recipe part packed: no space"):
        run_stage(RECIPE, chain, tmp_path, inputs)
    monkeypatch.setattr(parts, "stages", lambda: stages(False))
    (tmp_path / "out").rmdir()
    run_stage(RECIPE, chain, tmp_path, inputs)
    assert made == ["compression.gguf", "compression.package", "compression.package"]


def test_a_recipe_that_ends_in_no_model_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    part = {
        "id": "told",
        "uses": "compression.fidelity",
        "inputs": {"model": "model", "baseline": "model", "data": "data"},
        "settings": FIDELITY,
    }
    with pytest.raises(RunError, match="its last part, told, leaves a file"):
        run_stage(RECIPE, settings(part), tmp_path, inputs)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ({**Q8, "uses": "compression.gguff"}, "no stage 'compression.gguff' fits here"),
        ({**Q8, "uses": "compression.recipe"}, "no stage 'compression.recipe' fits here"),
        ({**Q8, "uses": "generation.questions"}, "no stage 'generation.questions' fits here"),
        ({**Q8, "inputs": {"model": "modl"}}, "no 'modl'"),
        ({**Q8, "inputs": {}}, "wants input 'model'"),
        ({**Q8, "inputs": {"model": "model", "mode": "data"}}, "has no input 'mode'"),
        ({**Q8, "id": "data"}, "this id is taken"),
        ({**Q8, "settings": {"typ": "Q8_0"}}, "typ"),
    ],
)
def test_what_could_not_run_is_told_before_work(part: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        settings(part)


def test_recipes_share_the_registry() -> None:
    assert parts.stages()["compression.gguf"] is GGUF
