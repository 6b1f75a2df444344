"""``cogumi data generate | validate | answer | merge``: alone, as part of a run, and when things go wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cogumi.ledger import Ledger
from cogumi.profile import parse_profile
from cogumi.workspace import Workspace
from pipeline.local_teacher import LocalTeacher, TeacherOptions

Cogumi = Callable[..., Any]
KEY = "sk-the-right-one"
QUOTAS = {"math": {"easy": 4, "hard": 4}, "reading": {"easy": 4, "hard": 4}}
CONCURRENCY = 4
PROFILE = """
profile: small
title: tiny cells
local_teacher: {seed: 3}
steps:
- {id: questions, plan: "1.1", uses: generation.questions, settings: {quotas: {}, teachers: {}, writer: {}},
   files: {questions_60k.jsonl: data/phase1/questions_60k.jsonl}}
- {id: validated, plan: "1.2", uses: generation.validate, inputs: {questions: questions},
   settings: {judge: openai, teachers: {}, reserve: 2, mode: live}}
- {id: answers_easy, plan: "1.3", uses: generation.answers_easy, inputs: {validated: validated},
   settings: {teacher: openai}}
- {id: answers_hard, plan: "1.4", uses: generation.answers_hard, inputs: {validated: validated},
   settings: {teacher: anthropic}}
- {id: merged, plan: "1.5", uses: generation.merge,
   files: {training_60k_complete.jsonl: data/phase1/training_60k_complete.jsonl},
   inputs: {questions: questions, validated: validated,
            answers_easy: answers_easy, answers_hard: answers_hard}}
"""


def document(url: str = "local", **teacher: Any) -> dict[str, Any]:
    """A profile of the five data steps with tiny cells, asking the teacher at an address."""
    # OpenAI's clients want the version in the address, Anthropic's add it.
    openai = url if url == "local" else f"{url}/v1"
    prices = {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0, "batch_discount": 0.5, **teacher}
    profile: dict[str, Any] = yaml.safe_load(PROFILE)
    profile["teachers"] = {
        "openai": {"api": "openai", "model": "gpt-4o-mini", "base_url": openai, **prices},
        "anthropic": {"api": "anthropic", "model": "claude-sonnet-4", "base_url": url, **prices},
    }
    for step in profile["steps"][:4]:
        step["settings"] |= {"poll_seconds": 0.05, "backoff_seconds": 0.01, "attempts": 3}
        step["settings"]["concurrency"] = CONCURRENCY
    writing, judging = (step["settings"] for step in profile["steps"][:2])
    writing["teachers"] = judging["teachers"] = dict.fromkeys(QUOTAS, "openai")
    writing["quotas"] = QUOTAS
    writing["writer"] = {"questions_per_call": 3, "near_duplicate_threshold": 1.0}
    return profile


def save(folder: Path, profile: dict[str, Any]) -> str:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(profile, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTeacher]:
    """A teacher that is another provider for us: it wants a key, and its dollars are real."""
    options = TeacherOptions(tmp_path_factory.mktemp("teacher"), seed=3, require_key=KEY)
    with LocalTeacher(options) as running:
        yield running


@pytest.fixture
def paid(tmp_path: Path, teacher: LocalTeacher, monkeypatch: pytest.MonkeyPatch) -> str:
    """A profile whose teachers want the key of ``TEACHER_KEY``, which is set."""
    monkeypatch.setenv("TEACHER_KEY", KEY)
    return save(tmp_path, document(teacher.base_url, key_env="TEACHER_KEY"))


def calls(workspace: Path) -> int:
    """How many answers the ledger holds."""
    with sqlite3.connect(workspace / "ledger.sqlite") as ledger:
        return int(ledger.execute("SELECT count(*) FROM calls").fetchone()[0])


def answered(teacher: LocalTeacher) -> int:
    return int(teacher.counters()["answered"])


# The walk ---------------------------------------------------------------------------------------------


def test_the_four_commands_make_the_training_file_of_a_run(
    cogumi: Cogumi, workspace: Path, paid: str, teacher: LocalTeacher
) -> None:
    for command in ("generate", "validate", "answer", "merge"):
        done = cogumi("data", command, "--profile", paid, "--yes", "--json")
        assert done.code == 0, done.err
        assert {row["state"] for row in done.json["steps"]} == {"made"}
    (row,) = done.json["steps"]
    assert row["step"] == "merged"
    assert row["rows"] == 16
    assert row["cells"] == {f"{domain}/{level}": 4 for domain in QUOTAS for level in ("easy", "hard")}
    assert row["artifact"].startswith("sha256:")
    assert row["simulated"] is False
    assert done.json["spent"]["simulated_usd"] == 0
    assert done.json["spent"]["usd"] == pytest.approx(row["cost_usd"]["total"])
    (file,) = row["files"]
    rows = [json.loads(line) for line in (workspace / file).read_text().splitlines()]
    assert Counter((each["domain"], each["difficulty"]) for each in rows) == {
        (domain, level): 4 for domain in QUOTAS for level in ("easy", "hard")
    }

    again = cogumi("data", "merge", "--profile", paid, "--yes")
    assert again.code == 0
    assert "= 1.5 merged: finished before" in again.err
    assert str(workspace / file) in again.err
    before = Ledger(workspace).snapshot()
    asked = answered(teacher)
    whole = cogumi("run", "--profile", paid, "--yes")
    assert whole.code == 0, whole.err
    assert whole.err.count("finished before") == 5
    assert answered(teacher) == asked
    after = Ledger(workspace).snapshot()
    assert {**after, "runs": None} == {**before, "runs": None}


def test_what_a_run_has_finished_is_finished_here(cogumi: Cogumi, workspace: Path, tmp_path: Path) -> None:
    profile = save(tmp_path, document())
    assert cogumi("run", "--profile", profile, "--until", "questions").code == 0
    rows = Ledger(workspace).snapshot()["runs"]
    done = cogumi("data", "generate", "--profile", profile, "--json")
    assert (done.code, [row["state"] for row in done.json["steps"]]) == (0, ["finished before"])
    assert done.json["steps"][0]["simulated"] is True
    assert done.json["spent"]["usd"] == 0
    assert done.json["spent"]["simulated_usd"] > 0
    assert Ledger(workspace).snapshot()["runs"] == rows


def test_easy_and_hard_alone_and_live_instead_of_a_batch(
    cogumi: Cogumi, workspace: Path, paid: str, teacher: LocalTeacher
) -> None:
    assert cogumi("run", "--profile", paid, "--until", "validated", "--yes").code == 0
    shared = ("data", "answer", "--profile", paid, "--yes")
    easy = cogumi(*shared, "--only", "easy", "--mode", "live", "--json")
    assert easy.code == 0, easy.err
    assert [(row["step"], row["mode"], row["rows"]) for row in easy.json["steps"]] == [
        ("answers_easy", "live", 8)
    ]
    assert f"next: cogumi data answer --profile {paid} --run small" in easy.err
    both = cogumi(*shared, "--json")
    assert [(row["step"], row["state"]) for row in both.json["steps"]] == [
        ("answers_easy", "finished before"),
        ("answers_hard", "made"),
    ]
    assert cogumi("data", "merge", "--profile", paid).code == 0
    # A run makes the easy answers again in its own mode, out of what the ledger holds: nothing is asked.
    asked = answered(teacher)
    assert cogumi("run", "--profile", paid, "--yes").code == 0
    assert answered(teacher) == asked


# Wrong usage ------------------------------------------------------------------------------------------


def test_an_earlier_step_is_asked_for_by_what_to_type(
    cogumi: Cogumi, workspace: Path, tmp_path: Path
) -> None:
    profile = save(tmp_path, document())
    early = cogumi("data", "answer", "--profile", profile, "--run", "mine")
    assert early.code == 2
    assert early.err == (
        "cogumi: data answer: questions has not finished in run mine with the settings of this profile; "
        f"type `cogumi data generate --profile {profile} --run mine` first\n"
    )
    assert cogumi("data", "generate", "--profile", profile, "--run", "mine").code == 0
    early = cogumi("data", "answer", "--profile", profile, "--run", "mine")
    assert (early.code, "`cogumi data validate" in early.err) == (2, True)
    changed = document()
    changed["steps"][0]["settings"]["quotas"] = {"math": {"easy": 5}, "reading": {"hard": 4}}
    other = cogumi("data", "validate", "--profile", save(tmp_path, changed), "--run", "mine")
    assert (other.code, "questions has not finished" in other.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("merge",), "no step that uses generation.merge"),
        (("answer", "--only", "hard"), "no step that uses generation.answers_hard"),
    ],
)
def test_a_profile_without_such_a_step_is_wrong_usage(
    cogumi: Cogumi, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    profile = document()
    del profile["steps"][3:]
    failed = cogumi("data", *words, "--profile", save(tmp_path, profile))
    assert (failed.code, told in failed.err, failed.err.count("\n")) == (2, True, 1)


def test_a_dry_run_tells_its_own_steps_and_makes_nothing(
    cogumi: Cogumi, workspace: Path, tmp_path: Path
) -> None:
    large = document()
    large["steps"][0]["settings"]["quotas"] = {"math": {"easy": 400, "hard": 400}}
    profile = save(tmp_path, large)
    batch = cogumi("data", "answer", "--profile", profile, "--dry-run", "--json").json
    live = cogumi("data", "answer", "--profile", profile, "--dry-run", "--json", "--mode", "live").json
    assert [row["step"] for row in batch["steps"]] == ["answers_easy", "answers_hard"]
    assert batch["usd"] == 0
    assert live["steps"][0]["usd"] > batch["steps"][0]["usd"] > 0
    told = cogumi("data", "generate", "--profile", profile, "--dry-run")
    assert "questions" in told.out
    assert "validated" not in told.out
    assert "asks no teacher" in cogumi("data", "merge", "--profile", profile, "--dry-run").out
    assert list(workspace.iterdir()) == []


def test_real_money_is_asked_for_and_only_that_of_the_step(
    cogumi: Cogumi, workspace: Path, paid: str, teacher: LocalTeacher
) -> None:
    before = answered(teacher)
    refused = cogumi("data", "generate", "--profile", paid)
    assert refused.code == 2
    assert "data generate spends about $0.0" in refused.err
    assert "--yes" in refused.err
    assert answered(teacher) == before
    assert cogumi("data", "generate", "--profile", paid, "--yes").code == 0
    # What is finished costs nothing and is not asked for again.
    assert cogumi("data", "generate", "--profile", paid).code == 0


def test_an_infeasible_target_is_told_and_stops_nothing(
    cogumi: Cogumi, workspace: Path, tmp_path: Path
) -> None:
    profile = document()
    profile["models"] = [
        {
            "name": "big",
            "parameters": 8_000_000_000,
            "embedding_parameters": 1_000_000_000,
            "source": "a test",
            "download_bytes_at_most": 100_000_000,
            "sparsity": 0.65,
            "criterion": "phase3/size",
        }
    ]
    path = save(tmp_path, profile)
    assert cogumi("run", "--profile", path).code == 4
    done = cogumi("data", "generate", "--profile", path)
    assert done.code == 0
    assert [line for line in done.err.splitlines() if "phase3/size" in line] == [
        "note: phase3/size cannot be met (`cogumi plan` tells why); "
        "the data serve any base model and are made all the same"
    ]


def test_the_teachers_of_the_documents_are_teachers_of_a_profile() -> None:
    text = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        profile = parse_profile({**document(), **yaml.safe_load(block), "steps": []}, "docs")
        assert all(teacher.config(name).api == "openai" for name, teacher in profile.teachers.items())


# When things go wrong ---------------------------------------------------------------------------------


def test_a_dead_key_is_named_and_not_told(
    cogumi: Cogumi, workspace: Path, paid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-a-dead-one")
    failed = cogumi("data", "generate", "--profile", paid, "--yes", "--json")
    assert failed.code == 5
    (line,) = [line for line in failed.err.splitlines() if "TEACHER_KEY" in line]
    assert "teacher openai" in line
    assert failed.json["exit_code"] == 5
    assert failed.json["steps"][0]["state"] == "not finished"
    everything = failed.out + failed.err + json.dumps(Ledger(workspace).snapshot())
    assert "sk-a-dead-one" not in everything
    monkeypatch.setenv("TEACHER_KEY", KEY)
    assert cogumi("data", "generate", "--profile", paid, "--yes").code == 0


def test_no_key_is_one_line_that_names_the_variable(
    cogumi: Cogumi, workspace: Path, paid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEACHER_KEY")
    failed = cogumi("data", "generate", "--profile", paid, "--yes")
    assert failed.code == 5
    (line,) = [line for line in failed.err.splitlines() if "TEACHER_KEY" in line]
    assert "is not set" in line


def test_no_network_is_told_after_the_retries(cogumi: Cogumi, workspace: Path, tmp_path: Path) -> None:
    # Port 1 is reserved (tcpmux) and nobody listens on it.
    profile = save(tmp_path, document("http://127.0.0.1:1"))
    failed = cogumi("data", "generate", "--profile", profile, "--yes")
    assert failed.code == 5
    (line,) = [line for line in failed.err.splitlines() if "gave up" in line]
    assert "teacher openai: gave up after 3 attempts" in line
    assert "onnect" in line


def test_the_spending_limit_keeps_all_and_a_higher_one_goes_on(
    cogumi: Cogumi, workspace: Path, paid: str, teacher: LocalTeacher
) -> None:
    before = answered(teacher)
    spent = cogumi("data", "generate", "--profile", paid, "--yes", "--json").json["spent"]["usd"]
    # A judgement costs about a tenth of a cent.
    shared = ("data", "validate", "--profile", paid, "--yes", "--json", "--max-cost")
    stopped = cogumi(*shared, str(spent + 0.01))
    assert stopped.code == 6, stopped.err
    assert spent < stopped.json["spent"]["usd"] <= spent + 0.01
    assert stopped.json["steps"][0]["state"] == "not finished"
    assert "higher --max-cost" in stopped.err
    assert calls(workspace) == answered(teacher) - before
    done = cogumi(*shared, "5")
    assert done.code == 0, done.err
    assert calls(workspace) == answered(teacher) - before


def test_a_second_process_on_the_same_run_is_told_who_holds_it(
    cogumi: Cogumi, workspace: Path, tmp_path: Path
) -> None:
    profile = save(tmp_path, document())
    with Workspace(workspace).lock("run-small"):
        failed = cogumi("data", "generate", "--profile", profile)
    assert failed.code == 5
    assert failed.err == (
        f"cogumi: run-small is in use by process {os.getpid()}; wait for it or stop it first\n"
    )


def test_an_interrupt_is_one_line_and_loses_nothing(cogumi: Cogumi, workspace: Path, tmp_path: Path) -> None:
    state = tmp_path / "slow"
    with LocalTeacher(TeacherOptions(state, seed=3, latency_ms=80)) as slow:
        content = document(slow.base_url)
        content["steps"][0]["settings"]["concurrency"] = 1
        profile = save(tmp_path, content)
        command = [sys.executable, "-m", "cogumi", "data", "generate", "--profile", profile, "--yes"]
        # Who starts the tests in the background hands an ignored SIGINT down.
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        signal.signal(signal.SIGINT, heard)
        deadline = time.monotonic() + 60
        while answered(slow) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130, told
        assert told.splitlines()[-1] == "cogumi: interrupted; run the same command again to go on"
        assert "Traceback" not in told
        (row,) = Ledger(workspace).runs()
        assert (row["status"], row["exit_code"]) == ("stopped", 130)
        kept = calls(workspace)
        assert kept >= 1
        assert cogumi("data", "generate", "--profile", profile, "--yes").code == 0
        # At most the one call that was under way when the signal came is asked again.
        assert calls(workspace) <= answered(slow) <= calls(workspace) + 1


class FullDisk:
    """Lets files whose name ends so end up on a disk that is full: Linux's own /dev/full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real = Path.open

        def full(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if path.name == name and "staging" in path.parts and "w" in mode:
                return real(Path("/dev/full"), mode, *rest, **more)
            return real(path, mode, *rest, **more)

        monkeypatch.setattr(Path, "open", full)


def test_a_full_disk_under_a_stage_is_one_line_and_it_goes_on(
    cogumi: Cogumi, workspace: Path, paid: str, teacher: LocalTeacher
) -> None:
    before = answered(teacher)
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, "questions_60k.jsonl")
        failed = cogumi("data", "generate", "--profile", paid, "--yes")
    assert failed.code == 5
    (line,) = [line for line in failed.err.splitlines() if "disk full" in line]
    assert "finished work is kept" in line
    assert not list((workspace / "artifacts" / "staging").iterdir())
    asked = answered(teacher)
    assert asked > before
    assert cogumi("data", "generate", "--profile", paid, "--yes").code == 0
    assert answered(teacher) == asked


def test_a_full_disk_under_the_ledger_is_one_line_and_it_goes_on(
    cogumi: Cogumi, workspace: Path, paid: str, teacher: LocalTeacher
) -> None:
    assert cogumi("data", "generate", "--profile", paid, "--yes").code == 0
    Ledger(workspace).close()
    before = answered(teacher) - calls(workspace)
    with pytest.MonkeyPatch.context() as patch:
        limit_ledger(patch, pages=1)
        failed = cogumi("data", "validate", "--profile", paid, "--yes")
    assert failed.code == 5, failed.err
    assert [line for line in failed.err.splitlines() if "full" in line]
    assert "Traceback" not in failed.err
    assert "defect" not in failed.err
    lost = answered(teacher) - calls(workspace) - before
    assert cogumi("data", "validate", "--profile", paid, "--yes").code == 0
    # Not acknowledged, and so asked again: at most those under way and those of the commit that failed.
    assert lost <= 2 * CONCURRENCY


def limit_ledger(patch: pytest.MonkeyPatch, pages: int) -> None:
    """Let SQLite find its disk full once the ledger has grown by so many pages."""
    from sqlalchemy import event

    from cogumi.ledger import database

    real = database.open_engine

    def open_engine(*arguments: Any, **named: Any) -> Any:
        engine = real(*arguments, **named)

        @event.listens_for(engine, "connect")
        def _limit(connection: Any, _: Any) -> None:
            used = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count={used + pages}")

        engine.dispose()
        return engine

    patch.setattr("cogumi.ledger.book.open_engine", open_engine)
