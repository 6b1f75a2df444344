"""A float GGUF file quantised by llama.cpp, in process: types, importance matrix, types by tensor.

Covered: every file type and tensor type of the installed llama.cpp. What it will do is asked first, in a dry
run: see ``gguf_sizes``. Not covered: files that are quantised already.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError, UsageError, nearest
from cogumi.store import disk_error

if TYPE_CHECKING:
    from pipeline.compression.imatrix import Importance

_PREFIX = "LLAMA_FTYPE_MOSTLY_"
# llama.cpp has these tensor types, but no file type that puts them into the layers of a dense model: its
# MXFP4_MOE is for experts, and it refuses NVFP4. The file type that stands for them, then.
_TENSOR_ONLY = {"MXFP4": "MXFP4_MOE", "NVFP4": "Q8_0"}
_LAYERS = r"blk\..*\.weight"
_NEEDS_IMPORTANCE = re.compile(r"offending tensor: (\S+).*target type: (\S+)", re.DOTALL)


def quantize_gguf(
    src: Path,
    out: Path,
    type: str,
    *,
    importance: Importance | None = None,
    tensor_types: Mapping[str, str] | None = None,
    output_type: str | None = None,
    embedding_type: str | None = None,
) -> None:
    """Quantise a float GGUF file to llama.cpp's file type ``type`` (``Q4_K_M``, ``IQ3_XXS``, …).

    ``tensor_types`` maps regular expressions of tensor names to tensor types (``{"ffn_down": "q6_K"}``), the
    first that matches counts. ``output_type`` and ``embedding_type`` are the types of the head and of the
    embeddings. Raises ``UsageError`` for an unknown type or pattern, ``RunError`` for a source that is broken
    or quantised already, for a type that needs an importance matrix, for too little disk, and with
    llama.cpp's own reason when it fails; ``out`` appears only when it is complete.
    """
    from pipeline.compression.gguf_sizes import planned_size
    from pipeline.compression.gguf_write import check_disk

    planned = planned_size(
        src,
        type,
        importance=importance is not None,
        tensor_types=tensor_types,
        output_type=output_type,
        embedding_type=embedding_type,
    )
    if planned.needs_importance and importance is None:
        raise needs_importance(type, planned.needs_importance)
    if importance is not None:
        importance.check(planned.shapes, src)
    check_disk(out, planned.bytes)
    params = Parameters(type, tensor_types, output_type, embedding_type)
    if importance is not None:
        params.add_importance(importance)
    partial = out.with_name(f".{out.name}.partial")
    try:
        run_quantize(src, partial, params)
        partial.replace(out)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        partial.unlink(missing_ok=True)


def needs_importance(type: str, tensor: str) -> RunError:
    """Return the error of a type that llama.cpp makes with an importance matrix only."""
    return RunError(
        f"{type.upper()} needs an importance matrix (for {tensor}): give calibration rows, or a type of "
        "3 bits or more"
    )


def known_types() -> dict[str, int]:
    """Return llama.cpp's quantised file types and their numbers."""
    import llama_cpp

    found = {
        key.removeprefix(_PREFIX): int(value)
        for key, value in vars(llama_cpp).items()
        if key.startswith(_PREFIX)
    }
    return {**found, **{name: found[base] for name, base in _TENSOR_ONLY.items()}}


def file_type(name: str) -> int:
    """Return llama.cpp's number of a file type; raises ``UsageError`` for an unknown name."""
    known = known_types()
    if name.upper() not in known:
        raise UsageError(f"unknown GGUF type '{name}'{nearest(name.upper(), sorted(known))}")
    return known[name.upper()]


class Parameters:
    """``llama_model_quantize_params`` with everything that it points to kept alive."""

    def __init__(
        self,
        type: str,
        tensor_types: Mapping[str, str] | None,
        output_type: str | None,
        embedding_type: str | None,
    ) -> None:
        """Raises ``UsageError`` for an unknown type and for a pattern that is no regular expression."""
        import llama_cpp

        self.raw = llama_cpp.llama_model_quantize_default_params()
        self.raw.ftype = file_type(type)
        self.raw.nthread = len(os.sched_getaffinity(0))
        if output_type is not None:
            self.raw.output_tensor_type = _tensor_type(output_type)
        if embedding_type is not None:
            self.raw.token_embedding_type = _tensor_type(embedding_type)
        self.patterns = _checked(tensor_types or {})
        overrides = dict(self.patterns)
        if type.upper() in _TENSOR_ONLY:
            overrides.setdefault(_LAYERS, type)
        # Ended by an entry without a pattern, as llama.h wants it.
        entries = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))()
        for entry, (pattern, kind) in zip(entries, overrides.items(), strict=False):
            entry.pattern, entry.type = pattern.encode(), _tensor_type(kind)
        self._overrides = entries
        if overrides:
            self.raw.tt_overrides = entries
        self._values: list[Any] = []

    def add_importance(self, importance: Importance) -> None:
        """Weigh each column of a tensor by the mean square of what goes into it."""
        import numpy as np

        self._set_matrix(
            {
                name: np.ascontiguousarray(moments.mean_squares, dtype=np.float32)
                for name, moments in importance.moments.items()
            }
        )

    def pretend_importance(self) -> None:
        """Let a dry run choose types as it would with an importance matrix: some file types differ."""
        import numpy as np

        self._set_matrix({"none": np.ones(1, dtype=np.float32)})

    def _set_matrix(self, values: Mapping[str, Any]) -> None:
        import llama_cpp

        entries = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
        for entry, (name, array) in zip(entries, values.items(), strict=False):
            entry.name, entry.size = name.encode(), array.size
            entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._values = [entries, *values.values()]
        self.raw.imatrix = entries


def run_quantize(
    src: Path, out: Path, params: Parameters, listener: Callable[[str], None] | None = None
) -> None:
    """Call ``llama_model_quantize``; ``listener`` gets its log. Raises ``RunError`` with its reason."""
    import llama_cpp

    from evals.backends.gguf import listening, silence_llama_cpp

    complaints = silence_llama_cpp()
    llama_cpp.llama_backend_init()
    with listening(listener or (lambda _: None)):
        status = llama_cpp.llama_model_quantize(
            str(src).encode(), str(out).encode(), ctypes.byref(params.raw)
        )
    if status == 0:
        return
    offending = next((found for line in complaints if (found := _NEEDS_IMPORTANCE.search(line))), None)
    if offending is not None:
        raise needs_importance(offending[2], offending[1])
    reason = complaints[-1].split("failed to quantize: ")[-1] if complaints else f"status {status}"
    if "iostream error" in reason:
        raise RunError(f"disk full while writing {out.name}: free space and run again")
    raise RunError(f"{src}: cannot be quantised ({reason})")


def _tensor_type(kind: str) -> int:
    from evals.backends.gguf_header import kind_number

    try:
        return kind_number(kind)
    except RunError as error:
        raise UsageError(str(error)) from error


def _checked(patterns: Mapping[str, str]) -> dict[str, str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"tensor type pattern '{pattern}': no regular expression ({error})") from error
    return dict(patterns)
