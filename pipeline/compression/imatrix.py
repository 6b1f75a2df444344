"""The importance matrix: how strongly each column of a matrix is driven, for llama.cpp's quantisers.

Covered: gathered from our own calibration rows, written and read in llama.cpp's own GGUF format of such files
(tools/imatrix), so that ``llama-quantize --imatrix`` takes it too. Not covered: the older ``.dat`` format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogumi.devices import compute_device
from cogumi.errors import RunError
from cogumi.store import disk_error
from pipeline.compression.activations import ColumnMoments, column_moments
from pipeline.compression.gguf_write import gguf_name

if TYPE_CHECKING:
    import numpy as np

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True, slots=True)
class Importance:
    """What goes into each matrix of a GGUF model, by tensor name, over how many tokens."""

    moments: Mapping[str, ColumnMoments]
    tokens: int

    def columns(self, tensor: str) -> np.ndarray | None:
        """Return the mean square of each input column of a tensor, float32; None for one not gathered."""
        return self.moments[tensor].mean_squares if tensor in self.moments else None

    def check(self, shapes: Mapping[str, tuple[int, ...]], model: Path) -> None:
        """Raise ``RunError`` when this was not gathered from a model of these shapes."""
        for name, moments in self.moments.items():
            shape = shapes.get(name)
            if shape is None or shape[-1] != len(moments.sum_squares):
                found = f"rows of {shape[-1]}" if shape else "no such tensor"
                raise RunError(
                    f"{model}: the importance matrix is of another model: {name} has "
                    f"{len(moments.sum_squares)} columns there, {found} here; gather it again"
                )


def gather(model: Any, rows: Sequence[Sequence[int]], *, device: Any) -> Importance:
    """Run calibration rows through a transformers Llama and name what was gathered as GGUF does.

    Tied embeddings are weighed as the head that they also are: looking a row up uses no column more than
    another. Raises ``RunError`` without rows.
    """
    import torch

    found = column_moments(model, rows, device=device)
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    moments = {}
    for module, columns in found.items():
        # The rows of q and k are in another order in GGUF. Importance is one number for each column, that
        # is for each input, and inputs keep their order.
        name = gguf_name(module)
        if name is not None:
            moments["token_embd.weight" if tied and name == "output.weight" else name] = columns
    if isinstance(device, torch.device) and device.type == "cuda":
        torch.cuda.empty_cache()
    return Importance(moments, sum(len(row) for row in rows))


def gather_from(folder: Path, rows: Sequence[Sequence[int]]) -> Importance:
    """Load a model folder, on the first accelerator if there is one, and gather from it."""
    import torch

    from evals.backends.loading import load_model, prefill_dtype

    device = compute_device()
    model = load_model(folder, dtype=prefill_dtype(device), device=device).model
    return gather(model, rows, device=torch.device(device))


def save(importance: Importance, path: Path, *, dataset: str = "calibration rows", chunk: int = 512) -> None:
    """Write llama.cpp's file: ``general.type`` "imatrix", and sums of squares and counts of each tensor.

    ``chunk`` is what llama.cpp calls the tokens of one pass; it only tells with it how much was read. Raises
    ``RunError`` on a full disk; the file appears only when it is complete.
    """
    import gguf
    import numpy as np

    partial = path.with_name(f".{path.name}.partial")
    try:
        writer = gguf.GGUFWriter(partial, "imatrix")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [dataset])
        writer.add_uint32("imatrix.chunk_count", -(-importance.tokens // chunk))
        writer.add_uint32("imatrix.chunk_size", chunk)
        for name, moments in sorted(importance.moments.items()):
            # One row: the second dimension is the number of experts.
            writer.add_tensor(f"{name}{_SUMS}", moments.sum_squares.astype(np.float32)[None, :])
            writer.add_tensor(f"{name}{_COUNTS}", np.array([[moments.tokens]], dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Importance:
    """Read a file of ``save`` or of llama-imatrix; raises ``RunError`` naming the file for any other."""
    import numpy as np

    from evals.backends.gguf_header import read_header

    header = read_header(path)
    if header.metadata.get("general.type") != "imatrix":
        raise RunError(f"{path}: a GGUF file, but no importance matrix (general.type is not imatrix)")
    values = {}
    for tensor in header.tensors:
        if tensor.kind != "f32":
            raise RunError(f"{path}: {tensor.name} is {tensor.kind}; f32 is expected")
        values[tensor.name] = np.fromfile(path, np.float32, tensor.elements, offset=tensor.offset)
    moments = {}
    for name in (key.removesuffix(_SUMS) for key in values if key.endswith(_SUMS)):
        counts = values.get(f"{name}{_COUNTS}")
        if counts is None or counts.size != 1 or not np.isfinite(values[f"{name}{_SUMS}"]).all():
            raise RunError(f"{path}: {name} has no count, several of them, or values that are not finite")
        moments[name] = ColumnMoments(values[f"{name}{_SUMS}"], int(counts[0]))
    if not moments:
        raise RunError(f"{path}: an importance matrix without tensors")
    return Importance(moments, max(entry.tokens for entry in moments.values()))
