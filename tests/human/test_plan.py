"""A study's plan: what cannot be dealt is refused when it is made, and its file is read back whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_study import small_plan

from cogumi.errors import RunError, UsageError
from evals.human.plan import PLAN_FILE, check_study_name, read_plan, study_folder, write_plan


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"items": 7, "tasks": small_plan().model_dump()["tasks"]}, "6 tasks for 7 items"),
        ({"planted": 4}, "4 planted answers need at least 7"),
        ({"repeats": 2}, "2 repeats need at least 7"),
        ({"reference": None}, "pairs need a reference"),
        ({"pairs": 7}, "7 pairs a rater, but only 6"),
        ({"subject": "nobody"}, "has no answer of 'nobody'"),
        ({"raters": 0}, "raters"),
        ({"seed": -1}, "seed"),
        ({"colour": 1}, "colour"),
        ({"name": "../up"}, "study name"),
    ],
)
def test_what_cannot_be_is_one_line(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        small_plan(**changed)
    assert "\n" not in str(caught.value)


def test_a_plan_is_read_back_with_its_digest(tmp_path: Path) -> None:
    plan = small_plan()
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    assert read_plan(tmp_path).digest == plan.digest != small_plan(seed=4).digest


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text[: len(text) // 2], "broken plan"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "newer than this program"),
        (lambda text: text.replace('"items"', '"item"'), "broken plan"),
    ],
)
def test_a_broken_plan_is_told(tmp_path: Path, change: Any, told: str) -> None:
    write_plan(small_plan(), tmp_path)
    file = tmp_path / PLAN_FILE
    text = file.read_text()
    assert change(text) != text
    file.write_text(change(text))
    with pytest.raises(RunError, match=told) as caught:
        read_plan(tmp_path)
    assert str(file) in str(caught.value)


def test_no_study_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cogumi humaneval create pilot"):
        read_plan(tmp_path / "pilot")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "ä", "x" * 81])
def test_a_name_is_a_folder_s_too(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        check_study_name(name)
    with pytest.raises(UsageError):
        study_folder(tmp_path, name)
