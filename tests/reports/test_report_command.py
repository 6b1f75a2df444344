"""``cogumi report``: files where they were asked for, one line and the right code where that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import pytest
from small_run import Maker

from cogumi.cli import main
from cogumi.cli.report import write_report
from cogumi.errors import RunError
from cogumi.workspace import Workspace
from reports.model import build_report

FORMS = ["model-card.md", "report.html", "report.json", "report.md"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["report", *arguments])
    seen = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, seen.out, seen.err


def test_the_latest_run_goes_into_the_workspace(filled: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    root = filled.workspace.root
    code, out, err = call(capsys, "--workspace", str(root))
    assert (code, err) == (0, "")
    folder = root / "reports" / filled.run
    assert sorted(path.name for path in folder.iterdir()) == FORMS
    assert str(folder / "report.html") in out
    assert "phase1: PASS" in out
    document = json.loads((folder / "report.json").read_text())
    assert document == build_report(filled.workspace, filled.run).model_dump(mode="json")


def test_json_alone_on_standard_output(
    filled: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a" / "b"
    arguments = ["--workspace", str(filled.workspace.root), "--out", str(target), "--json"]
    code, out, err = call(capsys, *arguments)
    assert code == 0
    assert json.loads(out) == json.loads((target / "report.json").read_text())
    assert str(target) in err


def test_an_unknown_run(filled: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "--workspace", str(filled.workspace.root), "--run", "rehersal-1")
    assert (code, out) == (2, "")
    assert "did you mean 'rehearsal-1'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--run", "x"]])
def test_no_run_yet_makes_no_workspace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    root = tmp_path / "none"
    code, _, err = call(capsys, "--workspace", str(root), *arguments)
    assert code == 2
    assert "`cogumi run` starts the rehearsal" in err
    assert not root.exists()


def test_a_folder_that_cannot_be_written(
    filled: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "reports"
    code, out, err = call(capsys, "--workspace", str(filled.workspace.root), "--out", str(target))
    assert (code, out) == (5, "")
    assert err == f"cogumi: cannot write {target}: Not a directory\n"


def test_a_run_whose_name_is_no_folder_asks_for_one(
    maker: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = Maker(maker.workspace, "../../up")
    root = str(maker.workspace.root)
    code, _, err = call(capsys, "--workspace", root, "--run", hostile.run)
    assert (code, "'../../up'" in err) == (2, True)
    code, _, _ = call(capsys, "--workspace", root, "--run", hostile.run, "--out", str(tmp_path / "out"))
    assert code == 0


def test_a_failed_write_leaves_the_earlier_report(
    filled: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(filled.workspace, filled.run, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    filled.end("done", 0, "changed")

    def full(*arguments: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cogumi.store.os.fsync", full)
    # The workspace is opened again, as a second process would.
    with pytest.raises(RunError, match="disk full while writing"):
        write_report(Workspace(filled.workspace.root), filled.run, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
