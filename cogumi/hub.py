"""The model hub: is it there, what of it lies in the local cache, and fetching a model."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import urlsplit

from cogumi.errors import RunError, UsageError

_local_only: ContextVar[bool] = ContextVar("local_only", default=False)


class NotHereError(RunError):
    """The hub would be needed where only what lies here is wanted."""


@contextmanager
def local_only() -> Iterator[None]:
    """Within it, asking for the hub raises ``NotHereError``: what is not here is not fetched."""
    token = _local_only.set(True)
    try:
        yield
    finally:
        _local_only.reset(token)


def hub_reachable() -> bool:
    """Tell within two seconds whether the hub answers; ``HF_HUB_OFFLINE`` says no at once.

    Raises ``NotHereError`` within ``local_only``.
    """
    if _local_only.get():
        raise NotHereError("not among the local files")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection((endpoint.hostname or "", endpoint.port or 443), timeout=2).close()
    except OSError:
        return False
    return True


def cached_folder(name: str) -> Path | None:
    """Return a model's folder in the hub's local cache, or None; ``NAME@REVISION`` asks for one revision."""
    folder = _snapshot(name)
    return folder if folder is not None and (folder / "config.json").is_file() else None


def _snapshot(name: str) -> Path | None:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    name, _, revision = name.partition("@")
    base = home / "hub" / f"models--{name.replace('/', '--')}"
    if revision and (base / "snapshots" / revision).is_dir():
        return base / "snapshots" / revision
    try:
        commit = (base / "refs" / (revision or "main")).read_text().strip()
    except OSError:
        return None
    return base / "snapshots" / commit


def model_folder(name: str) -> Path:
    """Return a model's folder, downloading it unless it is cached; ``NAME@REVISION`` takes one revision.

    Raises ``RunError`` without a network or without access, ``UsageError`` for a name or a revision that the
    hub does not know.
    """
    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt"]
    return cached_folder(name) or _fetched(name, patterns)


def tokenizer_file(name: str) -> Path:
    """Return the ``tokenizer.json`` of a model of the hub, fetching that file alone unless it is cached.

    Raises ``RunError`` without a network or without such a file, ``UsageError`` for an unknown name.
    """
    cached = _snapshot(name)
    if cached is None or not (cached / "tokenizer.json").is_file():
        cached = _fetched(name, ["tokenizer.json"])
    file = cached / "tokenizer.json"
    if not file.is_file():
        raise RunError(f"{name}: has no tokenizer.json; name a folder or a GGUF file")
    return file


def _fetched(name: str, patterns: list[str]) -> Path:
    if not hub_reachable():
        raise RunError(f"{name}: not in the local cache, and the hub is not reachable")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except GatedRepoError:
        raise RunError(
            f"{repository}: its licence must be accepted on its page of the hub first; then `hf auth login`, "
            "or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"no revision {revision or 'main'!r} of {repository} on the hub") from None
    except RepositoryNotFoundError:
        raise UsageError(f"no model {name!r} on the hub") from None
    except (HfHubHTTPError, OSError) as error:
        raise RunError(f"{name}: download failed ({type(error).__name__})") from None
