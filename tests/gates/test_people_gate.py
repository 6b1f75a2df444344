"""The gate on people, through the command: a workspace's closed study, or one that is an artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from study_memory import frozen, plan_of, rows_of, study

from cogumi.store import Artifact
from cogumi.workspace import Workspace
from evals.human.frozen import Frozen, write_timeless
from evals.human.plan import study_folder, write_plan
from gates.render import text
from gates.spec import load_gate
from gates.verdicts import GateVerdict

Command = Callable[..., Any]
GATE = "phase8-people"


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Closed studies in folders of their own: one passes, one fails, one is simulated, one is small."""
    root = tmp_path_factory.mktemp("studies")
    made = {
        "good": study(mean=8.9, seed=1),
        "bad": study(mean=6.0, seed=1),
        "simulated": study(12, mean=8.9, seed=1, simulated=12),
        "few": study(99, mean=8.9, seed=1),
    }
    for name, found in made.items():
        freeze(found, root / name)
    return root


def freeze(found: Frozen, folder: Path) -> None:
    folder.mkdir(parents=True)
    write_timeless(found, folder)


def closed(place: Workspace, source: Path, name: str = "phase8") -> None:
    place.create()
    shutil.copytree(source, study_folder(place.root, name))


def decided(cogumi: Command, gate: str = GATE, *more: str) -> tuple[int, dict[str, dict[str, Any]], Any]:
    code, out, _ = cogumi("gate", gate, "--json", *more)
    document = json.loads(out)
    return code, {row["id"]: row for row in document["criteria"]}, document


@pytest.mark.parametrize(
    ("name", "code", "verdicts"),
    [
        ("good", 0, ("PASS", "PASS", "PASS")),
        ("bad", 1, ("FAIL", "PASS", "PASS")),
        ("few", 1, ("UNDECIDED", "FAIL", "PASS")),
        ("simulated", 3, ("UNDECIDED", "UNDECIDED", "UNDECIDED")),
    ],
)
def test_a_closed_study_decides(
    cogumi: Command, workspace: Path, studies: Path, name: str, code: int, verdicts: tuple[str, ...]
) -> None:
    closed(Workspace(workspace), studies / name)
    found, rows, document = decided(cogumi)
    assert (found, tuple(row["verdict"] for row in rows.values())) == (code, verdicts)
    human = rows["human"]
    assert human["n_used"] == human["n_total"] == 20 * {"few": 99, "simulated": 12}.get(name, 100)
    assert human["lower"] < human["value"] < human["upper"]
    assert human["protocol"].startswith("sha256:")
    assert human["alpha"] == 0.05
    assert rows["rated_tasks"]["value"] == 20
    assert document["only_simulated_raters"] is (name == "simulated")
    if name == "few":
        assert human["note"].startswith("99 complete raters, 100 are needed")


def test_every_line_of_a_simulated_study_says_simulated_raters(
    cogumi: Command, workspace: Path, studies: Path
) -> None:
    closed(Workspace(workspace), studies / "simulated")
    code, _, document = decided(cogumi)
    lines = text(GateVerdict.from_json(document)).splitlines()
    told = [line for line in lines if line.startswith(GATE)]
    assert len(told) == 4
    assert all("simulated raters" in line for line in told)
    for row in document["criteria"]:
        assert row["note"].startswith("simulated raters: these can never decide")
    assert code == 3


def test_an_artifact_that_is_a_study_is_judged_itself(
    cogumi: Command, workspace: Path, studies: Path
) -> None:
    """Whatever study of that name the workspace has: what a step made is what its gate judges."""
    place = Workspace(workspace)
    closed(place, studies / "bad")
    made = stored(place, studies / "good")
    assert decided(cogumi, GATE, "--artifact", made.digest)[0] == 0
    assert decided(cogumi)[0] == 1


def stored(place: Workspace, folder: Path) -> Artifact:
    staging = place.store.new_staging()
    shutil.copytree(folder, staging / "payload", dirs_exist_ok=True)
    return place.store.commit(staging, kind="dataset", made_by={}, facts={}, created="2026-01-01")


def test_an_open_study_is_undecided_and_shows_no_number(cogumi: Command, workspace: Path) -> None:
    place = Workspace(workspace)
    place.create()
    folder = study_folder(place.root, "phase8")
    folder.mkdir(parents=True)
    write_plan(plan_of(100, 20), folder)
    (folder / "study.sqlite").write_bytes(b"")
    code, rows, _ = decided(cogumi)
    assert code == 3
    assert rows["human"]["note"].startswith("not measured: study phase8 is open")
    assert "cogumi humaneval close phase8" in rows["human"]["note"]
    assert {row["value"] for row in rows.values()} == {None}


def test_a_study_that_was_changed_is_an_error(cogumi: Command, workspace: Path, studies: Path) -> None:
    place = Workspace(workspace)
    closed(place, studies / "good")
    ratings = study_folder(place.root, "phase8") / "frozen" / "ratings.parquet"
    ratings.write_bytes(ratings.read_bytes()[:-1] + b"x")
    code, rows, _ = decided(cogumi)
    assert (code, rows["human"]["verdict"], rows["raters"]["verdict"]) == (5, "ERROR", "ERROR")


def test_a_gate_names_its_study_and_how_many_raters_it_needs(
    cogumi: Command, workspace: Path, studies: Path, tmp_path: Path
) -> None:
    closed(Workspace(workspace), studies / "few", "pilot")
    gate = tmp_path / "mine.yaml"
    lines = ["gate: mine", "title: t", "alpha: 0.05", "criteria:", "  - id: liked"]
    lines += ["    human: {study: pilot, raters: 50}", "    at_least: 8", "  - id: raters"]
    lines += ["    threshold: {metric: human_raters}", "    at_least: 50"]
    gate.write_text("\n".join(lines) + "\n")
    code, rows, _ = decided(cogumi, str(gate))
    assert (code, rows["liked"]["verdict"], rows["raters"]["value"]) == (0, "PASS", 99)
    # A part of the gate still knows whose raters are counted.
    assert load_gate(str(gate)).only(["raters"]).study == "pilot"
    assert load_gate("phase8").study == "phase8"
    assert load_gate("phase1").study is None
    gate.write_text(gate.read_text() + "  - id: other\n    human: {study: second}\n    at_least: 8\n")
    code, _, told = cogumi("gate", str(gate))
    assert code == 2
    assert "a gate asks about one study, not about pilot and second" in told


def test_a_whole_gate_with_simulated_raters_and_more_open_is_not_only_that(
    cogumi: Command, workspace: Path, studies: Path
) -> None:
    closed(Workspace(workspace), studies / "simulated")
    code, rows, document = decided(cogumi, "phase8")
    assert (code, rows["human"]["verdict"], rows["code"]["verdict"]) == (3, "UNDECIDED", "UNDECIDED")
    assert document["only_simulated_raters"] is False


def test_nobody_finished_is_not_measured(cogumi: Command, workspace: Path) -> None:
    place = Workspace(workspace)
    place.create()
    found = study(5, mean=9)
    rows = [one | {"rater_state": "expired"} for one in rows_of(found)]
    freeze(frozen(found.plan, rows), study_folder(place.root, "phase8"))
    _, judged, _ = decided(cogumi)
    assert judged["human"]["note"] == "not measured: study phase8 has no rating of a finished rater"
    assert (judged["raters"]["verdict"], judged["raters"]["value"]) == ("FAIL", 0)
