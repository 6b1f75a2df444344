"""The three forms agree, stand alone, and bear whatever names a workspace holds."""

from __future__ import annotations

import html
import itertools
import json
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import Maker, criterion

from reports import plot, text
from reports.model import build_report
from reports.render_html import render_html
from reports.render_json import render_json
from reports.render_markdown import escaped, render_markdown
from reports.schema import Report

HOSTILE = '<script>alert("x")</script>|`[a](http://evil.test)**b**\n\u202e&amp; {{ 7*7 }}'
NOT_TEXT = "\x00\ud800"
"""What JSON may carry into a note or a metric, and no page may hold."""


def report_of(maker: Maker) -> Report:
    return build_report(maker.workspace, maker.run)


def parsed(page: str) -> Xml.Element:
    """Parse the page as XML: every tag closed, every attribute quoted, no stray < or &."""
    return Xml.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def bare(document: str) -> str:
    """Markdown without its escapes."""
    return html.unescape(re.sub(r"\\([\\`*\[\]|#~!])", r"\1", document))


def test_the_three_forms_agree(filled: Maker) -> None:
    report = report_of(filled)
    page = " ".join("".join(parsed(render_html(report)).itertext()).split())
    markdown = bare(render_markdown(report))
    document = json.loads(render_json(report))
    assert Report.model_validate(document) == report
    wanted = [gate["verdict"] for gate in document["gates"]]
    for gate in document["gates"]:
        for decision in gate["decisions"]:
            wanted += [text.claim(one) for one in decision["document"]["criteria"]]
            wanted += [term for one in decision["document"]["criteria"] for term in text.terms(one)]
    for artifact in document["artifacts"]:
        part = artifact["quality"][0]
        wanted += [artifact["name"], text.short(artifact["digest"]), text.size(artifact["bytes_download"])]
        wanted += [text.share(part["score"]), text.interval(part["lower"], part["upper"])]
        wanted += [f"n = {part['n']} of {part['n_total']}", f"ratio {part['ratio']:.3f}"]
    wanted += [text.usd(document["money"]["simulated_usd"]), *document["reproduce"]["commands"]]
    wanted += document["caveats"]
    assert [one for one in wanted if one not in page] == []
    assert [one for one in wanted if one not in markdown] == []


def test_verdicts_come_first(filled: Maker) -> None:
    page = render_html(report_of(filled))
    order = ["verdicts", "artifacts", "history", "training", "steps", "money", "reproduce", "caveats"]
    assert re.findall(r'<section id="(\w+)"', page) == order
    headings = re.findall("^## (.+)$", render_markdown(report_of(filled)), re.MULTILINE)
    assert [headings[0], headings[-1]] == ["Verdicts", "Before you quote a number"]


def test_the_page_is_sound_and_accessible(filled: Maker) -> None:
    root = parsed(render_html(report_of(filled)))
    assert root.get("lang") == "en"
    for landmark in ("header", "nav", "main", "footer"):
        assert root.find(f".//{landmark}") is not None, landmark
    ids = [one.get("id") for one in root.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    targets = [one.get("href", "") for one in root.iter("a")]
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    labels = {one.get("aria-labelledby") for one in root.iter() if one.get("aria-labelledby")}
    assert labels <= set(ids)
    tables = list(root.iter("table"))
    assert len(tables) >= 6
    assert all(table.find("caption") is not None for table in tables)
    assert all(cell.get("scope") for table in tables for cell in table.iter("th"))
    levels = [int(one.tag[1]) for one in root.iter() if re.fullmatch("h[1-6]", str(one.tag))]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    pictures = list(root.iter("{http://www.w3.org/2000/svg}svg"))
    assert len(pictures) >= 7
    assert all(one.get("role") == "img" and one.get("aria-label") for one in pictures)


def test_the_page_loads_nothing(filled: Maker) -> None:
    page = render_html(report_of(filled))
    root = parsed(page)
    assert [
        one.tag for one in root.iter() if str(one.tag) in ("script", "link", "img", "iframe", "object")
    ] == []
    hrefs = {one.get("href") for one in root.iter("a")} - {"report.md", "report.json", "model-card.md"}
    assert all(str(href).startswith("#") for href in hrefs)
    assert [
        name for one in root.iter() for name in one.attrib if name == "src" or name.startswith("on")
    ] == []
    style = root.findtext(".//style") or ""
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page


@pytest.mark.parametrize("form", [render_html, render_markdown, render_json])
def test_the_same_run_gives_the_same_bytes(filled: Maker, form: object) -> None:
    assert callable(form)
    assert form(report_of(filled)) == form(report_of(filled))


def test_what_the_profile_left_out_of_a_gate_is_named(filled: Maker) -> None:
    report = report_of(filled)
    assert "- Left out by the profile: resident." in render_markdown(report)
    assert "Left out by the profile: resident." in " ".join(
        "".join(parsed(render_html(report)).itertext()).split()
    )


def test_hostile_names_are_only_text(maker: Maker) -> None:
    model = maker.artifact("model", 10)
    other = maker.artifact("gguf", 12)
    steps = [
        {"id": HOSTILE, "plan": "1", "uses": "x"},
        {"id": "phase1", "gate": "phase1", "artifact": HOSTILE},
    ]
    suites = {"general": [HOSTILE]}
    hostile = Maker(maker.workspace, HOSTILE, title=HOSTILE, steps=steps, suites=suites)
    hostile.step(HOSTILE, 1, model, note=HOSTILE, **{HOSTILE: NOT_TEXT})
    hostile.step(HOSTILE, 2, other)
    for artifact in (model, other):
        hostile.evidence(artifact.digest, 0.5, task=HOSTILE)
    hostile.verdict("phase1", model, criterion(HOSTILE, "FAIL", 0.1, 0.9, note=HOSTILE, reference=HOSTILE))
    hostile.end("stopped", 1, HOSTILE)
    report = report_of(hostile)
    page = render_html(report).encode("utf-8", "replace").decode()
    root = parsed(page)
    assert list(root.iter("script")) == []
    assert "<script" not in page
    assert "49" not in [word for one in root.itertext() for word in one.split()]
    assert page.count("\u202e") == page.count("\x00") == 0
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) >= 3
    markdown = render_markdown(report).encode("utf-8", "replace").decode()
    prose = re.sub(r"```+\n.*?\n```+", "", markdown, flags=re.DOTALL)
    assert "<" not in prose
    assert not re.search(r"(?<!\\)\[a", prose)
    for table in re.findall(r"(?:^\|.*\n)+", prose, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, "a cell broke out of its row"
    json.loads(render_json(report).encode("utf-8", "replace"))


@pytest.mark.parametrize("form", [render_html, render_markdown, render_json])
def test_a_run_without_anything_has_a_report(maker: Maker, form: object) -> None:
    assert callable(form)
    document = form(report_of(maker))
    assert "running" in document
    if form is render_html:
        parsed(document)
        assert document.count("NOT DECIDED") == 4  # at a glance and in full, for each of two gates


def test_a_number_that_is_not_finite_reaches_no_json(maker: Maker) -> None:
    maker.step("base", 1, None, status="failed", loss=float("nan"), note="the loss is not a number")
    document = json.loads(render_json(report_of(maker)), parse_constant=pytest.fail)
    assert document["steps"][0]["metrics"] == {"loss": "nan"}


SCHEMA = {
    "": [
        "artifacts", "caveats", "format", "frontiers", "gates", "money", "references", "reproduce", "run",
        "steps",
    ],
    "run": [
        "accepted_infeasible", "as_of", "exit_code", "name", "note", "profile", "profile_digest",
        "profile_title", "seconds", "started", "status",
    ],
    "gates": ["decisions", "gate", "step", "title", "verdict"],
    "artifacts": [
        "bits_per_weight", "bytes_download", "bytes_resident", "digest", "kind", "name", "number",
        "parameters", "parents", "quality", "settings", "stage", "tokens_per_second",
    ],
    "references": ["name", "score", "simulated", "suite"],
    "steps": [
        "artifact", "attempt", "confidence", "facts", "kind", "measured", "metrics", "note", "plan",
        "seconds", "status", "step", "training",
    ],
    "money": ["calls", "gpu", "real_usd", "simulated_usd", "unpriced_calls"],
    "reproduce": ["commands", "data", "profile", "seed", "software"],
}  # fmt: skip


def test_the_json_keeps_its_keys(filled: Maker) -> None:
    document = json.loads(render_json(report_of(filled)))
    assert document["format"] == 4
    for name, keys in SCHEMA.items():
        part = document[name] if name else document
        for one in part if isinstance(part, list) else [part]:
            assert sorted(one) == keys, f"{name}: a change of keys needs a new format number"


# Looks --------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_aa_in_light_and_dark() -> None:
    css = (Path(text.__file__).parent / "report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    light = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0]))
    dark = {**light, **dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1]))}
    assert light["page"] != dark["page"]
    for theme in (light, dark):
        for ground in ("page", "card"):
            for ink in ("ink", "soft", "accent"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
            # Graphics need 3 (WCAG 1.4.11).
            assert min(contrast(theme[mark], theme[ground]) for mark in ("dot", "square")) >= 3
        for verdict in ("pass", "fail", "undecided", "infeasible", "error", "budget", "none"):
            assert contrast("#ffffff", theme[verdict]) >= 4.5, verdict


points = st.builds(
    lambda x, y, half, fast: (10**x, y, half, fast),
    st.floats(5, 10),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.05, 0.2]),
    st.none() | st.floats(0.5, 400),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(points, min_size=2, max_size=30), st.booleans())
def test_labels_of_a_plot_never_overlap(
    found: list[tuple[float, float, float, float | None]], wide: bool
) -> None:
    drawn = [
        plot.Point(k, f"model-{k}", x, y, max(0.0, y - half), min(1.0, y + half), fast, k % 2 == 0)
        for k, (x, y, half, fast) in enumerate(found, 1)
    ]
    picture = Xml.fromstring(
        plot.scatter(drawn, [plot.Level("reference", 0.9)], 1040 if wide else 380, "title")
    )
    labels = [one for one in picture.iter() if one.get("class") in ("p-label", "p-levelname")]
    boxes = []
    for one in labels:
        width = 6.4 * len(one.text or "")
        x, y = float(one.get("x", "")), float(one.get("y", ""))
        left = x - width / 2 if one.get("text-anchor") == "middle" else x
        boxes.append((left, y - 11, left + width, y + 3))
    for k, a in enumerate(boxes):
        # 0.2 px: coordinates are written with one decimal.
        assert all(
            a[2] <= b[0] + 0.2 or b[2] <= a[0] + 0.2 or a[3] <= b[1] + 0.2 or b[3] <= a[1] + 0.2
            for b in boxes[k + 1 :]
        )
    marks = [one for one in picture.iter() if one.get("class") in ("p-dot", "p-square")]
    assert len(marks) == len(drawn)


@pytest.mark.parametrize(
    ("value", "lower", "upper", "bar", "at_least"),
    [
        (0.4, 0.3, None, 0.88, True),
        (None, None, None, 0.5, True),
        (48e3, 48e3, 48e3, 540e6, False),
        (0.0, 0.0, 0.004, 0.01, False),
        (5e12, 5e12, 5e12, 540e6, False),
        (1.0, 0.5, 1.2, 0.0, True),
    ],
)
def test_a_strip_stays_within_its_frame(
    value: float | None, lower: float | None, upper: float | None, bar: float, at_least: bool
) -> None:
    data = plot.Strip(value, lower, upper, bar, at_least, share=bar < 1)
    picture = Xml.fromstring(plot.strip(data, "a < b & c"))
    xs = [float(one.get(name, "6")) for one in picture.iter() for name in ("x", "x1", "x2", "cx")]
    assert all(0 <= x <= 260 for x in xs)
    assert picture.get("aria-label") == "a < b & c"


@given(st.text())
def test_escaped_markdown_is_one_line_without_markup(told: str) -> None:
    found = escaped(told)
    assert "\n" not in found
    assert "<" not in found
    assert not re.search(r"[`*\[\]|#~!]", re.sub(r"\\[\\`*\[\]|#~!]", "", found))
    assert found.encode().decode() == found


def test_figures() -> None:
    assert [text.size(n) for n in (999, 48_000, 999_700, 540e6, 4.92e9, None)] == [
        "999 B", "48 kB", "1 MB", "540 MB", "4.92 GB", "–",
    ]  # fmt: skip
    assert [text.duration(s) for s in (0.04, 9.96, 59.7, 200, 7500, None)] == [
        "0.0 s", "10 s", "1 min 0 s", "3 min 20 s", "2 h 5 min", "–",
    ]  # fmt: skip
    assert [text.count(n) for n in (12, 9999, 1_240_000, 8.03e9)] == ["12", "9,999", "1.24 M", "8.03 B"]
    assert [text.usd(x) for x in (0.0, 0.0036, 414.2, None)] == ["$0.00", "$0.0036", "$414.20", "unknown"]
    assert text.interval(0.5, 0.5) == "exact"
    assert text.interval(0.25, None) == "[0.250, ∞]"


@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_it_without_sideways_scrolling(
    filled: Maker, browser: str, tmp_path: Path, width: int
) -> None:
    # In a frame, since headless windows have a least width; without the policy that forbids the frame.
    page = re.sub(r"<meta http-equiv[^>]+>", "", render_html(report_of(filled)))
    frame = f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{html.escape(page)}"></iframe>'
    probe = "document.title = frames[0].document.documentElement.scrollWidth + ' of ' + frames[0].innerWidth"
    file = tmp_path / "page.html"
    script = f"<script>onload = () => {{ {probe} }}</script>"
    file.write_text(f"<!DOCTYPE html><title></title>{frame}{script}", encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [browser, *flags, file.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    match = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
    assert match, done.stderr[-2000:]
    assert int(match[2]) == width
    assert int(match[1]) <= width
