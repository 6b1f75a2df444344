"""The gate on the data: a small real run against the local teacher, under the plan's bars and its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from cogumi.store import Artifact
from cogumi.workspace import Workspace
from evals.lint.tokens import token_counts
from gates.metrics import DATA_METRICS
from gates.spec import load_gate
from pipeline.generation.measured import Yardstick, measure
from pipeline.generation.records import cells_of

PROFILE = Path(__file__).parents[2] / "cogumi" / "profiles" / "rehearsal.yaml"
QUOTAS = {"math": {"easy": 4, "hard": 6}, "reading": {"easy": 3, "hard": 5}}
ROWS = "training_60k_complete.jsonl"
Cogumi = Callable[..., Any]


class Made(NamedTuple):
    """A run whose profile merges 18 rows and asks its own gate of them."""

    workspace: Path
    gate: Path
    artifact: Artifact

    def options(self) -> tuple[str, ...]:
        return "--workspace", str(self.workspace)


def small_gate(folder: Path) -> Path:
    """Write the plan's gate with the small profile's bars; micro questions are near duplicates by nature."""
    document = yaml.safe_load((PROFILE.parents[2] / "gates" / "phase1-data.yaml").read_text())
    own = {"questions": 18, "answers_easy": 7, "answers_hard": 11, "rows_merged": 18}
    own |= {
        f"questions_{domain}_{level}": n for domain, levels in QUOTAS.items() for level, n in levels.items()
    }
    kept = []
    for criterion in document["criteria"]:
        metric = criterion["threshold"]["metric"]
        if metric in own:
            criterion["at_least"] = own[metric]
        if metric in own or (not metric.startswith("questions") and metric != "near_duplicate_share"):
            kept.append(criterion)
    path = folder / "small-data.yaml"
    path.write_text(yaml.safe_dump({**document, "gate": "small-data", "criteria": kept}))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("data-gate")
    gate = small_gate(folder)
    document = yaml.safe_load(PROFILE.read_text())
    steps = [step for step in document["steps"] if step["plan"] in ("1.1", "1.2", "1.3", "1.4", "1.5")]
    steps[0]["settings"] |= {"quotas": QUOTAS, "teachers": {"math": "deepseek-v3", "reading": "llama-405b"}}
    steps[0]["settings"]["writer"]["questions_per_call"] = 8
    steps[1]["settings"]["teachers"] = steps[0]["settings"]["teachers"]
    steps.append({"id": "data_gate", "gate": str(gate), "artifact": "merged"})
    profile = folder / "small.yaml"
    profile.write_text(yaml.safe_dump({**document, "steps": steps}))
    workspace = folder / "workspace"
    command = [
        sys.executable,
        "-m",
        "cogumi",
        "run",
        "--profile",
        str(profile),
        "--workspace",
        str(workspace),
    ]
    done = subprocess.run([*command, "--run", "data"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    merged = Workspace.find(workspace).ledger.latest_done("data")["merged"].artifact
    assert merged is not None
    return Made(workspace, gate, Workspace.find(workspace).store.get(merged))


def by_id(document: dict[str, Any]) -> dict[str, tuple[str, float | None]]:
    return {each["id"]: (each["verdict"], each["value"]) for each in document["criteria"]}


def test_the_plans_gate_fails_a_small_run_with_its_own_numbers(cogumi: Cogumi, made: Made) -> None:
    told = cogumi("gate", "phase1-data", "--run", "data", *made.options(), "--json")
    assert told.code == 1
    assert told.json["artifact"] == made.artifact.digest
    found = by_id(told.json)
    expected = {
        **{"questions": ("FAIL", 18), "math_easy": ("FAIL", 4), "reading_hard": ("FAIL", 5)},
        **{"coding_easy": ("FAIL", 0), "distribution": ("PASS", 0), "leaks": ("PASS", 0)},
        **{"answers_easy": ("FAIL", 7), "answers_hard": ("FAIL", 11), "merged": ("FAIL", 18)},
        **{"answers_structure": ("PASS", 1), "answers_valid": ("PASS", 0), "merged_once": ("PASS", 0)},
        "merged_format": ("PASS", 0),
    }
    assert {name: found[name] for name in expected} == expected
    scores = [row["scores"] for row in validated(made)]
    assert found["question_quality"] == ("PASS", min(min(each.values()) for each in scores))
    assert found["answers_hard_cost"] == (
        "PASS",
        pytest.approx(made.artifact.facts["cost_usd"]["answers_hard"], abs=1e-6),
    )
    assert not any("not measured" in each["note"] for each in told.json["criteria"])


def validated(made: Made) -> list[dict[str, Any]]:
    digest = made.artifact.manifest["made_by"]["inputs"]["validated"]
    source = Workspace.find(made.workspace).store.get(digest)
    rows = [
        *_rows(source.file("questions_60k_validated.jsonl")),
        *_rows(source.file("questions_reserve.jsonl")),
    ]
    merged = {row["question_id"] for row in _rows(made.artifact.file(ROWS))}
    return [row for row in rows if row["question_id"] in merged]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_says_what_is_simulated(cogumi: Cogumi, made: Made) -> None:
    lines = cogumi("gate", "phase1-data", "--run", "data", *made.options()).out.splitlines()
    data = next(line for line in lines if line.startswith("phase1-data/questions "))
    cost = next(line for line in lines if line.startswith("phase1-data/answers_hard_cost "))
    assert data.endswith("FAIL  questions 18 < 60,000  simulated data")
    assert cost.endswith("<= 414  simulated costs")
    assert "(exit 1, simulated data, simulated costs)" in lines[-1]
    assert "simulated reference" not in "".join(lines)


def test_smaller_bars_pass_by_run_by_artifact_and_as_a_step(cogumi: Cogumi, made: Made) -> None:
    for named in (("--run", "data"), ("--artifact", made.artifact.digest)):
        told = cogumi("gate", str(made.gate), *named, *made.options(), "--json")
        assert (told.code, told.json["verdict"]) == (0, "PASS")
        assert told.json["artifact"] == made.artifact.digest
    status = cogumi("status", "--run", "data", *made.options(), "--json").json
    step = next(step for step in status["steps"] if step["step"] == "data_gate")
    assert (step["status"], step["note"]) == ("done", "PASS")


def test_one_wrong_row_fails(cogumi: Cogumi, made: Made) -> None:
    store = Workspace.find(made.workspace).store
    staging = store.new_staging()
    rows = _rows(made.artifact.file(ROWS))
    wanted = {row["question_id"]: 9 for row in rows}
    rows[-1]["reasoning"] = "[DRAFT] only"
    path = staging / "payload" / ROWS
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    quotas = cells_of(QUOTAS)
    found = measure(path, Yardstick(quotas, wanted, 1.0, None), token_counts(None)[0])
    facts = {**made.artifact.facts, "metrics": {**made.artifact.facts["metrics"], **found.metrics(quotas)}}
    wrong = store.commit(staging, kind="dataset", made_by={}, facts=facts, created="now")
    told = cogumi("gate", str(made.gate), "--artifact", wrong.short, *made.options(), "--json")
    assert told.code == 1
    failed = {name: value for name, (verdict, value) in by_id(told.json).items() if verdict == "FAIL"}
    assert failed == {
        "answers_hard": 10,
        "answers_structure": pytest.approx(10 / 11, abs=1e-6),
        "answers_valid": 1,
    }


def test_unknown_costs_are_not_measured_and_say_why(cogumi: Cogumi, made: Made) -> None:
    store = Workspace.find(made.workspace).store
    staging = store.new_staging()
    (staging / "payload" / ROWS).write_bytes(made.artifact.file(ROWS).read_bytes())
    metrics = {name: n for name, n in made.artifact.facts["metrics"].items() if name != "usd_validation"}
    facts = {
        **made.artifact.facts,
        "metrics": metrics,
        "unmeasured": {"usd_validation": "a price is unknown"},
    }
    unpriced = store.commit(staging, kind="dataset", made_by={}, facts=facts, created="now")
    told = cogumi("gate", str(made.gate), "--artifact", unpriced.digest, *made.options(), "--json")
    assert told.code == 3
    notes = {each["id"]: each["note"] for each in told.json["criteria"] if each["verdict"] == "UNDECIDED"}
    assert notes == {"validation_cost": "not measured: a price is unknown"}


def test_data_cannot_answer_a_models_gate_and_no_data_is_not_measured(
    cogumi: Cogumi, made: Made, tmp_path: Path
) -> None:
    asked = cogumi("gate", "phase1", "--artifact", made.artifact.digest, *made.options())
    assert asked.code == 2
    assert "is a data set or a file, no model: it cannot be asked micro/" in asked.err
    evaluated = cogumi("eval", made.artifact.digest, "--suite", "general", *made.options())
    assert evaluated.code == 2
    assert "is a dataset, not a model" in evaluated.err
    empty = cogumi("gate", "phase1-data", "--profile", "rehearsal", "--workspace", str(tmp_path / "empty"))
    assert empty.code == 3
    assert "not measured" in empty.out


def test_gates_on_data_are_told_from_gates_on_models() -> None:
    assert load_gate("phase1-data").about_data
    assert not load_gate("phase1").about_data
    asked = {each.threshold.metric for each in load_gate("phase1-data").criteria if each.threshold}
    assert asked == DATA_METRICS


def test_the_report_says_that_the_data_are_simulated(cogumi: Cogumi, made: Made, tmp_path: Path) -> None:
    assert cogumi("gate", "phase1-data", "--run", "data", *made.options()).code == 1
    told = cogumi("report", "--run", "data", "--out", str(tmp_path / "report"), *made.options())
    assert told.code == 0, told.err
    text = "".join(path.read_text() for path in (tmp_path / "report").glob("*.md"))
    assert "Simulated data: a local program wrote rows" in text
    assert "simulated reference" not in text
