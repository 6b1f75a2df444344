"""Overview and Cost: what they say of a run, live and finished, broken and hostile."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_dashboard import MARKUP, RUN
from sqlalchemy import update

from cogumi.held import is_held
from cogumi.ledger import Ledger, StepRow
from cogumi.ledger.database import writing
from cogumi.ledger.schema import runs, verdicts
from cogumi.profile import GateStep, load_profile, parse_profile
from cogumi.workspace import Workspace
from dashboard import costs, plan, run_rows
from dashboard.live import running_now
from dashboard.phases import NO_GATE, NOT_ASKED, WAITING, gate_states, headline, phases_of, worst
from dashboard.plan import Plan, StepPlan
from gates.verdicts import CriterionVerdict, GateVerdict, Verdict

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

Draw = Callable[..., "AppTest"]
_PLANNED = Plan(
    steps={"data": StepPlan("data", 400, 0.03, 0.01, 0.09, False, None, None, None, None, "$9")},
    infeasible={"phase8/code": "no file is so small"},
)


@pytest.fixture(autouse=True)
def _known_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer for the command `cogumi plan`, which has a test of its own below."""
    answered: Future[Plan] = Future()
    answered.set_result(_PLANNED)
    monkeypatch.setattr(run_rows, "plan_of", lambda _profile, _digest: answered)


def told(app: AppTest) -> str:
    """Return all text of a page, without the escapes of Markdown."""
    parts = [*app.main.markdown, *app.main.caption, *app.success, *app.error, *app.info, *app.warning]
    text = "\n".join(str(part.value) for part in parts)
    return text.replace("\\", "").replace("\u2060", "")


def drawn(app: AppTest) -> AppTest:
    assert not app.exception
    return app


def criterion(name: str, verdict: Verdict, value: float | None, bar: float = 0.9) -> CriterionVerdict:
    return CriterionVerdict(
        name, verdict, value, bar, ">=", None, None, 0.05, 10, 20, None, None, None, ""
    )  # fmt: skip


# The pages ----------------------------------------------------------------------------------------


def test_overview_says_which_gates_hold_and_why(page: Draw) -> None:
    app = drawn(page("overview", run=RUN))
    text = told(app)
    assert "1 of 2 gates hold: phase1." in text
    assert "phase3 of q4 fails: retention, ratio" in text
    assert "relative to" in text
    assert "simulated" in text
    assert "gate phase3 says FAIL on attempt 1" in text
    assert [header.value for header in app.main.header][:2] == [
        "The plan's phases",
        "Time and money against the plan",
    ]
    assert {metric.label: metric.value for metric in app.main.metric} == {
        "Time of all steps": "3 min 9 s",
        "Paid to providers": "at least $0.0400",
        "Simulated, nothing is paid": "$0.0360",
        "GPU time": "1.5 h",
    }
    assert "the plan: $0.0300 expected, $0.0100 to $0.0900" in text


def test_a_page_does_not_wait_for_the_plan(page: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_rows, "plan_of", lambda _profile, _digest: Future())
    assert "the plan is being estimated" in told(drawn(page("overview", run=RUN)))
    assert "The plan is being estimated." in told(drawn(page("cost", run=RUN)))


@pytest.mark.parametrize("name", ["overview", "cost"])
def test_an_error_in_what_is_drawn_again_by_itself_is_one_line(
    page: Draw, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Broken:
        """A plan that waits while the page is drawn, and breaks when its fragment asks for it."""

        asked = 0

        def done(self) -> bool:
            self.asked += 1
            if self.asked > 1:
                raise ZeroDivisionError("secret detail")
            return False

    broken = Broken()
    monkeypatch.setattr(run_rows, "plan_of", lambda _profile, _digest: broken)
    app = page(name, run=RUN)
    assert broken.asked > 1
    assert not app.exception
    assert "secret detail" not in told(app)
    assert [one.value for one in app.main.error if "ZeroDivisionError" in one.value]
    assert app.main.dataframe


def test_overview_of_every_criterion_and_step_is_a_table(page: Draw) -> None:
    app = drawn(page("overview", run=RUN))
    criteria, steps = app.main.dataframe[0].value, app.main.dataframe[1].value
    assert list(criteria["Gate"]) == ["phase1", "phase1", "phase3", "phase3"]
    assert set(criteria["Verdict"]) == {"✓ PASS", "✗ FAIL"}
    assert criteria["Lower bound"].notna().all()
    assert list(steps["Step"]) == ["data", "base", "phase1", "q8", "q4", "phase3", "later"]
    assert list(steps["State"])[-1] == "· waiting"
    assert steps["The plan says"][0] == "$9"


def test_a_run_that_failed_at_once_says_so(page: Draw) -> None:
    text = told(drawn(page("overview", run="older-1")))
    assert "None of 2 gates is decided yet: phase1, phase3." in text
    assert "✗ failed, exit 5: data: disk full while writing training.jsonl" in text


@pytest.mark.parametrize("name", ["overview", "cost"])
def test_a_profile_that_this_version_cannot_read_costs_one_line(
    name: str, copied: Path, page_of: Draw
) -> None:
    ledger = Ledger(copied)
    with writing(ledger.engine) as connection:
        connection.execute(update(runs).where(runs.c.name == RUN).values(profile={"new": MARKUP}))
    ledger.close()
    app = drawn(page_of(copied, name, run=RUN))
    assert [error.value for error in app.error if "shown without its plan" in error.value]
    if name == "overview":
        assert "1 of 2 gates hold: phase1." in told(app)


def test_hostile_text_in_the_ledger_is_only_text(copied: Path, page_of: Draw) -> None:
    ledger = Ledger(copied)
    with writing(ledger.engine) as connection:
        connection.execute(update(runs).where(runs.c.name == RUN).values(note=MARKUP))
    ledger.close()
    app = drawn(page_of(copied, "overview", run=RUN))
    shown = "\n".join(str(part.value) for part in app.main.markdown)
    assert "<script>" not in shown
    assert "[link](" not in shown
    assert "\u202e" not in shown


def test_a_verdict_of_another_version_keeps_its_word(copied: Path, page_of: Draw) -> None:
    ledger = Ledger(copied)
    with writing(ledger.engine) as connection:
        where = (verdicts.c.run == RUN) & (verdicts.c.gate == "phase3")
        connection.execute(update(verdicts).where(where).values(document={"criteria": "none"}))
    ledger.close()
    text = told(drawn(page_of(copied, "overview", run=RUN)))
    assert "✗ FAIL **phase3**" in text
    assert "not readable by this version" in text


def test_cost_keeps_real_and_simulated_apart(page: Draw) -> None:
    app = drawn(page("cost", run=RUN))
    text = told(app)
    assert "Paid to providers: at least $0.0400 for 3 calls." in text
    assert "The local teacher's 30 calls would have cost $0.0360: simulated, nothing was paid." in text
    assert "1 call has no known price" in text
    paid, play = app.main.dataframe[0].value, app.main.dataframe[1].value
    assert list(paid["Paid ($)"]) == [pytest.approx(0.04)]
    assert list(play["Simulated ($)"]) == [pytest.approx(0.036)]
    assert list(paid["Of unknown price"]) == [1]
    assert list(paid["Planned, high ($)"]) == [0.09]
    assert "Planned ($)" in play
    assert play["Planned ($)"].isna().all()


def test_cost_groups_as_the_address_says(page: Draw) -> None:
    app = drawn(page("cost", run=RUN, by="tier"))
    assert "Tier" in app.main.dataframe[0].value
    app = drawn(page("cost", run=RUN, by="moon"))
    assert "Step" in app.main.dataframe[0].value
    assert any("moon" in one.value for one in app.warning)


# What runs now ------------------------------------------------------------------------------------


def test_a_live_run_shows_its_step_and_a_killed_one_is_told(copied: Path, page_of: Draw) -> None:
    workspace = Workspace(copied)
    document = workspace.ledger.run(RUN)
    assert document is not None
    workspace.ledger.start_run(RUN, document["profile_name"], document["profile"], [])
    workspace.ledger.start_step(RUN, "later", 1, "sha256:" + "a" * 64, "stage")
    folder = copied / "scratch" / ("a" * 64) / "step-00000007"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": 7, "last_loss": 0.314}))
    with workspace.lock(f"run-{RUN}"):
        text = told(drawn(page_of(copied, "overview", run=RUN)))
    assert "→ **3.4 later** (stage), attempt 1" in text
    assert "checkpoint at step 7, loss 0.314" in text
    assert "no process that can be seen from here" not in text
    text = told(drawn(page_of(copied, "overview", run=RUN)))
    assert "no process that can be seen from here holds it" in text
    workspace.ledger.close()


def test_progress_is_read_from_the_traces_of_a_step(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    profile = load_profile("rehearsal")
    ledger = workspace.ledger
    ledger.start_run("r", "rehearsal", profile.model_dump(mode="json"), [])
    for step in ("validated", "base", "own_answers"):
        ledger.start_step("r", step, 1, f"sha256:{step}", "stage")
    trained = tmp_path / "scratch" / "base" / "step-00000020"
    trained.mkdir(parents=True)
    (trained / "state.json").write_text('{"step": 20, "last_loss": NaN}')
    journal = tmp_path / "scratch" / "own_answers"
    journal.mkdir(parents=True)
    (journal / "answers.jsonl").write_bytes(b"{}\n{}\n{")
    found = running_now(workspace, profile, ledger.steps("r"), {"validated": 12}, {"validated": 48})
    told = {one.step: (one.done, one.total) for one in found}
    # The first of the step's two attempts has 80 steps.
    assert told == {"validated": (12, 48), "base": (20, 80), "own_answers": (2, None)}
    (trained / "state.json").write_text("cut sho")
    assert running_now(workspace, profile, ledger.steps("r"), {}, {})[1].told == ""
    ledger.close()


def test_items_are_counted_while_a_step_measures(copied: Path) -> None:
    workspace = Workspace(copied)
    row = workspace.ledger.run(RUN)
    assert row is not None
    document = dict(row["profile"])
    document["steps"] = [
        *document["steps"],
        {"id": "again", "plan": "3.4", "measure": "q8", "suite": "general"},
    ]
    profile = parse_profile(document, "test")
    workspace.ledger.start_step(RUN, "again", 1, "sha256:again", "measure")
    steps = workspace.ledger.steps(RUN)
    assert running_now(workspace, profile, steps, {}, {})[0].told == ""
    for meta in workspace.evidence.glob("*/*/*/meta.json"):
        (meta.parent / ".lock").unlink(missing_ok=True)
    found = running_now(workspace, profile, steps, {}, {})[0]
    assert found.done is not None
    assert found.total is not None
    assert 0 < found.done < found.total
    assert "items in 2 tasks" in found.told
    workspace.ledger.close()


def test_a_lock_is_seen_and_not_taken(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert is_held(workspace, "r") is None
    with workspace.lock("run-r"):
        assert is_held(workspace, "r") is True
    assert is_held(workspace, "r") is False


# Phases, gates and words --------------------------------------------------------------------------


def test_phases_stand_in_the_plans_order_and_have_all_gates() -> None:
    profile = load_profile("llama-3.1-8b")
    phases = phases_of(profile, [], [], str, 0.0)
    assert [phase.number for phase in phases] == list(range(1, 9))
    gates = [gate.gate for phase in phases for gate in phase.gates]
    assert set(gates) == set(profile.gate_names())
    # Once for each step that asks it, of another artifact each time.
    asking = [step for step in profile.steps if isinstance(step, GateStep) and step.gate == "phase3-steps"]
    assert gates.count("phase3-steps") == len(asking) > 1
    assert {phase.state for phase in phases} == {WAITING}
    states = {phase.number: phase.state for phase in phases_of(load_profile("rehearsal"), [], [], str, 0.0)}
    assert states[2] == NOT_ASKED
    assert states[6] == WAITING
    assert NO_GATE not in states.values()


def test_each_step_of_a_gate_shows_the_verdict_on_its_own_artifact() -> None:
    profile = load_profile("llama-3.1-8b")
    asking = [step for step in profile.steps if isinstance(step, GateStep) and step.gate == "phase3-steps"]
    documents: dict[str, Any] = {}
    rows, steps = [], []
    for number, step in enumerate([*asking, asking[0]]):
        # Asked again at the end of all criteria at once: no step's own verdict.
        ids = step.criteria if number < len(asking) else ["sparsity", "awq_size"]
        made = tuple(criterion(name, Verdict.PASS, 1.0) for name in ids)
        digest, artifact = f"verdict {number}", f"sha256:{step.artifact}"
        documents[digest] = GateVerdict("phase3-steps", "r", artifact, 1, made).to_json()
        about = {"gate": "phase3-steps", "artifact": artifact, "verdict": "PASS", "attempt": 1}
        rows.append({"digest": digest, "created_at": float(number), **about})
        steps.append(StepRow("r", step.id, 1, digest, "gate", "done", artifact, "PASS", {}, 1.0, 2.0))
    gates = gate_states(profile, steps, rows, documents.__getitem__)
    found = {gate.step: {one.id for one in gate.criteria} for gate in gates if gate.gate == "phase3-steps"}
    assert found == {step.id: set(step.criteria) for step in asking}
    assert {gate.decisions for gate in gates if gate.gate == "phase3-steps"} == {len(rows)}


def test_arithmetic_is_told_before_a_gate_is_reached() -> None:
    phases = phases_of(load_profile("llama-3.1-8b"), [], [], str, 0.0)
    text = headline(phases, {"phase3/size": "too small", "elsewhere/size": "no"})
    assert text.endswith("Arithmetic rules out phase3/size.")


def test_the_worst_criterion_is_that_of_the_worst_verdict() -> None:
    close, far = criterion("close", Verdict.PASS, 0.91), criterion("far", Verdict.PASS, 1.5)
    bad, worse = criterion("bad", Verdict.FAIL, 0.8), criterion("worse", Verdict.FAIL, 0.2)
    open_ = criterion("open", Verdict.UNDECIDED, 0.1)
    assert worst([far, close]) == close
    assert worst([far, bad, worse, open_, close]) == worse
    assert worst([open_, close]) == open_
    assert worst([]) is None


# Costs and the plan -------------------------------------------------------------------------------


def test_tiers_are_what_the_profile_has_its_teachers_for() -> None:
    profile = load_profile("rehearsal")
    calls = [
        ("questions", "deepseek-chat"),
        ("validated", "gpt-4o-mini"),
        ("validated", "deepseek-chat"),
        ("answers_easy", "gpt-4o-mini"),
        ("answers_hard", "claude-sonnet-4"),
        ("gone", "gpt-4"),
    ]
    rows = costs.spent_rows(profile, [_total(step, model) for step, model in calls])
    assert [row.tier for row in rows] == [
        "questions", "judging", "questions", "easy answers", "hard answers", "other",
    ]  # fmt: skip
    by_tier = {row.name: row.spent for row in costs.grouped(rows, "tier", Plan(), simulated=True)}
    spent = by_tier["questions"]
    assert spent is not None
    assert spent.calls == 4
    assert spent.usd == pytest.approx(0.5)
    assert costs.grouped(rows, "tier", Plan(), simulated=False) == []


def test_an_unknown_price_is_never_nothing() -> None:
    profile = load_profile("rehearsal")
    rows = costs.spent_rows(
        profile, [{**_total("questions", "deepseek-chat"), "cost_usd": None, "unpriced": 2}]
    )
    whole = costs.total(rows, simulated=True)
    assert whole is not None
    assert whole.usd is None
    assert whole.unpriced == 2
    both = costs.total(
        [*rows, *costs.spent_rows(profile, [_total("validated", "gpt-4o-mini")])], simulated=True
    )
    assert both is not None
    assert both.usd == pytest.approx(0.25)
    assert both.unpriced == 2


def _total(step: str, model: str) -> dict[str, Any]:
    return {
        "step": step,
        "provider": "openai",
        "model": model,
        "simulated": True,
        "calls": 2,
        "input_tokens": 10,
        "output_tokens": 5,
        "cost_usd": 0.25,
        "unpriced": 0,
    }


def test_sums_of_the_plan_are_unknown_where_a_price_is() -> None:
    step = _PLANNED.steps["data"]
    unpriced = StepPlan("b", 5, None, None, None, False, None, None, None, None, "")
    assert Plan(steps={"a": step}).usd(simulated=False) == (0.01, 0.03, 0.09)
    assert Plan(steps={"a": step, "b": unpriced}).usd(simulated=False) == (None, None, None)
    assert Plan(steps={"a": step}).usd(simulated=True) == (None, None, None)


def test_a_plan_is_asked_once_and_a_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_ASKED", OrderedDict())
    asked: list[Any] = []

    def slow(profile: Any) -> Plan:
        asked.append(profile)
        time.sleep(0.05)
        raise OSError("no space left")

    monkeypatch.setattr(plan, "ask", slow)
    found: list[Future[Plan]] = [plan.plan_of({"profile": "p"}, "digest") for _ in range(5)]
    assert {future.result(timeout=30).why for future in found} == {
        "cogumi plan did not answer (OSError: no space left)"
    }
    assert len(asked) == 1
    for number in range(40):
        plan.plan_of({}, str(number))
    assert len(plan._ASKED) == 16


@pytest.mark.slow
def test_the_command_is_asked_away_from_any_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COGUMI_WORKSPACE", str(tmp_path / "mine"))
    document = load_profile("llama-3.1-8b").model_dump(mode="json")
    found = plan.ask(document)
    assert found.why == ""
    assert found.steps["answers_hard"].says == "$414"
    assert "phase3/size" in found.infeasible
    low, expected, high = found.usd(simulated=False)
    assert low is not None
    assert expected is not None
    assert high is not None
    assert 0 < low < expected < high
    assert not (tmp_path / "mine").exists()
    assert "no teacher" in plan.ask({**document, "teachers": {}}).why
