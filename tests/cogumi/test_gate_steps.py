"""``cogumi gate`` on a run whose profile decides one gate in several steps: which one is judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cogumi.workspace import Workspace

Command = Callable[..., Any]
GATE = "phase3-steps"
STEPS: list[dict[str, object]] = [
    {"id": "draft", "uses": "compression.gguf"},
    {"id": "draft_gate", "gate": GATE, "artifact": "draft", "criteria": ["draft_resident"]},
    {"id": "small", "uses": "compression.gguf"},
    {"id": "size_gate", "gate": GATE, "artifact": "small", "criteria": ["draft_size"]},
    {"id": "late_gate", "gate": GATE, "artifact": "small", "criteria": ["awq_size", "zstd_size"]},
]


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """A run that has made both artifacts and decided nothing yet."""
    place = Workspace(tmp_path / ".cogumi")
    place.create()
    place.ledger.start_run("r", "p", {"profile": "p", "title": "t", "steps": STEPS}, [])
    sizes = {
        "draft": {"draft_bytes_resident": 400_000_000},
        "small": {f"{part}_bytes_download": 200 for part in ("draft", "awq", "zstd")},
    }
    for name, metrics in sizes.items():
        staging = place.store.new_staging()
        (staging / "payload").mkdir(exist_ok=True)
        (staging / "payload" / "model.gguf").write_bytes(b"GGUF" + name.encode())
        made = place.store.commit(
            staging, kind="gguf", made_by={}, facts={"metrics": metrics}, created="2026-01-01"
        )
        finished(place, name, made.digest)
    return place


def finished(place: Workspace, step: str, artifact: str | None = None) -> None:
    place.ledger.start_step("r", step, 1, step, "gate" if artifact is None else "stage")
    place.ledger.end_step("r", step, 1, status="done", artifact=artifact)


def judged(cogumi: Command, *options: str) -> tuple[int, list[str]]:
    code, out, _ = cogumi("gate", GATE, "--run", "r", "--json", *options)
    return code, [criterion["id"] for criterion in json.loads(out)["criteria"]]


def test_the_step_that_is_named_is_judged(cogumi: Command, place: Workspace) -> None:
    # 400 MB are above the 350 of the draft.
    assert judged(cogumi, "--step", "draft_gate") == (1, ["draft_resident"])
    assert judged(cogumi, "--step", "size_gate") == (0, ["draft_size"])


def test_else_the_last_that_the_run_decided(cogumi: Command, place: Workspace) -> None:
    # Nothing is decided yet: the last whose artifact is there.
    assert judged(cogumi) == (0, ["awq_size", "zstd_size"])
    finished(place, "draft_gate")
    assert judged(cogumi) == (1, ["draft_resident"])
    finished(place, "size_gate")
    assert judged(cogumi) == (0, ["draft_size"])


def test_before_anything_is_made_the_first_is_judged(cogumi: Command, place: Workspace) -> None:
    place.ledger.start_run("later", "p", {"profile": "p", "title": "t", "steps": STEPS}, [])
    code, out, _ = cogumi("gate", GATE, "--run", "later", "--json")
    (criterion,) = json.loads(out)["criteria"]
    assert (code, criterion["id"], criterion["verdict"]) == (3, "draft_resident", "UNDECIDED")


def test_the_output_names_the_step_where_there_are_several(
    cogumi: Command, place: Workspace, tmp_path: Path
) -> None:
    told = "step size_gate, one of draft_gate, size_gate, late_gate"
    named = ("gate", GATE, "--run", "r", "--step", "size_gate")
    assert told in cogumi(*named, "--markdown", "found.md").out
    assert told in (tmp_path / "found.md").read_text()
    one = {"profile": "q", "title": "t", "steps": STEPS[:2]}
    place.ledger.start_run("single", "q", one, [])
    assert "one of" not in cogumi("gate", GATE, "--run", "single").out


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            ("--run", "r", "--step", "size_gat"),
            "profile p has no step 'size_gat' of gate phase3-steps (did you mean 'size_gate'?)",
        ),
        (("--artifact", "x", "--step", "size_gate"), "--step judges a run; leave out --artifact"),
        (("--run", "r", "--plan", "--step", "size_gate"), "--step judges a run; leave out --plan"),
    ],
)
def test_a_step_that_cannot_be_judged(
    cogumi: Command, place: Workspace, options: tuple[str, ...], wanted: str
) -> None:
    code, _, told = cogumi("gate", GATE, *options)
    assert code == 2
    assert wanted in told


def test_a_step_without_a_run_is_the_latest_runs(cogumi: Command, place: Workspace) -> None:
    code, out, _ = cogumi("gate", GATE, "--step", "size_gate", "--json")
    assert (code, json.loads(out)["run"]) == (0, "r")
