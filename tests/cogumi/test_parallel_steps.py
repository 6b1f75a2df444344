"""Steps side by side: real processes of stages of a few lines, on shares of the processor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from side_stages import STAGES, go, profile

from cogumi.devices import devices, shared_out
from cogumi.errors import UsageError
from cogumi.profile import parse_profile
from cogumi.steps import check_stages

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGUMI_DEVICES", "2")


def rows(workspace: Any) -> dict[tuple[str, int], Any]:
    return {(row.step, row.attempt): row for row in workspace.ledger.steps("r")}


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_stages_are_at_work_at_once_and_leave_what_they_leave_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, told, workspace = go(tmp_path / "two", profile())
    assert outcome.exit_code == 0
    found = rows(workspace)
    base, draft = found["base", 1], found["draft", 1]
    # Each waited until it saw the other.
    assert base.metrics["met"] == draft.metrics["met"] == 1
    assert len({base.metrics["pid"], draft.metrics["pid"], os.getpid()}) == 3
    assert ("draft", "start", "train (beside base)") in told.steps
    assert [entry for entry in told.steps if entry[0] == "draft"][-1][1:] == ("reused", "finished before")
    shown = [facts["beside"] for step, facts in told.facts if "beside" in facts]
    assert shown
    assert all(words.startswith(("draft ", "base ")) for words in shown)
    # A gate that wants the base again does not do the draft again.
    assert ("base", 2) in found
    assert ("draft", 2) not in found
    monkeypatch.setenv("COGUMI_DEVICES", "1")
    (tmp_path / "one" / "data").mkdir(parents=True)
    for name in ("base", "draft"):
        (tmp_path / "one" / "data" / f"{name}.here").touch()
    outcome, told, alone = go(tmp_path / "one", profile())
    assert alone.ledger.snapshot() == workspace.ledger.snapshot()
    assert rows(alone)["base", 1].metrics["pid"] == os.getpid()
    remark = "train (draft after it: 1 of the 2 accelerators that side by side takes)"
    assert ("base", "start", remark) in told.steps


def test_what_is_not_made_yet_waits_for_its_turn(tmp_path: Path) -> None:
    chosen = profile(meet=False).model_dump(mode="json")
    blank = {"id": "blank", "uses": "side.first", "settings": {"text": "blank"}}
    chosen["steps"].insert(2, blank)
    chosen["steps"][3]["inputs"] = {"data": "blank"}
    outcome, told, _ = go(tmp_path, parse_profile(chosen, "test"))
    assert outcome.exit_code == 0
    assert ("base", "start", "train (draft goes after it: blank is not made yet)") in told.steps


def test_until_a_step_starts_none_behind_it(tmp_path: Path) -> None:
    outcome, told, workspace = go(tmp_path, profile(meet=False), until="base")
    assert outcome.exit_code == 0
    assert ("draft", 1) not in rows(workspace)
    assert ("base", "start", "train") in told.steps


@pytest.mark.parametrize(
    ("fault", "code", "note"),
    [
        ("breaks", 4, "draft cannot be met"),
        ("dies", 5, "draft was ended by SIGKILL: too little memory, or someone stopped it; run again"),
    ],
)
def test_the_failure_of_one_lets_the_other_end(tmp_path: Path, fault: str, code: int, note: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"draft.{fault}").touch()
    outcome, _, workspace = go(tmp_path, profile())
    assert (outcome.exit_code, outcome.status) == (code, "failed")
    assert outcome.note.startswith(note)
    found = rows(workspace)
    assert [found["base", 1].status, found["draft", 1].status] == ["done", "failed"]
    (tmp_path / "data" / f"draft.{fault}").unlink()
    outcome, told, workspace = go(tmp_path, profile())
    assert outcome.exit_code == 0
    assert ("base", "reused", "finished before") in told.steps
    assert rows(workspace)["draft", 1].metrics["begun"] == 1
    assert list(workspace.store.staging.iterdir()) == []


def test_the_time_limit_ends_both_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("base", "draft"):
        (tmp_path / "data" / f"{name}.waits").touch()
    outcome, _, workspace = go(tmp_path, profile(), max_minutes=0.025)
    assert outcome.exit_code == 6
    found = rows(workspace)
    assert [found["base", 1].status, found["draft", 1].status] == ["stopped", "stopped"]
    for name in ("base", "draft"):
        assert not alive(int((tmp_path / "data" / f"{name}.pid").read_text()))
        (tmp_path / "data" / f"{name}.waits").unlink()
    outcome, _, workspace = go(tmp_path, profile())
    assert outcome.exit_code == 0
    assert [rows(workspace)[name, 1].metrics["begun"] for name in ("base", "draft")] == [1, 1]


def test_kill_9_of_the_run_ends_its_stages_and_is_resumed(tmp_path: Path) -> None:
    data = tmp_path / "killed" / "data"
    data.mkdir(parents=True)
    for name in ("base", "draft"):
        (data / f"{name}.waits").touch()
    code = "import pathlib, sys, side_stages as s; s.go(pathlib.Path(sys.argv[1]), s.profile())"
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "killed")], env=path)
    counts = tmp_path / "killed" / "ws" / "scratch"
    eventually(lambda: len(list(counts.glob("*/count"))) == 2)
    pids = [int((data / f"{name}.pid").read_text()) for name in ("base", "draft")]
    assert all(alive(pid) for pid in pids)
    run.send_signal(signal.SIGKILL)
    run.wait()
    eventually(lambda: not any(alive(pid) for pid in pids))
    for name in ("base", "draft"):
        (data / f"{name}.waits").unlink()
    outcome, _, killed = go(tmp_path / "killed", profile())
    assert outcome.exit_code == 0
    assert [rows(killed)[name, 1].metrics["begun"] for name in ("base", "draft")] == [1, 1]
    _, _, whole = go(tmp_path / "whole", profile())
    assert killed.ledger.snapshot() == whole.ledger.snapshot()
    assert list(killed.store.staging.iterdir()) == []


@pytest.mark.parametrize(
    ("draft", "told"),
    [
        ({"beside": "bas"}, r"no earlier stage is called 'bas' \(did you mean 'base'\?\)"),
        ({"uses": "side.heal", "inputs": {"data": "data", "of": "base"}}, "draft is made from base"),
        ({"uses": "side.asks"}, "side.asks asks teachers, and such a stage runs beside no other"),
    ],
)
def test_what_cannot_go_beside_is_refused_before_work(draft: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check_stages(profile(**draft), STAGES)


def test_one_beside_another_that_is_itself_beside_names_the_first(tmp_path: Path) -> None:
    document = profile().model_dump(mode="json")
    more = {"uses": "side.train", "inputs": {"data": "data"}, "settings": {"text": "c"}, "beside": "draft"}
    document["steps"].append({"id": "c", **more})
    with pytest.raises(UsageError, match="draft runs beside base itself; name base"):
        check_stages(parse_profile(document, "test"), STAGES)


def test_devices_are_shared_out_and_the_first_gets_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices() == ("cpu", "cpu")
    assert shared_out(devices(), 2) == [{"COGUMI_DEVICES": "1", "CUDA_VISIBLE_DEVICES": ""}] * 2
    assert shared_out(["4", "5", "GPU-ab"], 2) == [
        {"CUDA_VISIBLE_DEVICES": "4,5"},
        {"CUDA_VISIBLE_DEVICES": "GPU-ab"},
    ]
    monkeypatch.setenv("COGUMI_DEVICES", "two")
    with pytest.raises(UsageError, match="COGUMI_DEVICES: a number of processes is expected, not 'two'"):
        devices()
