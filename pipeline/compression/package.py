"""Stage ``compression.package``: a model beside its files as they travel, compressed and named by digest.

Bytes in memory and bytes to download are two figures. The first are those of the weights (and of the adapter
that is always used with them); the second are all of ``download/``: files, dictionary and manifest. A trained
dictionary is kept only where it saves more than it takes, which is rare: it helps at the beginning of a
stream, and a model is one long stream. ``pipeline.compression.expand`` reads it all back. Base and draft
alike.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cogumi.digest import file_sha256
from cogumi.errors import RunError
from cogumi.stage import Progress, Settings, Stage, StageContext, StageResult
from cogumi.store import Artifact, disk_error, write_atomic
from pipeline.compression.package_format import (
    DICTIONARY,
    DOWNLOAD,
    MANIFEST,
    MOST_DICTIONARY_BYTES,
    Codec,
    DictionaryEntry,
    FileEntry,
    PackageManifest,
)

_CHUNK = 1 << 20
_WEIGHTS = (".gguf", ".safetensors")
_SUFFIX: dict[Codec, str] = {"none": "", "zstd": ".zst", "tensors+zstd": ".tensors.zst"}


class PackageSettings(Settings):
    """How hard zstd tries; the level and the dictionary of plan 3.3."""

    level: int | None = Field(default=19, ge=1, le=22)
    """zstd's level; null stores every file as it is."""
    dictionary_bytes: int = Field(default=112_640, ge=0, le=MOST_DICTIONARY_BYTES)
    """Size of the dictionary to train, zstd's own default; 0 for none."""
    role: Literal["base", "draft"] = "base"
    """Under which names a gate reads the sizes."""
    measure_types: bool = True
    """Tell what zstd gains on each type of tensor."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """One file in scratch, as it would travel."""

    source: Path
    name: str
    codec: Codec
    path: Path
    bytes: int


def run(settings: PackageSettings, ctx: StageContext) -> StageResult:
    """Package input ``model``, a GGUF artifact or a model folder; its files stand beside the package."""
    from pipeline.compression.dictionary import type_gains

    model = ctx.inputs["model"]
    if model.kind not in ("gguf", "model"):
        raise RunError(f"artifact {model.short} is a {model.kind}; only models and GGUF files are packaged")
    files = _payload(model)
    try:
        kept, dictionary, tried = _smallest(files, settings, ctx)
        for name, path in files.items():
            _place(path, ctx.out / name)
        manifest = _store(kept, dictionary, ctx.out / DOWNLOAD)
    except OSError as error:
        raise disk_error(error, ctx.out) from error
    facts = {
        **model.facts,
        **_sizes(settings, model, files, manifest, ctx.out / DOWNLOAD),
        "manifest_sha256": file_sha256(ctx.out / DOWNLOAD / MANIFEST),
        "dictionary": tried,
    }
    level = settings.level
    if level is not None and settings.measure_types:
        weights = [path for name, path in files.items() if name.endswith(_WEIGHTS)]
        facts["zstd_types"] = [
            {**asdict(gain), "gain": round(gain.gain, 5)} for gain in type_gains(weights, level)
        ]
    if level is not None and (masks := _masks(files, level)):
        facts["masks"] = masks
    return StageResult("gguf" if model.kind == "gguf" else "model", facts)


def _payload(model: Artifact) -> dict[str, Path]:
    """Return the files of the model itself: not those of an earlier package."""
    names = [name for name in sorted(model.manifest["files"]) if not name.startswith(f"{DOWNLOAD}/")]
    if not any(name.endswith(_WEIGHTS) for name in names):
        raise RunError(f"artifact {model.short} has no weights to package (.gguf or .safetensors)")
    return {name: model.file(name) for name in names}


# Compressing ----------------------------------------------------------------------------------------


def _smallest(
    files: dict[str, Path], settings: PackageSettings, ctx: StageContext
) -> tuple[list[_Packed], bytes | None, dict[str, Any]]:
    """Return the files as they travel, the dictionary where it pays, and what it would save."""
    level, total = settings.level, sum(path.stat().st_size for path in files.values())
    if level is None:
        return [_as_is(name, path) for name, path in files.items()], None, {"bytes": 0, "kept": False}
    from pipeline.compression.dictionary import train_dictionary

    dictionary = train_dictionary(list(files.values()), settings.dictionary_bytes)
    rounds = 1 if dictionary is None else 2
    count = _Count(ctx.progress, rounds * total)
    plain = _all(files, level, None, ctx.scratch / "plain", count)
    if dictionary is None:
        return plain, None, {"bytes": 0, "kept": False}
    helped = _all(files, level, dictionary, ctx.scratch / "dictionary", count)
    saved = sum(one.bytes - two.bytes for one, two in zip(plain, helped, strict=True))
    # Its line in the manifest is bytes as well.
    pays = saved > len(dictionary) + 200
    tried = {"bytes": len(dictionary), "saved": saved, "kept": pays}
    return (helped, dictionary, tried) if pays else (plain, None, tried)


class _Count:
    """Tells progress in bytes of the files."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, max(total, 1), 0

    def add(self, size: int) -> None:
        self._done = min(self._done + size, self._total)
        self._progress.update(self._done, self._total)


def _all(
    files: dict[str, Path], level: int, dictionary: bytes | None, folder: Path, count: _Count
) -> list[_Packed]:
    return [_pack(name, path, level, dictionary, folder, count) for name, path in files.items()]


def _pack(
    name: str, path: Path, level: int, dictionary: bytes | None, folder: Path, count: _Count
) -> _Packed:
    """Compress one file into scratch, where a run that was killed finds it again."""
    from pipeline.compression.tensor_file import encoded

    codec: Codec = "tensors+zstd" if path.suffix == ".safetensors" else "zstd"
    target = folder / f"{name}{_SUFFIX[codec]}"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        source = encoded(path) if codec == "tensors+zstd" else _chunks(path)
        compress(source, partial, level, dictionary)
        partial.rename(target)
    count.add(path.stat().st_size)
    if target.stat().st_size < path.stat().st_size:
        return _Packed(path, name, codec, target, target.stat().st_size)
    return _as_is(name, path)


def _as_is(name: str, path: Path) -> _Packed:
    return _Packed(path, name, "none", path, path.stat().st_size)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece


def compress(pieces: Iterable[bytes], out: Path, level: int, dictionary: bytes | None = None) -> None:
    """Write one zstd frame; its bytes do not depend on how many processors there are."""
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        # zstd's frames are the same for one worker and for many, but not for none (its manual, nbWorkers).
        threads=len(os.sched_getaffinity(0)),
        write_checksum=False,
        write_content_size=False,
    )
    trained = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=trained)
    with out.open("wb") as file, compressor.stream_writer(file, closefd=False) as writer:
        for piece in pieces:
            writer.write(piece)


# Placing --------------------------------------------------------------------------------------------


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _store(kept: Sequence[_Packed], dictionary: bytes | None, folder: Path) -> PackageManifest:
    """Fill ``download/`` and return its manifest."""
    folder.mkdir()
    entries, trained = [], None
    for packed in kept:
        stored = f"{packed.name}{_SUFFIX[packed.codec]}"
        if stored in (MANIFEST, DICTIONARY):
            raise RunError(f"{packed.source}: a package has its own {stored}; rename the file")
        _place(packed.path, folder / stored)
        entries.append(
            FileEntry(
                name=packed.name,
                stored=stored,
                codec=packed.codec,
                bytes=packed.source.stat().st_size,
                sha256=file_sha256(packed.source),
                stored_bytes=packed.bytes,
                stored_sha256=file_sha256(folder / stored),
            )
        )
    if dictionary is not None:
        path = folder / DICTIONARY
        write_atomic(path, dictionary)
        trained = DictionaryEntry(
            stored=DICTIONARY, stored_bytes=len(dictionary), stored_sha256=file_sha256(path)
        )
    manifest = PackageManifest(dictionary=trained, files=entries)
    write_atomic(folder / MANIFEST, manifest.to_bytes())
    return manifest


# Telling --------------------------------------------------------------------------------------------


def _sizes(
    settings: PackageSettings,
    model: Artifact,
    files: dict[str, Path],
    manifest: PackageManifest,
    folder: Path,
) -> dict[str, Any]:
    resident = sum(entry.bytes for entry in manifest.files if entry.name.endswith(_WEIGHTS))
    download = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    metrics: dict[str, Any] = dict(model.facts.get("metrics", {}))
    if settings.role == "draft":
        metrics |= {"draft_bytes_resident": resident, "draft_bytes_download": download}
    else:
        # Plan 3.3 gives the base's own file, before its recovery adapter.
        own = [entry.stored_bytes for entry in manifest.files if entry.name == "model.gguf"]
        metrics |= {"zstd_bytes_download": own[0]} if own else {}
    return {
        "bytes_resident": resident,
        "bytes_download": download,
        "bytes_unpackaged": sum(path.stat().st_size for path in files.values()),
        "metrics": metrics,
        "packaged_files": {
            entry.name: {
                "codec": entry.codec,
                "bytes_resident": entry.bytes,
                "bytes_download": entry.stored_bytes,
            }
            for entry in manifest.files
        },
    }


def _masks(files: dict[str, Path], level: int) -> dict[str, Any]:
    """Return what the masks of sparse checkpoints take, file by file."""
    from pipeline.compression.tensor_file import mask_cost

    found = {name: mask_cost(path, level) for name, path in files.items() if path.suffix == ".safetensors"}
    return {name: asdict(cost) for name, cost in found.items() if cost is not None}


PACKAGE = Stage(
    name="compression.package",
    version=1,
    title="Package for download",
    settings=PackageSettings,
    run=run,
    inputs=("model",),
)
