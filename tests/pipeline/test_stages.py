"""Every stage is registered under its own name, and only what is asked for is imported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pipeline
from cogumi.stage import Stage
from pipeline import all_stages
from pipeline.registry import StageRegistry

FOLDER = Path(pipeline.__file__).parent


def stages_in_files() -> dict[str, str]:
    """``{name: module}`` of all that ``Stage(name=…)`` or ``replace(…, name=…)`` makes."""
    found = {}
    for path in FOLDER.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            made = node.value if isinstance(node, ast.Assign) else None
            if isinstance(made, ast.Call) and ast.unparse(made.func) in ("Stage", "replace"):
                names = [one.value for one in made.keywords if one.arg == "name"]
                module = ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts)
                found |= {one.value: module for one in names if isinstance(one, ast.Constant)}
    return found


def test_every_stage_is_registered_under_its_name() -> None:
    stages = all_stages()
    assert set(stages) == set(stages_in_files())
    assert {name: stage.name for name, stage in stages.items()} == {name: name for name in stages}
    assert all(isinstance(stage, Stage) for stage in stages.values())
    assert len(stages) == len(list(stages))
    assert "training.none" not in stages
    assert stages.get("training.none") is None
    with pytest.raises(KeyError):
        stages["training.none"]


def test_a_stage_is_imported_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_stage.py").write_text(
        "from pipeline.training.sft import SFT\nfrom dataclasses import replace\n"
        "ONE = replace(SFT, name='a.one')\nprint('imported')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    stages = StageRegistry({"a.one": "late_stage:ONE", "a.two": "late_stage:ONE", "a.gone": "no_such_file:X"})
    assert "a.gone" in stages
    assert list(stages) == ["a.one", "a.two", "a.gone"]
    assert stages["a.one"] is stages["a.one"]
    with pytest.raises(ValueError, match=r"late_stage:ONE is the stage a\.one, registered as a\.two"):
        stages["a.two"]
