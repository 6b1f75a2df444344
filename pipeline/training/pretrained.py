"""Stage ``models.pretrained``: a published model, or one of your own, as an artifact that can be trained.

Covered: known names, hub names with an optional ``@REVISION``, local folders in safetensors, GGUF files (made
dense in bf16). Not covered: adapters, weights in other formats, and models that bring their own code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cogumi.digest import file_sha256
from cogumi.errors import RunError, UsageError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.subjects import ADAPTER_CONFIG, content_digest, model_path, read_json_object

if TYPE_CHECKING:
    from cogumi.workspace import Workspace

_INDEX = "model.safetensors.index.json"
BESIDE = ("*.json", "*.model", "*.jinja", "merges.txt", "LICENSE*", "NOTICE*", "USE_POLICY*")
"""What is taken along beside the weights."""


class PretrainedSettings(Settings):
    """Which model to take."""

    model: str = Field(min_length=1)
    """A known name (smollm2-135m-instruct), OWNER/NAME of the hub, a folder, or a .gguf file.

    OWNER/NAME@REVISION takes one revision; without it what is in the local cache is taken, else the newest.
    """


def run(settings: PretrainedSettings, ctx: StageContext) -> StageResult:
    """Bring the model into the store as it is; a GGUF file becomes a safetensors folder in bf16.

    Raises ``UsageError`` when nothing is called so, ``RunError`` without a network, and for a model that is
    incomplete, cut short, or has another model's tokenizer.
    """
    source = _source(settings.model)
    if source.is_file():
        ctx.progress.update(0, 1)
        dequantise(source, ctx.out)
        ctx.progress.update(1, 1)
    else:
        weights = _weights(source)
        config = _config(source)
        _tokenizer(source, ctx.out, config.vocab_size)
        _take(source, weights, ctx)
    return StageResult("model", _facts(source, ctx.out))


def outside(settings: PretrainedSettings, workspace: Workspace) -> str | None:
    """Return the digest of a local model's bytes: a changed folder is other work. None for a hub's name."""
    path = Path(settings.model)
    return content_digest(path, workspace)[0] if path.exists() else None


# Finding and checking ------------------------------------------------------------------------------------


def _source(model: str) -> Path:
    """Return the model's folder, or its GGUF file."""
    path = model_path(model, "hf")
    if path.is_file():
        if path.suffix != ".gguf":
            raise UsageError(f"{path}: a model is a folder or a .gguf file")
        return path
    if (path / ADAPTER_CONFIG).is_file():
        raise RunError(f"{path}: an adapter, not a model; name its base, or a folder that it is merged into")
    if (path / "config.json").is_file():
        return path
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) != 1:
        raise RunError(f"{path}: no config.json and {len(ggufs)} GGUF files; name one model")
    return ggufs[0]


def _weights(folder: Path) -> list[Path]:
    """Return the files that hold the weights, each of them complete."""
    from evals.backends.loading import tensor_shapes

    if (folder / _INDEX).is_file():
        entries = read_json_object(folder / _INDEX).get("weight_map")
        if not isinstance(entries, dict) or not entries:
            raise RunError(f"{folder / _INDEX}: no weight_map; download the model again")
        files = [folder / name for name in sorted({str(name) for name in entries.values()})]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RunError(f"{folder}: no .safetensors file in the model folder; convert its weights first")
    for file in files:
        if not file.is_file():
            raise RunError(f"{file}: missing, though {_INDEX} names it; download the model again")
        tensor_shapes(file)
    return files


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    from evals.backends.loading import quiet_transformers
    from evals.backends.tokenization import first_line

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
        _ = config.vocab_size, config.max_position_embeddings
    except Exception as error:
        # The libraries below raise a dozen unrelated classes for a broken file.
        raise RunError(f"{folder / 'config.json'}: not a language model's ({first_line(error)})") from error
    return config


def _tokenizer(folder: Path, out: Path, vocabulary: int) -> None:
    """Check the model's tokenizer, and write its ``tokenizer.json`` where the folder has another format."""
    from transformers import AutoTokenizer

    from evals.backends.loading import model_tokenizer_digest, quiet_transformers
    from evals.backends.tokenization import save_tokenizer

    model_tokenizer_digest(folder)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    token, number = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if number >= vocabulary:
        raise RunError(
            f"{folder}: the tokenizer is not the model's: it has {token!r} as id {number}, and the model a "
            f"vocabulary of {vocabulary}; put the model's own tokenizer files there"
        )
    if not (folder / "tokenizer.json").is_file():
        save_tokenizer(tokenizer, out)


# Writing -------------------------------------------------------------------------------------------------


def _take(source: Path, weights: list[Path], ctx: StageContext) -> None:
    beside = {file for pattern in BESIDE for file in source.glob(pattern) if file.is_file()}
    files = [*weights, *sorted(beside)]
    total, done = sum(file.stat().st_size for file in files), 0
    for file in files:
        ctx.progress.update(done, total, file=file.name)
        target = ctx.out / file.name
        # What was written there already is tokenizer.json's company, made from these files.
        if not target.exists():
            _link_or_copy(file, target)
        done += file.stat().st_size
    ctx.progress.update(total, total)


def _link_or_copy(file: Path, target: Path) -> None:
    """Link a file of the hub's cache, which never changes in place, where one disk holds both; else copy."""
    blob = file.resolve()
    if file.is_symlink() and blob.parent.name == "blobs":
        try:
            os.link(blob, target)
            return
        except OSError:
            # Another disk, or one without links: the copy says what is wrong if that fails as well.
            target.unlink(missing_ok=True)
    shutil.copyfile(file, target)


def dequantise(file: Path, out: Path) -> None:
    """Write a GGUF file as a safetensors folder in bf16, with its tokenizer; ``RunError`` for a broken file.

    ``out`` must exist.
    """
    from evals.backends.loading import load_model, quiet_transformers
    from evals.backends.tokenization import save_tokenizer

    loaded = load_model(file, dtype="bf16")
    with quiet_transformers():
        _dense(loaded.model, file).save_pretrained(out)
        save_tokenizer(loaded.tokenizer, out)


def describe(file: Path, out: Path) -> None:
    """Write what ``dequantise`` writes but for the weights, which takes a moment for a model of any size."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from evals.backends.loading import gguf_tokenizer, quiet_transformers
    from evals.backends.tokenization import first_line, save_tokenizer

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
            config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
            config.save_pretrained(out)
            save_tokenizer(gguf_tokenizer(file), out)
    except RunError:
        raise
    except Exception as error:
        # The libraries below raise a dozen unrelated classes for a broken file.
        raise RunError(f"{file}: not a readable model ({first_line(error)})") from error


def _dense(model: Any, file: Path) -> Any:
    """Return the same model without transformers' mark that it was read from GGUF, which forbids saving."""
    import torch

    from evals.backends.tokenization import first_line

    left_out = ("quantization_config", "_name_or_path")
    settings = {key: value for key, value in model.config.to_dict().items() if key not in left_out}
    with torch.device("meta"):
        dense = type(model)(type(model.config)(**settings))
    try:
        dense.load_state_dict(model.state_dict(), assign=True)
    except RuntimeError as error:
        # Kernels that compute on GGUF's blocks, where they are installed, leave these packed.
        raise RunError(f"{file}: its weights were not made dense ({first_line(error)})") from error
    dense.tie_weights()
    dense.generation_config = model.generation_config
    return dense


def _facts(source: Path, out: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from evals.backends.loading import model_tokenizer_digest, quiet_transformers

    config = _config(out)
    # Without memory for the weights; tied ones count once.
    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": int(config.vocab_size),
        "context": int(config.max_position_embeddings),
        "tokenizer_digest": model_tokenizer_digest(out),
        "bytes": sum(file.stat().st_size for file in _files(out)),
        "source": _told(source),
    }


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _told(source: Path) -> str:
    """Return where the model came from, without a path of this machine."""
    if source.is_file():
        return f"{source.name} (sha256 {file_sha256(source)[:12]}), made dense in bf16"
    if source.parent.name == "snapshots":
        name = source.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        return f"{name} at revision {source.name}"
    return f"folder {source.resolve().name}"


PRETRAINED = Stage(
    name="models.pretrained",
    version=1,
    title="Take a published model",
    settings=PretrainedSettings,
    run=run,
    outside=outside,
)
