"""The dense weights of a compressed model, as transformers reads them, and the checks before that.

A GGUF file is dequantised, so is a compressed-tensors folder; a pruned or cut folder is dense already. The
view holds the values that the compressed file stands for: an adapter that is trained on it fits what is
shipped.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from cogumi.errors import RunError
from cogumi.store import Artifact, disk_error
from cogumi.subjects import GGUF_ADAPTER, adapter_beside, read_json_object

_KEPT_OUT = (".safetensors", ".bin", ".pt", ".gguf")


def dense_view(compressed: Artifact, model: Artifact, scratch: Path, *, dtype: str = "float32") -> Path:
    """Return a dense folder of the weights of ``compressed``, made in ``scratch`` unless it is one itself.

    ``model`` is what it was compressed from: it gives configuration and tokenizer to a GGUF file's weights,
    which are written in ``dtype`` (torch's name). Raises ``RunError`` when ``compressed`` has a recovery
    adapter already, was made from a model with another tokenizer, or cannot be read.
    """
    if GGUF_ADAPTER in compressed.manifest["files"] or adapter_beside(compressed.path) is not None:
        raise RunError(
            f"artifact {compressed.short}: it has a recovery adapter already; name the compressed model that "
            "the adapter was made for"
        )
    if compressed.kind not in ("model", "gguf"):
        raise RunError(f"artifact {compressed.short}: a {compressed.kind}, not a compressed model")
    _check_tokenizer(compressed, model)
    if compressed.kind == "model" and "quantization_config" not in _config(compressed.path):
        return compressed.path
    view = scratch / "dense"
    if view.is_dir():
        return view
    if compressed.kind == "gguf":
        from pipeline.compression.dense import dense_from_gguf

        dense_from_gguf(compressed.file("model.gguf"), model.path, view, dtype=dtype)
    else:
        _decompress(compressed.path, view)
    return view


def _check_tokenizer(compressed: Artifact, model: Artifact) -> None:
    """Raise ``RunError`` unless both read the same ids as the same text, as far as their files tell."""
    from evals.backends.loading import model_tokenizer_digest

    # A GGUF file keeps no tokenizer.json; the stage that made it says which it was.
    found = compressed.facts.get("tokenizer_digest")
    if found is None and compressed.kind == "model":
        found = model_tokenizer_digest(compressed.path)
    if found is not None and found != model_tokenizer_digest(model.path):
        raise RunError(
            f"artifact {compressed.short}: its tokenizer is not that of the model {model.short}; name the "
            "model that it was compressed from"
        )


def _decompress(folder: Path, out: Path) -> None:
    """Write the dense values of a compressed-tensors folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from evals.backends.loading import load_model, quiet_transformers

    loaded = load_model(folder)
    with torch.no_grad():
        # compressed-tensors unpacks a model before its first forward pass.
        loaded.model(input_ids=torch.zeros(1, 1, dtype=torch.long))
    config = _config(folder)
    del config["quantization_config"]
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.suffix not in _KEPT_OUT and not file.name.endswith(".index.json"):
                shutil.copyfile(file, partial / file.name)
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        with quiet_transformers(), torch.device("meta"):
            dense = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(partial))
        weights = loaded.model.state_dict()
        # Parameters and not the state's entries: of two tied matrices one is written.
        wanted = {name: weights[name].contiguous() for name, _ in dense.named_parameters()}
        save_file(wanted, partial / "model.safetensors", metadata={"format": "pt"})
        partial.rename(out)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _config(folder: Path) -> dict[str, Any]:
    return read_json_object(folder / "config.json")


def take_along(compressed: Artifact, out: Path) -> None:
    """Put the compressed model's files into ``out`` as they are: linked, as the store never changes a file.

    What was packaged for download is left out: its package would not hold the adapter.
    """
    for name in compressed.manifest["files"]:
        if name.startswith("download/"):
            continue
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(compressed.path / name, target)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another disk, or one without links.
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise disk_error(error, target) from error
