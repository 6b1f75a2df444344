"""The walk of a run, with real ledger and store and stages of a few lines."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cogumi.digest import digest_of
from cogumi.errors import BudgetError, RunError, UsageError
from cogumi.profile import GateStep, MeasureStep, Profile, Step, parse_profile
from cogumi.runner import Outcome, Runner, RunOptions
from cogumi.stage import CallRecord, Progress, Settings, Stage, StageContext, StageResult
from cogumi.steps import step_named
from cogumi.store import Artifact
from cogumi.workspace import Workspace


class TextSettings(Settings):
    text: str = "x"
    fault: str = ""
    teacher: str = ""


@dataclass
class Witness:
    ran: list[str] = field(default_factory=list)


def stages(witness: Witness) -> dict[str, Stage[Any]]:
    def run(settings: TextSettings, context: StageContext) -> StageResult:
        witness.ran.append(settings.text)
        context.progress.update(1, 2)
        before = "".join(artifact.file("text").read_text() for _, artifact in sorted(context.inputs.items()))
        if settings.fault == "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        if settings.fault == "wrapped disk":
            raise ValueError("io error: No space left on device (os error 28)")
        if settings.fault == "broken":
            raise RunError("the model is broken")
        if settings.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if settings.fault == "pay":
            record = CallRecord(f"key-{settings.text}", "openai", "m", {"a": 1}, 1, 1, 0.6)
            if not context.calls.recorded([record.key]):
                context.calls.record([record])
        (context.out / "text").write_text(before + settings.text)
        return StageResult("dataset", {"length": len(before + settings.text)}, {"speed": 1.0})

    first = Stage("text.first", 1, "first", TextSettings, run, teachers=("teacher",))
    more = Stage("text.more", 1, "more", TextSettings, run, inputs=("data",))
    return {stage.name: stage for stage in (first, more)}


class LengthJudge:
    """Passes artifacts whose text is long enough."""

    def __init__(self, at_least: int, otherwise: str = "FAIL") -> None:
        self.at_least = at_least
        self.otherwise = otherwise
        self.decided: list[str] = []

    def measure(self, artifact: Artifact, step: MeasureStep) -> Mapping[str, Any]:
        return {"note": f"{artifact.facts['length']} letters"}

    def decide(self, step: GateStep, artifact: Artifact, baseline: Artifact | None) -> Mapping[str, Any]:
        text = artifact.file("text").read_text()
        self.decided.append(text)
        verdict = "PASS" if len(text) >= self.at_least else self.otherwise
        attempt = len(set(self.decided))
        return {
            "gate": step.gate,
            "artifact": artifact.digest,
            "verdict": verdict,
            "attempt": attempt,
            "criteria": [],
        }


class Quiet:
    def step(self, step: Step, attempt: int, state: str, note: str) -> None:
        pass

    def progress(self, step: Step) -> Progress:
        return self

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        pass

    def verdict(self, step: GateStep, document: Mapping[str, Any], again: str | None) -> None:
        pass


def profile(
    attempts: list[dict[str, Any]] | None = None, first: dict[str, Any] | None = None, **more: Any
) -> Profile:
    document = {
        "profile": "p",
        "title": "t",
        "teachers": {"t": {"api": "openai", "model": "m"}},
        "steps": [
            {"id": "a", "uses": "text.first", "settings": first or {"text": "a"}},
            {
                "id": "b",
                "uses": "text.more",
                "inputs": {"data": "a"},
                "settings": {"text": "b"},
                "attempts": attempts or [],
            },
            {"id": "m", "measure": "b", "suite": "s"},
            {"id": "g", "gate": "phase1", "artifact": "b", "retry": "b"},
            {"id": "c", "uses": "text.more", "inputs": {"data": "b"}, "settings": {"text": "c"}},
        ],
        **more,
    }
    return parse_profile(document, "test")


def go(
    root: Path,
    chosen: Profile,
    judge: LengthJudge | None = None,
    options: RunOptions | None = None,
    name: str = "r",
) -> tuple[Outcome, list[str], Workspace]:
    witness = Witness()
    workspace = Workspace(root)
    runner = Runner(
        workspace,
        chosen,
        name,
        stages(witness),
        judge or LengthJudge(0),
        Quiet(),
        lambda: {name: teacher.config(name) for name, teacher in chosen.teachers.items()},
    )
    return runner.run(options or RunOptions()), witness.ran, workspace


def test_runs_every_step_once_and_again_nothing(tmp_path: Path) -> None:
    outcome, ran, workspace = go(tmp_path, profile())
    assert (outcome.exit_code, outcome.status, ran) == (0, "done", ["a", "b", "c"])
    # Checkpoints of what is done are of no use, and those of a large model fill a disk.
    assert list((workspace.root / "scratch").iterdir()) == []
    before = workspace.ledger.snapshot()
    outcome, ran, workspace = go(tmp_path, profile())
    assert (outcome.exit_code, ran) == (0, [])
    assert workspace.ledger.snapshot() == before


def test_a_run_keeps_its_profile(tmp_path: Path) -> None:
    _, _, workspace = go(tmp_path, profile())
    before = workspace.ledger.snapshot()
    with pytest.raises(UsageError, match=r"run r has the profile p, not other; .*--run NAME"):
        go(tmp_path, profile(profile="other"))
    assert workspace.ledger.snapshot() == before


def test_tries_again_harder_until_the_gate_passes(tmp_path: Path) -> None:
    attempts = [{"text": "b"}, {"text": "bb"}, {"text": "bbb"}]
    outcome, ran, workspace = go(tmp_path, profile(attempts), LengthJudge(3))
    assert (outcome.exit_code, ran) == (0, ["a", "b", "bb", "c"])
    rows = {(row.step, row.attempt): row for row in workspace.ledger.steps("r")}
    assert ("b", 2) in rows
    assert ("b", 3) not in rows
    assert [row["verdict"] for row in workspace.ledger.verdicts("r")] == ["FAIL", "PASS"]


def test_a_resumed_run_replays_its_verdicts(tmp_path: Path) -> None:
    attempts = [{"text": "b"}, {"text": "bb"}]
    go(tmp_path, profile(attempts), LengthJudge(3), RunOptions(until="m"))
    outcome, ran, _ = go(tmp_path, profile(attempts), LengthJudge(3))
    assert (outcome.exit_code, ran) == (0, ["bb", "c"])


@pytest.mark.parametrize(
    ("verdict", "code", "ran"),
    [
        ("FAIL", 1, ["a", "b", "bb"]),
        ("UNDECIDED", 3, ["a", "b", "bb"]),
        ("INFEASIBLE", 4, ["a", "b"]),
        ("ERROR", 5, ["a", "b"]),
    ],
)
def test_stops_with_the_code_of_the_gate(tmp_path: Path, verdict: str, code: int, ran: list[str]) -> None:
    attempts = [{"text": "b"}, {"text": "bb"}]
    outcome, did, workspace = go(tmp_path, profile(attempts), LengthJudge(9, verdict))
    assert (outcome.exit_code, outcome.status, did) == (code, "stopped", ran)
    row = workspace.ledger.run("r")
    assert row is not None
    assert (row["exit_code"], row["status"]) == (code, "stopped")


class MadeUpRaters(LengthJudge):
    """Says of every UNDECIDED whether simulated raters alone are the reason."""

    def __init__(self, only: bool) -> None:
        super().__init__(99, "UNDECIDED")
        self.only = only

    def decide(self, step: GateStep, artifact: Artifact, baseline: Artifact | None) -> Mapping[str, Any]:
        return {**super().decide(step, artifact, baseline), "only_simulated_raters": self.only}


def test_simulated_raters_are_told_and_not_counted(tmp_path: Path) -> None:
    chosen = profile([{"text": "b"}, {"text": "bb"}])
    outcome, ran, workspace = go(tmp_path / "one", chosen, MadeUpRaters(only=True))
    assert (outcome.exit_code, outcome.status) == (0, "done")
    assert outcome.note.endswith("gate phase1 is UNDECIDED, as its raters are simulated")
    # Nothing is tried harder, and what comes after the gate is done.
    assert ran == ["a", "b", "c"]
    assert [row["verdict"] for row in workspace.ledger.verdicts("r")] == ["UNDECIDED"]
    counted, _, _ = go(tmp_path / "other", chosen, MadeUpRaters(only=False))
    assert counted.exit_code == 3


@pytest.mark.parametrize("fault", ["disk", "wrapped disk"])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, fault: str) -> None:
    outcome, _, workspace = go(tmp_path, profile([{"text": "b", "fault": fault}]))
    assert (outcome.exit_code, outcome.status) == (5, "failed")
    assert "disk full" in outcome.note
    outcome, ran, _ = go(tmp_path, profile())
    assert (outcome.exit_code, ran) == (0, ["b", "c"])
    assert list(workspace.store.staging.iterdir()) == []


def test_an_error_of_a_stage_ends_the_run(tmp_path: Path) -> None:
    outcome, _, workspace = go(tmp_path, profile(first={"text": "a", "fault": "broken"}))
    assert (outcome.exit_code, outcome.note) == (5, "the model is broken")
    assert [row.status for row in workspace.ledger.steps("r")] == ["failed"]


def test_the_spending_limit_keeps_what_was_paid(tmp_path: Path) -> None:
    paying = {"text": "a", "fault": "pay", "teacher": "t"}
    outcome, _, workspace = go(tmp_path, profile(first=paying), options=RunOptions(max_usd=0.5))
    assert (outcome.exit_code, outcome.status) == (6, "stopped")
    assert workspace.ledger.spent("r") == (0.6, 0.0)
    outcome, _, workspace = go(tmp_path, profile(first=paying), options=RunOptions(max_usd=1.0))
    assert outcome.exit_code == 0
    assert workspace.ledger.spent("r") == (0.6, 0.0)


def test_the_time_limit_is_a_budget(tmp_path: Path) -> None:
    outcome, _, _ = go(tmp_path, profile(), options=RunOptions(max_minutes=1e-9))
    assert outcome.exit_code == 6
    assert "time limit" in outcome.note


@pytest.mark.parametrize("where", ["a", "b", "c"])
def test_kill_9_in_any_stage_is_resumed(tmp_path: Path, where: str) -> None:
    chosen = profile()
    document = json.loads(json.dumps(chosen.model_dump(mode="json")))
    for step in document["steps"]:
        if step["id"] == where:
            step["settings"]["fault"] = "kill"
    child = os.fork()
    if child == 0:
        go(tmp_path / "killed", parse_profile(document, "test"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    outcome, ran, killed = go(tmp_path / "killed", chosen)
    assert outcome.exit_code == 0
    assert ran == {"a": ["a", "b", "c"], "b": ["b", "c"], "c": ["c"]}[where]
    _, _, whole = go(tmp_path / "whole", chosen)
    assert killed.ledger.snapshot() == whole.ledger.snapshot()
    assert list(killed.store.staging.iterdir()) == []


@pytest.mark.postgresql
def test_postgresql_keeps_the_history_that_sqlite_keeps(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [{"text": "b"}, {"text": "bb"}, {"text": "bbb"}]
    chosen = profile(attempts, first={"text": "a", "fault": "pay", "teacher": "t"})
    _, _, whole = go(tmp_path / "sqlite", chosen, LengthJudge(3))
    monkeypatch.setenv("COGUMI_DATABASE_URL", postgresql_url)
    document = json.loads(json.dumps(chosen.model_dump(mode="json")))
    document["steps"][1]["attempts"][1]["fault"] = "kill"
    child = os.fork()
    if child == 0:
        go(tmp_path / "postgresql", parse_profile(document, "test"), LengthJudge(3))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    # The judge is new, as the process is; its count of attempts starts again, and the ledger's does not.
    outcome, ran, resumed = go(tmp_path / "postgresql", chosen, LengthJudge(3))
    assert (outcome.exit_code, ran) == (0, ["bb", "c"])
    assert resumed.ledger.engine.dialect.name == "postgresql"
    assert not (tmp_path / "postgresql" / "ledger.sqlite").exists()
    assert resumed.ledger.snapshot() == whole.ledger.snapshot()
    resumed.ledger.close()


def test_until_and_from(tmp_path: Path) -> None:
    outcome, ran, _ = go(tmp_path, profile(), options=RunOptions(until="b"))
    assert (outcome.exit_code, ran) == (0, ["a", "b"])
    outcome, ran, _ = go(tmp_path, profile(), options=RunOptions(start="c"))
    assert (outcome.exit_code, ran) == (0, ["c"])
    with pytest.raises(UsageError, match="no step 'bb'"):
        go(tmp_path, profile(), options=RunOptions(until="bb"))
    outcome, _, _ = go(tmp_path / "other", profile(), options=RunOptions(start="c"))
    assert outcome.exit_code == 2
    assert "earlier step a has not finished" in outcome.note


@pytest.mark.parametrize(
    ("until", "ran", "start", "again"),
    [
        ("text", ["a", "b", "c"], "text", []),
        ("text.first", ["a"], "text.more", ["b", "c"]),
        ("text.more", ["a", "b", "c"], "text.more", []),
        ("1.6", ["a", "b"], "1.6", ["c"]),
        ("1.5", ["a"], "1.6", ["b", "c"]),
    ],
)
def test_until_and_from_a_family_a_stage_or_a_number_of_the_plan(
    tmp_path: Path, until: str, ran: list[str], start: str, again: list[str]
) -> None:
    document = profile().model_dump()
    for step, plan in zip(document["steps"], ["1.5", "1.6", "1.6", "1.8", "1.7"], strict=True):
        step["plan"] = plan
    chosen = parse_profile(document, "test")
    assert go(tmp_path, chosen, options=RunOptions(until=until))[1] == ran
    assert go(tmp_path, chosen, options=RunOptions(start=start))[1] == again


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tex", "no step 'tex' (did you mean 'text'?)"),
        ("text.mor", "did you mean 'text.more'"),
        ("te", "no step"),
        ("1", "no step '1'"),
        ("", "no step ''"),
    ],
)
def test_a_step_that_is_not_there_names_its_neighbour(name: str, told: str) -> None:
    with pytest.raises(UsageError) as found:
        step_named(profile(), name, last=True)
    assert told in str(found.value)


def test_an_id_wins_over_a_family_and_a_number() -> None:
    document = profile().model_dump()
    document["steps"][0] |= {"id": "text", "plan": "1.6"}
    document["steps"][1] |= {"id": "1.6", "inputs": {"data": "text"}}
    document["steps"] = document["steps"][:2]
    chosen = parse_profile(document, "test")
    assert step_named(chosen, "text", last=True) == "text"
    assert step_named(chosen, "1.6", last=False) == "1.6"
    assert step_named(chosen, "text.first", last=True) == "text"


def test_what_settings_name_outside_the_store_is_part_of_the_work(tmp_path: Path) -> None:
    source = tmp_path / "source"
    seen: list[str] = []

    def outside(settings: TextSettings, workspace: Workspace) -> str:
        return digest_of(source.read_text())

    def run(settings: TextSettings, context: StageContext) -> StageResult:
        seen.append(source.read_text())
        (context.out / "text").write_text(seen[-1])
        return StageResult("dataset", {"length": 1})

    chosen = parse_profile(
        {"profile": "p", "title": "t", "steps": [{"id": "a", "uses": "text.first"}]}, "test"
    )
    stage = Stage("text.first", 1, "first", TextSettings, run, outside=outside)
    workspace = Workspace(tmp_path / "w")
    runner = Runner(workspace, chosen, "r", {stage.name: stage}, LengthJudge(0), Quiet(), dict)
    made = []
    for text in ("one", "one", "two"):
        source.write_text(text)
        assert runner.run(RunOptions()).exit_code == 0
        row = workspace.ledger.latest_done("r")["a"]
        made.append(workspace.store.get(str(row.artifact)).manifest["made_by"]["outside"])
    assert seen == ["one", "two"]
    assert made == [digest_of(text) for text in ("one", "one", "two")]


def test_work_is_shared_between_runs(tmp_path: Path) -> None:
    go(tmp_path, profile(), name="one")
    outcome, ran, workspace = go(tmp_path, profile(), name="two")
    assert (outcome.exit_code, ran) == (0, [])
    assert workspace.ledger.steps("two")[0].note == "the same work was done in run one"


def test_two_processes_cannot_run_the_same_name(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with workspace.lock("run-r"), pytest.raises(RunError, match="in use by process"):
        go(tmp_path, profile())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"uses": "text.frist"}, "no stage 'text.frist' (did you mean 'text.first'?)"),
        ({"settings": {"txt": "a"}}, "unknown key txt (did you mean 'text'?)"),
        ({"inputs": {"dta": "z"}}, "no input 'dta'"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused_before_work(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    step = {"id": "a", "uses": "text.first", **change}
    steps = [{"id": "z", "uses": "text.first"}, step]
    with pytest.raises(UsageError) as found:
        go(tmp_path, parse_profile({"profile": "p", "title": "t", "steps": steps}, "test"))
    assert told in str(found.value)
    assert not (tmp_path / "artifacts").exists()


def test_a_budget_error_is_a_stop_and_not_a_failure(tmp_path: Path) -> None:
    class Broke(LengthJudge):
        def measure(self, artifact: Artifact, step: MeasureStep) -> Mapping[str, Any]:
            raise BudgetError("out of money")

    outcome, _, workspace = go(tmp_path, profile(), Broke(0))
    assert (outcome.exit_code, outcome.status, outcome.note) == (6, "stopped", "out of money")
    assert {row.step: row.status for row in workspace.ledger.steps("r")}["m"] == "failed"
