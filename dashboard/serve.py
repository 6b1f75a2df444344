"""The server's process: ``python -m dashboard.serve`` with Streamlit's own options.

Started by ``cogumi dashboard``, which holds the other end of standard input: when that closes, because the
parent ended, however it ended, the server ends too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from dashboard.theme import options as theme_options

APP = Path(__file__).parent / "entry" / "streamlit_app.py"

_OPTIONS = {
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.enableXsrfProtection": "true",
    "server.enableStaticServing": "false",
    "browser.gatherUsageStats": "false",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": "false",
    "client.toolbarMode": "minimal",
    # Streamlit's own CSV leaves formulas in; kit.frame and kit.figure have a button of their own.
    "client.disableDataExport": "true",
    "runner.magicEnabled": "false",
    # It would go through every object of the process before it sends the end of each page, a tenth of a
    # second; Python collects by itself when enough is new.
    "runner.postScriptGC": "false",
    "logger.level": "warning",
}


def command(address: Mapping[str, str]) -> list[str]:
    """Return the command that serves the dashboard; ``address``: further options of Streamlit."""
    options = {**_OPTIONS, **theme_options(), **address}
    flags = [f"--{name}={value}" for name, value in options.items()]
    # The parent's own search path and no other: -P keeps the folder it stands in out.
    return [sys.executable, "-P", "-m", "dashboard.serve", "run", str(APP), *flags]


def main() -> None:
    """Serve until SIGTERM, or until standard input ends."""
    from streamlit.web.cli import main as streamlit

    threading.Thread(target=_end_with_parent, daemon=True).start()
    _load_first_page()
    streamlit(prog_name="streamlit")


def _load_first_page() -> None:
    """Import and read what the first page takes, before anybody can ask for it and share the processor."""
    import dashboard.app
    import dashboard.pages.overview

    # What cannot be read is told on the page: no reason not to serve it.
    with contextlib.suppress(Exception):
        dashboard.pages.overview.read_ahead()


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
