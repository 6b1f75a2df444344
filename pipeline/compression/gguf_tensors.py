"""GGUF files tensor by tensor: read any type, and write a file again with other tensors in it.

The ``gguf`` package refuses a whole file when it holds one type that it does not know (0.19: Q2_0). Format:
the GGUF specification, version 3, little endian; metadata is copied byte by byte and only what is named is
changed. Covered: one file. Not covered: split files, big-endian ones, versions 1 and 2.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from cogumi.errors import RunError
from cogumi.store import disk_error
from evals.backends.gguf_header import read_header
from pipeline.compression.ggml import canonical, dequantize, number_of, row_bytes

if TYPE_CHECKING:
    from pipeline.compression.ggml import Bytes, Floats

_MAGIC, _VERSION = b"GGUF", 3
_UINT32, _STRING = 4, 8
_FILE_TYPES = {
    # enum llama_ftype of llama.h: what most matrices of the file are.
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q2_K": 10,
    "q3_K": 12,
    "q4_K": 15,
    "q5_K": 17,
    "q6_K": 18,
    "iq2_xxs": 19,
    "iq2_xs": 20,
    "iq3_xxs": 23,
    "iq1_s": 24,
    "iq4_nl": 25,
    "iq3_s": 26,
    "iq2_s": 28,
    "iq4_xs": 30,
    "iq1_m": 31,
    "bf16": 32,
    "tq1_0": 36,
    "tq2_0": 37,
    "mxfp4": 38,
    "nvfp4": 39,
    "q1_0": 40,
    "q2_0": 41,
}


class GGUFFile:
    """An open GGUF file: ``metadata`` (arrays are left out), and its tensors by name.

    Raises ``RunError`` naming the file when it is no GGUF, of another version, or cut short.
    """

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        if header.version != _VERSION:
            raise RunError(
                f"{path}: GGUF version {header.version}, only {_VERSION} is rewritten; export it again"
            )
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read ({error})") from error
        self.metadata = header.metadata
        self.entries = {key: self._map[begin:end] for key, (begin, end) in header.entries.items()}
        """Each metadata entry as it lies in the file, its key included."""
        self.tensors = {info.name: info for info in header.tensors}

    def values(self, name: str) -> Floats:
        """Return a tensor's values as float32 in its shape."""
        import numpy as np

        info = self.tensors[name]
        raw = np.frombuffer(self._map, np.uint8, info.bytes, info.offset)
        return dequantize(raw.reshape(info.rows, -1), info.kind, info.columns).reshape(info.shape)

    def raw(self, name: str) -> bytes:
        """Return a tensor's bytes."""
        info = self.tensors[name]
        return self._map[info.offset : info.offset + info.bytes]


def write_gguf(
    source: GGUFFile,
    out: Path,
    kinds: Mapping[str, str],
    data: Callable[[str], Bytes],
    facts: Mapping[str, str | int] | None = None,
) -> None:
    """Write ``source`` again with the tensors named in ``kinds`` in those types.

    ``data(name)`` returns a tensor's bytes, uint8 (rows, row bytes), and is called once, in the file's order:
    one tensor is in memory at a time. ``facts`` are metadata to add or replace, texts or counts. Vectors and
    tensors not named are copied. Raises ``RunError`` on a full disk; ``out`` appears only when it is
    complete.
    """
    partial = out.with_name(f".{out.name}.partial")
    wanted = {name: canonical(kind) for name, kind in kinds.items()}
    if unknown := sorted(wanted.keys() - source.tensors.keys()):
        raise RunError(f"{source.path}: has no tensor {unknown[0]}")
    entries = dict(source.entries)
    entries["general.alignment"] = _entry("general.alignment", 32)
    entries["general.file_type"] = _entry("general.file_type", _file_type(source, wanted))
    # llama.cpp's number of the revision of its quantised formats; 2 is the only one since 2023.
    entries["general.quantization_version"] = _entry("general.quantization_version", 2)
    for key, value in (facts or {}).items():
        entries[key] = _entry(key, value)
    header = [_MAGIC, struct.pack("<IQQ", _VERSION, len(source.tensors), len(entries)), *entries.values()]
    at = 0
    for info in source.tensors.values():
        kind = wanted.get(info.name, info.kind)
        header += [
            _string(info.name),
            struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *reversed(info.shape)),
            struct.pack("<IQ", number_of(kind), at),
        ]
        at += _padded(info.rows * row_bytes(kind, info.columns))
    try:
        with partial.open("wb") as file:
            file.write(b"".join(header))
            file.write(bytes(-file.tell() % 32))
            for info in source.tensors.values():
                kind = wanted.get(info.name, info.kind)
                raw = data(info.name).tobytes() if info.name in wanted else source.raw(info.name)
                if len(raw) != info.rows * row_bytes(kind, info.columns):
                    raise RunError(f"{out}: {len(raw)} bytes are not tensor {info.name} in {kind}")
                file.write(raw)
                file.write(bytes(-len(raw) % 32))
        partial.rename(out)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        partial.unlink(missing_ok=True)


def file_bytes(source: GGUFFile, kinds: Mapping[str, str]) -> int:
    """Return the bytes of ``source`` written with these types, to within a few hundred of metadata."""
    tensors = sum(
        _padded(i.rows * row_bytes(kinds.get(i.name, i.kind), i.columns)) for i in source.tensors.values()
    )
    start = min((info.offset for info in source.tensors.values()), default=0)
    return start + tensors


def _file_type(source: GGUFFile, kinds: Mapping[str, str]) -> int:
    """Return llama.cpp's number of the type that most of the weights have: it only names the file."""
    held: dict[str, int] = {}
    for info in source.tensors.values():
        if len(info.shape) > 1:
            kind = kinds.get(info.name, info.kind)
            held[kind] = held.get(kind, 0) + prod(info.shape)
    return _FILE_TYPES[max(sorted(held), key=held.__getitem__)] if held else 0


def _padded(size: int) -> int:
    return -(-size // 32) * 32


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", errors="surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _entry(key: str, value: str | int) -> bytes:
    if isinstance(value, str):
        return _string(key) + struct.pack("<I", _STRING) + _string(value)
    return _string(key) + struct.pack("<I", _UINT32) + struct.pack("<I", value)
