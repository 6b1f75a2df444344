"""docs/ci.md: its workflows are valid YAML with the keys that they need, and its commands are ours."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cogumi.cli import app as command_line
from cogumi.verdict import EXIT_CODES
from gates.spec import known_gates

DOCUMENT = Path(__file__).parents[2] / "docs" / "ci.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
GITHUB, _GITLAB = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))

GITLAB = _GITLAB["gate"]


def scripts() -> list[str]:
    """Every shell script of both workflows, in one line per command."""
    steps = [step["run"] for step in GITHUB["jobs"]["gate"]["steps"] if "run" in step]
    return [script.replace("\\\n", " ") for script in [*steps, *GITLAB["before_script"], *GITLAB["script"]]]


def gate_commands() -> list[list[str]]:
    lines = [line for script in scripts() for line in script.splitlines() if "cogumi gate" in line]
    return [shlex.split(line.split("||")[0])[1:] for line in lines]


def test_there_is_one_gate_command_in_each() -> None:
    assert len(gate_commands()) == 2


@pytest.mark.parametrize("words", gate_commands(), ids=["github", "gitlab"])
def test_every_option_is_one_of_the_real_command(words: list[str]) -> None:
    group: Any = command_line.typer.main.get_command(command_line.application())
    command = group.commands[words[0]]
    context = command.make_context(words[0], list(words[1:]), resilient_parsing=False)
    assert context.params["phase"] in known_gates()
    assert context.params["junit"] == Path("gate.xml")


def test_a_misspelt_option_would_be_seen() -> None:
    group: Any = command_line.typer.main.get_command(command_line.application())
    with pytest.raises(Exception, match="--artefact"):
        group.commands["gate"].make_context("gate", ["phase1", "--artefact", "x"])


@pytest.mark.parametrize("script", scripts(), ids=range(len(scripts())))
def test_every_script_is_valid_shell(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)


def decide_step() -> str:
    return next(step["run"] for step in GITHUB["jobs"]["gate"]["steps"] if step.get("name") == "Decide")


@pytest.mark.parametrize("code", [0, *sorted(set(EXIT_CODES.values()) - {0}), 2])
@pytest.mark.parametrize("choice", ["stop", "pass"])
def test_the_job_ends_with_the_code_of_the_gate(tmp_path: Path, code: int, choice: str) -> None:
    """The step is run as it stands, by bash -e as there, with a stand-in that exits as the gate would."""
    stand_in = tmp_path / "cogumi"
    stand_in.write_text(f"#!{sys.executable}\nraise SystemExit({code})\n")
    stand_in.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        **{"UNDECIDED": choice, "MODEL": "m", "BASELINE": "b", "GITHUB_STEP_SUMMARY": "summary.md"},
    }
    done = subprocess.run(
        ["bash", "-e", "-c", decide_step()],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if (code, choice) == (3, "pass") else code)
    assert ("::warning" in done.stdout) == ((code, choice) == (3, "pass"))


def test_both_keep_evidence_and_show_the_verdict_also_after_a_stop() -> None:
    # YAML 1.1 reads the key "on" as true.
    assert "pull_request" in GITHUB[True]
    assert GITHUB["permissions"] == {"contents": "read"}
    steps = GITHUB["jobs"]["gate"]["steps"]
    restore, save = (
        next(step for step in steps if step.get("uses", "").startswith(f"actions/cache/{what}@"))
        for what in ("restore", "save")
    )
    assert restore["with"]["path"] == save["with"]["path"] == ".cogumi"
    assert restore["with"]["key"] == save["with"]["key"]
    assert save["if"] == "always()"
    assert "GITHUB_STEP_SUMMARY" in decide_step()
    assert steps[-1]["if"] == "always()"
    assert GITLAB["cache"]["paths"] == [".cogumi/"]
    assert GITLAB["cache"]["when"] == GITLAB["artifacts"]["when"] == "always"
    assert GITLAB["artifacts"]["reports"]["junit"] == "gate.xml"
    assert GITLAB["allow_failure"] == {"exit_codes": [3]}


def test_the_table_has_every_verdict_and_code() -> None:
    rows = dict(re.findall(r"^\| (\d) \| ([A-Z]+) \|", TEXT, re.MULTILINE))
    assert rows == {str(code): verdict.value for verdict, code in EXIT_CODES.items()}
