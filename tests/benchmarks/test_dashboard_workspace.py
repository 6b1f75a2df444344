"""The dashboard benchmark's workspace, in small: what a run leaves, and as many rows as it says."""

from __future__ import annotations

from pathlib import Path

from benchmarks.dashboard_load import Line, below, kept
from benchmarks.dashboard_workspace import DECIDED_ON, LARGE, NEEDLE, NEEDLE_EVERY, RUN, Size
from cogumi.evidence import list_evidence
from cogumi.workspace import Workspace
from dashboard.items import Filters, Items
from reports.model import build_report

SIZE = Size(recipes=1, attempts=2, items=30, large=NEEDLE_EVERY)


def test_a_small_one_is_a_run_with_verdicts(tmp_path: Path) -> None:
    workspace = Workspace(kept(tmp_path, SIZE, anew=False))
    files = list_evidence(workspace.evidence)
    assert len(files) == SIZE.measurements
    assert sum(file.count() for file in files) == SIZE.rows
    report = build_report(workspace, RUN)
    decisions = [decision for gate in report.gates for decision in gate.decisions]
    assert len(decisions) == SIZE.verdicts
    assert {decision.verdict for decision in decisions} <= {"PASS", "FAIL", "UNDECIDED"}
    assert len(report.artifacts) == 2
    large = next(file for file in files if file.key.task == LARGE)
    assert Items(large).page(Filters(text=NEEDLE.lower())).total == 1
    told = {file.key.task for file in files}
    assert DECIDED_ON in told
    stamp = (tmp_path / "dashboard-load.json").stat().st_mtime_ns
    kept(tmp_path, SIZE, anew=False)
    assert (tmp_path / "dashboard-load.json").stat().st_mtime_ns == stamp


def test_a_goal_is_met_by_the_median() -> None:
    assert below("x", [1.0, 1.5, 9.0], 2.0).met is True
    line = below("x", [2.0, 2.0, 1.0], 2.0, [4.0])
    assert line == Line("x", "2.00 s (1.00 to 2.00)", "4.00 s (4.00 to 4.00), ratio 0.50", "under 2 s", False)
    assert line.cells()[-1] == "NOT met"
    assert below("x", [1.0], None).met is None
