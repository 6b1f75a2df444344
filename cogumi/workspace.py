"""The workspace folder: ledger, artifact store, evidence, locks and the plan's own file names."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cogumi.errors import RunError, UsageError
from cogumi.store import ArtifactStore, disk_error

if TYPE_CHECKING:
    from cogumi.ledger import Ledger

WORKSPACE_ENV = "COGUMI_WORKSPACE"
DATA_ENV = "COGUMI_DATA"
DATABASE_URL_ENV = "COGUMI_DATABASE_URL"
LEDGER_FILE = "ledger.sqlite"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Workspace:
    """A folder that holds everything that runs have made and measured."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"workspace {root} is a file, not a folder")
        self.store = ArtifactStore(self.root / "artifacts")
        self.evidence = self.root / "evidence"

    @classmethod
    def find(cls, option: Path | None) -> Workspace:
        """Return the workspace named by ``--workspace``, else ``COGUMI_WORKSPACE``, else ``.cogumi``."""
        return cls(option or Path(os.environ.get(WORKSPACE_ENV) or ".cogumi"))

    def create(self) -> None:
        """Make the folder; raises ``RunError`` where that is not possible."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, self.root) from error

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger, opened (and created) on first use."""
        from cogumi.ledger import Ledger

        self.create()
        return Ledger(self.root)

    def scratch(self, key: str) -> Path:
        """Return the folder in which the work with this key may leave checkpoints."""
        folder = self.root / "scratch" / key.removeprefix("sha256:")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def publish(self, file: Path, name: str) -> None:
        """Show an artifact's file under the plan's own name, as a link below the workspace."""
        link = self.root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = link.with_name(f".{link.name}.link")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(file, link.parent))
        temporary.replace(link)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock that dies with the process; raises ``RunError`` when another process holds it."""
        self.create()
        path = self.root / "locks" / f"{name}.lock"
        path.parent.mkdir(exist_ok=True)
        with path.open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                raise RunError(f"{name} is in use by {holder}; wait for it or stop it first") from None
            handle.truncate(0)
            handle.write(f"process {os.getpid()}")
            handle.flush()
            yield


def check_run_name(name: str) -> str:
    """Return the name of a run if it can be a file's name too, else raise ``UsageError``."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"run name {name!r}: use 1 to 100 letters, digits, dots, dashes or underscores")
    return name


def find_data(option: Path | None) -> Path | None:
    """Return the benchmark data folder of ``--data`` or ``COGUMI_DATA``, or None to use the hub.

    Raises ``UsageError`` when the named folder does not exist.
    """
    named = option or (Path(os.environ[DATA_ENV]) if os.environ.get(DATA_ENV) else None)
    if named is None:
        return None
    if not named.is_dir():
        origin = "--data" if option else DATA_ENV
        raise UsageError(f"{origin}: no such folder {named}")
    return named.absolute()
