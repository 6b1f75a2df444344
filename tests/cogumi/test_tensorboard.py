"""Scalars of a run, read back by TensorBoard's own reader, also after a kill and with attempts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cogumi.cli.progress import RunReporter
from cogumi.cli.tensorboard import TensorBoardLog
from cogumi.errors import RunError, UsageError
from cogumi.profile import StageStep

BASE = StageStep(id="base", uses="training.sft")


class Silent:
    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, Any]]] = []

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        self.seen.append((done, facts))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return {tag: [(step, value)]} as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {
        tag: [(event.step, pytest.approx(event.value)) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def test_numbers_become_scalars_and_words_do_not(tmp_path: Path) -> None:
    inner = Silent()
    log = TensorBoardLog(tmp_path / "log")
    progress = log.progress(inner, "base", 1)
    progress.update(10, 100, loss=2.5, tok_s=9000, spent="$1.00")
    progress.update(20, 100, loss=float("nan"), tok_s=9100)
    log.close("base", 1)
    assert scalars(tmp_path / "log" / "base") == {
        "base/loss": [(10, 2.5)],
        "base/tok_s": [(10, 9000), (20, 9100)],
    }
    assert [done for done, _ in inner.seen] == [10, 20]
    assert inner.seen[0][1]["spent"] == "$1.00"


def test_what_tells_no_number_leaves_no_folder(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path / "log")
    log.progress(Silent(), "merged", 1).update(1, 2, unit="rows")
    log.close("merged", 1)
    assert not (tmp_path / "log").exists()


def test_a_resumed_run_goes_on_in_the_same_curve(tmp_path: Path) -> None:
    """The first process was killed at 40, after a checkpoint at 20; it never closed its file."""
    killed = TensorBoardLog(tmp_path)
    first = killed.progress(Silent(), "base", 1)
    for done in (10, 20, 30, 40):
        first.update(done, 60, loss=100.0 + done)
    killed._files["base", 1]._writer.flush()
    log = TensorBoardLog(tmp_path)
    again = log.progress(Silent(), "base", 1)
    for done in (30, 40, 50, 60):
        again.update(done, 60, loss=200.0 + done)
    log.close("base", 1)
    killed.close("base", 1)
    told = [(10, 110), (20, 120), (30, 230), (40, 240), (50, 250), (60, 260)]
    assert scalars(tmp_path / "base") == {"base/loss": told}
    assert len(list((tmp_path / "base").iterdir())) == 2


def test_attempts_have_curves_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = RunReporter(TensorBoardLog(tmp_path))
    for attempt in (1, 2):
        reporter.step(BASE, attempt, "start", "train")
        reporter.progress(BASE).update(10, 100, loss=float(attempt))
        reporter.step(BASE, attempt, "done", "")
    assert scalars(tmp_path / "base") == {"base/loss": [(10, 1)]}
    assert scalars(tmp_path / "base-attempt-2") == {"base/loss": [(10, 2)]}
    assert capsys.readouterr().err.count("done") == 2


def test_steps_side_by_side_take_turns_on_the_line_and_keep_their_files(tmp_path: Path) -> None:
    """A step's progress is asked for again whenever another one was shown, and repeats its facts."""
    reporter = RunReporter(TensorBoardLog(tmp_path))
    draft = StageStep(id="draft", uses="training.sft")
    for step in (BASE, draft):
        reporter.step(step, 1, "start", "train")
    for done in (10, 20, 30):
        for step in (BASE, draft, BASE):
            reporter.progress(step).update(done, 30, loss=float(done))
    reporter.step(BASE, 1, "done", "")
    reporter.step(draft, 1, "failed", "")
    for name in ("base", "draft"):
        assert scalars(tmp_path / name) == {f"{name}/loss": [(10, 10), (20, 20), (30, 30)]}
        assert len(list((tmp_path / name).iterdir())) == 1


def test_a_missing_package_is_one_line_with_its_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cogumi: Any
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    found = cogumi("run", "--tensorboard", "log", "--workspace", str(tmp_path / "w"))
    assert found.code == 2
    assert "--tensorboard needs the package tensorboard: python -m pip install tensorboard" in found.err
    assert not (tmp_path / "w").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    with pytest.raises(UsageError, match="log: is a file, not a folder"):
        TensorBoardLog(tmp_path / "log")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "base").write_text("in the way")
    log = TensorBoardLog(tmp_path).progress(Silent(), "base", 1)
    with pytest.raises(RunError, match="--tensorboard: cannot write"):
        log.update(1, 2, loss=1.0)
