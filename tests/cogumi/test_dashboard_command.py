"""``cogumi dashboard`` starts, says where, and ends when it is told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cogumi.cli import dashboard as command
from cogumi.workspace import Workspace


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command in an empty folder, and leave nothing of it behind."""
    environment = {
        **os.environ,
        "DISPLAY": "",
        "WAYLAND_DISPLAY": "",
        "COGUMI_WORKSPACE": str(folder / "none"),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "cogumi", "dashboard", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False


def test_it_tells_where_it_is_and_ends_on_sigterm(tmp_path: Path) -> None:
    with started(tmp_path, "--json") as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "}\n")
        document = json.loads("".join(lines) + "}")
        assert document["pid"] == process.pid
        assert document["workspace"] == str(tmp_path / "none")
        assert answers(document["url"])
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert err.strip().splitlines() == [
        f"there is no workspace {tmp_path / 'none'} yet; `cogumi run` makes it"
    ]
    assert not answers(document["url"])
    assert list(tmp_path.iterdir()) == []


def test_it_serves_a_broken_ledger_until_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "ledger.sqlite").write_bytes(b"no database")
    with started(tmp_path) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        assert told.startswith("dashboard: http://127.0.0.1:")
        assert answers(told.split()[1])
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert not answers(told.split()[1])


@pytest.mark.slow
def test_the_server_ends_with_a_command_that_is_killed(tmp_path: Path) -> None:
    with started(tmp_path, "--no-browser") as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        process.kill()
        process.communicate(timeout=30)
    end = time.monotonic() + 30
    while answers(url) and time.monotonic() < end:
        time.sleep(0.1)
    assert not answers(url)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_is_one_line(cogumi: Any, taken: int) -> None:
    result = cogumi("dashboard", "--port", str(taken))
    assert (result.code, result.out) == (5, "")
    assert (
        result.err == f"cogumi: port {taken} of 127.0.0.1 is taken: choose another (--port 0: a free one)\n"
    )


def test_another_port_is_found_when_none_was_asked_for(
    taken: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_PORT", taken)
    found = command._free_port("127.0.0.1", None)
    assert found not in (0, taken)
    assert capsys.readouterr().err == f"port {taken} is taken, {found} is free\n"
    assert command._free_port("127.0.0.1", 0) != 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--port", "99999"), "--port"),
        (("--port", "-1"), "--port"),
        (("--host", "203.0.113.7"), "no address of this machine"),
        (("--host", "no such host"), "--host no such host"),
    ],
)
def test_wrong_usage_is_one_line(cogumi: Any, arguments: tuple[str, ...], told: str) -> None:
    result = cogumi("dashboard", *arguments)
    assert (result.code, result.out) == (2, "")
    assert told in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_a_missing_package_is_named(cogumi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_NEEDS", ("streamlit", "no_such_package"))
    result = cogumi("dashboard")
    assert result.code == 2
    assert "the dashboard needs no_such_package: python -m pip install 'cogumi[all]'" in result.err


def test_who_listens_beyond_this_machine_is_warned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command._tell(Workspace(tmp_path), "0.0.0.0", "http://127.0.0.1:1", as_json=False)
    seen = capsys.readouterr()
    assert seen.out == "dashboard: http://127.0.0.1:1\n"
    assert seen.err == "--host 0.0.0.0: anyone who can reach this port can read the workspace\n"


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("localhost", "http://localhost:80")],
)
def test_the_address_is_one_that_a_browser_can_open(host: str, url: str) -> None:
    assert command._url(host, 80) == url


def test_the_server_is_told_to_keep_to_itself() -> None:
    from dashboard.serve import command as serve

    flags = set(serve({"server.port": "1"}))
    assert flags >= {
        "--server.port=1",
        "--browser.gatherUsageStats=false",
        "--client.showErrorDetails=none",
        "--server.fileWatcherType=none",
        "--server.enableXsrfProtection=true",
    }
