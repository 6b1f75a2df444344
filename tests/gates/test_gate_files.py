"""The shipped gate files: the owner's figures, what a profile leaves out, and each gate in every format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
import yaml
from gate_memory import Attempts, Memory

from cogumi.errors import UsageError
from cogumi.profile import load_profile, parse_profile, profile_names
from cogumi.verdict import Verdict
from cogumi.workspace import Workspace
from evals.measure import Measurer
from evals.references.scores import MetricValue
from gates import page, render
from gates.engine import decide
from gates.metrics import METRICS
from gates.service import GateService
from gates.spec import known_gates, load_gate
from gates.verdicts import GateVerdict

FOLDER = Path(__file__).parents[2] / "gates"
LATE = "gpt-4-0125-preview/humaneval@llama-3-herd"

CELLS = {
    f"{domain}_{difficulty}": count
    for domains, (easy, hard) in (
        (("coding", "math", "tool_use", "reasoning"), (4e3, 6e3)),
        (("reading", "summarization", "common_sense", "instruction"), (2e3, 3e3)),
    )
    for domain in domains
    for difficulty, count in (("easy", easy), ("hard", hard))
}
AT_LEAST = {
    "phase1": {"general": 0.88},
    "phase1-data": {
        **{"questions": 60e3, "question_quality": 7, "answers_easy": 24e3},
        **{"answers_hard": 36e3, "answers_structure": 1, "merged": 60e3},
        **CELLS,
    },
    "phase1-draft": {"draft_acceptance": 0.75},
    "phase2": {
        **{"acceptance": 0.75, "speculative_speedup": 3, "speculative_speed": 45, "layer_skip": 0.5},
        **{"depth_speedup": 2, "depth_speed": 90, "cache_speedup": 1.5, "cache_speed": 135},
        **{"retention": 0.98},
    },
    "phase3": {"retention": 0.98},
    "phase3-steps": {"sparsity": 0.65, "pruned_retention": 0.97, "awq_retention": 0.98, "recovery": 0.01},
    "phase3-tiers": {"retention": 0.98},
    "phase4": {"code": 1.2, "reasoning": 1.05, "automation": 1.1, "base_regression": 0.99},
    "phase5": {"route_gain": 0, "escalation": 0.94},
    "phase6": {"few_shot": 0.1, "meta_tasks": 10e3, "iterations": 15e3},
    "phase7": {},
    "phase8": {
        **{"code": 1.2, "reasoning": 1.05, "automation": 1.1, "human": 8, "raters": 100},
        **{"rated_tasks": 20},
    },
    "phase8-people": {"human": 8, "raters": 100, "rated_tasks": 20},
}
AT_MOST = {
    "phase1": {"stops": 0.01},
    "phase1-data": {
        **{"distribution": 0, "near_duplicates": 0.01, "leaks": 0, "validation_cost": 9},
        **{"answers_easy_cost": 2.52, "answers_hard_cost": 414, "answers_valid": 0, "merged_once": 0},
        **{"merged_format": 0},
    },
    "phase1-draft": {"draft_size": 1e9},
    "phase2": {"lossless": 0, "router_size": 8e6},
    "phase3": {"size": 540e6, "resident": 650e6},
    "phase3-steps": {
        **{"pruned_size": 3.5e9, "awq_size": 1.2e9, "zstd_size": 520e6},
        **{"draft_awq_size": 500e6, "draft_resident": 350e6, "draft_size": 140e6},
        "calibration": 0.05,
    },
    "phase3-tiers": {"size": 5e9},
    "phase4": {
        **{"code_size": 50e6, "reasoning_size": 52e6, "automation_size": 43e6, "frozen_base": 0},
        **{"code_cost": 210, "reasoning_cost": 220, "automation_cost": 180},
    },
    "phase5": {"route_latency": 50},
    "phase6": {},
    "phase7": {"size": 890e6, "digests": 0, "api": 0},
    "phase8": {},
    "phase8-people": {},
}


@pytest.mark.parametrize("name", known_gates())
def test_the_owners_figures_stand_unchanged(name: str) -> None:
    spec = load_gate(name)
    assert (spec.alpha, spec.scope) == (0.05, "benchmark")
    bars = {c.id: c.bar for c in spec.criteria if c.comparison == ">="}
    assert bars == pytest.approx(AT_LEAST[name])
    assert {c.id: c.bar for c in spec.criteria if c.comparison == "<="} == AT_MOST[name]


@pytest.mark.parametrize("name", known_gates())
def test_every_figure_has_a_comment_that_says_where_it_is_from(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    for block in text.split("criteria:\n")[1].split("\n\n"):
        comment = " ".join(line.strip(" #") for line in block.splitlines() if line.strip().startswith("#"))
        named = re.search(r'Plan \d\.\d(?: and \d\.\d)?, "', comment) or comment.startswith("Not in the plan")
        assert named, block


def test_the_plan_is_quoted_word_by_word(data_folder: Path) -> None:
    plan = data_folder.parent / "design" / "00-the-plan.md"
    if not plan.is_file():
        pytest.skip("the owner's plan does not lie beside the benchmark data")
    said = plan.read_text(encoding="utf-8").replace("*", "").replace("`", "")
    for name in known_gates():
        text = re.sub(r"\n\s*# ", " ", (FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        for number, quote in re.findall(r'(?:Plan|and) (\d\.\d), "([^"]+)"', text):
            section = said.split(f"### {number} ")[1].split("\n## ")[0].split("\n### ")[0]
            assert quote in section, f"{name}: plan {number} does not say {quote!r}"


def test_every_metric_of_a_gate_has_a_meaning() -> None:
    used = {c.threshold.metric for name in known_gates() for c in load_gate(name).criteria if c.threshold}
    assert used <= set(METRICS)
    assert all(METRICS.values())


@pytest.mark.parametrize("profile", profile_names())
def test_every_profile_names_gates_and_criteria_that_exist(profile: str) -> None:
    chosen = load_profile(profile)
    for name in chosen.gate_names():
        for criteria in [step.criteria for step in chosen.gate_steps(name)] or [[]]:
            assert load_gate(name).only(criteria).criteria


def test_a_gate_is_narrowed_by_criterion_and_keeps_its_order() -> None:
    spec = load_gate("phase3")
    assert [c.id for c in spec.only(["retention", "size"]).criteria] == ["size", "retention"]
    assert spec.only([]) == spec
    with pytest.raises(UsageError, match=r"gate phase3 has no criterion 'retension' \(did you mean 'ret"):
        spec.only(["retension"])


def narrowed() -> GateVerdict:
    value = MetricValue(5e8, 5e8, 5e8, exact=True)
    spec = load_gate("phase3").only(["size", "resident"])
    source = Memory({}, metrics={"bytes_download": value})
    verdict = decide(spec, source, Attempts(), artifact="sha256:model", run="r")
    left_out = tuple(c.id for c in load_gate("phase3").criteria if c.id not in ("size", "resident"))
    return GateVerdict(
        verdict.gate, verdict.run, verdict.artifact, verdict.attempt, verdict.criteria, "t", left_out
    )


def test_what_the_profile_leaves_out_is_told_in_every_format() -> None:
    verdict = narrowed()
    told = "2 of 3 criteria, the profile's choice"
    assert verdict.choice == told
    assert told in render.text(verdict)
    assert "left out by the profile: retention" in render.text(verdict)
    assert "left out by the profile: retention" in render.markdown(verdict)
    assert "2 of 3 criteria, the profile&#x27;s choice, without retention" in page.html(verdict)
    document = verdict.to_json()
    assert document["left_out"] == ["retention"]
    assert GateVerdict.from_json(json.loads(json.dumps(document))) == verdict
    older = {key: value for key, value in document.items() if key != "left_out"}
    assert GateVerdict.from_json(older).left_out == ()
    suite = Xml.fromstring(render.junit(verdict)).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("skipped")) == ("3", "2")
    check_junit(render.junit(verdict))


# What Jenkins' xunit plugin (junit-10.xsd) and GitLab's reader allow: attributes, then children.
JUNIT: dict[str, tuple[set[str], set[str]]] = {
    "testsuites": ({"name", "time", "tests", "failures", "disabled", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "time", "disabled", "skipped", "timestamp", "hostname", "id"},
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": (
        {"name", "assertions", "time", "classname", "status", "file", "line"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "skipped": ({"message", "type"}, set()),
    "error": ({"message", "type"}, set()),
    "failure": ({"message", "type"}, set()),
    "system-out": (set(), set()),
}


def check_junit(document: str) -> None:
    """Fail unless the document keeps to the schema and its counts are those of its elements."""
    root = Xml.fromstring(document)
    assert root.tag == "testsuites"
    for element in root.iter():
        attributes, children = JUNIT[element.tag]
        assert set(element.attrib) <= attributes
        assert {child.tag for child in element} <= children
    outcomes = ("failure", "error", "skipped")
    for suite in root:
        found = {tag: len(suite.findall(f"testcase/{tag}")) for tag in outcomes}
        counts = {"failure": "failures", "error": "errors", "skipped": "skipped"}
        assert {tag: int(suite.attrib[name]) for tag, name in counts.items()} == found
        assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
        for case in suite.findall("testcase"):
            assert case.get("name")
            assert case.get("classname")
            tags = [child.tag for child in case]
            assert sum(tag in outcomes for tag in tags) <= 1
            assert tags[-1] in ("system-out", "skipped")
    sums = {key: sum(int(suite.attrib[key]) for suite in root) for key in ("tests", "failures", "errors")}
    assert {key: int(root.attrib[key]) for key in sums} == sums


Command = Callable[..., Any]


@pytest.mark.parametrize("name", known_gates())
def test_every_gate_on_nothing_in_every_format(cogumi: Command, tmp_path: Path, name: str) -> None:
    files = {kind: tmp_path / f"verdict.{kind}" for kind in ("junit", "markdown", "html")}
    code, out, _ = cogumi("gate", name, "--json", *(f"--{kind}={path}" for kind, path in files.items()))
    document = json.loads(out)
    spec = load_gate(name)
    assert (code, document["verdict"], document["exit_code"]) == (3, "UNDECIDED", 3)
    assert [row["id"] for row in document["criteria"]] == [c.id for c in spec.criteria]
    assert all(row["note"].startswith("not measured") for row in document["criteria"])
    for row, criterion in zip(document["criteria"], spec.criteria, strict=True):
        if criterion.threshold is not None and criterion.item_rate is None:
            assert row["note"] == f"not measured: {criterion.threshold.metric}"
    check_junit(files["junit"].read_text())
    assert files["markdown"].read_text().startswith(f"## {name}: UNDECIDED")
    assert name in files["html"].read_text()
    code, out, _ = cogumi("gate", name)
    assert (code, out.splitlines()[-1].split()[1]) == (3, "UNDECIDED")
    code, out, _ = cogumi("gate", name, "--plan", "--json")
    assert (code, json.loads(out)["gate"]) == (0, name)


def infeasible_of(cogumi: Command, *arguments: str) -> tuple[int, dict[str, str]]:
    code, out, _ = cogumi("gate", *arguments, "--json")
    rows = json.loads(out)["criteria"]
    return code, {row["id"]: row["note"] for row in rows if row["verdict"] == "INFEASIBLE"}


@pytest.mark.parametrize("name", ["phase4", "phase8"])
def test_code_beyond_gpt_4_hangs_on_the_reference(cogumi: Command, tmp_path: Path, name: str) -> None:
    """120 % of the technical report's 67.0 is 80.4; of the 86.6 of the later snapshot it is 103.9."""
    code, found = infeasible_of(cogumi, name, "--profile", "llama-3.1-8b")
    assert (code, found) == (3, {})
    document = json.loads(cogumi("gate", name, "--profile", "llama-3.1-8b", "--json").out)
    assert "the bar is a score of 0.804: 1.2 x 0.67 of gpt-4/humaneval" in document["criteria"][0]["note"]
    profile = yaml.safe_load(
        (FOLDER.parent / "cogumi" / "profiles" / "llama-3.1-8b.yaml").read_text(encoding="utf-8")
    )
    profile["references"]["gpt-4"]["rows"]["humaneval"] = LATE
    (tmp_path / "late.yaml").write_text(yaml.safe_dump(profile))
    code, found = infeasible_of(cogumi, name, "--profile", "late.yaml")
    assert (code, list(found)) == (4, ["code"])
    assert found["code"] == f"1.2 x 0.866 of {LATE} is 1.039, above a perfect score of 1"


def test_a_benchmark_that_the_reference_never_took_is_not_measured(
    cogumi: Command, tmp_path: Path, data_folder: Path
) -> None:
    """A published mix of other categories is no score on these: nothing is divided by it."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(1000))
    judged = ("--artifact", "model.gguf", "--profile", "llama-3.1-8b", "--data", str(data_folder))
    document = json.loads(cogumi("gate", "phase8", *judged, "--json").out)
    row = {row["id"]: row for row in document["criteria"]}["automation"]
    assert row["verdict"] == "UNDECIDED"
    assert row["note"].startswith("not measured: gpt-4 has no score on bfcl_simple; `cogumi reference")


def test_sizes_that_no_8b_model_can_have(cogumi: Command, tmp_path: Path) -> None:
    code, found = infeasible_of(cogumi, "phase3", "--profile", "llama-3.1-8b")
    assert (code, list(found)) == (4, ["size", "resident"])
    assert found["resident"].startswith("at best 814,895,200, the bar is 650,000,000; the 65% mask alone")
    assert infeasible_of(cogumi, "phase3", "--profile", "llama-3.2-1b") == (3, {})
    assert infeasible_of(cogumi, "phase3-tiers", "--profile", "llama-3.1-8b") == (3, {})


def test_an_artifact_with_part_of_the_evidence(cogumi: Command, tmp_path: Path, data_folder: Path) -> None:
    """A model file has its bytes and nothing else; what cannot even be looked for is an error, told apart."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(1000))
    judged = ("gate", "phase3", "--artifact", "model.gguf", "--profile", "llama-3.1-8b", "--json")
    code, out, _ = cogumi(*judged, "--data", str(data_folder))
    rows = {row["id"]: row for row in json.loads(out)["criteria"]}
    assert (rows["size"]["verdict"], rows["size"]["value"]) == (Verdict.PASS, 1004)
    assert rows["retention"]["note"].startswith("not measured: no baseline (base) was given")
    assert code == 3
    code, out, _ = cogumi(*judged)
    rows = {row["id"]: row for row in json.loads(out)["criteria"]}
    assert (code, rows["retention"]["verdict"]) == (5, "ERROR")
    assert "--data or COGUMI_DATA" in rows["retention"]["note"]
    assert rows["size"]["verdict"] == "PASS"
    code, out, _ = cogumi("gate", "phase3-tiers", "--artifact", "model.gguf", "--json")
    assert json.loads(out)["criteria"][0]["note"] == "tier S, at most 540,000,000"


def test_an_unknown_criterion_of_a_step_is_wrong_usage_before_anything_is_spent(
    cogumi: Command, tmp_path: Path
) -> None:
    profile = load_profile("rehearsal").model_dump(mode="json", exclude_defaults=True)
    for step in profile["steps"]:
        if step.get("gate") == "phase3":
            step["criteria"] = ["sise"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile))
    code, _, told = cogumi("plan", "--profile", "mine.yaml")
    assert code == 2
    assert "gate phase3 has no criterion 'sise' (did you mean 'size'?)" in told


RUN_STEPS: list[dict[str, object]] = [
    {"id": "gguf", "uses": "compression.gguf"},
    {"id": "phase3", "gate": "phase3", "artifact": "gguf", "criteria": ["resident", "size"]},
]


def test_a_run_is_judged_by_what_its_profile_asks_for(cogumi: Command, tmp_path: Path) -> None:
    """The run's own step and the command on that run narrow alike; a named model meets the whole gate."""
    place = Workspace(tmp_path / ".cogumi")
    place.create()
    staging = place.store.new_staging()
    (staging / "payload").mkdir(exist_ok=True)
    (staging / "payload" / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    facts = {"bytes_download": 100, "bytes_resident": 700_000_000}
    artifact = place.store.commit(staging, kind="gguf", made_by={}, facts=facts, created="2026-01-01")
    document = {"profile": "p", "title": "t", "suites": {"general": ["ifeval"]}, "steps": RUN_STEPS}
    profile = parse_profile(document, "p")
    (step,) = profile.gate_steps("phase3")
    told = GateService(Measurer(place, None), profile, "r").decide(step, artifact, None)
    assert [(row["id"], row["verdict"]) for row in told["criteria"]] == [
        ("size", "PASS"),
        ("resident", "FAIL"),
    ]
    assert told["left_out"] == ["retention"]
    place.ledger.start_run("r", "p", document, [])
    place.ledger.start_step("r", "gguf", 1, "k", "stage")
    place.ledger.end_step("r", "gguf", 1, status="done", artifact=artifact.digest)
    place.ledger.close()
    code, out, _ = cogumi("gate", "phase3", "--run", "r", "--json")
    assert (code, json.loads(out)) == (1, told)
    whole = json.loads(cogumi("gate", "phase3", "--artifact", artifact.digest, "--json").out)
    assert (whole["left_out"], len(whole["criteria"])) == ([], 3)
