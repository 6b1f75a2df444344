"""What a Llama's ``config.json`` tells before a weight is there: weights, and bytes of cache a token.

Counted exactly: embedding, head, attention, MLP, norms, and biases where the configuration asks for them, as
transformers builds ``LlamaForCausalLM`` and ``MistralForCausalLM``. Not covered: experts, and families with
other tensors, which are refused; rotary frequencies, which are no weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cogumi.errors import RunError, UsageError
from cogumi.hub import cached_folder

FAMILIES = ("llama", "mistral")
_CONFIG = "config.json"


class ModelConfig(BaseModel):
    """The fields of a ``config.json`` that decide sizes, under their own names."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    model_type: str = "llama"
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int | None = Field(default=None, gt=0)
    """None: as many as there are attention heads."""
    head_dim: int | None = Field(default=None, gt=0)
    """None: ``hidden_size / num_attention_heads``."""
    vocab_size: int = Field(gt=0)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _known(self) -> ModelConfig:
        if self.model_type not in FAMILIES:
            raise ValueError(
                f"model_type {self.model_type}: weights are counted for {' and '.join(FAMILIES)} only; give "
                "parameters and embedding_parameters instead"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size is no multiple of num_attention_heads: give head_dim")
        return self

    @property
    def _head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def _key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def matrix_parameters(self) -> int:
        """Weights of one of the two matrices over the vocabulary."""
        return self.vocab_size * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """Weights of embedding and head; tied they are one matrix."""
        return self.matrix_parameters * (1 if self.tie_word_embeddings else 2)

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers in all blocks, without biases: what is pruned and quantised."""
        attention = (
            2 * self.hidden_size * self._head_width * (self.num_attention_heads + self._key_value_heads)
        )
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def vector_parameters(self) -> int:
        """Weights of norms and biases."""
        layer = 2 * self.hidden_size
        if self.attention_bias:
            heads = self.num_attention_heads + 2 * self._key_value_heads
            layer += heads * self._head_width + self.hidden_size
        if self.mlp_bias:
            layer += 2 * self.intermediate_size + self.hidden_size
        return self.num_hidden_layers * layer + self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.embedding_parameters + self.linear_parameters + self.vector_parameters

    def cache_bytes_per_token(self, bits: float = 16) -> float:
        """Return the bytes of keys and values that each token of context adds, at ``bits`` a number."""
        return 2 * self.num_hidden_layers * self._key_value_heads * self._head_width * bits / 8


def read_config(path: Path) -> ModelConfig:
    """Read the fields that decide sizes from a ``config.json``.

    Raises ``RunError`` for a file that cannot be read, ``UsageError`` for a family or numbers that do not
    fit.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(found, dict):
        raise RunError(f"{path}: a JSON object wanted, found a {type(found).__name__}")
    try:
        return ModelConfig.model_validate(_fields(found))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        told = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{path}: {f'{place}: ' if place else ''}{told}") from None


def _fields(document: dict[str, Any]) -> dict[str, Any]:
    # null stands for the default, as transformers reads it.
    found = {name: document[name] for name in ModelConfig.model_fields if document.get(name) is not None}
    # A file that names no family is not guessed at.
    return {"model_type": "unknown", **found}


def find_config(name: str) -> ModelConfig:
    """Return the configuration that a path (file or folder) or a hub name means; nothing is downloaded.

    Raises ``UsageError`` where neither a file nor a model of the local cache is called so.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        path /= _CONFIG
    if path.is_file():
        return read_config(path)
    folder = cached_folder(name) if name.count("/") == 1 and not name.startswith((".", "/", "~")) else None
    if folder is None or not (folder / _CONFIG).is_file():
        raise UsageError(
            f"config {name}: no such file, and no model of that name in the hub's cache; write its fields "
            "in place"
        )
    return read_config(folder / _CONFIG)
