"""A LoRA adapter on its base model: checked against the base before it is loaded, merged or beside.

Covered: adapters of peft in safetensors, also those with trained embeddings. Not covered: prompt tuning
and other adapters that cannot be merged into the weights, and pickled ``adapter_model.bin`` files.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cogumi.errors import RunError
from cogumi.subjects import ADAPTER_CONFIG, ADAPTER_SIDECAR, read_json_object
from evals.backends.adapter_base import another_base, weights_sample
from evals.backends.loading import DType, LoadedModel, load_model, model_tokenizer_digest, tensor_shapes
from evals.backends.tokenization import first_line, tokenizer_digest

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_BASE_WEIGHTS = "base_sampled_sha256"


def write_sidecar(folder: Path, *, base: str, base_folder: Path, beside: Path | None = None) -> None:
    """Write beside an adapter which base it is for (digest) and which tokenizer it was trained with.

    ``beside``: the folder whose weights it stays beside wherever it is used, never merged, and which are
    checked there; see ``evals.backends.adapter_base``.
    """
    told: dict[str, Any] = {"base": base, "tokenizer_digest": model_tokenizer_digest(base_folder)}
    if beside is not None:
        told |= {"beside": True, _BASE_WEIGHTS: weights_sample(_weights_of(beside))}
    (folder / ADAPTER_SIDECAR).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")


def load_adapted(base: Path, adapter: Path, *, dtype: DType = "auto", device: str = "cpu") -> LoadedModel:
    """Load ``base`` with the adapter in folder ``adapter`` merged into its weights (Hu et al. 2021, 4.1).

    One that is told to stay beside its base (a recovery adapter, whose base lies on a grid) does so.
    Raises ``RunError`` naming the file when the adapter is broken, does not fit the base, or was trained
    with another tokenizer or beside other weights; these are found before the base is loaded.
    """
    weights = adapter / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise RunError(f"{weights}: missing; only adapters saved as safetensors are read")
    check_tokenizer(base, adapter, tensor_shapes(weights))
    _check_weights(base, adapter)
    loaded = load_model(base, dtype=dtype, device=device)
    try:
        with warnings.catch_warnings():
            # peft warns of what is checked here, and of renaming the base in its own configuration.
            warnings.simplefilter("ignore")
            merged = _merge(loaded.model, adapter, weights)
    except RunError:
        raise
    except ImportError as error:
        raise RunError(f"{adapter}: an adapter needs {error.name}: pip install 'cogumi[all]'") from error
    except Exception as error:
        # peft and torch raise a dozen unrelated classes for an adapter that does not fit.
        raise RunError(f"{adapter}: does not fit its base {base} ({first_line(error)})") from error
    return replace(loaded, model=merged.eval())


def _merge(model: Any, adapter: Path, weights: Path) -> Any:
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    config = PeftConfig.from_pretrained(str(adapter))
    if config.peft_type != "LORA":
        raise RunError(f"{adapter / ADAPTER_CONFIG}: a {config.peft_type} adapter; only LoRA is evaluated")
    config.inference_mode = True
    adapted = get_peft_model(model, config)
    result = set_peft_model_state_dict(adapted, load_file(weights))
    # peft leaves a missing weight at its random start and drops one that has no place in the model.
    missing = [name for name in result.missing_keys if ".default" in name]
    if missing:
        raise RunError(f"{weights}: weights missing from the file: {', '.join(sorted(missing)[:3])}")
    if result.unexpected_keys:
        names = ", ".join(sorted(result.unexpected_keys)[:3])
        raise RunError(f"{weights}: weights that its base has no place for: {names}; name its own base")
    if model.config.get_text_config().tie_word_embeddings and _adapts_vocabulary(tensor_shapes(weights)):
        # Merged, the change of one of two tied matrices would also change the other, which training did not
        # (peft issue 2777): the layers stay beside the weights.
        return adapted.get_base_model()
    sidecar = adapter / ADAPTER_SIDECAR
    if sidecar.is_file() and read_json_object(sidecar).get("beside") is True:
        return adapted.get_base_model()
    return adapted.merge_and_unload(safe_merge=True)


def _check_weights(base: Path, adapter: Path) -> None:
    """Raise ``RunError`` when the adapter tells the weights that it stays beside, and ``base`` has others."""
    sidecar = adapter / ADAPTER_SIDECAR
    wanted = read_json_object(sidecar).get(_BASE_WEIGHTS) if sidecar.is_file() else None
    if wanted is not None and wanted != weights_sample(_weights_of(base)):
        raise another_base(base, adapter)


def _weights_of(base: Path) -> list[Path]:
    return sorted(base.glob("*.safetensors")) if base.is_dir() else [base]


def check_tokenizer(base: Path, adapter: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ``RunError`` when the adapter was trained with another tokenizer than that of ``base``.

    Evidence, the best first: the digest in ``cogumi.json``, a ``tokenizer.json`` beside the adapter, the
    size of the vocabulary in its trained embeddings (``shapes``). An adapter with none of them passes.
    """
    trained = _trained_digest(adapter)
    if trained is not None:
        found = model_tokenizer_digest(base)
        if trained != found:
            raise _another_tokenizer(base, adapter, f"{trained[:19]}, the base's is {found[:19]}")
        return
    entries = _vocabulary(shapes)
    if entries is None:
        return
    size = _vocabulary_of(base)
    if entries != size:
        raise _another_tokenizer(base, adapter, f"a vocabulary of {entries}, the base's is {size}")


def _another_tokenizer(base: Path, adapter: Path, how: str) -> RunError:
    return RunError(
        f"{adapter}: trained with another tokenizer than its base {base} ({how}); "
        f"name its own base in {ADAPTER_CONFIG} (base_model_name_or_path), or train it again on this one"
    )


def _trained_digest(adapter: Path) -> str | None:
    sidecar = adapter / ADAPTER_SIDECAR
    if sidecar.is_file():
        digest = read_json_object(sidecar).get("tokenizer_digest")
        if not isinstance(digest, str):
            raise RunError(f"{sidecar}: 'tokenizer_digest' must be a text; train the adapter again")
        return digest
    own = adapter / "tokenizer.json"
    return tokenizer_digest(own) if own.is_file() else None


def _vocabulary(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the rows of the embedding or output matrix that the adapter's tensors were made for."""
    for name, shape in shapes.items():
        # An embedding's A is (rank, vocabulary), a linear layer's B is (vocabulary, rank).
        if "lora_embedding_A" in name:
            return shape[1]
        if name.endswith((".lm_head.lora_B.weight", ".embed_tokens.weight", ".lm_head.weight")):
            return shape[0]
    return None


def _adapts_vocabulary(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    # peft.utils.constants.EMBEDDING_LAYER_NAMES
    return any(".embed_tokens." in name or ".lm_head." in name for name in shapes)


def _vocabulary_of(base: Path) -> int:
    from transformers import AutoConfig

    folder, extra = (base.parent, {"gguf_file": base.name}) if base.suffix == ".gguf" else (base, {})
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **extra)
    except Exception as error:
        # The libraries below raise a dozen unrelated classes for a broken file.
        raise RunError(f"{base}: not a readable model ({first_line(error)})") from error
    return int(config.get_text_config().vocab_size)
