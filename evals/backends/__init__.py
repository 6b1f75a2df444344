"""Backends: a model on disk, loaded so that it answers prompts and tells likelihoods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cogumi.errors import UsageError
from cogumi.subjects import GGUF_ADAPTER, GGUF_MODEL, gguf_adapter

if TYPE_CHECKING:
    from evals.types import Backend

BackendName = Literal["auto", "hf", "gguf", "vllm"]


def open_backend(
    path: Path, *, backend: BackendName = "auto", base: Path | None = None, batch_size: int | None = None
) -> Backend:
    """Load the model at ``path``: a safetensors folder, a GGUF file, or a folder with one GGUF file.

    An ``adapter.gguf`` beside a ``model.gguf`` is always used with it. With ``base``, ``path`` is the folder
    of a LoRA adapter for that model, and runs in transformers. ``auto`` takes llama.cpp for GGUF and
    transformers for everything else; ``hf`` loads a GGUF file into transformers, dequantised; ``vllm`` runs
    a safetensors folder in vLLM. Raises ``UsageError`` for a path that holds no model, ``RunError`` for a
    broken one.
    """
    if base is not None:
        if backend not in ("auto", "hf"):
            raise UsageError(f"{path}: an adapter runs in transformers, not in the {backend} backend")
        from evals.backends.hf import HFBackend

        return HFBackend(_locate(base), adapter=path, batch_size=batch_size)
    model = _locate(path)
    if backend == "gguf" and model.suffix != ".gguf":
        raise UsageError(f"{path}: no .gguf file for the gguf backend")
    adapter = gguf_adapter(model)
    if backend == "gguf" or (backend == "auto" and model.suffix == ".gguf"):
        from evals.backends.gguf import GGUFBackend

        return GGUFBackend(model, adapter=adapter)
    if adapter is not None:
        raise UsageError(f"{model}: its adapter {adapter.name} runs in the gguf backend alone")
    if backend == "vllm":
        if model.suffix == ".gguf":
            raise UsageError(f"{path}: vLLM runs a model folder; a .gguf file runs in the gguf backend")
        from evals.backends.vllm import VLLMBackend

        return VLLMBackend(model, batch_size=batch_size)
    from evals.backends.hf import HFBackend

    return HFBackend(model, batch_size=batch_size)


def _locate(path: Path) -> Path:
    if path.is_file() and path.suffix == ".gguf":
        return path
    if not path.is_dir():
        why = "not a model file (.gguf) or folder" if path.exists() else "no such file or folder"
        raise UsageError(f"{path}: {why}")
    if (path / "config.json").is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if [file.name for file in files] == [GGUF_ADAPTER, GGUF_MODEL]:
        files = files[1:]
    if len(files) != 1:
        found = f"{len(files)} .gguf files" if files else "no config.json and no .gguf file"
        raise UsageError(f"{path}: {found}; name one model")
    return files[0]
