"""The page Gates: history, paths that end where their verdicts do, plan, attempts, and what may be broken."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_dashboard import RUN

from cogumi.digest import digest_of
from cogumi.errors import RunError
from cogumi.verdict import Verdict
from cogumi.workspace import LEDGER_FILE, Workspace
from dashboard.evidence_path import MOST_POINTS, account, thin, trail
from dashboard.evidence_plot import capital_figure, estimate_figure, path_table
from dashboard.gate_history import Decided, attempts_table, read_attempts, read_verdicts
from dashboard.gate_source import place_of
from dashboard.recorded import Place
from dashboard.view import View, open_view
from evals.items import committed_order
from evals.references.registry import ReferenceRow
from evals.references.scores import NotMeasuredError, ReferenceScores
from gates.attempts import alpha_of
from gates.paths import EvidencePath, suite_paths
from gates.suites import Pair, Rule
from gates.verdicts import CriterionVerdict

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

Page = Callable[..., "AppTest"]


def told(app: AppTest) -> str:
    """Return all text of a page, without the escapes of Markdown."""
    assert not app.exception
    kinds = ("title", "header", "subheader", "markdown", "caption", "info", "warning", "error")
    return "\n".join(element.value for kind in kinds for element in getattr(app, kind)).replace("\\", "")


def decided(view: View, gate: str, attempt: int = 1) -> Decided:
    found, broken = read_verdicts(view.workspace.ledger, RUN)
    assert not broken
    return next(one for one in found if (one.verdict.gate, one.verdict.attempt) == (gate, attempt))


def criterion_of(found: Decided, name: str) -> CriterionVerdict:
    return next(one for one in found.verdict.criteria if one.id == name)


def test_the_newest_verdict_is_shown_with_its_history(page: Page) -> None:
    app = page("gates")
    text = told(app)
    assert app.title[0].value == "Gates"
    assert app.selectbox(key="gate").options == ["all gates", "phase1", "phase3"]
    assert app.selectbox(key="verdict").value.startswith("phase3.1.")
    assert "Attempts and alpha spent" in text
    history = app.dataframe[0].value
    assert list(history["Gate"]) == ["phase3", "phase3", "phase1", "phase1", "phase1", "phase1"]
    assert set(history["Verdict"]) >= {"✓ PASS", "✗ FAIL"}


def test_every_path_of_a_run_ends_where_its_verdict_does(workspace: Path) -> None:
    view = open_view(workspace, RUN)
    found, _ = read_verdicts(view.workspace.ledger, RUN)
    followed = 0
    for one in found:
        for criterion in one.verdict.criteria:
            way = trail(place_of(view, one.run), one.verdict, criterion)
            if criterion.id == "size":
                assert "one number beside its bar" in way.why
                continue
            (path,) = way.paths
            assert (way.why, way.doubt) == ("", "")
            if path.verdict is criterion.verdict:
                assert path.items[-1] == criterion.n_used
                assert path.value[-1] == pytest.approx(criterion.value, abs=1e-6)
                assert path.lower[-1] == pytest.approx(criterion.lower, abs=1e-6)
                assert path.upper[-1] == pytest.approx(criterion.upper, abs=1e-6)
            else:
                assert "compared exactly" in criterion.note
                assert "Then all items were compared exactly" in account(path, criterion)
            followed += 1
    assert followed == 5


def test_a_link_leads_to_a_criterion(page: Page, workspace: Path) -> None:
    name = decided(open_view(workspace, RUN), "phase1").name
    app = page("gates", gate="phase1", verdict=name, criterion="stops")
    text = told(app)
    assert app.selectbox(key="criterion").value == "stops"
    assert "phase1: ✗ FAIL" in text
    assert "draw" in text
    assert app.selectbox(key="verdict").options[-1] == name


def test_attempt_and_artifact_of_other_pages_are_understood(page: Page, workspace: Path) -> None:
    wanted = decided(open_view(workspace, RUN), "phase1")
    app = page("gates", gate="phase1", attempt="1", artifact=wanted.verdict.artifact)
    assert app.selectbox(key="verdict").value == wanted.name
    assert "no verdict here is about" in told(page("gates", attempt="99"))


def test_what_the_address_asks_for_in_vain_is_said_in_one_line_each(page: Page) -> None:
    app = page("gates", gate="<b>nix</b>", verdict="nix", criterion="nix")
    assert told(app).count("which is not here") == len(app.warning) == 3
    assert app.selectbox(key="gate").value == "all gates"


def test_evidence_that_is_gone_or_broken_costs_one_line(copied: Path, page_of: Page) -> None:
    one = decided(open_view(copied, RUN), "phase1")
    asked = {"verdict": one.name, "criterion": "general"}
    for path in (copied / "evidence" / one.verdict.artifact.removeprefix("sha256:")).rglob("*.parquet"):
        path.write_bytes(b"PAR1 no more")
    app = page_of(copied, "gates", **asked)
    text = told(app)
    assert "No path: " in text
    assert "parquet" in text
    assert len(app.dataframe) >= 2
    for path in (copied / "evidence").rglob("meta.json"):
        path.unlink()
    text = told(page_of(copied, "gates", **asked))
    assert "No path: the evidence that it was decided on is not in this workspace" in text.replace("⁠", "")


def test_a_changed_gate_file_or_number_is_not_hidden(workspace: Path) -> None:
    view = open_view(workspace, RUN)
    one = decided(view, "phase1")
    criterion = criterion_of(one, "general")
    place = place_of(view, RUN)
    assert "the gate file was changed since" in trail(place, one.verdict, replace(criterion, bar=0.5)).why
    # What is recorded to six decimals is told to be another: the evidence says it.
    doubt = trail(place, one.verdict, replace(criterion, value=0.123)).doubt
    assert "ends elsewhere (value)" in doubt
    gone = replace(one.verdict, gate="phase99")
    assert "no such gate yet: phase99" in trail(place, gone, criterion).why
    renamed = replace(criterion, tasks=tuple(replace(t, reference="nobody@x") for t in criterion.tasks))
    assert "nobody@x is not in the registry" in trail(place, one.verdict, renamed).why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"measure": "rating", "reference": "study phase8"}, "people's ratings"),
        ({"verdict": Verdict.INFEASIBLE}, "arithmetic"),
        ({"n_used": 0}, "no item was measured"),
        ({"measure": "bytes_download", "reference": None}, "one number beside its bar"),
    ],
)
def test_what_no_bet_decides_says_so(workspace: Path, change: dict[str, object], why: str) -> None:
    view = open_view(workspace, RUN)
    one = decided(view, "phase1")
    way = trail(place_of(view, RUN), one.verdict, replace(criterion_of(one, "general"), **change))  # type: ignore[arg-type]
    assert (way.paths, why in way.why) == ((), True)


def test_attempts_spend_alpha(workspace: Path) -> None:
    view = open_view(workspace, RUN)
    attempts = [one for one in read_attempts(view.workspace.ledger) if one.gate == "phase1"]
    assert [one.number for one in attempts] == [1, 2]
    spent = alpha_of(1, 0.05) + alpha_of(2, 0.05)
    assert attempts[-1].spent == pytest.approx(spent)
    assert attempts[-1].left == pytest.approx(0.05 - spent)
    found, _ = read_verdicts(view.workspace.ledger, None)
    table = attempts_table(attempts, found, {})
    assert "general ✗ FAIL" in table["Said"][0]
    assert "general ✓ PASS" in table["Said"][1]


def test_the_plan_is_simulated_when_it_is_asked_for(page: Page, workspace: Path) -> None:
    name = decided(open_view(workspace, RUN), "phase1").name
    asked = {"verdict": name, "criterion": "general"}
    assert "True ratio" not in page("gates", **asked).dataframe[-1].value
    plan = page("gates", plan="true", **asked).dataframe[-1].value
    assert list(plan["Bar"].unique()) == [0.88]
    clear, near = plan.iloc[0], plan.iloc[(plan["True ratio"] - 0.88).abs().argmin()]
    assert clear["FAIL"] == "100%"
    assert clear["Items, half within"] < near["Items, half within"] <= near["Items in all"]


def test_verdicts_of_no_run_and_broken_ones(copied: Path, page_of: Page) -> None:
    one = decided(open_view(copied, RUN), "phase1", 2)
    workspace = Workspace(copied)
    hostile = "<script>alert(1)</script> [x](http://y) \u202eabc\x00"
    document = {**one.verdict.to_json(), "run": None, "title": hostile}
    workspace.ledger.record_verdict("", document)
    workspace.ledger.record_verdict(RUN, {**document, "gate": "phase2", "criteria": [{"id": "x"}]})
    workspace.ledger.close()
    with sqlite3.connect(copied / LEDGER_FILE) as connection:
        connection.execute("UPDATE verdicts SET document = '{' WHERE gate = 'phase3'")
    app = page_of(copied, "gates", all="true", gate="phase1")
    text = told(app)
    assert [line.value.count("not readable by this version") for line in app.warning] == [1, 1]
    assert "Name" in app.dataframe[0].value
    assert "no run" in set(app.dataframe[0].value["Run"])
    assert "run no run" not in text
    assert "⟨U+202E⟩" in text
    # Named by the same gate, attempt and artifact, it has a name of its own; the older keeps its own.
    names = app.selectbox(key="verdict").options
    assert names[:2] == [f"{one.name}.2", one.name]
    assert not page_of(copied, "gates", all="true", gate="phase1", criterion="general").exception


def test_a_workspace_without_a_verdict_says_what_to_type(copied: Path, page_of: Page) -> None:
    with sqlite3.connect(copied / LEDGER_FILE) as connection:
        connection.execute("DELETE FROM verdicts")
    app = page_of(copied, "gates")
    assert "No gate has been decided yet" in told(app)
    assert app.code[-1].value.startswith("cogumi gate")


def test_clusters_are_those_that_the_workspace_remembers(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path / "evidence", None)
    plain = digest_of(committed_order("sha256:i", 4).tolist())
    assert place.clusters(("sha256:i", plain), 4) is None
    with pytest.raises(NotMeasuredError, match="does not remember"):
        place.clusters(("sha256:i", "sha256:o"), 4)
    memory = tmp_path / "cache" / "items"
    memory.mkdir(parents=True)
    (memory / "broken.json").write_text("[")
    known = {"items": "sha256:i", "order": "sha256:o", "clusters": [0, 0, 1, 2]}
    (memory / "known.json").write_text(json.dumps(known))
    found = place.clusters(("sha256:i", "sha256:o"), 4)
    assert found is not None
    assert found.tolist() == [0, 0, 1, 2]


def test_archived_answers_are_found_without_their_file_where_only_one_can_be_meant(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path / "evidence", None)
    row = ReferenceRow(
        id="m/t@x",
        model="m",
        snapshot=None,
        benchmark="t",
        kind="per-item",
        file="m.jsonl",
        n=2,
        family="t/exact",
        source="here",
        date=None,
        how_read="measured",
    )
    assert place.answers(row, "t") == []
    for number, artifact in enumerate(("sha256:aa", "sha256:bb"), 1):
        meta = place.evidence / artifact.removeprefix("sha256:") / "t" / "p" / "meta.json"
        meta.parent.mkdir(parents=True)
        protocol = {"backend": "answers", "family": "t/exact"}
        document = {"artifact": artifact, "task": "t", "protocol": protocol, "n_total": 2}
        meta.write_text(json.dumps(document))
        if number == 1:
            (one,) = place.answers(row, "t")
            assert (one.file.key.artifact, one.n_total) == (artifact, 2)
    with pytest.raises(RunError, match="give the folder that holds"):
        place.answers(row, "t")


@pytest.fixture(scope="module")
def long_path() -> EvidencePath:
    rng = np.random.default_rng(5)
    n = 14_000
    x, y = (rng.random(n) < 0.72).astype(float), (rng.random(n) < 0.8).astype(float)
    reference = ReferenceScores("r", "per-item", "f", float(y.mean()), items=y)
    pair = Pair("a", x[:-1], n, n, "sha256:o", reference)
    (path,) = suite_paths(
        [pair], Rule(float(x.mean() / y.mean()), 0.03, "benchmark", "mean_of", None), looks=6
    )
    return path


def test_a_long_path_is_drawn_thin(long_path: EvidencePath) -> None:
    criterion = CriterionVerdict(
        "a",
        Verdict.UNDECIDED,
        0.9,
        0.9,
        ">=",
        0.8,
        1.0,
        0.03,
        len(long_path),
        14_000,
        "r",
        "per-item",
        None,
        "",
    )
    assert len(long_path) > 13_000
    for fig in (capital_figure(long_path), estimate_figure(long_path, criterion)):
        assert max(len(trace.x) for trace in fig.data) <= MOST_POINTS
    table = path_table(long_path)
    assert table["Draw"].iloc[-1] == len(long_path)
    assert table["Estimate"].max() == np.nanmax(long_path.value)
    assert table["Lower bound"].notna().sum() == len(long_path.looks)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(20, 120))
@settings(max_examples=60, deadline=None)
def test_thinning_keeps_ends_and_extremes(seed: int, lines: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    special = np.array([np.nan, np.inf, -np.inf, 0.0])
    columns = [
        np.where(rng.random(300) < 0.1, rng.choice(special, 300), rng.normal(size=300)) for _ in range(lines)
    ]
    at = thin(columns, most)
    assert (at[0], at[-1]) == (0, 299)
    assert len(at) <= most + 1
    assert (np.diff(at) > 0).all()
    for column in columns:
        known = column[~np.isnan(column)]
        if len(known):
            kept = column[at]
            assert np.nanmin(kept) == known.min()
            assert np.nanmax(kept) == known.max()
