"""The people page: what is asked, what the ledger has decided, and nothing before a study is closed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cogumi.workspace import Workspace
from dashboard.pages.people import asked_of_people
from dashboard.view import open_view
from gates.spec import load_gate

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

# pytest's importlib mode leaves test folders off the path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "reports"))

from small_run import Maker, criterion

Page = Callable[..., "AppTest"]
GATE_STEP = {"id": "people", "plan": "8.2", "gate": "phase8", "artifact": "base"}
BASE = {"id": "base", "plan": "1.6", "uses": "training.sft", "inputs": {}}


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(Workspace(tmp_path / "workspace"), "r", steps=[BASE, GATE_STEP], references={}, suites={})


def texts(app: AppTest) -> str:
    assert not app.exception
    drawn = [*app.markdown, *app.caption, *app.warning, *app.info, *app.error, *app.code]
    return "\n".join(str(one.value) for one in drawn)


def decide(maker: Maker, verdict: str, value: float | None, **more: Any) -> None:
    base = maker.artifact("model", 10)
    given = {"measure": "rating", "reference": "study phase8", **more}
    maker.verdict("phase8", base, criterion("human", verdict, value, 8.0, **given))


def test_bars_are_those_of_the_gate_file(maker: Maker, page_of: Page) -> None:
    app = page_of(maker.workspace.root, "people", run="r")
    told = texts(app)
    assert (
        "phase8 asks 100 people × 20 tasks for a mean rating above **8** of 10. Nothing is known yet." in told
    )
    table = app.dataframe[0].value.set_index("Criterion")
    human = ("human", "raters", "rated_tasks")
    assert tuple(table.index) == human
    bars = {one.id: one.bar for one in load_gate("phase8").criteria}
    for name in human:
        assert table.loc[name, "Bar"].endswith(f"{bars[name]:g}")
    assert set(table["Verdict"]) == {"· waiting"}
    assert set(table["Value"]) == {"–"}
    assert "No study is recorded" in told
    assert "cogumi gate phase8 --profile small --run r" in told


def test_an_undecided_gate_tells_its_note_and_no_number(maker: Maker, page_of: Page) -> None:
    decide(maker, "UNDECIDED", None, note="not measured: no closed study")
    app = page_of(maker.workspace.root, "people", run="r")
    told = texts(app)
    assert "human: not measured: no closed study" in told
    assert app.dataframe[0].value["Verdict"].tolist() == ["? UNDECIDED", "· waiting", "· waiting"]
    assert "No study is recorded" in told


@pytest.mark.parametrize(("simulated", "told"), [(False, "✓ PASS"), (True, "? UNDECIDED")])
def test_a_closed_study_is_told_with_its_bounds(
    maker: Maker, page_of: Page, simulated: bool, told: str
) -> None:
    decide(maker, told[2:], 8.4, simulated=simulated)
    app = page_of(maker.workspace.root, "people", run="r")
    found = texts(app)
    raters = ", simulated raters" if simulated else ""
    assert f"**{told}: mean rating 8.40 (8.35 to 8.45{raters}).**" in found
    assert "The study is closed" in found
    assert app.dataframe[0].value.loc[0, ["Value", "From", "To"]].tolist() == ["8.40", "8.35", "8.45"]


def test_a_profile_without_the_gate_is_shown_the_plans(workspace: Path, page: Page) -> None:
    told = texts(page("people"))
    assert "this run's profile does not have it" in told
    assert "cogumi plan --profile llama-3.1-8b" in told
    assert [one.of_run for one in asked_of_people(open_view(workspace, None), [])] == [False]


def test_what_cannot_be_read_is_one_line(maker: Maker, page_of: Page) -> None:
    base = maker.artifact("model", 10)
    document = {"gate": "phase8", "artifact": base.digest, "attempt": 1, "verdict": "PASS", "criteria": 7}
    maker.workspace.ledger.record_verdict("r", document)
    profile = {"gates": ["<b>no such</b>", 5], "steps": "none"}
    maker.workspace.ledger.start_run("r", "small", profile, ())
    app = page_of(maker.workspace.root, "people", run="r")
    told = [str(one.value) for one in app.warning]
    assert len(told) == 2
    assert "not readable by this version" in told[0]
    assert "<b>" not in told[1]
    assert "Nothing is known yet" in texts(app)
