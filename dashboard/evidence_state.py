"""What a cache of evidence is keyed by: names, sizes and times of the files, asked for with a ``stat`` each.

A file that is written over where it stands changes no folder, so folders alone do not tell. They do tell
which files there are: a folder whose own time stands still is not listed again, and 2,000 measurements are
asked for in some 30 ms.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence

_LEVELS = 3
"""Folders of evidence: artifact, task, protocol."""
_SETTLED_NS = 2_000_000_000
"""A folder that changed less long ago may change again within one tick of the file system's clock."""
_MOST = 200_000
"""Folders that are remembered, of all workspaces together."""

_Listing = tuple[tuple[str, ...], tuple[str, ...]]
"""Paths of the folders, and of the files, that lie in one."""
_listed: dict[str, tuple[int, _Listing]] = {}


def evidence_state(evidence: str, others: Sequence[str]) -> tuple[bytes]:
    """Return a value that changes with any file of evidence, or with a folder or file of ``others``.

    What is not there counts as empty; nothing is opened.
    """
    digest = hashlib.sha256()
    for path in _files(evidence):
        digest.update(os.fsencode(f"{path} {stat_of(path)}\n"))
    for path in others:
        digest.update(os.fsencode(f"{path} {stat_of(path)}\n"))
        for file in _listing(path)[1]:
            digest.update(os.fsencode(f"{file} {stat_of(file)}\n"))
    return (digest.digest(),)


def stat_of(path: str) -> tuple[int, int]:
    """Return (size, time of change in ns), zeros where there is no such file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path for each of some thousand files takes longer than to ask
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _files(evidence: str) -> Iterator[str]:
    folders = [evidence]
    for _ in range(_LEVELS):
        folders = [path for folder in folders for path in _listing(folder)[0]]
    for folder in folders:
        # Its name as well: a folder without a file is a measurement that has begun.
        yield folder
        yield from (path for path in _listing(folder)[1] if path.endswith((".parquet", ".json")))


def _listing(folder: str) -> _Listing:
    changed = stat_of(folder)[1]
    known = _listed.get(folder)
    if known is not None and known[0] == changed:
        return known[1]
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.path, entry.is_dir()) for entry in entries)
    except OSError:
        _listed.pop(folder, None)
        return (), ()
    listing = (
        tuple(path for path, is_folder in found if is_folder),
        tuple(path for path, is_folder in found if not is_folder),
    )
    if time.time_ns() - changed > _SETTLED_NS:
        if len(_listed) >= _MOST:
            _listed.clear()
        _listed[folder] = (changed, listing)
    return listing
