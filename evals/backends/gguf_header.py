"""The header of a GGUF file: its plain metadata, and where and of what type every tensor is.

Own code because the ``gguf`` package refuses types that llama.cpp wrote (Q2_0 in gguf 0.19) and takes seconds
over a vocabulary. Format: github.com/ggml-org/ggml, docs/gguf.md. Covered: versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from cogumi.errors import RunError

VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# struct codes of the other types of a value, by GGUF's number.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a GGUF file; ``offset`` is counted from the beginning of the file."""

    name: str
    shape: tuple[int, ...]
    """As numpy would say it: rows before columns, the other way round than in the file."""
    kind: str
    """ggml's name of the type, for example ``q4_K``."""
    offset: int
    bytes: int

    @property
    def elements(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Number of rows; 1 for a vector."""
        return prod(self.shape[:-1])


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What stands before the tensors' values. ``metadata`` leaves arrays out."""

    version: int
    metadata: dict[str, Any]
    entries: dict[str, tuple[int, int]]
    """Where each metadata entry begins and ends in the file, its key and arrays included."""
    tensors: tuple[TensorInfo, ...]
    header_bytes: int
    """Bytes before the padding that comes before the first tensor's values."""


def read_header(path: Path) -> GGUFHeader:
    """Read the header of a GGUF file and check that all tensors lie within the file.

    Raises ``RunError`` naming the file when it is missing, no GGUF file, of another version or cut short.
    """
    try:
        with path.open("rb") as file:
            return _header(file, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise RunError(f"{path}: cut short or not a GGUF file; copy or export it again") from error


@cache
def kind_sizes(number: int) -> tuple[str, int, int]:
    """Return name, values and bytes of one block of ggml's type ``number``; raises ``RunError``."""
    names = _type_functions()
    # ggml_type_name reads beyond its table for a number that no type has.
    if not 0 <= number < _type_count():
        raise RunError(f"tensor type {number} is unknown to this llama.cpp")
    name, columns = names["ggml_type_name"](number), names["ggml_blck_size"](number)
    if not name or not columns:
        raise RunError(f"tensor type {number} is no longer supported by llama.cpp")
    return name.decode(), int(columns), int(names["ggml_type_size"](number))


@cache
def kind_number(kind: str) -> int:
    """Return ggml's number of a type by its name, in any case; raises ``RunError`` for an unknown one."""
    for number in range(_type_count()):
        try:
            name = kind_sizes(number)[0]
        except RunError:
            continue
        if name.lower() == kind.lower():
            return number
    raise RunError(f"'{kind}' is no tensor type of this llama.cpp (for example q4_K, iq4_nl, q8_0)")


def stored_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Return what a tensor of this shape takes as ``kind``; raises ``RunError`` when its rows do not fit."""
    name, columns, size = kind_sizes(kind_number(kind))
    if shape[-1] % columns:
        raise RunError(f"rows of {shape[-1]} cannot be stored as {name}, whose blocks have {columns} columns")
    return prod(shape) // columns * size


def _type_count() -> int:
    _type_functions()
    import llama_cpp

    return int(llama_cpp.GGML_TYPE_COUNT)


@cache
def _type_functions() -> dict[str, Any]:
    import ctypes

    try:
        from llama_cpp._ggml import libggml
    except ImportError as error:
        raise RunError(f"GGUF tensor types need {error.name}: pip install 'cogumi[all]'") from error
    results = {
        "ggml_type_name": ctypes.c_char_p,
        "ggml_blck_size": ctypes.c_int64,
        "ggml_type_size": ctypes.c_size_t,
    }
    found = {}
    for name, result in results.items():
        function = getattr(libggml, name)
        function.argtypes, function.restype = [ctypes.c_int], result
        found[name] = function
    return found


def _header(file: BinaryIO, path: Path) -> GGUFHeader:
    size = path.stat().st_size
    if file.read(4) != b"GGUF":
        raise RunError(f"{path}: not a GGUF file (its first bytes are wrong)")
    (version,) = _read(file, "I")
    if version not in VERSIONS:
        raise RunError(f"{path}: GGUF version {version}; versions 2 and 3 are read, so export it again")
    tensors, entries = _read(file, "QQ")
    # An entry takes more than 12 bytes: a count beyond that is rubbish, not a reason to read for hours.
    if (tensors + entries) * 12 > size:
        raise RunError(f"{path}: cut short or not a GGUF file; copy or export it again")
    metadata: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    for _ in range(entries):
        begin = file.tell()
        key = _text(file)
        (kind,) = _read(file, "I")
        value = _value(file, kind, size)
        if value is not None:
            metadata[key] = value
        places[key] = begin, file.tell()
    infos = []
    for _ in range(tensors):
        name = _text(file)
        (dimensions,) = _read(file, "I")
        shape = _read(file, f"{min(dimensions, 8)}Q")[::-1]
        infos.append((name, shape, *_read(file, "IQ")))
    alignment = int(metadata.get("general.alignment", _ALIGNMENT))
    before = file.tell()
    start = -(-before // alignment) * alignment
    found = tuple(_info(path, name, shape, number, start + at) for name, shape, number, at in infos)
    end = max((info.offset + info.bytes for info in found), default=start)
    if end > size:
        raise RunError(f"{path}: cut short ({size:,} bytes of {end:,}); copy or export it again")
    return GGUFHeader(version, metadata, places, found, before)


def _info(path: Path, name: str, shape: tuple[int, ...], number: int, offset: int) -> TensorInfo:
    try:
        kind = kind_sizes(number)[0]
        return TensorInfo(name, shape, kind, offset, stored_bytes(kind, shape))
    except RunError as error:
        raise RunError(f"{path}: {name}: {error}") from error


def _read(file: BinaryIO, form: str) -> tuple[Any, ...]:
    packed = struct.Struct(f"<{form}")
    return packed.unpack(file.read(packed.size))


def _text(file: BinaryIO) -> str:
    (length,) = _read(file, "Q")
    data = file.read(length)
    if len(data) != length:
        raise struct.error("cut short")
    return data.decode("utf-8")


def _value(file: BinaryIO, kind: int, size: int) -> Any:
    """Return a value; None for an array, which is skipped."""
    if kind == _STRING:
        return _text(file)
    if kind in _SCALARS:
        return _read(file, _SCALARS[kind])[0]
    if kind != _ARRAY:
        raise struct.error(f"value of type {kind}")
    inner, count = _read(file, "IQ")
    if count > size:
        raise struct.error("cut short")
    if inner in _SCALARS:
        file.seek(count * struct.calcsize(f"<{_SCALARS[inner]}"), 1)
    else:
        for _ in range(count):
            if inner == _STRING:
                (length,) = _read(file, "Q")
                file.seek(length, 1)
            else:
                _value(file, inner, size)
    return None
