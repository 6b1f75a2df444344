"""The manifest of a packaged model: which files travel, as what, and what they must be after expansion."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cogumi.errors import RunError

FORMAT = 1
DOWNLOAD, MANIFEST, DICTIONARY = "download", "manifest.json", "dictionary.zstd"
MOST_DICTIONARY_BYTES = 1 << 24
# A manifest of a thousand shards is under 1 MB.
_MOST_MANIFEST_BYTES = 1 << 26

Codec = Literal["none", "zstd", "tensors+zstd"]
"""``none``: as it is; ``zstd``: one frame; ``tensors+zstd``: ``tensor_file`` first, then one frame."""
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Size = Annotated[int, Field(ge=0, strict=True)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class DictionaryEntry(_Entry):
    """The dictionary that frames were made with; it travels as it is."""

    stored: str
    stored_bytes: Annotated[int, Field(ge=0, le=MOST_DICTIONARY_BYTES, strict=True)]
    stored_sha256: _Sha256


class FileEntry(_Entry):
    """One file: ``name`` after expansion, ``stored`` as it travels, both relative to their folders."""

    name: str
    stored: str
    codec: Codec
    bytes: _Size
    sha256: _Sha256
    stored_bytes: _Size
    stored_sha256: _Sha256


class PackageManifest(_Entry):
    """Everything that travels but the manifest itself."""

    format: Literal[1] = 1
    dictionary: DictionaryEntry | None = None
    files: list[FileEntry] = Field(min_length=1)

    def to_bytes(self) -> bytes:
        """Return the file's content: the same for equal manifests."""
        return (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode()


def read_manifest(path: Path) -> PackageManifest:
    """Read and check a manifest; raises ``RunError`` naming the file and what is wrong with it."""
    try:
        if path.stat().st_size > _MOST_MANIFEST_BYTES:
            raise RunError(f"{path}: {path.stat().st_size} bytes, which no manifest has")
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: no readable manifest ({error}); download the package again") from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise RunError(
            f"{path}: a package of format {version!r}, this version reads {FORMAT}; upgrade Cogumi"
        )
    try:
        manifest = PackageManifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunError(f"{path}: {where}: {first['msg']}; download the package again") from error
    _check_names(manifest, path)
    return manifest


def _check_names(manifest: PackageManifest, path: Path) -> None:
    """Refuse names that leave the folder, meet one another, or need a file to be a folder as well."""
    for names in (
        [entry.name for entry in manifest.files],
        [entry.stored for entry in manifest.files]
        + ([manifest.dictionary.stored] if manifest.dictionary else [])
        + [MANIFEST],
    ):
        taken: set[str] = set()
        folders: set[str] = set()
        for name in names:
            if not is_inside(name):
                raise RunError(f"{path}: the name {name!r} leaves the package's folder; nothing was written")
            # Case is folded: on some disks two such names are one file.
            folded = name.casefold()
            if folded in taken:
                raise RunError(f"{path}: the name {name!r} stands there twice; nothing was written")
            taken.add(folded)
            folders |= {parent.as_posix() for parent in PurePosixPath(folded).parents}
        if both := taken & folders:
            raise RunError(f"{path}: {sorted(both)[0]!r} is a file and a folder; nothing was written")


def is_inside(name: str) -> bool:
    """Tell whether a relative posix name stays below the folder that it is put into, on any system."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and not part.endswith((" ", ".")) for part in parts)
    return plain and not any(c in '\\:*?"<>|' or ord(c) < 32 or ord(c) == 127 for c in name)
