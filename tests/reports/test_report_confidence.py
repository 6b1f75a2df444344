"""What a report tells of confidence: the stage's own figures, its plot, and nothing where there is none."""

from __future__ import annotations

import copy
import math
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
from small_run import Maker

from pipeline.compression.confidence import Asked, ConfidenceSettings, calibrate
from reports import confidence, rows
from reports.model import build_report
from reports.reliability_plot import HEIGHT, WIDTH, reliability_plot
from reports.render_html import render_html
from reports.render_json import render_json
from reports.render_markdown import render_markdown
from reports.schema import ConfidencePart

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """Those of the stage, for a model that is too sure of itself."""
    rng = np.random.default_rng(0)
    p = rng.beta(4, 1.5, size=800)
    right = rng.random(800) < p**2
    asked = [
        Asked(str(k), "", math.log(c), 3, bool(r), True)
        for k, (c, r) in enumerate(zip(p.tolist(), right.tolist(), strict=True))
    ]
    return calibrate(ConfidenceSettings(), asked, [str(k) for k in range(800)], 0)


def part_of(facts: dict[str, Any]) -> ConfidencePart:
    found = confidence.confidence_part(facts)
    assert found is not None
    return found


def test_every_form_has_the_figures(maker: Maker, facts: dict[str, Any]) -> None:
    maker.step("q4", 1, maker.artifact("file", 10, **facts))
    report = build_report(maker.workspace, maker.run)
    ((name, part),) = rows.confidences_of(report)
    assert name == "q4"
    assert (part.method, part.items, part.alpha) == ("platt", 800, 0.05)
    ece = {one.name: one.ece for one in part.scalings}
    assert ece["platt"] == facts["metrics"]["ece"]["value"] < 0.05 < ece["none"]
    page, markdown, document = render_html(report), render_markdown(report), render_json(report)
    root = Xml.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    section = next(one for one in root.iter("section") if one.get("id") == "confidence")
    told = " ".join("".join(section.itertext()).split())
    cells = [cell for row in confidence.table([(name, part)]) for cell in row]
    for cell in [*cells, confidence.told(part)]:
        assert cell in told
        assert cell in markdown.replace("\\", "")
    assert "Platt scaling, shipped" in told
    assert "a chance of at most 0.05" in told
    assert f'"ece": {ece["platt"]}' in document
    assert len(list(section.iter(f"{SVG}svg"))) == 1
    for row in confidence.bins(part):
        assert row[2] in markdown


def test_the_plot_shows_each_bin_where_it_is(facts: dict[str, Any]) -> None:
    part = part_of(facts)
    shown = confidence.shown(part)
    picture = Xml.fromstring(reliability_plot([(one.name, one) for one in shown], "a < b"))
    assert picture.get("aria-label") == "a < b"
    squares, dots = list(picture.iter(f"{SVG}rect")), list(picture.iter(f"{SVG}circle"))
    # One more of each names it.
    assert (len(squares), len(dots)) == (11, 11)
    places = [(float(str(dot.get("cx"))), float(str(dot.get("cy")))) for dot in dots[:-1]]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    diagonal = next(one for one in picture.iter(f"{SVG}line") if one.get("class") == "p-level")
    x1, y1, x2, y2 = (float(str(diagonal.get(name))) for name in ("x1", "y1", "x2", "y2"))
    for (x, y), row in zip(places, shown[-1].reliability, strict=True):
        assert (x - x1) / (x2 - x1) == pytest.approx(row.confidence, abs=1e-3)
        assert (y - y1) / (y2 - y1) == pytest.approx(row.accuracy, abs=1e-3)
    for one in picture.iter():
        for name, limit in (("x1", WIDTH), ("x2", WIDTH), ("x", WIDTH), ("y1", HEIGHT), ("y2", HEIGHT)):
            assert 0 <= float(one.get(name, 0)) <= limit
    titles = [one.text for one in picture.iter(f"{SVG}title")]
    assert len(titles) == 20
    assert f"80 answers of confidence {shown[0].reliability[0].confidence:.3f}" in str(titles[0])


def test_a_step_that_calibrated_nothing_has_no_section(filled: Maker) -> None:
    report = build_report(filled.workspace, filled.run)
    assert rows.confidences_of(report) == []
    page = render_html(report)
    assert 'id="confidence"' not in page
    assert "#confidence" not in page
    assert "## Confidence" not in render_markdown(report)


def test_facts_of_another_shape_tell_nothing(facts: dict[str, Any]) -> None:
    assert confidence.confidence_part({"calibration": "rows", "metrics": {}}) is None
    assert confidence.confidence_part({"calibration": {}, "metrics": {}}) is None
    broken = copy.deepcopy(facts)
    del broken["calibration"]["none"]["ece"]["upper"]
    assert confidence.confidence_part(broken) is None
    broken = copy.deepcopy(facts)
    broken["platt"] = [1.0]
    assert confidence.confidence_part(broken) is None


def test_where_all_answers_are_right_no_order_can_be_judged(facts: dict[str, Any]) -> None:
    asked = [Asked(str(k), "", -0.01 * k, 3, True, True) for k in range(40)]
    part = part_of(calibrate(ConfidenceSettings(), asked, [str(k) for k in range(40)], 0))
    assert [row[-1] for row in confidence.table([("c", part)])] == ["–"] * 3
