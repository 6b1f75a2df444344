"""``cogumi dashboard``: the workspace in a browser, read only."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from cogumi.cli.common import JsonOption, WorkspaceOption, echo_json, place, say
from cogumi.errors import RunError, UsageError
from cogumi.processes import end_process
from cogumi.workspace import WORKSPACE_ENV, Workspace

_HELP = """Show the workspace in a browser: gates, quality against size, items, cost. It changes nothing.

It can be opened while a run is at work, and before there is any. Ctrl-C ends it.

Example: cogumi dashboard --port 8600 --no-browser
"""
_PORT = 8501
_NEEDS = ("streamlit", "plotly", "pandas", "duckdb")
_START_S = 60.0
_END_S = 10.0
# Where a server that listens everywhere is asked whether it is there.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dashboard", help=_HELP)(dashboard)


def dashboard(
    context: typer.Context,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help=f"Port ({_PORT}, or a free one; 0: a free one)."),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve until SIGINT or SIGTERM."""
    where = place(context, workspace).workspace
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"the dashboard needs {', '.join(missing)}: python -m pip install 'cogumi[all]'")
    with _until_told() as told:
        chosen = _free_port(host, port)
        url = _url(host, chosen)
        process = _start(where, host, chosen)
        try:
            if not _ready(process, url, told):
                return
            _tell(where, host, url, as_json=as_json)
            if not (no_browser or as_json) and _has_display():
                _open(url)
            while not told.wait(0.2):
                if process.poll() is not None:
                    raise RunError(f"the dashboard's server ended by itself (exit {process.returncode})")
        finally:
            end_process(process, _END_S)


@contextmanager
def _until_told() -> Iterator[threading.Event]:
    """Give an event that SIGINT and SIGTERM set: to end is what they ask for here, and no error."""
    told = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port(host: str, port: int | None) -> int:
    """Return the port to listen on.

    Raises ``UsageError`` for an address that is not of this machine, ``RunError`` when the port is taken.
    """
    wanted = _PORT if port is None else port
    try:
        family, _, _, _, address = socket.getaddrinfo(host or None, wanted, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}") from None
    for number in (wanted, 0):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address[0], number, *address[2:]))
            except PermissionError:
                raise RunError(f"port {wanted} may not be used by this user: choose one above 1023") from None
            except OSError as error:
                if number == 0 or "assign" in str(error):
                    raise UsageError(f"--host {host}: no address of this machine") from None
                if port:
                    told = f"port {port} of {host} is taken: choose another (--port 0: a free one)"
                    raise RunError(told) from None
                continue
            found = int(probe.getsockname()[1])
        if port is None and found != _PORT:
            say(f"port {_PORT} is taken, {found} is free")
        return found
    raise AssertionError("unreachable: the last try returns or raises")


def _url(host: str, port: int) -> str:
    asked = _ANY.get(host, host)
    return f"http://[{asked}]:{port}" if ":" in asked else f"http://{asked}:{port}"


def _start(workspace: Workspace, host: str, port: int) -> subprocess.Popen[bytes]:
    from dashboard.serve import command

    address = {"server.address": host or "0.0.0.0", "server.port": str(port)}
    return subprocess.Popen(
        command(address),
        stdin=subprocess.PIPE,
        # Its greeting names other addresses than ours; what goes wrong it tells on standard error.
        stdout=subprocess.DEVNULL,
        env={
            **os.environ,
            WORKSPACE_ENV: str(workspace.root),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        # Ctrl-C is for us; we tell the server.
        start_new_session=True,
    )


def _ready(process: subprocess.Popen[bytes], url: str, told: threading.Event) -> bool:
    """Wait until the server answers; False when told to end before. Raises ``RunError`` if it never does."""
    # No proxy of the user's stands between us and our own server.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if told.wait(0.1):
            return False
        if process.poll() is not None:
            raise RunError(f"the dashboard's server did not start (exit {process.returncode})")
        with contextlib.suppress(OSError), opener.open(f"{url}/_stcore/health", timeout=2) as answer:
            if answer.status == 200:
                return True
    raise RunError(f"the dashboard's server does not answer at {url} after {_START_S:.0f} s")


def _tell(workspace: Workspace, host: str, url: str, *, as_json: bool) -> None:
    if as_json:
        echo_json({"url": url, "pid": os.getpid(), "workspace": str(workspace.root)})
        sys.stdout.flush()
    else:
        typer.echo(f"dashboard: {url}")
    if not workspace.root.is_dir():
        say(f"there is no workspace {workspace.root} yet; `cogumi run` makes it")
    if host not in _LOOPBACK:
        say(f"--host {host}: anyone who can reach this port can read the workspace")


def _has_display() -> bool:
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open(url: str) -> None:
    import webbrowser

    # A browser may hold on to whoever starts it: the address is printed, so nothing waits for it.
    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
