"""The artifact store: folders that never change, named by the digest of what they hold.

Covered: atomic creation (a kill leaves a staging folder, never half an artifact), verification,
import of a model from elsewhere. Not covered: garbage collection and remote stores.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogumi.digest import digest_of, file_sha256, tree_files
from cogumi.errors import RunError, UsageError

MANIFEST = "manifest.json"
_PREFIX = "sha256:"
_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Artifact:
    """An immutable model variant, data set or adapter on disk."""

    digest: str
    path: Path
    """Folder of the payload (the manifest lies beside it)."""
    manifest: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What it is: dataset, model, gguf, adapter, tokenizer or file."""
        return str(self.manifest["kind"])

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage that made it says about its content."""
        facts: Mapping[str, Any] = self.manifest["facts"]
        return facts

    @property
    def bytes(self) -> int:
        """Total size of the payload's files in bytes."""
        return sum(int(entry["bytes"]) for entry in self.manifest["files"].values())

    @property
    def short(self) -> str:
        """The first twelve hex digits of the digest, for people."""
        return self.digest.removeprefix(_PREFIX)[:12]

    def file(self, name: str) -> Path:
        """Return the path of one payload file; raises ``RunError`` when the artifact has none so named."""
        if name not in self.manifest["files"]:
            known = ", ".join(sorted(self.manifest["files"]))
            raise RunError(f"artifact {self.short} has no file {name} (it has: {known})")
        return self.path / name


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest's content: everything but the moment at which it was made."""
    return digest_of({key: value for key, value in manifest.items() if key != "created"})


class ArtifactStore:
    """A folder of artifacts: ``objects/<hex digest>/{manifest.json, payload/}``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "objects"
        self.staging = root / "staging"

    def new_staging(self) -> Path:
        """Return an empty folder on the store's own disk, so that committing it is one rename."""
        folder = self.staging / f"{os.getpid()}-{uuid.uuid4().hex}"
        try:
            (folder / "payload").mkdir(parents=True)
        except OSError as error:
            raise disk_error(error, folder) from error
        return folder

    def commit(
        self, staging: Path, *, kind: str, made_by: Mapping[str, Any], facts: Mapping[str, Any], created: str
    ) -> Artifact:
        """Turn a filled staging folder into an artifact: hash, write the manifest, sync, rename.

        ``made_by`` holds the stage, its version and settings and the digests of the parents. Committing
        content that exists already returns the existing artifact. Raises ``RunError`` on a full disk.
        """
        payload = staging / "payload"
        try:
            manifest: dict[str, Any] = {
                "format": 1,
                "kind": kind,
                "made_by": dict(made_by),
                "facts": dict(facts),
                "files": tree_files(payload),
            }
            digest = manifest_digest(manifest)
            manifest["created"] = created
            (staging / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
            _sync_tree(staging)
            target = self.objects / digest.removeprefix(_PREFIX)
            if not target.exists():
                self.objects.mkdir(parents=True, exist_ok=True)
                try:
                    staging.rename(target)
                except OSError as error:
                    # Another process committed the same content between the check and the rename.
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                sync_folder(self.objects)
        except OSError as error:
            raise disk_error(error, staging) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return self.get(digest)

    def get(self, ref: str) -> Artifact:
        """Return the artifact with this digest or unique prefix of at least six hex digits.

        Raises ``UsageError`` when there is none or several, ``RunError`` when its manifest is broken.
        """
        text = ref.removeprefix(_PREFIX)
        folder = self.objects / text
        if not text.isalnum() or len(text) > _DIGITS or not folder.is_dir():
            known = 6 <= len(text) <= _DIGITS and text.isalnum()
            matches = sorted(self.objects.glob(f"{text}*")) if known else []
            if len(matches) != 1:
                why = "no such artifact" if not matches else f"ambiguous ({len(matches)} match)"
                raise UsageError(f"artifact {ref}: {why}; `cogumi status` lists those of a run")
            folder = matches[0]
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if not isinstance(manifest["kind"], str) or not isinstance(manifest["facts"], dict):
                raise ValueError("kind or facts is of another type")
            if not isinstance(manifest["files"], dict):
                raise ValueError("files is of another type")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(
                f"artifact {ref}: its manifest {folder / MANIFEST} is unreadable "
                f"({type(error).__name__}: {error}); delete its folder and run again"
            ) from error
        return Artifact(_PREFIX + folder.name, folder / "payload", manifest)

    def has(self, digest: str) -> bool:
        """Tell whether a complete artifact of this digest is here."""
        return (self.objects / digest.removeprefix(_PREFIX) / MANIFEST).is_file()

    def verify(self, artifact: Artifact) -> None:
        """Read every byte again; raises ``RunError`` naming the first file that changed or is cut short."""
        if manifest_digest(artifact.manifest) != artifact.digest:
            raise RunError(f"{artifact.short}: its manifest was changed; delete the folder and re-run")
        for name, entry in artifact.manifest["files"].items():
            path = artifact.path / name
            size = path.stat().st_size if path.is_file() else 0
            if size != entry["bytes"]:
                raise RunError(
                    f"{path}: {size} bytes, {entry['bytes']} expected; delete the folder and re-run"
                )
            if file_sha256(path) != entry["sha256"]:
                raise RunError(f"{path}: content changed since it was made; delete the folder and re-run")

    def sweep(self) -> None:
        """Remove what killed processes left half-made."""
        for folder in self.staging.glob("*-*") if self.staging.is_dir() else ():
            owner = int(folder.name.partition("-")[0])
            try:
                os.kill(owner, 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
            except PermissionError:
                continue


def disk_error(error: OSError, path: Path) -> RunError:
    """Return the one line for a failed write, naming a full disk as such."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"disk full while writing {path}: free space and run again; finished work is kept")
    return RunError(f"cannot write {path}: {error.strerror or error}")


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader or a kill sees the old content or the new, never a part.

    A link is followed. What is there and no file (``/dev/stdout``, a pipe) is written to as it stands.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        path = path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError) as error:
        raise disk_error(error if isinstance(error, OSError) else OSError(str(error)), path) from error
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from error
