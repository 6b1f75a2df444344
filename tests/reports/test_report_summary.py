"""The CI summary: every gate, cut on a line that says so; and the same bytes wherever a report is built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_run import ITEMS, Maker, criterion

from cogumi.cli import main
from cogumi.errors import RunError
from cogumi.evidence import EvidenceFile, EvidenceKey, Record
from cogumi.workspace import Workspace
from reports import measured
from reports.measured import EvidenceIndex, Measured
from reports.model import build_report
from reports.summary import LIMIT, render_summary

FORMS = ("report.html", "report.json", "report.md", "model-card.md", "summary.md")


def test_every_gate_with_value_bounds_and_bar(filled: Maker) -> None:
    document = render_summary(build_report(filled.workspace, filled.run))
    assert document.startswith("## rehearsal-1: 1 of 2 gates passed\n")
    assert "| phase3 | UNDECIDED | q4 | 1 |" in document
    row = "| phase1 | general | PASS | ratio | 0.97 | \\[0.92, 1.02\\] | &gt;= 0.88 | 40 of 120 | simulated"
    assert f"{row} reference |" in document
    assert "| phase3 | size | PASS | bytes_download |" in document
    assert "| 48,000 | exact | &lt;= 540,000,000 |" in document


def test_a_long_one_is_cut_behind_a_line_and_says_so(filled: Maker) -> None:
    model = filled.artifact("model", 3)
    many = [criterion(f"c{k}", "UNDECIDED", 0.5, 0.9, note="é" * 500) for k in range(1200)]
    filled.verdict("phase3", model, *many)
    document = render_summary(build_report(filled.workspace, filled.run))
    assert LIMIT - 3000 < len(document.encode()) <= LIMIT == 900 * 1024
    *kept, last = document.rstrip("\n").split("\n")
    assert last.startswith("(cut after ")
    assert "`report.md` has everything" in last
    assert all(line.endswith("|") for line in kept if line.startswith("|"))


@pytest.mark.parametrize("limit", [80, 400, 600])
def test_no_limit_is_passed(filled: Maker, limit: int) -> None:
    document = render_summary(build_report(filled.workspace, filled.run), limit)
    assert len(document.encode()) <= limit
    assert "(cut after " in document


def test_the_option_writes_it(filled: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "step.md"
    root = str(filled.workspace.root)
    with pytest.raises(SystemExit) as stop:
        main(["report", "--workspace", root, "--out", str(tmp_path / "out"), "--summary", str(target)])
    assert stop.value.code == 0
    assert target.read_text() == render_summary(build_report(filled.workspace, filled.run))
    assert f"written: {target}" in capsys.readouterr().err


def test_an_unknown_model_for_the_card_writes_nothing(
    filled: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(filled.workspace.root)
    with pytest.raises(SystemExit) as stop:
        main(["report", "--workspace", root, "--out", str(tmp_path / "out"), "--artifact", "q44"])
    assert stop.value.code == 2
    assert "did you mean 'q4'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# The same evidence, the same bytes ----------------------------------------------------------------


def test_the_same_evidence_gives_the_same_bytes(filled: Maker, tmp_path: Path) -> None:
    """Two processes: other hash seeds, time zones, locales, folders, and the workspace at another path."""
    here = filled.workspace.root
    filled.workspace.ledger.close()
    there = shutil.copytree(here, tmp_path / "quite" / "another place")
    settings = (
        (here, {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C", "PYTHONUTF8": "0"}),
        (there, {"PYTHONHASHSEED": "2", "TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "COLUMNS": "40"}),
    )
    outs = []
    for number, (root, environment) in enumerate(settings):
        out = tmp_path / f"out{number}"
        command = [sys.executable, "-m", "cogumi", "report", "--workspace", str(root), "--out", str(out)]
        subprocess.run(
            [*command, "--summary", str(out / "summary.md")],
            env={**os.environ, **environment},
            cwd=root,
            check=True,
            capture_output=True,
        )
        outs.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert sorted(outs[0]) == sorted(FORMS)
    assert [name for name in FORMS if outs[0][name] != outs[1][name]] == []


def test_evidence_in_pieces_reads_as_in_one_file(tmp_path: Path) -> None:
    records = [
        Record(
            k,
            f"i{k}",
            "math",
            float(k % 3 == 0),
            "error" if k == 5 else "stop",
            3,
            k,
            0.1 + k / 7,
            0.0,
            "p",
            "o",
            {},
        )
        for k in range(ITEMS)
    ]
    seen: list[Measured] = []
    for name, cuts in (("whole", [ITEMS]), ("pieces", [7, 8, 40, ITEMS])):
        workspace = Workspace(tmp_path / name)
        file = EvidenceFile(workspace.evidence, EvidenceKey("a", "t", {"items": "x"}))
        start = 0
        for stop in cuts:
            # One more item in all than there is, so that the pieces are never joined.
            file.append(records[start:stop], n_total=ITEMS + 1, facts={"stack": {"cut": str(stop)}})
            start = stop
        found = EvidenceIndex(workspace).best("a", "t")
        assert found is not None
        seen.append(found)
    whole, pieces = seen
    assert whole.scores.tolist() == pieces.scores.tolist() == [one.score for one in records]
    assert (whole.seconds, whole.tokens, whole.errors) == (pieces.seconds, pieces.tokens, 1)
    assert whole.stack == pieces.stack == {"cut": str(ITEMS)}
    assert whole.tokens == sum(one.completion_tokens for one in records)


@pytest.mark.parametrize("column", [[1.0, None], ["yes", "no"]])
def test_a_cell_that_is_no_number_names_the_folder(tmp_path: Path, column: list[object]) -> None:
    workspace = Workspace(tmp_path)
    file = EvidenceFile(workspace.evidence, EvidenceKey("a", "t", {"items": "x"}))
    records = [Record(k, f"i{k}", "", 1.0, "stop", 1, 1, 0.1, 0.0, "p", "o", {}) for k in range(2)]
    file.append(records, n_total=2, facts={})
    path = file.folder / "items.parquet"
    table = file.table()
    pq.write_table(table.set_column(table.schema.get_field_index("score"), "score", pa.array(column)), path)
    with pytest.raises(RunError, match="broken evidence") as error:
        EvidenceIndex(workspace).best("a", "t")
    assert str(file.folder) in str(error.value)


def test_a_measurement_is_read_again_only_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    records = [Record(k, f"i{k}", "", float(k), "stop", 1, 1, 0.1, 0.0, "p", "o", {}) for k in range(2)]
    files = [EvidenceFile(workspace.evidence, EvidenceKey(name, "t", {"items": "x"})) for name in "ab"]
    for file in files:
        file.append(records[:1], n_total=2, facts={})
    read: list[str] = []

    def counted(file: EvidenceFile) -> Measured:
        read.append(file.key.artifact)
        return really(file)

    really = measured._read
    monkeypatch.setattr(measured, "_read", counted)

    def scores() -> dict[str, list[float]]:
        index = EvidenceIndex(workspace)
        return {name: index.all(name, "t")[0].scores.tolist() for name in "ab"}

    assert scores() == scores() == {"a": [0.0], "b": [0.0]}
    assert read == ["a", "b"]
    files[1].append(records[1:], n_total=2, facts={})
    assert scores() == {"a": [0.0], "b": [0.0, 1.0]}
    assert read == ["a", "b", "b"]
    # Broken where it stands: no older answer hides it.
    (files[1].folder / "items.parquet").write_bytes(b"no parquet")
    with pytest.raises(RunError, match="broken evidence"):
        scores()


def test_what_is_kept_of_measurements_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for name in "abc":
        records = [Record(k, f"i{k}", "", 1.0, "stop", 1, 1, 0.1, 0.0, "p", "o", {}) for k in range(10)]
        EvidenceFile(workspace.evidence, EvidenceKey(name, "t", {})).append(records, n_total=10, facts={})
    kept = measured._Kept()
    monkeypatch.setattr(measured, "_KEPT", kept)
    monkeypatch.setattr(measured, "_MOST_BYTES", 2 * 80)
    index = EvidenceIndex(workspace)
    assert [index.all(name, "t")[0].n for name in "abc"] == [10, 10, 10]
    assert [folder.parts[-3] for folder in kept._found] == ["b", "c"]
    assert kept._bytes == 160
