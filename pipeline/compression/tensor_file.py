"""Safetensors files as they travel: zeros are not paid for, and like bytes stand together.

zstd finds repetitions and skewed bytes, both of which lie hidden in a checkpoint. This container brings them
to light, loses nothing, and is then compressed as any stream is:

- ``planes``: of each number the sign goes to the low end and the bytes are split into planes, so that all
  exponents stand together;
- ``bitmap``: a bit for each number, set where it is not zero, then the planes of these alone. zstd codes the
  bits near their entropy: .94 bits a weight at 65 % (.934), .65 at 2:4 (log2(6) / 4), where an index of 2
  bits for each kept weight takes a whole bit. A negative zero counts as a number: the round trip is exact;
- ``raw``: anything else.

Covered: bf16, fp16 and fp32, any mask. Format: magic, version, length of a JSON header, that header, the
file's own header as it stands, then the tensors in blocks of at most ``BLOCK`` numbers. Source of the file's
form: the safetensors specification (8 bytes of length, JSON, one buffer without holes).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from cogumi.errors import RunError

Layout = Literal["raw", "planes", "bitmap"]
Words = npt.NDArray[np.unsignedinteger[Any]]

MAGIC, VERSION = b"CGMTENSR", 1
BLOCK = 1 << 22
"""Numbers that are laid out together: at most 16 MB in memory, and planes longer than zstd's own blocks."""
_PREFIX = struct.Struct("<8sIQ")
_HEADER_LIMIT = 1 << 26
_WORDS: dict[str, type[np.unsignedinteger[Any]]] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}
# Share of a number's bits that leaving the zeros out must gain over their map.
_WORTH = 1.05


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a safetensors file: its ``dtype`` as the file names it, and where its bytes lie."""

    name: str
    dtype: str
    offset: int
    bytes: int


def stored_tensors(path: Path) -> tuple[int, list[StoredTensor]]:
    """Return the length of a safetensors file's header and its tensors in the order of their bytes.

    Raises ``RunError`` naming the file when it is cut short, has holes, or is something else.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _HEADER_LIMIT):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        found = [
            StoredTensor(name, entry["dtype"], entry["data_offsets"][0], entry["data_offsets"][1])
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise RunError(f"{path}: cut short or not safetensors ({error})") from error
    begin, at = 8 + length, 0
    tensors = []
    for entry in sorted(found, key=lambda each: (each.offset, each.bytes)):
        if entry.offset != at or entry.bytes < at:
            raise RunError(f"{path}: tensor {entry.name} does not begin where the one before it ends")
        tensors.append(StoredTensor(entry.name, entry.dtype, begin + at, entry.bytes - at))
        at = entry.bytes
    if begin + at != size:
        raise RunError(f"{path}: {size} bytes, {begin + at} expected; cut short or with a tail")
    return begin, tensors


# Writing ------------------------------------------------------------------------------------------


def encoded(path: Path) -> Iterator[bytes]:
    """Yield a safetensors file in the container's form; raises ``RunError`` as ``stored_tensors`` does."""
    begin, tensors = stored_tensors(path)
    layouts = [(_layout(path, tensor), _item_bytes(tensor), tensor.bytes) for tensor in tensors]
    header = json.dumps({"header": begin, "tensors": layouts}, separators=(",", ":")).encode()
    yield _PREFIX.pack(MAGIC, VERSION, len(header)) + header
    with path.open("rb") as file:
        yield file.read(begin)
        for tensor, (layout, item, _) in zip(tensors, layouts, strict=True):
            for block in _blocks(file, tensor, item):
                yield from _encode(block, layout, item)


def _encode(block: bytes, layout: Layout, item: int) -> Iterator[bytes]:
    if layout == "raw":
        yield block
        return
    words = np.frombuffer(block, dtype=f"<u{item}")
    if layout == "bitmap":
        kept = words != 0
        yield np.packbits(kept, bitorder="little").tobytes()
        words = words[kept]
    turned = _sign_low(words, item)
    # The most significant byte first: all exponents, then what looks like noise.
    for plane in reversed(range(item)):
        yield (turned >> np.asarray(8 * plane, turned.dtype)).astype(np.uint8).tobytes()


def _layout(path: Path, tensor: StoredTensor) -> Layout:
    if tensor.dtype not in _WORDS:
        return "raw"
    item = _item_bytes(tensor)
    numbers = tensor.bytes // item
    if not numbers:
        return "raw"
    zeros = sum(int((mask == 0).sum()) for mask in _masks(path, tensor)) / numbers
    return "bitmap" if 8 * item * zeros > _WORTH * entropy(zeros) else "planes"


def _masks(path: Path, tensor: StoredTensor) -> Iterator[npt.NDArray[np.bool_]]:
    item = _item_bytes(tensor)
    with path.open("rb") as file:
        for block in _blocks(file, tensor, item):
            yield np.frombuffer(block, dtype=f"<u{item}") != 0


def _blocks(file: BinaryIO, tensor: StoredTensor, item: int) -> Iterator[bytes]:
    file.seek(tensor.offset)
    for size in _sizes(tensor.bytes, item):
        yield file.read(size)


def _sizes(total: int, item: int) -> Iterator[int]:
    for start in range(0, total, BLOCK * item):
        yield min(BLOCK * item, total - start)


def _item_bytes(tensor: StoredTensor) -> int:
    return np.dtype(_WORDS.get(tensor.dtype, np.uint8)).itemsize


def _sign_low(words: Any, item: int) -> Any:
    """Turn left by one bit, so that the exponent fills the top byte and the sign joins the mantissa."""
    one, rest = np.asarray(1, words.dtype), np.asarray(8 * item - 1, words.dtype)
    return (words << one) | (words >> rest)


def _sign_high(words: Any, item: int) -> Any:
    one, rest = np.asarray(1, words.dtype), np.asarray(8 * item - 1, words.dtype)
    return (words >> one) | (words << rest)


# Reading ------------------------------------------------------------------------------------------


def decode(read: Callable[[int], bytes], limit: int) -> Iterator[bytes]:
    """Yield the safetensors file again, from ``read(n)``, which returns exactly n bytes or fewer at the end.

    Never yields more than ``limit`` bytes, nor holds more than a few blocks. Raises ``ValueError`` for
    anything that ``encoded`` did not write.
    """
    magic, version, length = _PREFIX.unpack(_exactly(read, _PREFIX.size))
    if magic != MAGIC or version != VERSION:
        raise ValueError(
            f"tensor container of version {version}" if magic == MAGIC else "no tensor container"
        )
    if length > _HEADER_LIMIT:
        raise ValueError(f"a header of {length} bytes")
    begin, tensors = _layouts(_exactly(read, length))
    if begin + sum(size for _, _, size in tensors) != limit:
        raise ValueError("another size than the manifest has")
    yield _exactly(read, begin)
    for layout, item, total in tensors:
        for size in _sizes(total, item):
            yield _decode(read, layout, item, size)


def _layouts(header: bytes) -> tuple[int, list[tuple[Layout, int, int]]]:
    try:
        found = json.loads(header)
        begin = found["header"]
        tensors = [(layout, item, size) for layout, item, size in found["tensors"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"a broken header ({error})") from error
    numbers = [begin, *(each for _, item, size in tensors for each in (item, size))]
    if any(type(each) is not int or each < 0 for each in numbers) or begin > _HEADER_LIMIT:
        raise ValueError("a broken header")
    for layout, item, size in tensors:
        if layout not in ("raw", "planes", "bitmap") or item not in (1, 2, 4) or size % item:
            raise ValueError("a layout that this version does not know")
    return begin, tensors


def _decode(read: Callable[[int], bytes], layout: Layout, item: int, size: int) -> bytes:
    if layout == "raw":
        return _exactly(read, size)
    numbers = size // item
    kept = None
    if layout == "bitmap":
        bits = np.frombuffer(_exactly(read, -(-numbers // 8)), dtype=np.uint8)
        kept = np.unpackbits(bits, count=numbers, bitorder="little").astype(bool)
    count = numbers if kept is None else int(kept.sum())
    words = np.zeros(count, dtype=f"<u{item}")
    for plane in reversed(range(item)):
        part = np.frombuffer(_exactly(read, count), dtype=np.uint8).astype(words.dtype)
        words |= part << np.asarray(8 * plane, words.dtype)
    words = _sign_high(words, item)
    if kept is None:
        return bytes(words.tobytes())
    whole = np.zeros(numbers, dtype=words.dtype)
    whole[kept] = words
    return bytes(whole.tobytes())


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    found = read(size)
    if len(found) != size:
        raise ValueError("cut short")
    return found


# What the masks cost --------------------------------------------------------------------------------


def entropy(zeros: float) -> float:
    """Return the bits that one weight of a random mask takes at a share ``zeros`` of zeros, in [0, 1]."""
    return -sum(p * math.log2(p) for p in (zeros, 1 - zeros) if p > 0)


@dataclass(frozen=True, slots=True)
class MaskCost:
    """What masks take: ``bits_per_weight`` after zstd, against the ``entropy`` of random ones."""

    weights: int
    zeros: int
    bits_per_weight: float
    entropy: float


def mask_cost(path: Path, level: int, *, most: int = 1 << 27) -> MaskCost | None:
    """Measure the masks of a file's sparse tensors, over its first ``most`` weights; None without any."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=level).compressobj()
    weights = zeros = taken = 0
    bound = 0.0
    for tensor in stored_tensors(path)[1]:
        if weights >= most or _layout(path, tensor) != "bitmap":
            continue
        for mask in _masks(path, tensor):
            taken += len(compressor.compress(np.packbits(mask, bitorder="little").tobytes()))
            blank = int(mask.size - mask.sum())
            bound += mask.size * entropy(blank / mask.size)
            weights, zeros = weights + mask.size, zeros + blank
    taken += len(compressor.flush())
    if not weights:
        return None
    return MaskCost(weights, zeros, round(8 * taken / weights, 5), round(bound / weights, 5))
