"""The frontier: what our sizes share is measured once and changes no byte, and no side is too large."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from micro_stages import micro_data
from recovery_inputs import make_model

from benchmarks import compression_frontier
from benchmarks.compression_frontier import ADAPTER_TYPE, RANK, adapter_bytes, finished, main
from cogumi.store import Artifact
from pipeline.compression import grid_work
from pipeline.compression.grid import GRID, GridSettings
from pipeline.compression.grid_work import COSTS, FISHER

SIZE = 0.095
"""Between the file in the smallest types and that in the largest, in MB, with the adapter in it."""


class Inputs:
    """A tiny model, its data, and the options of a quick run on them."""

    def __init__(self, folder: Path) -> None:
        data = micro_data(folder / "data", per_cell=4)
        self.model: Artifact = make_model(folder / "model", data)
        self.folder = folder
        self.data = data.path / "training_complete.jsonl"

    def main(self, work: Path, *more: str) -> int:
        told = [("--model", self.model.path), ("--data", self.data), ("--work", work), ("--rows", 4)]
        told += [("--samples", 8), ("--passes", 1), ("--recovery-steps", 1)]
        return main([*(str(word) for pair in told for word in pair), *more])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("frontier"))


@pytest.fixture(scope="module")
def costs(inputs: Inputs) -> Path:
    """What all sizes share, measured by a process of its own."""
    folder = inputs.folder / "costs"
    assert inputs.main(inputs.folder / "prepared", "--prepare", "--costs", str(folder)) == 0
    return folder


def alone(inputs: Inputs, work: Path, size: int, folder: Path) -> bytes:
    """Return the file of a grid that measures by itself."""
    ctx = compression_frontier.Bench(inputs.model, inputs.model, [], folder, folder).context()
    data = compression_frontier.stored(work / "seen", "dataset")
    out, scratch = folder / "out", folder / "scratch"
    for each in (out, scratch):
        each.mkdir(parents=True)
    settings = GridSettings(bytes_at_most=size, samples=8, passes=1)
    GRID.run(settings, replace(ctx, inputs={"model": inputs.model, "data": data}, out=out, scratch=scratch))
    return (out / "model.gguf").read_bytes()


def test_shared_costs_change_no_byte_and_the_adapter_is_paid_for(
    inputs: Inputs, costs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    work = tmp_path / "work"
    with monkeypatch.context() as patched:
        # Both sides find what they share.
        patched.setattr(grid_work, "fisher", never)
        patched.setattr(compression_frontier, "measure", never)
        assert inputs.main(work, "--only", "OURS", "--sizes", str(SIZE), "--costs", str(costs)) == 0
    lines = {line["side"]: line for line in finished(work)}
    assert set(lines) == {f"ours {SIZE} MB", f"ours {SIZE} MB, recovered"}
    adapter = adapter_bytes(inputs.model.path, RANK, ADAPTER_TYPE)
    plain, recovered = (work / line["artifact"] for line in lines.values())
    assert (plain / "model.gguf").read_bytes() == alone(inputs, work, 95_000, tmp_path / "alone")
    assert (recovered / "adapter.gguf").stat().st_size == adapter
    for line in lines.values():
        # The cap is what decided.
        assert 0.9 * 95_000 < line["bytes_resident"] <= 95_000
        assert line["bytes_resident"] == line["bytes_download"]


def test_costs_stand_for_one_model_and_one_calibration(
    inputs: Inputs, costs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = costs.iterdir()
    assert sorted(path.name for path in found.iterdir()) == [COSTS, FISHER, "lock"]
    measured = []
    monkeypatch.setattr(
        compression_frontier, "measure", lambda settings, ctx, share: measured.append(ctx.scratch)
    )
    options = ("--prepare", "--costs", str(costs))
    # Sizes and passes change nothing, rows do.
    assert inputs.main(tmp_path / "same", *options, "--sizes", "1", "--passes", "3") == 0
    assert measured == []
    assert inputs.main(tmp_path / "other", *options, "--samples", "4") == 0
    assert [folder.parent for folder in measured] == [costs]
    assert measured != [found]


def test_a_side_that_cannot_be_made_does_not_end_the_others(
    inputs: Inputs, costs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # No file is so small; then a side that works, and one that no model of two layers has.
    options = ("--only", "ours 0.001,q8_0,26 of", "--sizes", "0.001", "--costs", str(costs))
    assert inputs.main(tmp_path, *options) == 1
    told = capsys.readouterr()
    left_out = [line for line in told.err.splitlines() if "left out" in line]
    assert [line.partition(":")[0] for line in left_out] == [
        "26 of 30 layers, Q8_0",
        "ours 0.001 MB",
        "ours 0.001 MB, recovered",
    ]
    assert "bytes_at_most = 1,000" in left_out[1]
    assert "Traceback" not in told.err
    assert [line["side"] for line in finished(tmp_path)] == ["Q8_0", "Q8_0 imatrix"]
    before = (tmp_path / "results.jsonl").read_text()
    assert inputs.main(tmp_path, "--only", "q8_0") == 0
    assert (tmp_path / "results.jsonl").read_text() == before


def test_what_no_side_raises_by_itself_ends_no_other(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = compression_frontier.run_part

    def run_part(part: Any, made: Any, ctx: Any) -> Any:
        if part.settings.get("type") == "Q8_0":
            raise ZeroDivisionError("a library's own")
        return real(part, made, ctx)

    monkeypatch.setattr(compression_frontier, "run_part", run_part)
    assert inputs.main(tmp_path, "--only", "q8_0,q4_0") == 1
    assert capsys.readouterr().err.count("Traceback") == 2
    assert [line["side"] for line in finished(tmp_path)] == ["Q4_0", "Q4_0 imatrix"]


@pytest.mark.parametrize("sizes", ["", "70,x", "0", "-1"])
def test_sizes_that_are_none_are_told(
    inputs: Inputs, tmp_path: Path, sizes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inputs.main(tmp_path, f"--sizes={sizes}") == 2
    assert "--sizes" in capsys.readouterr().err


def test_lines_are_whole(inputs: Inputs, tmp_path: Path) -> None:
    assert inputs.main(tmp_path, "--only", "iq4_xs imatrix") == 0
    (line,) = (json.loads(each) for each in (tmp_path / "results.jsonl").read_text().splitlines())
    assert line["family"] == "llama.cpp imatrix"
    assert 0 <= line["kl_lower"] <= line["kl"] <= line["kl_upper"]
    assert (tmp_path / line["artifact"] / "model.gguf").stat().st_size == line["bytes_resident"]
