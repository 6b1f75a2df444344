"""The frontier told: a row and a point for each side, of lines that can be compared."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.compression_frontier import SIZES_MB, Effort, sides
from benchmarks.compression_report import FAMILIES, Axes, main, plot

SVG = "{http://www.w3.org/2000/svg}"


def result(side: str, family: str, megabytes: float, kl: float, **more: Any) -> dict[str, Any]:
    size = int(megabytes * 1e6)
    return {
        "side": side,
        "family": family,
        "note": "",
        "bytes_resident": size,
        "bytes_download": size,
        "kl": kl,
        "kl_lower": 0.8 * kl,
        "kl_upper": 1.3 * kl,
        "perplexity": 1.2,
        "baseline_perplexity": 1.1,
        "top1_agreement": 0.95,
        "tokens": 840,
        "rows": 80,
        "seconds": 1.0,
        "artifact": "parts/gguf-1/payload",
        **more,
    }


def every_side() -> list[dict[str, Any]]:
    """Lines of all sides that the benchmark knows, at sizes and divergences of some spread."""
    return [
        result(side.name, side.family, 60 + 2.1 * at, 5 * 0.8**at, note=side.note)
        for at, side in enumerate(sides(Effort(1, 1, 1), SIZES_MB, 3_770_000))
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def points(picture: str) -> dict[str, ET.Element]:
    """Return the markers of a picture by what their tooltip says first."""
    groups = ET.fromstring(picture).iter(f"{SVG}g")
    return {(group.findtext(f"{SVG}title") or "").partition(":")[0]: group for group in groups}


def test_every_side_has_a_point_at_its_place() -> None:
    lines = every_side()
    assert {line["family"] for line in lines} == set(FAMILIES)
    picture = plot(lines)
    found = points(picture)
    assert set(found) == {line["side"] for line in lines}
    axes = Axes(lines)
    shapes = set()
    for line in lines:
        shape = found[line["side"]][1]
        if line["family"].startswith("ours"):
            at = float(shape.get("cx", 0)), float(shape.get("cy", 0))
            assert at == pytest.approx((axes.x(line["bytes_resident"] / 1e6), axes.y(line["kl"])), abs=0.06)
        shapes.add((shape.tag, shape.get("fill"), shape.get("stroke"), shape.get("points", "").count(",")))
    # Told apart by marker or colour; our two families each have a line through all of their points.
    assert len(shapes) == len(FAMILIES)
    joined = [line.get("points", "").split() for line in ET.fromstring(picture).iter(f"{SVG}polyline")]
    assert [len(places) for places in joined] == [len(SIZES_MB)] * 2
    ground = ET.fromstring(picture).find(f"{SVG}rect")
    assert ground is not None
    assert ground.get("fill") == "#ffffff"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*FAMILIES]), st.floats(0.01, 1e5), st.floats(0, 50), st.text(max_size=9)),
        min_size=1,
        max_size=12,
    )
)
def test_any_lines_make_a_picture_within_its_frame(drawn: list[tuple[str, float, float, str]]) -> None:
    lines = [result(f"{at} {name}", family, size, kl) for at, (family, size, kl, name) in enumerate(drawn)]
    picture = plot(lines)
    root = ET.fromstring(picture)
    assert len([*root.iter(f"{SVG}g")]) == len(lines)
    width, height = int(root.get("width", 0)), int(root.get("height", 0))
    for circle in root.iter(f"{SVG}circle"):
        assert 0 <= float(circle.get("cx", -1)) <= width
        assert 0 <= float(circle.get("cy", -1)) <= height


def test_lines_of_several_folders_become_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a" / "results.jsonl", [result("Q4_0", "llama.cpp", 91.7, 0.9), every_side()[0]])
    better = [result("Q4_0", "llama.cpp", 91.7, 0.159), result("ours 75 MB", "ours", 75, 0.01)]
    write(tmp_path / "b" / "results.jsonl", better)
    score = {
        "candidate": "ours 75 MB",
        "task": "ifeval",
        "n": 541,
        "score": 0.412,
        "lower": 0.37,
        "p_value": 0.5,
    }
    score |= {"upper": 0.455, "retention": 0.98, "retention_lower": 0.93, "retention_upper": None}
    scores = write(tmp_path / "scores.jsonl", [score | {"lost": 12, "won": 9, "cut": 3}])
    out = tmp_path / "published"
    work = f"{tmp_path / 'a'},{tmp_path / 'b'}"
    assert main(["--work", work, "--out", str(out), "--tasks", str(scores)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[2].startswith("| Q8_0 | 60.0 | 60.0 | 5.0000 | [4.0000, 6.5000] | 1.200 | 95.0 % |")
    assert told[3].startswith("| **ours 75 MB** | 75.0 |")
    assert told[4].startswith("| Q4_0 | 91.7 | 91.7 | 0.1590 |")
    assert (
        told[-2]
        == "| ours 75 MB | ifeval | 541 | 41.2 | [37.0, 45.5] | 0.980 | [0.930, –] | 12 / 9 | 0.5 | 3 |"
    )
    lines = [json.loads(line) for line in (out / "compression.jsonl").read_text().splitlines()]
    assert [line["side"] for line in lines] == ["Q8_0", "ours 75 MB", "Q4_0"]
    assert all("artifact" not in line for line in lines)
    assert set(points((out / "compression.svg").read_text())) == {"Q8_0", "ours 75 MB", "Q4_0"}


@pytest.mark.parametrize(
    ("lines", "code", "told"),
    [
        ([], 2, "no finished side"),
        ([result("a", "ours", 1, 1), result("b", "ours", 2, 1, rows=240)], 5, "measure them alike"),
        ([result("a", "theirs", 1, 1)], 5, "no known family"),
    ],
)
def test_lines_that_say_nothing_together_are_refused(
    tmp_path: Path, lines: list[dict[str, Any]], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "lines.jsonl", lines)
    assert main(["--work", str(file), "--out", str(tmp_path / "out")]) == code
    assert told in capsys.readouterr().err
    assert main(["--work", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
