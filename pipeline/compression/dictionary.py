"""A zstd dictionary from the files themselves, and what zstd gains on each kind of tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.compression.gguf_tensors import GGUFFile
from pipeline.compression.tensor_file import stored_tensors

# zstd's manual: samples of some KB each, about a hundred times the dictionary in all. 4 MB bound the seconds.
_SAMPLE, _MOST_SAMPLED = 4096, 1 << 22
# zstd's own default sizes of segment and d-mer (ZDICT_trainFromBuffer); given, so that none are searched for.
_SEGMENT, _DMER = 1024, 8


def train_dictionary(files: Sequence[Path], size: int) -> bytes | None:
    """Return a dictionary of at most ``size`` bytes from samples spread over ``files``; None for too few."""
    if not size:
        return None
    import zstandard

    samples = _samples(files, min(100 * size, _MOST_SAMPLED))
    try:
        found = zstandard.train_dictionary(size, samples, k=min(_SEGMENT, size // 2), d=_DMER)
    except zstandard.ZstdError:
        # Its one reason: less content than it can learn from.
        return None
    return bytes(found.as_bytes())


def _samples(files: Sequence[Path], most: int) -> list[bytes | bytearray | memoryview[int]]:
    """Return pieces at equal distances, as much of each file: the small ones are those that a start helps."""
    share = max(_SAMPLE, most // len(files))
    samples: list[bytes | bytearray | memoryview[int]] = []
    for path in files:
        step = max(_SAMPLE, path.stat().st_size * _SAMPLE // share)
        with path.open("rb") as file:
            for at in range(0, path.stat().st_size, step):
                file.seek(at)
                samples.append(file.read(_SAMPLE))
    return samples


@dataclass(frozen=True, slots=True)
class TypeGain:
    """What zstd does to the bytes of all tensors of one type: ``sampled`` of ``bytes`` became ``stored``."""

    type: str
    tensors: int
    bytes: int
    sampled: int
    stored: int

    @property
    def gain(self) -> float:
        """Share of the bytes that zstd saves; below 0 where it adds some."""
        return 1 - self.stored / self.sampled if self.sampled else 0.0


def type_gains(files: Sequence[Path], level: int, *, most: int = 1 << 24) -> list[TypeGain]:
    """Compress tensors by type, each type as one stream over its first ``most`` bytes, tensor after tensor.

    Reads GGUF and safetensors files, others are left out; types are named as the files name them. Raises
    ``RunError`` naming a broken file.
    """
    import zstandard

    found: dict[str, list[int]] = {}
    streams: dict[str, Any] = {}
    for file, type_name, offset, size in _tensors(files):
        totals = found.setdefault(type_name, [0, 0, 0, 0])
        stream = streams.setdefault(type_name, zstandard.ZstdCompressor(level=level).compressobj())
        totals[0], totals[1] = totals[0] + 1, totals[1] + size
        taken = min(size, most - totals[2])
        with file.open("rb") as handle:
            handle.seek(offset)
            while taken > 0 and (piece := handle.read(min(taken, 1 << 20))):
                totals[3] += len(stream.compress(piece))
                totals[2], taken = totals[2] + len(piece), taken - len(piece)
    for type_name, totals in found.items():
        totals[3] += len(streams[type_name].flush())
    return [TypeGain(name, *totals) for name, totals in sorted(found.items())]


def _tensors(files: Sequence[Path]) -> Iterator[tuple[Path, str, int, int]]:
    """Yield file, type, offset and bytes of every tensor."""
    for path in files:
        if path.suffix == ".gguf":
            for info in GGUFFile(path).tensors.values():
                yield path, info.kind, info.offset, info.bytes
        elif path.suffix == ".safetensors":
            for tensor in stored_tensors(path)[1]:
                yield path, tensor.dtype, tensor.offset, tensor.bytes
