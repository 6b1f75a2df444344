"""A dense model folder in another float type, file by file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cogumi.errors import RunError
from cogumi.store import disk_error
from cogumi.subjects import read_json_object
from pipeline.training.pretrained import BESIDE

DenseType = Literal["bf16", "f16", "f32"]

_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def export_safetensors(
    model: Path, out: Path, dtype: DenseType, *, tell: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Write the weights of the folder ``model`` as ``dtype`` into the empty folder ``out``.

    Everything beside them is copied. One file of the weights is in memory at a time; integers stay as they
    are. Raises ``RunError`` naming the file when it is broken or holds values that ``dtype`` cannot.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise RunError(f"{model}: no .safetensors file in the model folder")
    config = read_json_object(model / "config.json")
    if config.get("quantization_config"):
        raise RunError(f"{model}: these weights are quantised; export the model they were made from")
    wanted = getattr(torch, _NAMES[dtype])
    total = 0
    try:
        for done, file in enumerate(files):
            tell(done, len(files))
            tensors = load_file(file)
            for name, values in tensors.items():
                if values.is_floating_point():
                    tensors[name] = values.to(wanted)
                    if not bool(torch.isfinite(tensors[name]).all()):
                        raise RunError(f"{file}: {name} holds values that {dtype} cannot; take bf16 or f32")
            total += sum(values.numel() * values.element_size() for values in tensors.values())
            save_file(tensors, out / file.name, metadata={"format": "pt"})
        for beside in sorted({path for pattern in BESIDE for path in model.glob(pattern) if path.is_file()}):
            shutil.copyfile(beside, out / beside.name)
        _write(out / "config.json", {**config, "dtype": _NAMES[dtype], "torch_dtype": _NAMES[dtype]})
        index = out / "model.safetensors.index.json"
        if index.is_file():
            listed = read_json_object(index)
            _write(index, {**listed, "metadata": {**listed.get("metadata", {}), "total_size": total}})
    except SafetensorError as error:
        raise RunError(f"{model}: cut short or not safetensors ({error})") from error
    except OSError as error:
        raise disk_error(error, out) from error
    tell(len(files), len(files))


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
