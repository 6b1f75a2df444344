"""``cogumi humaneval invite`` and ``serve``: links for raters, and the rating app behind them."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import parse_qs, urlsplit

import typer

from cogumi.cli.common import JsonOption, WorkspaceOption, echo_json, say
from cogumi.cli.humaneval_study import DEFAULT_STUDY, DatabaseOption, StudyArgument, find_study, link, opened
from cogumi.errors import UsageError
from cogumi.store import disk_error

if TYPE_CHECKING:
    from evals.human.store import StudyStore

_INVITE = """Make personal links for raters.

Each is one rater's and is printed once; only its digest is kept. Whoever has a link is that rater, on any
device. --revoke makes one worthless, also one that was used: by the link, its token or its number in
`cogumi humaneval status --json`.

\b
Example: cogumi humaneval invite --count 100 --url https://rate.example.org --out links.txt
         cogumi humaneval invite --revoke 17
"""
_SERVE = """Serve the rating app.

It runs until SIGTERM or Ctrl-C and finishes answers under way first. It listens on loopback; raters reach
it through a reverse proxy or a tunnel that speaks https, which --public-url names. Killed at any moment, it
loses no rating that a rater saw accepted: start it again.

Example: cogumi humaneval serve --public-url https://rate.example.org
"""
DEFAULT_PORT = 8400
_LOCAL = f"http://127.0.0.1:{DEFAULT_PORT}"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_NEEDS = ("fastapi", "uvicorn", "jinja2", "multipart", "itsdangerous", "babel")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,}")
_MOST_AT_ONCE = 10_000


def register(group: typer.Typer) -> None:
    """Add the commands."""
    group.command("invite", help=_INVITE)(invite)
    group.command("serve", help=_SERVE)(serve)


# Invitations --------------------------------------------------------------------------------------


def invite(
    context: typer.Context,
    study: StudyArgument = DEFAULT_STUDY,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, max=_MOST_AT_ONCE, help="Links to make.")
    ] = None,
    public: Annotated[
        str | None,
        typer.Option("--url", metavar="PUBLIC", help=f"Address that raters open ({_LOCAL})."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the links into this new file, mode 0600.")
    ] = None,
    revoke: Annotated[
        str | None, typer.Option("--revoke", metavar="LINK", help="Link, token or number to make worthless.")
    ] = None,
    url: DatabaseOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Make links, or revoke one."""
    if (count is None) == (revoke is None):
        raise UsageError("say --count N to make links, or --revoke LINK to make one worthless")
    base = check_public_url(public) if public is not None else _LOCAL
    _, folder = find_study(context, workspace, study)
    with opened(folder, url) as store:
        if revoke is not None:
            store.revoke(_revoked(revoke))
            if as_json:
                echo_json({"study": study, "revoked": 1})
            else:
                typer.echo(f"study {study}: the link is worthless from now on")
            return
        if public is None:
            say(f"without --url the links lead to {_LOCAL}, which only this machine can open")
        _hand_out(store, count or 0, base, out, as_json)


def _hand_out(store: StudyStore, count: int, base: str, out: Path | None, as_json: bool) -> None:
    if out is None:
        links = [link(base, token) for token in store.invite(count)]
    else:
        # First the file: tokens that cannot be written down would be lost.
        try:
            handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise UsageError(f"{out} exists already; name a new file, links are never overwritten") from None
        except OSError as error:
            raise disk_error(error, out) from error
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            links = [link(base, token) for token in store.invite(count)]
            try:
                file.writelines(f"{one}\n" for one in links)
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise disk_error(error, out) from error
    if as_json:
        document = {"study": store.plan.name, "source": "human", "count": count}
        echo_json(document | ({"links": links} if out is None else {"file": str(out)}))
    elif out is None:
        for one in links:
            typer.echo(one)
        say("each link is one rater's and is shown once: send every one to one person")
    else:
        typer.echo(f"written: {out} ({count:,} links, readable by you alone; each is one rater's)")


_LONGEST_NUMBER = 18


def _revoked(named: str) -> str | int:
    """Return the number or the token that a number, a token or a whole link stands for."""
    if named.isdecimal() and named.isascii() and len(named) <= _LONGEST_NUMBER:
        return int(named)
    try:
        token = parse_qs(urlsplit(named).query).get("t", [named])[0]
    except ValueError:
        token = ""
    if not _TOKEN.fullmatch(token):
        raise UsageError(f"--revoke {named!r}: give a link, its token, or the number of an invitation")
    return token


def check_public_url(url: str) -> str:
    """Return the root of a public address without its last slash; raises ``UsageError`` for any other."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise UsageError(
            f"{url!r}: a public address is https://HOST or https://HOST:PORT, without a path; "
            "the app needs a host name of its own"
        )
    return url.rstrip("/")


# Serving ------------------------------------------------------------------------------------------


def serve(
    context: typer.Context,
    study: StudyArgument = DEFAULT_STUDY,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0: a free one.")
    ] = DEFAULT_PORT,
    public: Annotated[
        str | None,
        typer.Option("--public-url", metavar="URL", help="Address that raters open, of the proxy before it."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure-http", help="Listen beyond loopback without https, and know why.")
    ] = False,
    stop_with_stdin: Annotated[
        bool, typer.Option("--stop-with-stdin", hidden=True, help="End when standard input does.")
    ] = False,
    url: DatabaseOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve until SIGINT or SIGTERM."""
    if public is not None:
        public = check_public_url(public)
    _check_safe(host, public, insecure)
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"the rating app needs {', '.join(missing)}: python -m pip install 'cogumi[all]'")
    where, folder = find_study(context, workspace, study)
    with opened(folder, url) as store:
        if stop_with_stdin:
            threading.Thread(target=_end_with_parent, daemon=True).start()

        def ready(address: str) -> None:
            shown = public or address
            if as_json:
                told = {"url": address, "public_url": public, "pid": os.getpid(), "study": study}
                echo_json(told | {"workspace": str(where.workspace.root)})
                sys.stdout.flush()
            else:
                typer.echo(f"rating app: {address}" + (f" (raters open {shown})" if public else ""))
                sys.stdout.flush()
            if store.closed_at is not None:
                say(f"study {study} is closed: raters only see that; `cogumi humaneval analyze {study}`")

        from dashboard.human_eval.app import AppSettings
        from dashboard.human_eval.serve import serve as serve_app

        serve_app(store, AppSettings(public_url=public, secret=store.secret), host, port, ready)


def _check_safe(host: str, public: str | None, insecure: bool) -> None:
    """Refuse to send personal links and ratings over a network in the clear."""
    https = public is not None and public.startswith("https://")
    if host in _LOOPBACK or https or insecure:
        if insecure and host not in _LOOPBACK and not https:
            say(f"--host {host} without https: whoever listens on the way reads links and ratings")
        return
    raise UsageError(
        f"--host {host} without https: personal links and ratings would cross the network readable. Put a "
        "proxy or tunnel with https before it and name it by --public-url, or say --insecure-http"
    )


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
