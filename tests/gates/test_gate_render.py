"""What people and CI read: the JSON contract, terminal lines, Markdown, JUnit XML, HTML, exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogumi.verdict import Verdict
from gates import page, render
from gates.verdicts import CriterionVerdict, GateVerdict, TaskVerdict

CONTRACT = ["gate", "run", "artifact", "verdict", "exit_code", "attempt", "criteria"]
CRITERION = [
    *("id", "verdict", "value", "bar", "comparison", "lower", "upper", "alpha", "n_used", "n_total"),
    *("reference", "reference_kind", "protocol", "note"),
]
GENERAL = CriterionVerdict(
    id="general",
    verdict=Verdict.FAIL,
    value=0.411,
    bar=0.88,
    comparison=">=",
    lower=0.281,
    upper=0.579,
    alpha=0.05,
    n_used=31,
    n_total=541,
    reference="gpt-4/ifeval@2023-11-07",
    reference_kind="per-item",
    protocol="sha256:1",
    note="2 truncated",
    attempt=1,
)


def verdict_of(*criteria: CriterionVerdict) -> GateVerdict:
    return GateVerdict("phase1", "run-1", "sha256:model", 1, criteria, "Training reaches 88-92 % of GPT-4")


def test_json_is_the_contract() -> None:
    document = verdict_of(GENERAL).to_json()
    assert list(document)[: len(CONTRACT)] == CONTRACT
    assert list(document["criteria"][0])[: len(CRITERION)] == CRITERION
    assert (document["verdict"], document["exit_code"]) == ("FAIL", 1)
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_json_round_trip_keeps_tasks_and_unbounded_bounds() -> None:
    task = TaskVerdict("a", None, 0.5, 0.25, None, 1, 3, 0, 0)
    whole = verdict_of(replace(GENERAL, upper=float("inf"), tasks=(task,)))
    back = GateVerdict.from_json(json.loads(json.dumps(whole.to_json(), allow_nan=False)))
    assert back.criteria[0].upper is None
    assert back.criteria[0].tasks == (task,)
    assert back.to_json() == whole.to_json()


def test_the_line_of_a_verdict() -> None:
    assert render.criterion_line("phase1", GENERAL) == (
        "phase1/general  FAIL  ratio 0.411 in [0.281, 0.579] < 0.88  n=31 of 541  alpha 0.05 attempt 1  "
        "vs gpt-4/ifeval@2023-11-07 (per-item)"
    )


def test_lines_of_other_verdicts() -> None:
    undecided = replace(GENERAL, verdict=Verdict.UNDECIDED, simulated=True)
    line = render.criterion_line("phase1", undecided)
    assert "0.579], bar >= 0.88" in line
    assert "(per-item, simulated reference)" in line
    size = replace(
        GENERAL, value=5e8, lower=5e8, upper=5e8, bar=5.4e8, comparison="<=", measure="bytes", alpha=None
    )
    passed = replace(size, verdict=Verdict.PASS, reference=None)
    assert render.criterion_line("phase3", passed) == "phase3/general  PASS  bytes 500,000,000 <= 540,000,000"
    assert "bytes 500,000,000 > 540,000,000" in render.criterion_line(
        "p", replace(passed, verdict=Verdict.FAIL)
    )
    empty = replace(GENERAL, verdict=Verdict.UNDECIDED, value=None, lower=None, upper=None, n_used=0)
    assert "UNDECIDED  ratio, bar >= 0.88" in render.criterion_line("phase1", empty)


def test_terminal_text_ends_with_the_gate() -> None:
    lines = render.text(verdict_of(GENERAL)).splitlines()
    assert lines[1] == "    2 truncated"
    assert lines[-1].startswith("phase1  FAIL  (exit 1, attempt 1)")
    colored = render.text(verdict_of(GENERAL), color=True)
    assert "[bold red]FAIL[/]" in colored
    assert r"\[0.281" in colored
    twice = verdict_of(GENERAL, GENERAL)
    assert render.text(twice).splitlines()[:4] == lines[:2] * 2


@pytest.mark.parametrize(
    ("verdicts", "combined", "code"),
    [
        ([Verdict.PASS, Verdict.PASS], Verdict.PASS, 0),
        ([Verdict.PASS, Verdict.UNDECIDED], Verdict.UNDECIDED, 3),
        ([Verdict.UNDECIDED, Verdict.ERROR], Verdict.ERROR, 5),
        ([Verdict.ERROR, Verdict.INFEASIBLE], Verdict.INFEASIBLE, 4),
        ([Verdict.INFEASIBLE, Verdict.FAIL], Verdict.FAIL, 1),
        ([Verdict.UNDECIDED, Verdict.BUDGET], Verdict.BUDGET, 6),
    ],
)
def test_exit_codes(verdicts: list[Verdict], combined: Verdict, code: int) -> None:
    whole = verdict_of(*(replace(GENERAL, verdict=verdict) for verdict in verdicts))
    assert (whole.verdict, whole.exit_code) == (combined, code)


def test_junit_has_one_case_per_criterion() -> None:
    whole = verdict_of(*(replace(GENERAL, id=f"c{i}", verdict=verdict) for i, verdict in enumerate(Verdict)))
    suite = Xml.fromstring(render.junit(whole)).find("testsuite")
    assert suite is not None
    counts = {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "6", "failures": "1", "errors": "2", "skipped": "2"}
    tags = [[child.tag for child in case if child.tag != "system-out"] for case in suite]
    assert tags == [[], ["failure"], ["skipped"], ["error"], ["error"], ["skipped"]]


@given(st.text(max_size=300))
def test_any_note_survives_every_format(note: str) -> None:
    whole = verdict_of(replace(GENERAL, verdict=Verdict.UNDECIDED, note=note, reference=note or None))
    Xml.fromstring(render.junit(whole))
    table = [line for line in render.markdown(whole).split("\n") if line.startswith("| ")]
    assert len(table) == 2
    assert table[1].replace(r"\|", "").count("|") == 8

    class Tags(HTMLParser):
        found: list[str]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.append(tag)

    parser = Tags()
    parser.found = []
    parser.feed(page.html(whole))
    known = {"style", "section", "h2", "b", "p", "br", "table", "thead", "tbody", "tr", "th", "td", "span"}
    assert set(parser.found) <= known


def test_markdown_is_cut_at_githubs_limit() -> None:
    long = verdict_of(*[replace(GENERAL, note="ä" * 1000)] * 1500)
    found = render.markdown(long).encode()
    assert len(found) <= 1024 * 1024
    assert found.decode().endswith("has everything)\n")


def test_html_stands_alone_in_light_and_dark() -> None:
    found = page.html(verdict_of(GENERAL))
    assert "prefers-color-scheme: dark" in found
    assert "http" not in found
    assert "<script" not in found
    assert "<style>" not in page.html(verdict_of(GENERAL), style=False)
    assert "&lt;img&gt;" in page.html(verdict_of(replace(GENERAL, note="<img>")))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.88, "0.88"),
        (0.8812, "0.881"),
        (1.0, "1.00"),
        (0.003, "0.003"),
        (0.0, "0.00"),
        (5.4e8, "540,000,000"),
    ],
)
def test_numbers(value: float, shown: str) -> None:
    assert render.number(value) == shown
