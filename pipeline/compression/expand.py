"""Expanding a packaged model: every byte is checked while it streams; the folder appears when all is right.

Refused with one line, and nothing left behind: a package of another version, cut short or changed; a file
that expands to more than its manifest says, which stops at the first byte too many; names that leave the
folder, and links in place of files. The manifest itself is believed: give its digest where that is known.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

from cogumi.digest import file_sha256
from cogumi.errors import RunError, UsageError
from cogumi.store import disk_error, sync_folder
from pipeline.compression.package_format import (
    DOWNLOAD,
    MANIFEST,
    FileEntry,
    PackageManifest,
    read_manifest,
)
from pipeline.compression.tensor_file import decode

_CHUNK = 1 << 20
# zstd's level 22 looks back 128 MB (window log 27): no frame of ours wants more memory than that.
_MOST_WINDOW = 1 << 27

Say = Callable[[int, int], None]


def expand(
    package: Path, out: Path, *, manifest_sha256: str | None = None, told: Say | None = None
) -> list[Path]:
    """Expand ``package``, the folder with the manifest or one above it, into the new folder ``out``.

    Returns the files. ``told`` is called with bytes done and in all. Raises ``UsageError`` when ``out``
    exists, ``RunError`` naming the file for a package that is not what its manifest says, and on a full disk.
    """
    folder = package / DOWNLOAD if (package / DOWNLOAD / MANIFEST).is_file() else package
    if os.path.lexists(out):
        raise UsageError(f"{out}: exists already; name a new folder")
    manifest = read_manifest(folder / MANIFEST)
    if manifest_sha256 not in (None, file_sha256(folder / MANIFEST)):
        raise RunError(f"{folder / MANIFEST}: not the manifest that was published; download it again")
    partial = out.with_name(f".{out.name}.partial")
    try:
        _remove(partial)
        _check_room(manifest, out)
        partial.mkdir(parents=True)
        dictionary = _dictionary(manifest, folder)
        total, done = sum(entry.bytes for entry in manifest.files), 0
        for entry in manifest.files:
            for size in _expand_file(entry, folder, partial, dictionary):
                done += size
                if told is not None:
                    told(done, total)
        partial.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        _remove(partial)
    return [out / entry.name for entry in manifest.files]


def _remove(partial: Path) -> None:
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial, ignore_errors=True)


def _check_room(manifest: PackageManifest, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    wanted, free = sum(entry.bytes for entry in manifest.files), shutil.disk_usage(out.parent).free
    if wanted > free:
        raise RunError(
            f"disk full: the package takes {wanted / 1e6:,.0f} MB in {out.parent}, "
            f"{free / 1e6:,.0f} MB are free; free space or name another folder"
        )


def _dictionary(manifest: PackageManifest, folder: Path) -> Any:
    entry = manifest.dictionary
    if entry is None:
        return None
    import zstandard

    path = _regular(folder, entry.stored, entry.stored_bytes)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.stored_sha256:
        raise _changed(path)
    return zstandard.ZstdCompressionDict(content)


def _expand_file(entry: FileEntry, folder: Path, out: Path, dictionary: Any) -> Iterator[int]:
    """Write one file, yielding how many bytes each piece had."""
    import zstandard

    stored = _regular(folder, entry.stored, entry.stored_bytes)
    target = out / entry.name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with stored.open("rb") as file, target.open("xb") as written:
        source = _Hashed(file)
        try:
            for piece in _pieces(entry, source, dictionary):
                size += len(piece)
                if size > entry.bytes:
                    raise RunError(
                        f"{stored}: expands to more than the {entry.bytes} bytes of its manifest; refused"
                    )
                digest.update(piece)
                written.write(piece)
                yield len(piece)
        except (zstandard.ZstdError, ValueError) as error:
            raise RunError(f"{stored}: cut short or changed ({error}); download it again") from error
        source.rest()
        written.flush()
        os.fsync(written.fileno())
    if source.digest != entry.stored_sha256:
        raise _changed(stored)
    if (size, digest.hexdigest()) != (entry.bytes, entry.sha256):
        raise RunError(f"{stored}: expands to something else than its manifest says; download it again")


def _pieces(entry: FileEntry, source: _Hashed, dictionary: Any) -> Iterator[bytes]:
    """Yield the expanded file in pieces that fit into memory whatever the frame claims."""
    if entry.codec == "none":
        while piece := source.read(_CHUNK):
            yield piece
        return
    import zstandard

    decompressor = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=_MOST_WINDOW)
    with decompressor.stream_reader(cast(IO[bytes], source), read_size=_CHUNK, closefd=False) as reader:
        if entry.codec == "tensors+zstd":
            yield from decode(lambda size: _read(reader, size), entry.bytes)
            # What follows the last tensor would be more than the manifest says.
            while piece := reader.read(_CHUNK):
                yield piece
            return
        while piece := reader.read(_CHUNK):
            yield piece


def _read(reader: Any, size: int) -> bytes:
    """Read ``size`` bytes, fewer only at the end; a claim beyond the stream costs no memory in advance."""
    pieces = bytearray()
    while len(pieces) < size and (piece := reader.read(min(_CHUNK, size - len(pieces)))):
        pieces += piece
    return bytes(pieces)


class _Hashed:
    """A file that is hashed as it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._hash.update(piece)
        return piece

    def rest(self) -> None:
        while self.read(_CHUNK):
            pass

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def _regular(folder: Path, name: str, size: int) -> Path:
    """Return a stored file of the right size that is no link, nor below one."""
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink():
            raise RunError(f"{path}: a link, where the package has a file; refused")
    try:
        found = path.stat()
    except OSError as error:
        raise RunError(f"{path}: missing from the package; download it again") from error
    if not stat.S_ISREG(found.st_mode):
        raise RunError(f"{path}: not a regular file; refused")
    if found.st_size != size:
        raise RunError(f"{path}: {found.st_size} bytes, {size} expected; download it again")
    return path


def _changed(path: Path) -> RunError:
    return RunError(f"{path}: its content is not what the manifest says; download it again")
