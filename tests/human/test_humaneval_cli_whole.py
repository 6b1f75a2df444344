"""A whole study through the real commands: made, served, rated over HTTP, closed, analysed, exported."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

# pytest's importlib mode leaves test folders off the path.
sys.path.insert(0, str(Path(__file__).parent))

from test_humaneval_cli import write_tasks

Cogumi = Callable[..., Any]
RATERS = 8
BEHAVIOUR = "honest=0.25,careless=0.125,straight=0.125,abandon=0.125,double=0.125,correct=0.25"


def command(workspace: Path, *words: str, code: int = 0) -> str:
    """Run a command as a process; return its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "cogumi", "humaneval", *words],
        env={**os.environ, "COGUMI_WORKSPACE": str(workspace)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a closed study of eight simulated raters of every behaviour."""
    workspace = tmp_path_factory.mktemp("study")
    tasks = write_tasks(workspace / "tasks.jsonl", 8, bad_answer="=bad()")
    command(
        workspace,
        *("create", "--tasks", str(tasks), "--subject", "ours", "--reference", "theirs", "--pairs", "2"),
        *("--contact", "nobody", "--items", "6", "--raters", str(RATERS), "--seed", "7"),
    )
    told = command(workspace, "simulate", "--seed", "7", "--behaviour", BEHAVIOUR, "--in-order", "--json")
    (workspace / "simulated.json").write_text(told)
    command(workspace, "close", "--yes")
    return workspace


def test_every_behaviour_went_through_the_app(study: Path) -> None:
    told = json.loads((study / "simulated.json").read_text())
    assert told["source"] == "simulated"
    assert told["behaviours"] == {
        "honest": 2,
        "careless": 1,
        "straight": 1,
        "abandon": 1,
        "double": 1,
        "correct": 2,
    }
    assert told["endings"] == {"abandoned": 1, "finished": RATERS - 1}
    pages = 2 + 6 + 2 + 1 + 2
    assert told["replayed"] == pages
    assert told["corrections"] == 2
    assert told["server_errors"] == 0
    assert told["items"] > (RATERS - 1) * pages


def test_the_frozen_rows_are_what_was_sent_and_say_simulated(study: Path) -> None:
    rows = pq.read_table(study / "studies" / "phase8" / "frozen" / "ratings.parquet").to_pylist()
    assert {row["source"] for row in rows} == {"simulated"}
    finished = [row for row in rows if row["rater_state"] == "finished"]
    assert len(finished) == (RATERS - 1) * (6 + 2 + 1 + 2)
    assert sorted(row["revisions"] for row in rows)[-3:] == [1, 2, 2]
    planted = [row["score"] for row in finished if row["kind"] == "planted"]
    assert min(planted) < 5
    assert {row["preference"] for row in rows if row["kind"] == "pair"} <= {"subject", "reference", "tie"}


def test_the_verdict_is_undecided_and_says_simulated(study: Path, tmp_path: Path) -> None:
    page, text = tmp_path / "study.html", tmp_path / "study.md"
    told = command(study, "analyze", "--html", str(page), "--markdown", str(text), code=3)
    assert told.startswith("study phase8 UNDECIDED: mean ")
    assert "simulated raters" in told.splitlines()[0]
    assert "simulated" in page.read_text()
    assert "simulated" in text.read_text()
    document = json.loads(command(study, "analyze", "--json", code=3))
    assert (document["verdict"], document["simulated"]) == ("UNDECIDED", True)


def test_the_data_is_exported_in_three_forms_that_agree(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    told = json.loads(command(study, "export", "--out", str(folder), "--json"))
    table = pq.read_table(folder / "ratings.parquet")
    with (folder / "ratings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = json.loads((folder / "ratings.json").read_text())
    assert len(rows) == len(kept) == table.num_rows == told["rows"]
    assert [row["task_id"] for row in rows] == [row["task_id"] for row in kept]
    dictionary = (folder / "README.md").read_text()
    assert all(f"| `{name}` |" in dictionary for name in table.column_names)
    assert "Simulated raters" in dictionary
    assert json.loads((folder / "study.json").read_text())["plan"]["tasks"]
    again = command(study, "export", "--out", str(folder), code=2)
    assert again == ""


def test_a_closed_study_takes_no_simulated_raters(study: Path) -> None:
    command(study, "simulate", code=5)


def test_equal_seeds_freeze_equal_ratings(study: Path, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks.jsonl", 8, bad_answer="=bad()")
    command(
        tmp_path,
        *("create", "--tasks", str(tasks), "--subject", "ours", "--reference", "theirs", "--pairs", "2"),
        *("--contact", "nobody", "--items", "6", "--raters", str(RATERS), "--seed", "7"),
    )
    command(tmp_path, "simulate", "--seed", "7", "--behaviour", BEHAVIOUR, "--in-order")
    command(tmp_path, "close", "--yes")
    tables = [
        pq.read_table(root / "studies" / "phase8" / "frozen" / "ratings.parquet").drop_columns(["wall_ms"])
        for root in (study, tmp_path)
    ]
    assert tables[0].equals(tables[1])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    tasks = write_tasks(tmp_path / "tasks.jsonl")
    command(
        tmp_path, "create", "--tasks", str(tasks), "--subject", "ours", "--contact", "nobody", "--items", "6"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "cogumi", "humaneval", "serve", "--port", "0", "--json", "--stop-with-stdin"],
        env={**os.environ, "COGUMI_WORKSPACE": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        if process.poll() is None:
            process.kill()


def test_the_server_tells_its_address_and_ends_on_sigterm(
    served: tuple[subprocess.Popen[str], dict[str, Any]], tmp_path: Path
) -> None:
    process, told = served
    assert told["pid"] == process.pid
    assert told["url"].startswith("http://127.0.0.1:")
    done = command(
        tmp_path, "simulate", "--raters", "1", "--url", told["url"], "--behaviour", "honest=1", "--json"
    )
    assert json.loads(done)["endings"] == {"finished": 1}
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def test_the_server_ends_with_whoever_holds_its_input(
    served: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    process, _ = served
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0
