"""Small safetensors files, dense and sparse, for the tests of packaging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def save(path: Path, values: np.ndarray[Any, Any], dtype: str, **more: Any) -> bytes:
    import torch
    from safetensors.torch import save_file

    tensor = torch.from_numpy(values.astype(np.float32)).to(getattr(torch, dtype))
    save_file({"layer.weight": tensor, **more}, path, metadata={"format": "pt"})
    return path.read_bytes()


def masked(rows: int, columns: int, sparsity: float) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 0.02, (rows, columns))
    values[rng.random((rows, columns)) < sparsity] = 0
    return values
