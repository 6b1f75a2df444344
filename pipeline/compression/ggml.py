"""ggml's own block formats from Python: quantise rows and read them back, by the library that llama.cpp runs.

Covered: every type that the ggml-base library inside the ``llama_cpp`` package can write. A row is a whole
number of blocks. Not covered: types for activations only (q8_1, q8_K), integers.

Source of names: ``enum ggml_type`` and ``struct ggml_type_traits`` of ggml.h.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError, UsageError, nearest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]

TYPES = (
    "f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq2_xxs",
    "iq2_xs", "iq3_xxs", "iq1_s", "iq4_nl", "iq3_s", "iq2_s", "iq4_xs", "iq1_m", "bf16", "tq1_0", "tq2_0",
    "mxfp4", "nvfp4", "q1_0", "q2_0",
)  # fmt: skip
"""Types of weights by ggml's own names; their numbers and sizes are asked of the library itself."""

_BY_LOWER = {name.lower(): name for name in TYPES}
# Values under which a second thread costs more than it saves.
_SMALL = 1 << 18


class _Traits(ctypes.Structure):
    """The part of ``struct ggml_type_traits`` that we read."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_columns", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    )


_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


def canonical(kind: str) -> str:
    """Return ggml's own spelling of a type's name; raises ``UsageError`` for one that is not known."""
    name = _BY_LOWER.get(kind.lower())
    if name is None:
        raise UsageError(f"unknown ggml type '{kind}'{nearest(kind.lower(), sorted(_BY_LOWER))}")
    return name


def number_of(kind: str) -> int:
    """Return a type's number in a GGUF file; raises ``RunError`` for one that the library lacks."""
    from evals.backends.gguf_header import kind_number

    return kind_number(canonical(kind))


def _sizes(kind: str) -> tuple[str, int, int]:
    from evals.backends.gguf_header import kind_sizes

    return kind_sizes(number_of(kind))


def block_columns(kind: str) -> int:
    """Return how many neighbouring weights of a row one block codes."""
    return _sizes(kind)[1]


def block_bytes(kind: str) -> int:
    """Return the bytes of one block."""
    return _sizes(kind)[2]


def bits_per_weight(kind: str) -> float:
    """Return the bits of one weight, scales included."""
    return 8 * block_bytes(kind) / block_columns(kind)


def row_bytes(kind: str, columns: int) -> int:
    """Return the bytes of one row; raises ``RunError`` when a row is no whole number of blocks."""
    block = block_columns(kind)
    if columns % block or not columns:
        raise RunError(
            f"rows of {columns} weights take no {canonical(kind)}, whose blocks hold {block}; choose another"
        )
    return columns // block * block_bytes(kind)


def fits(kind: str, columns: int) -> bool:
    """Tell whether rows of ``columns`` weights are whole blocks of a type."""
    return columns > 0 and columns % block_columns(kind) == 0


def needs_importance(kind: str) -> bool:
    """Tell whether ggml refuses to write this type without an importance of each column."""
    return bool(_library().ggml_quantize_requires_imatrix(number_of(kind)))


def quantize(values: Floats, kind: str, importance: Floats | None = None) -> Bytes:
    """Quantise rows with ggml's own quantiser.

    ``values`` float32 (rows, columns), ``importance`` float32 (columns) or None, the weight of each column's
    squared error; returns uint8 (rows, row bytes). Raises ``RunError`` for rows that are no whole blocks,
    values that are not finite, or a type that needs an importance and has none (ggml itself would end the
    process).
    """
    import numpy as np

    name = canonical(kind)
    values = np.ascontiguousarray(values, dtype=np.float32)
    rows, columns = values.shape
    out = np.empty((rows, row_bytes(name, columns)), dtype=np.uint8)
    if not np.isfinite(values).all():
        raise RunError(f"weights to be quantised to {name} hold NaN or infinity; repair the model first")
    if importance is None and needs_importance(name):
        raise RunError(f"{name} needs an importance matrix; gather one from calibration data first")
    weights = None
    if importance is not None:
        weights = np.ascontiguousarray(importance, dtype=np.float32)
        if weights.shape != (columns,) or not np.isfinite(weights).all() or (weights < 0).any():
            raise RunError(f"an importance of {columns} values ≥ 0 is wanted, got {weights.shape}")
    library, number = _library(), number_of(name)
    library.ggml_quantize_init(number)

    def part(begin: int, end: int) -> None:
        library.ggml_quantize_chunk(
            number,
            values[begin:end].ctypes.data,
            out[begin:end].ctypes.data,
            0,
            end - begin,
            columns,
            None if weights is None else weights.ctypes.data,
        )

    _by_rows(part, rows, values.size)
    return out


def dequantize(data: Bytes, kind: str, columns: int) -> Floats:
    """Return the float32 (rows, columns) that llama.cpp reads from uint8 (rows, row bytes)."""
    import numpy as np

    name = canonical(kind)
    data = np.ascontiguousarray(data, dtype=np.uint8)
    rows = data.shape[0]
    if data.shape != (rows, row_bytes(name, columns)):
        raise RunError(f"{data.shape[1]} bytes are not a row of {columns} weights in {name}")
    if name == "f32":
        return data.view(np.float32)
    out = np.empty((rows, columns), dtype=np.float32)
    to_float = _TO_FLOAT(_library().ggml_get_type_traits(number_of(name)).contents.to_float)

    def part(begin: int, end: int) -> None:
        to_float(data[begin:end].ctypes.data, out[begin:end].ctypes.data, (end - begin) * columns)

    _by_rows(part, rows, out.size)
    return out


def _by_rows(part: Any, rows: int, size: int) -> None:
    """Call ``part(begin, end)`` over all rows, on all processors where that pays.

    ctypes frees Python's lock during a call.
    """
    workers = min(len(os.sched_getaffinity(0)), rows) if size >= _SMALL else 1
    if workers <= 1:
        part(0, rows)
        return
    edges = [rows * index // workers for index in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(part, edges[:-1], edges[1:]))


@cache
def _library() -> ctypes.CDLL:
    """Load ggml-base from the folder of ``llama_cpp``; raises ``RunError`` without it."""
    from pathlib import Path

    try:
        import llama_cpp
        from llama_cpp._ctypes_extensions import load_shared_library
    except ImportError as error:
        raise RunError(f"ggml's formats need {error.name}: pip install 'cogumi[all]'") from error
    try:
        library: ctypes.CDLL = load_shared_library("ggml-base", Path(llama_cpp.__file__).parent / "lib")
    except (FileNotFoundError, RuntimeError, OSError) as error:
        raise RunError(f"ggml-base: {error}; reinstall llama-cpp-python") from error
    for name in ("ggml_quantize_requires_imatrix", "ggml_get_type_traits", "ggml_quantize_init"):
        getattr(library, name).argtypes = (ctypes.c_int,)
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    library.ggml_quantize_init.restype = None
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    )
    return library
