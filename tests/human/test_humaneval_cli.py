"""``cogumi humaneval``: every command's words, files and exit codes, without a server."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.human.export import _cell
from evals.human.plan import read_plan

COMMANDS = ("create", "invite", "serve", "status", "close", "analyze", "export", "simulate")
LINK = re.compile(r"https://rate\.example\.org/join\?t=[A-Za-z0-9_-]{22,}")
HEAVY = ("fastapi", "starlette", "uvicorn", "pandas", "scipy", "pyarrow", "statsmodels", "httpx", "numpy")
Cogumi = Callable[..., Any]


def write_tasks(path: Path, tasks: int = 8, **more: Any) -> Path:
    """Write tasks of two domains, each with an answer of ours and of another system."""
    rows = [
        {
            "task_id": f"t{number:02}",
            "domain": ("mail", "maths")[number % 2],
            "prompt": f"Question {number}?",
            "answers": {"ours": f"Our answer {number}", "theirs": f"As ChatGPT I say {number}"},
            **more,
        }
        for number in range(tasks)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks.jsonl")


@pytest.fixture
def made(cogumi: Cogumi, workspace: Path, tasks: Path) -> Path:
    """The folder of a study of six items."""
    result = cogumi(
        *("humaneval", "create", "--tasks", str(tasks), "--subject", "ours", "--contact", "a@example.org"),
        *("--items", "6", "--raters", "8", "--seed", "3"),
    )
    assert result.code == 0, result.err
    return workspace / "studies" / "phase8"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(cogumi: Cogumi, command: str) -> None:
    result = cogumi("humaneval", command, "--help")
    assert result.code == 0
    assert f"cogumi humaneval {command}" in result.out.split("Example:")[1]
    assert "--json" in result.out


def test_status_and_help_start_without_heavy_packages(made: Path) -> None:
    code = (
        "import sys\nfrom cogumi.cli import main\n"
        "for words in (['humaneval', '--help'], ['humaneval', 'status']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert not end.code, end\n"
        f"print('loaded', *({set(HEAVY)} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "loaded", done.stderr


def test_create_says_what_it_made_and_shows_the_token_once(
    cogumi: Cogumi, workspace: Path, tasks: Path
) -> None:
    result = cogumi(
        *("humaneval", "create", "pilot", "--tasks", str(tasks), "--subject", "theirs", "--contact", "a@b.c"),
        *("--items", "8", "--raters", "10", "--seed", "3", "--estimand", "these"),
    )
    assert (result.code, result.err) == (0, "")
    folder = workspace / "studies" / "pilot"
    plan = read_plan(folder)
    assert (plan.raters, plan.items, plan.estimand, plan.subject) == (10, 8, "these tasks", "theirs")
    assert plan.scrubbed == 8
    assert "8 names replaced (chatgpt 8)" in result.out
    assert "10 ratings a task" in result.out
    token = re.search(r"admin token \(shown once\): (\S+)", result.out)
    assert token
    assert token[1] not in "".join(
        path.read_bytes().decode("latin-1") for path in folder.iterdir() if path.is_file()
    )
    assert "cogumi humaneval invite pilot" in result.out
    again = cogumi(
        "humaneval", "create", "pilot", "--tasks", str(tasks), "--contact", "a@b.c", "--items", "8"
    )
    assert again.code == 2
    assert again.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--contact is missing"),
        (("--contact", "a"), "--tasks FILE, or --suite S"),
        (("--contact", "a", "--suite", "general"), "--suite needs --artifact"),
        (("--contact", "a", "--tasks", "none.jsonl"), "none.jsonl"),
        (("--contact", "a", "--tasks", "tasks.jsonl"), "8 tasks"),
        (("--contact", "a", "--tasks", "tasks.jsonl", "--items", "6", "--subject", "our"), "ours"),
        (("--contact", "a", "--tasks", "tasks.jsonl", "--subject", "ours", "--reference", "x"), "x"),
        (("--plan", "--raters", "1"), "two at least"),
        (("../up", "--plan"), "study name"),
    ],
)  # fmt: skip
def test_a_wrong_input_is_one_line(
    cogumi: Cogumi, workspace: Path, tasks: Path, words: tuple[str, ...], told: str
) -> None:
    result = cogumi("humaneval", "create", *words)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert told in result.err
    assert not (workspace / "studies").exists()


def test_plan_prints_power_and_makes_nothing(cogumi: Cogumi, workspace: Path, tasks: Path) -> None:
    result = cogumi(
        "humaneval", "create", "--plan", "--tasks", str(tasks), "--subject", "ours", "--items", "8"
    )
    assert result.code == 0
    assert "from a pool" in result.out
    assert not (workspace / "studies").exists()
    document = cogumi("humaneval", "create", "--plan", "--json").json
    by_tasks = {row["tasks"]: row["se"] for row in document["rows"] if row["case"] == "mid"}
    assert by_tasks[20] > by_tasks[100] > by_tasks[200]
    assert all(0 <= power <= 1 for row in document["rows"] for power in row["power"].values())


def test_links_are_printed_once_or_written_for_the_owner_alone(
    cogumi: Cogumi, made: Path, tmp_path: Path
) -> None:
    printed = cogumi("humaneval", "invite", "--count", "3", "--url", "https://rate.example.org/")
    assert [bool(LINK.fullmatch(line)) for line in printed.out.splitlines()] == [True] * 3
    written = cogumi(
        "humaneval", "invite", "-n", "2", "--url", "https://rate.example.org", "--out", "links.txt"
    )
    assert written.code == 0
    links = (tmp_path / "links.txt").read_text().splitlines()
    assert len({*links, *printed.out.splitlines()}) == 5
    assert stat.S_IMODE((tmp_path / "links.txt").stat().st_mode) == 0o600
    assert not LINK.search(written.out)
    again = cogumi(
        "humaneval", "invite", "-n", "1", "--url", "https://rate.example.org", "--out", "links.txt"
    )
    assert again.code == 2
    assert (tmp_path / "links.txt").read_text().splitlines() == links
    status = cogumi("humaneval", "status", "--json").json
    assert status["invites"] == 5
    assert links[0].partition("=")[2] not in json.dumps(status)


def test_a_link_is_revoked_by_itself_its_token_or_its_number(cogumi: Cogumi, made: Path) -> None:
    links = cogumi("humaneval", "invite", "-n", "3", "--url", "https://rate.example.org").out.split()
    for named in (links[0], links[1].partition("=")[2], "3"):
        assert cogumi("humaneval", "invite", "--revoke", named).code == 0
    status = cogumi("humaneval", "status", "--json").json
    assert [one["revoked"] for one in status["invitations"]] == [True] * 3
    for wrong in ("https://rate.example.org/join?t=" + "x" * 43, "99", "no"):
        result = cogumi("humaneval", "invite", "--revoke", wrong)
        assert result.code in (2, 5)
        assert result.err.count("\n") == 1
    assert cogumi("humaneval", "invite").code == 2


@pytest.mark.parametrize(
    "url", ["rate.example.org", "ftp://x", "https://x/path", "https://a:b@x", "https://x:0"]
)
def test_only_a_root_address_is_public(cogumi: Cogumi, made: Path, url: str) -> None:
    for words in (("invite", "-n", "1", "--url", url), ("serve", "--public-url", url)):
        result = cogumi("humaneval", *words)
        assert result.code == 2
        assert "without a path" in result.err


def test_serving_beyond_this_machine_wants_https(cogumi: Cogumi, made: Path) -> None:
    for words in (("--host", "0.0.0.0"), ("--host", "0.0.0.0", "--public-url", "http://rate.example.org")):
        result = cogumi("humaneval", "serve", *words)
        assert result.code == 2
        assert "readable" in result.err


def test_status_of_an_open_study_tells_no_score(cogumi: Cogumi, made: Path) -> None:
    result = cogumi("humaneval", "status")
    assert (result.code, result.err) == (0, "")
    assert "hidden until the study is closed" in result.out
    keys = cogumi("humaneval", "status", "--json").json.keys()
    assert not {key for key in keys if "mean" in key or "score" in key}


def test_a_new_admin_token_ends_the_last(cogumi: Cogumi, made: Path) -> None:
    from evals.human.store import StudyStore

    first, second = (
        cogumi("humaneval", "status", "--new-admin-token", "--json").json["admin_token"] for _ in range(2)
    )
    store = StudyStore.open(made)
    assert (store.is_admin(first), store.is_admin(second)) == (False, True)
    store.dispose()


def test_an_open_study_is_neither_analysed_nor_exported(cogumi: Cogumi, made: Path) -> None:
    for words in (("analyze",), ("export", "--out", "data")):
        result = cogumi("humaneval", *words)
        assert result.code == 2
        assert "open" in result.err
    assert not Path("data").exists()


def test_close_asks_and_cannot_be_undone(cogumi: Cogumi, made: Path) -> None:
    asked = cogumi("humaneval", "close")
    assert asked.code == 2
    assert "cannot be undone" in asked.err
    assert not (made / "frozen").exists()
    closed = cogumi("humaneval", "close", "--yes", "--json")
    assert closed.code == 0
    assert closed.json["counts"]["finished"] == 0
    again = cogumi("humaneval", "close", "--json").json
    assert (again["closed_at"], again["ratings_sha256"]) == (
        closed.json["closed_at"],
        closed.json["ratings_sha256"],
    )
    late = cogumi("humaneval", "invite", "-n", "1")
    assert late.code in (2, 5)
    assert "closed" in late.err
    analysed = cogumi("humaneval", "analyze")
    assert analysed.code == 3
    assert "no mean" in analysed.out


def test_a_study_that_is_not_there_names_its_neighbour(cogumi: Cogumi, made: Path) -> None:
    for command in ("status", "close", "invite", "analyze", "serve", "simulate"):
        words = ("-n", "1") if command == "invite" else ()
        result = cogumi("humaneval", command, "phase9", *words)
        assert result.code == 2
        assert "did you mean 'phase8'" in result.err


def test_simulated_raters_stay_out_of_a_study_with_people(cogumi: Cogumi, made: Path) -> None:
    cogumi("humaneval", "invite", "-n", "1")
    result = cogumi("humaneval", "simulate")
    assert result.code == 2
    assert "UNDECIDED for ever" in result.err


def test_a_broken_plan_is_one_line(cogumi: Cogumi, made: Path) -> None:
    (made / "plan.json").write_text("{")
    result = cogumi("humaneval", "status", "--json")
    assert result.code == 5
    assert result.json["exit_code"] == 5
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx"])
def test_a_spreadsheet_sees_no_formula(text: str) -> None:
    assert _cell(text) == f"'{text}"
    assert (_cell("1-1"), _cell(-1), _cell(None), _cell(True)) == ("1-1", -1, "", "true")


def test_the_database_url_is_never_stored(cogumi: Cogumi, workspace: Path, tasks: Path) -> None:
    url = "postgresql://rater:hunter2@127.0.0.1:1/none"
    result = cogumi(
        *(
            "humaneval",
            "create",
            "--tasks",
            str(tasks),
            "--subject",
            "ours",
            "--contact",
            "a",
            "--items",
            "6",
        ),
        *("--database-url", url),
    )
    assert result.code in (2, 5)
    assert result.err.count("\n") == 1
    assert "hunter2" not in result.out + result.err
    kept = [path for path in workspace.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert kept == []
    assert "COGUMI_STUDY_DATABASE_URL" not in os.environ
