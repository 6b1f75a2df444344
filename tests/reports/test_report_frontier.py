"""Size against quality: who beats whom, and what each form of a report tells of it."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import Maker

from cogumi.store import Artifact
from gates.frontier import FrontierPoint, beats, groups, pareto, standings
from reports import frontier
from reports.frontier_plot import frontier_plot
from reports.model import build_report
from reports.render_html import render_html
from reports.render_json import render_json
from reports.render_markdown import render_markdown
from reports.schema import Report

SVG = "{http://www.w3.org/2000/svg}"


def point(name: str, size: int, kl: float, off: float = 0.0, group: str = "") -> FrontierPoint:
    return FrontierPoint(name, size, size, kl, kl - off, kl + off, group)


# Who beats whom -------------------------------------------------------------------------------------


def test_the_front_is_what_none_beats_the_smallest_first() -> None:
    points = [
        point("big", 100, 0.1),
        point("small", 50, 0.3),
        point("worse", 100, 0.2),
        point("mid", 80, 0.3),
    ]
    assert [one.name for one in pareto(points)] == ["small", "big"]
    assert standings(points) == ["best", "best", "behind", "not told apart"]


def test_equal_points_both_stay_and_equal_bytes_are_decided_by_divergence() -> None:
    twins = [point("a", 50, 0.3), point("b", 50, 0.3)]
    assert pareto(twins) == twins
    assert [one.name for one in pareto([point("a", 50, 0.3), point("b", 50, 0.2)])] == ["b"]
    # Equally near, one smaller: the larger is beaten, but never for sure by equal divergence.
    points = [point("a", 40, 0.2), point("b", 50, 0.2)]
    assert standings(points) == ["best", "not told apart"]


def test_a_point_is_behind_only_by_bounds_that_do_not_meet() -> None:
    assert standings([point("a", 50, 0.2, 0.03), point("b", 50, 0.25, 0.03)]) == ["best", "not told apart"]
    assert standings([point("a", 50, 0.2, 0.01), point("b", 50, 0.25, 0.03)]) == ["best", "behind"]
    # A smaller one that is further away takes nothing from a larger one.
    assert standings([point("a", 40, 0.4), point("b", 50, 0.2)]) == ["best", "best"]


sizes = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(0, 3)), min_size=1, max_size=25
)


@given(sizes)
def test_the_front_beats_all_others_and_none_of_itself(drawn: list[tuple[int, int, int]]) -> None:
    points = [point(str(i), size, kl / 10, off / 10) for i, (size, kl, off) in enumerate(drawn)]
    front = pareto(points)
    assert front
    for one in points:
        assert (one in front) == (not any(beats(other, one) for other in points))
        assert one in front or any(beats(best, one) for best in front)
    for one, standing in zip(points, standings(points), strict=True):
        assert (standing == "best") == (one in front)
        if any(beats(other, one, surely=True) for other in points):
            assert standing == "behind"


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"fidelity": 3},
        {"fidelity": {"kl": 1.0, "kl_lower": 0.5}, "bytes_resident": 1, "bytes_download": 1},
        {"fidelity": {"kl": 1.0, "kl_lower": 0.5, "kl_upper": 2.0}, "bytes_resident": 1},
    ],
)
def test_facts_without_sizes_or_divergence_are_no_point(facts: dict[str, Any]) -> None:
    assert FrontierPoint.of_facts("x", facts) is None


def test_only_what_was_measured_alike_is_compared() -> None:
    found = groups([point("a", 1, 1, group="x"), point("b", 1, 1, group="y"), point("c", 2, 1, group="x")])
    assert {name: [one.name for one in points] for name, points in found.items()} == {
        "x": ["a", "c"],
        "y": ["b"],
    }


# The report -----------------------------------------------------------------------------------------


def told_of(kl: float, off: float = 0.1, **more: Any) -> dict[str, Any]:
    return {
        "fidelity": {
            "kl": kl,
            "kl_lower": kl * (1 - off),
            "kl_upper": kl * (1 + off),
            "perplexity": 3 + kl,
            "baseline_perplexity": 3.0,
            "top1_agreement": 1 - kl,
            "tokens": 2000,
            "rows": 60,
        },
        "rows_digest": "sha256:rows",
        **more,
    }


def made_by(maker: Maker, kind: str, size: int, stage: str, inputs: dict[str, str], **more: Any) -> Artifact:
    """An artifact of a stage of compression; ``settings`` among ``more``, the rest are facts."""
    settings = more.pop("settings", {})
    staging = maker.workspace.store.new_staging()
    (staging / "payload" / f"{stage}.{kind}").write_bytes(bytes(size % 1000))
    told = {"stage": stage, "version": 1, "settings": settings, "inputs": inputs}
    return maker.workspace.store.commit(staging, kind=kind, made_by=told, facts=more, created="now")


def sweep(maker: Maker) -> None:
    """Attempts at one GGUF file, each measured; the last one packaged, and one of another baseline."""
    base = maker.artifact("model", 900, parameters=1_000_000_000)
    maker.step("base", 1, base)
    kinds = [
        ("Q2_K", 380, 0.21),
        ("Q3_K_M", 480, 0.062),
        ("Q4_0", 560, 0.04),
        ("Q4_K_M", 600, 0.021),
        ("IQ4_XS", 530, 0.024),
        ("Q5_K_M", 700, 0.0071),
        ("Q6_K", 830, 0.0024),
        ("Q8_0", 1080, 0.0004),
    ]
    for attempt, (kind, megabytes, kl) in enumerate(kinds, start=1):
        size = megabytes * 1_000_000
        sizes = {"bytes_resident": size, "bytes_download": size, "bits_per_weight": size * 8 / 1e9}
        gguf = made_by(
            maker,
            "gguf",
            size,
            "compression.gguf",
            {"model": base.digest},
            settings={"type": kind, "importance": True},
            **sizes,
        )
        maker.step("q4", attempt, gguf)
        fidelity = made_by(
            maker,
            "file",
            size,
            "compression.fidelity",
            {"model": gguf.digest},
            **sizes,
            **told_of(kl, model=gguf.digest, baseline=base.digest),
        )
        maker.step("fidelity", attempt, fidelity)
    package = made_by(
        maker,
        "gguf",
        7,
        "compression.package",
        {"model": gguf.digest},
        settings={"level": 19},
        bytes_resident=1_080_000_000,
        bytes_download=1_010_000_000,
    )
    maker.step("package", 1, package)
    draft = made_by(
        maker,
        "gguf",
        9,
        "compression.gguf",
        {"model": "sha256:" + "0" * 64},
        **told_of(0.01, bytes_resident=5_000_000, bytes_download=4_000_000, baseline="sha256:" + "0" * 64),
    )
    maker.step("draft", 1, draft)


@pytest.fixture
def report(maker: Maker) -> Report:
    sweep(maker)
    return build_report(maker.workspace, maker.run)


def test_every_attempt_stands_in_the_table_with_both_sizes(report: Report) -> None:
    base, draft = report.frontiers
    assert (base.baseline, len(base.points), len(draft.points)) == ("base", 8, 1)
    rows = frontier.table(base)
    assert [row[1] for row in rows][:2] == ["q4 (attempt 1)", "q4 (attempt 2)"]
    standing = {row[2]: row[-1] for row in rows}
    # 560 MB at .040 against 530 MB at .024: their bounds do not meet.
    assert standing.pop("gguf Q4_0") == "behind"
    assert set(standing.values()) == {"best"}
    last = base.points[-1]
    # What a user downloads is the package; the weights are the same.
    assert (last.name, last.recipe) == ("package", "gguf Q8_0 → package")
    assert (last.bytes_resident, last.bytes_download, last.kl) == (1_080_000_000, 1_010_000_000, 0.0004)
    assert rows[0][3:10] == ["380 MB", "380 MB", "3.04", "0.21", "0.189 to 0.231", "3.21", "79.0 %"]
    numbers = {part.digest: part.number for part in report.artifacts}
    assert last.number in numbers.values()


def test_every_form_has_the_figures(report: Report) -> None:
    page, markdown, document = render_html(report), render_markdown(report), render_json(report)
    root = Xml.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    section = next(one for one in root.iter("section") if one.get("id") == "frontier")
    text = " ".join("".join(section.itertext()).split())
    for part in report.frontiers:
        for cell in [*(cell for row in frontier.table(part) for cell in row), frontier.told(part)]:
            assert cell in text
            assert cell in markdown.replace("\\", "")
    assert "8 compressed models of base; beaten by none in bytes to download" in text
    assert "and divergence at once: 7;" in text
    assert "along 2,000 answer tokens of 60 held-out rows" in text
    assert '"standing": "behind"' in document


def test_the_plot_shows_points_bounds_the_line_and_the_tiers(report: Report) -> None:
    part = report.frontiers[0]
    for width in (380, 1040):
        picture = Xml.fromstring(frontier_plot(part.points, width, "a < b"))
        dots = list(picture.iter(f"{SVG}circle"))
        kinds = [dot.get("class") for dot in dots]
        assert kinds.count("p-dot") == 7
        assert kinds.count("p-hollow") == 1
        places = [(float(str(dot.get("cx"))), float(str(dot.get("cy")))) for dot in dots]
        # Ordered by bytes: to the right; and the best ones ever lower on the page, which is nearer.
        assert [x for x, _ in places] == sorted(x for x, _ in places)
        best = [y for (_, y), kind in zip(places, kinds, strict=True) if kind == "p-dot"]
        assert best == sorted(best)
        words = ["".join(one.itertext()) for one in picture.iter(f"{SVG}text")]
        assert {"tier S: 540 MB", "tier M: 890 MB"} <= set(words)
        assert len([one for one in picture.iter(f"{SVG}line") if one.get("class") == "p-front"]) == 12
        for x, y in places:
            assert 0 < x < width
            assert 0 < y < 420
    # Out of range, a tier is not drawn.
    assert "tier S" not in frontier_plot(report.frontiers[1].points, 1040, "")


def test_a_divergence_of_nothing_has_a_place(report: Report) -> None:
    exact = report.frontiers[0].points[0].model_copy(update={"kl": 0.0, "kl_lower": 0.0, "kl_upper": 0.0})
    assert "nan" not in frontier_plot([exact], 1040, "")


def test_a_recipe_is_told_by_its_parts(maker: Maker) -> None:
    parts = [
        {
            "id": "a",
            "uses": "compression.prune",
            "settings": {"method": "wanda", "sparsity": 0.65, "owl": True},
        },
        {"id": "b", "uses": "compression.package", "settings": {}},
    ]
    sizes = {"bytes_resident": 7, "bytes_download": 5}
    made = made_by(
        maker, "gguf", 3, "compression.recipe", {"model": "sha256:0"}, **sizes, **told_of(0.1, recipe=parts)
    )
    maker.step("q4", 1, made)
    (part,) = build_report(maker.workspace, maker.run).frontiers
    assert [one.recipe for one in part.points] == ["prune wanda 0.65 → package"]


def test_without_a_measured_divergence_there_is_no_section(filled: Maker) -> None:
    report = build_report(filled.workspace, filled.run)
    assert report.frontiers == []
    assert 'id="frontier"' not in render_html(report)
    assert "Size against quality" not in render_markdown(report)


def test_facts_of_another_shape_are_passed_over(maker: Maker) -> None:
    broken = told_of(0.1)
    broken["fidelity"]["rows"] = "many"
    maker.step("q4", 1, maker.artifact("gguf", 5, bytes_resident=5, bytes_download=5, **broken))
    assert build_report(maker.workspace, maker.run).frontiers == []
