"""What a GGUF file will take before it is made, by llama.cpp's own choice of types, and what fell back.

llama.cpp's dry run names the type of every tensor in its log and nowhere else: it is read there, and the
bytes are our own arithmetic over ggml's block sizes. A model folder needs no weights for it, only its
``config.json``: llama.cpp is shown a file with a header and a hole where the values would be.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import cast

from cogumi.errors import RunError, UsageError
from pipeline.compression.gguf_quantize import Parameters, file_type, run_quantize
from pipeline.compression.gguf_write import FloatType, write_skeleton

FLOAT_TYPES = ("f32", "f16", "bf16")
_ALIGNMENT = 32
# What llama.cpp adds to the header: a key of 28 letters with its length, a type, a number.
_VERSION_KEY, _VERSION_ENTRY = "general.quantization_version", 8 + 28 + 4 + 4
_TENSOR = re.compile(r"\[ *\d+/ *\d+\] (\S+)")
_TARGET = re.compile(r"size = .*-> .*\((\w+)\)")
_UNFIT = re.compile(r"warning: (\S+) +- ncols +\d+ not divisible by +\d+ \(required for type +(\w+)\)")
_LATER_IMPORTANCE = "will require an imatrix"
# File types whose head llama.cpp makes Q5_K, where the others' is Q6_K (llama-quant.cpp).
_Q5_HEADS = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS"}


@dataclass(frozen=True, slots=True)
class Fallback:
    """A tensor whose rows do not fit the blocks of the type that it should have had."""

    tensor: str
    wanted: str
    kind: str
    """The type that it got."""
    extra_bytes: int
    """What it takes beyond the wanted type, as if that fitted."""


@dataclass(frozen=True, slots=True)
class PlannedSize:
    """What a file will be: ``bytes`` in all, of them ``header_bytes`` for metadata and vocabulary."""

    bytes: int
    header_bytes: int
    has_vocabulary: bool
    """False where only a ``config.json`` was there: the vocabulary's bytes are missing from ``bytes``."""
    parameters: int
    kinds: Mapping[str, str]
    """Tensor name to ggml's type."""
    shapes: Mapping[str, tuple[int, ...]]
    fallbacks: tuple[Fallback, ...] = ()
    needs_importance: str = ""
    """A tensor whose type cannot be made without an importance matrix; empty when there is none."""

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors over parameters; metadata and vocabulary are not counted."""
        return 8 * tensor_total(self.kinds, self.shapes) / self.parameters


def planned_size(
    src: Path,
    type: str,
    *,
    importance: bool = False,
    tensor_types: Mapping[str, str] | None = None,
    output_type: str | None = None,
    embedding_type: str | None = None,
) -> PlannedSize:
    """Return what ``src`` will take as ``type``: a float GGUF file, or a folder with a ``config.json``.

    ``importance`` tells whether an importance matrix will be given, because some file types choose others
    then. Raises ``UsageError`` for an unknown type or a pattern that matches no tensor, ``RunError`` for a
    broken source.
    """
    if type.lower() in FLOAT_TYPES:
        return _float_size(src, cast(FloatType, type.lower()))
    file_type(type)
    params = Parameters(type, tensor_types, output_type, embedding_type)
    if importance:
        params.pretend_importance()
    if src.is_file():
        return _dry_run(src, type, params, has_vocabulary=True)
    with tempfile.TemporaryDirectory(prefix="cogumi-plan-") as folder:
        skeleton = Path(folder) / "skeleton.gguf"
        has_vocabulary = write_skeleton(src, skeleton, dtype="f16")
        return _dry_run(skeleton, type, params, has_vocabulary=has_vocabulary)


def tensor_total(kinds: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the bytes of all tensors, without the file's padding between them."""
    from evals.backends.gguf_header import stored_bytes

    return sum(stored_bytes(kinds[name], shape) for name, shape in shapes.items())


def fallback_note(type: str, fallbacks: Sequence[Fallback]) -> str:
    """Return the one line that tells which tensors fell back and what it costs; empty when none did."""
    if not fallbacks:
        return ""
    ways = Counter((entry.wanted, entry.kind) for entry in fallbacks)
    told = ", ".join(f"{count} of {wanted} as {kind}" for (wanted, kind), count in sorted(ways.items()))
    extra = sum(entry.extra_bytes for entry in fallbacks)
    count = "1 tensor" if len(fallbacks) == 1 else f"{len(fallbacks)} tensors"
    return (
        f"{type.upper()}: {count} fell back, the rows being no whole blocks of the type: {told}; "
        f"this costs {extra / 1e6:,.2f} MB"
    )


@dataclass(slots=True)
class _Log:
    """What llama.cpp's dry run says, piece by piece."""

    kinds: dict[str, str] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)
    will_need_importance: bool = False
    _current: str = ""

    def read(self, piece: str) -> None:
        if found := _TENSOR.match(piece):
            self._current = found[1]
        if found := _TARGET.search(piece):
            self.kinds[self._current] = found[1]
        if found := _UNFIT.match(piece):
            self.unfit[found[1]] = found[2]
        self.will_need_importance |= _LATER_IMPORTANCE in piece


def _dry_run(src: Path, type: str, params: Parameters, *, has_vocabulary: bool) -> PlannedSize:
    from evals.backends.gguf_header import read_header

    header = read_header(src)
    done = [tensor for tensor in header.tensors if tensor.kind not in FLOAT_TYPES]
    if done:
        raise RunError(
            f"{src}: {done[0].name} is {done[0].kind} already; quantise from a file in F16, BF16 or F32"
        )
    for pattern in params.patterns:
        if not any(re.search(pattern, tensor.name) for tensor in header.tensors):
            raise UsageError(f"tensor type pattern '{pattern}' matches no tensor of {src}")
    log = _Log()
    params.raw.dry_run = True
    run_quantize(src, src.with_name(f".{src.name}.dry"), params, log.read)
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    kinds = {tensor.name: log.kinds.get(tensor.name, tensor.kind) for tensor in header.tensors}
    start = header.header_bytes + (0 if _VERSION_KEY in header.metadata else _VERSION_ENTRY)
    wanted = {**_silent_heads(type, params, kinds, shapes), **log.unfit}
    return _planned(
        start,
        has_vocabulary,
        kinds,
        shapes,
        tuple(_fallback(name, kind, kinds[name], shapes[name]) for name, kind in sorted(wanted.items())),
        _importance_tensor(kinds) if log.will_need_importance else "",
    )


def _silent_heads(
    type: str, params: Parameters, kinds: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Return the head that llama.cpp makes Q8_0 without a word, with the type that it would have had."""
    import llama_cpp

    head = "output.weight" if "output.weight" in kinds else "token_embd.weight"
    chosen = (params.raw.output_tensor_type, params.raw.token_embedding_type)
    by_rule = set(chosen) == {llama_cpp.GGML_TYPE_COUNT} and not any(
        re.search(pattern, head) for pattern in params.patterns
    )
    eight_bits = params.raw.ftype in (file_type("Q8_0"), file_type("MXFP4_MOE"))
    if not by_rule or eight_bits or kinds.get(head) != "q8_0" or shapes[head][-1] % 256 == 0:
        return {}
    return {head: "q5_K" if type.upper() in _Q5_HEADS else "q6_K"}


def _importance_tensor(kinds: Mapping[str, str]) -> str:
    """Return the first tensor, with its type, that cannot be made without an importance matrix."""
    # ggml_quantize_requires_imatrix, and Q2_K where the file type is Q2_K_S; never asked of the embeddings.
    needing = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "q2_K")
    found = [f"{name}, {kinds[name]}" for name in kinds if kinds[name] in needing and "embd" not in name]
    return found[0] if found else "its layers"


def _fallback(name: str, wanted: str, kind: str, shape: tuple[int, ...]) -> Fallback:
    from evals.backends.gguf_header import kind_number, kind_sizes, stored_bytes

    wanted, columns, size = kind_sizes(kind_number(wanted))
    return Fallback(name, wanted, kind, stored_bytes(kind, shape) - prod(shape) * size // columns)


def _float_size(src: Path, dtype: FloatType) -> PlannedSize:
    from evals.backends.gguf_header import read_header

    with tempfile.TemporaryDirectory(prefix="cogumi-plan-") as folder:
        path, has_vocabulary = src, True
        if src.is_dir():
            path = Path(folder) / "skeleton.gguf"
            has_vocabulary = write_skeleton(src, path, dtype=dtype)
        header = read_header(path)
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    kinds = {tensor.name: tensor.kind for tensor in header.tensors}
    return _planned(header.header_bytes, has_vocabulary, kinds, shapes)


def _planned(
    header_bytes: int,
    has_vocabulary: bool,
    kinds: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    fallbacks: tuple[Fallback, ...] = (),
    needs_importance: str = "",
) -> PlannedSize:
    from evals.backends.gguf_header import stored_bytes

    parts = [header_bytes, *(stored_bytes(kinds[name], shape) for name, shape in shapes.items())]
    return PlannedSize(
        bytes=sum(-(-part // _ALIGNMENT) * _ALIGNMENT for part in parts),
        header_bytes=header_bytes,
        has_vocabulary=has_vocabulary,
        parameters=sum(prod(shape) for shape in shapes.values()),
        kinds=kinds,
        shapes=shapes,
        fallbacks=fallbacks,
        needs_importance=needs_importance,
    )
