"""The command line as a user meets it: right codes, one line, JSON alone on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cogumi.cli.app import application
from cogumi.ledger import Ledger
from cogumi.profile import load_profile
from cogumi.workspace import Workspace

COMMANDS = (
    "plan", "run", "status", "gate", "eval", "compare", "reference", "data", "report", "dashboard",
    "humaneval", "export",
)  # fmt: skip


WRONG = [
    (("gate", "phase9"), 2, "no such gate yet: phase9"),
    (("gate", "phase1", "--run", "nope"), 2, "no run 'nope'"),
    (("gate", "phase1", "--profile", "smolm2"), 2, "did you mean 'smollm2'"),
    (("gate", "phase1", "--artifact", "smollm2-135m-instrukt"), 2, "did you mean 'smollm2-135m-instruct'"),
    (("gate", "phase1", "--artifact", "sha256:" + "0" * 64), 2, "no such artifact"),
    (("gate", "phase1", "--artifact", "./missing.gguf"), 2, "no such model file"),
    (("gate", "phase1", "--junit", "no/such/folder/x.xml"), 2, "no such folder"),
    (("eval", "smollm2-135m-instruct", "--suite", "instructon"), 2, "did you mean 'instruction'"),
    (("eval", "smollm2-135m-instruct", "--suite", "instruction", "--data", "gone"), 2, "no such folder gone"),
    (("eval", "smollm2-135m-instruct"), 2, "--suite"),
    (("eval", "x", "--suite", "micro", "--limit", "0"), 2, "--limit"),
    (("reference", "show", "gpt-4/ifeval@2023-11-08"), 2, "did you mean 'gpt-4/ifeval@2023-11-07'"),
    (("reference", "add", "missing.yaml"), 2, "no such file"),
    (("run", "--profile", "smollm2", "--until", "trainig"), 2, "did you mean 'training'"),
    (("run", "--until", "bas"), 2, "did you mean 'base'"),
    (("run", "--run", "../x"), 2, "run name"),
    (("run", "--accept-infeasible", "phase1/general"), 2, "no such infeasible target"),
    (("status", "--run", "nope"), 2, "no run 'nope'"),
    (("report", "--run", "nope"), 2, "no run 'nope'"),
    (("plan", "--frobnicate"), 2, "--frobnicate"),
    (("frobnicate",), 2, "frobnicate"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    WRONG,
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_wrong_usage_is_one_line_with_its_code(
    cogumi: Any, arguments: tuple[str, ...], code: int, told: str
) -> None:
    result = cogumi(*arguments)
    assert result.code == code
    assert told in result.err
    assert result.out == ""
    assert len(result.err.strip().splitlines()) == 1
    assert "Traceback" not in result.err


def test_a_profile_without_steps_has_nothing_to_run(cogumi: Any, tmp_path: Path) -> None:
    (tmp_path / "gates.yaml").write_text("profile: mine\ntitle: t\ngates: [phase1]\n")
    result = cogumi("run", "--profile", "gates.yaml")
    assert result.code == 2
    assert "profile mine has no steps to run" in result.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("plan", "--profile", "a" * 300), 2),
        (("eval", "a" * 300, "--suite", "general"), 2),
        (("data", "lint", "a" * 300), 2),
        (("status", "--run", "\udcff"), 2),
    ],
)
def test_a_name_that_no_path_can_have_is_one_line(
    cogumi: Callable[..., Any], arguments: tuple[str, ...], code: int
) -> None:
    answer = cogumi(*arguments)
    assert answer.code == code
    assert "defect" not in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_a_run_that_nobody_holds_is_told(cogumi: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / ".cogumi").mkdir()
    with closing(Ledger(tmp_path / ".cogumi")) as ledger:
        document = load_profile("rehearsal").model_dump(mode="json")
        ledger.start_run("r", "rehearsal", document, [])
    with Workspace(tmp_path / ".cogumi").lock("run-r"):
        assert json.loads(cogumi("status", "--json").out)["held"] is True
    told = json.loads(cogumi("status", "--json").out)
    assert (told["status"], told["held"]) == ("running", False)
    # Ends, although the ledger has it as running.
    assert "no process that can be seen from here holds it" in cogumi("status", "--watch").out


def test_json_errors_are_json(cogumi: Any) -> None:
    result = cogumi("gate", "phase9", "--json")
    assert result.json["exit_code"] == result.code == 2
    assert "phase9" in result.json["error"]


@pytest.mark.parametrize(
    ("content", "code"), [(b"GGUF", 5), (b"GGUF" + bytes(200), 5), (b"garbage that is no model", 5), (b"", 5)]
)
def test_a_broken_model_file_is_named(
    cogumi: Any, tmp_path: Path, data_folder: Path, content: bytes, code: int
) -> None:
    (tmp_path / "cut.gguf").write_bytes(content)
    result = cogumi("eval", "cut.gguf", "--suite", "instruction", "--data", str(data_folder), "--limit", "1")
    assert result.code == code
    assert "cut.gguf" in result.err
    assert "Traceback" not in result.err


def test_a_gate_without_evidence_is_undecided(cogumi: Any, tmp_path: Path) -> None:
    for gate in ("phase1", "phase3"):
        result = cogumi("gate", gate, "--json")
        assert result.code == 3
        assert result.json["verdict"] == "UNDECIDED"
        assert {row["verdict"] for row in result.json["criteria"]} == {"UNDECIDED"}
        assert all("not measured" in row["note"] for row in result.json["criteria"])


def test_the_json_of_a_verdict_has_the_contracts_keys(cogumi: Any) -> None:
    document = cogumi("gate", "phase1", "--json").json
    keys = ["gate", "run", "artifact", "verdict", "exit_code", "attempt", "criteria"]
    assert list(document)[: len(keys)] == keys
    criterion = [
        "id",
        "verdict",
        "value",
        "bar",
        "comparison",
        "lower",
        "upper",
        "alpha",
        "n_used",
        "n_total",
    ]
    criterion += ["reference", "reference_kind", "protocol", "note"]
    assert list(document["criteria"][0])[: len(criterion)] == criterion


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(cogumi: Any, command: str) -> None:
    result = cogumi(command, "--help")
    assert result.code == 0
    assert "Example: cogumi" in " ".join(result.out.split())


def test_the_commands_are_those_of_the_contract(cogumi: Any) -> None:
    out = cogumi("--help").out
    assert all(f"  {command}" in out for command in COMMANDS)
    app = application()
    assert len(app.registered_commands) + len(app.registered_groups) == len(COMMANDS)


def test_plan_prices_the_rehearsal_as_simulated(cogumi: Any) -> None:
    document = cogumi("plan", "--json").json
    assert document["usd"] == 0
    assert document["simulated_usd"] > 0
    assert document["infeasible"] == {}
    assert {row["criterion"] for row in document["gates"]} >= {"phase1/general", "phase3/retention"}


def test_plan_finds_what_arithmetic_forbids(cogumi: Any, tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text(
        "profile: big\ntitle: t\nmodels:\n- name: Llama-3.1-8B\n  parameters: 8030261248\n"
        "  embedding_parameters: 1050673152\n  source: config.json\n  download_bytes_at_most: 540000000\n"
        "  sparsity: 0.65\n  criterion: phase3/size\n"
        "steps:\n- {id: blank, uses: models.micro, inputs: {data: q}}\n"
    )
    bad = cogumi("plan", "--profile", "big.yaml")
    assert bad.code == 2
    text = (tmp_path / "big.yaml").read_text().split("steps:")[0]
    (tmp_path / "big.yaml").write_text(text)
    result = cogumi("plan", "--profile", "big.yaml", "--json")
    assert result.code == 4
    # The research note on the pipeline's stages, section 1.2: the 65 % mask is 815 MB.
    assert result.json["sizes"][0]["mask_bytes"] == pytest.approx(815e6, rel=0.001)
    assert "phase3/size" in result.json["infeasible"]


def test_references_are_listed_shown_and_added(cogumi: Any, tmp_path: Path) -> None:
    rows = cogumi("reference", "list", "--json").json
    ids = {row["id"] for row in rows}
    assert "gpt-4/ifeval@2023-11-07" in ids
    assert "0.7689" in cogumi("reference", "show", "gpt-4/ifeval@2023-11-07").out
    (tmp_path / "mine.yaml").write_text(
        "references:\n- id: mine/ifeval@1\n  model: mine\n  snapshot: null\n  benchmark: ifeval\n"
        "  kind: published\n  score: 0.5\n  n: 541\n  family: ifeval/prompt_level_strict/0-shot-chat\n"
        "  source: me\n  date: null\n  margin: 0.01\n  how_read: measured\n"
    )
    assert cogumi("reference", "add", "mine.yaml").code == 0
    assert "mine/ifeval@1" in {row["id"] for row in cogumi("reference", "list", "--json").json}


def test_status_of_an_empty_workspace_says_what_to_type(cogumi: Any, tmp_path: Path) -> None:
    result = cogumi("status")
    assert result.code == 0
    assert "cogumi run" in result.out
    assert not (tmp_path / ".cogumi").exists()


def test_status_shows_a_run(cogumi: Any, tmp_path: Path) -> None:
    (tmp_path / ".cogumi").mkdir()
    ledger = Ledger(tmp_path / ".cogumi")
    document = {"profile": "p", "title": "t", "steps": [{"id": "a", "uses": "x"}, {"id": "b", "uses": "x"}]}
    ledger.start_run("r", "p", document, [])
    ledger.start_step("r", "a", 1, "k", "stage")
    ledger.end_step("r", "a", 1, status="done", artifact="sha256:abc")
    ledger.end_run("r", "stopped", 6, "out of money")
    ledger.close()
    found = cogumi("status", "--json").json
    assert [(row["step"], row["status"]) for row in found["steps"]] == [("a", "done"), ("b", "waiting")]
    assert (found["status"], found["exit_code"]) == ("stopped", 6)
    assert "out of money" in cogumi("status", "--run", "r").out


def test_options_may_stand_before_the_command(cogumi: Any, tmp_path: Path) -> None:
    cogumi("--workspace", "elsewhere", "gate", "phase1", "--artifact", "smollm2-135m-instruct", "--plan")
    assert not (tmp_path / ".cogumi").exists()


def test_a_workspace_that_is_a_file_is_refused(cogumi: Any, tmp_path: Path) -> None:
    (tmp_path / "w").write_text("")
    assert cogumi("--workspace", "w", "status").code == 2


def test_the_console_command_is_installed() -> None:
    script = Path(sys.executable).parent / "cogumi"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cogumi 0.")
