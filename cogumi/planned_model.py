"""A model of a profile's plan: its shape, and the sizes and speeds that it is meant to have."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cogumi.bandwidth import CARDS
from cogumi.errors import CogumiError, nearest
from cogumi.model_config import ModelConfig, find_config

CODED_BITS = {1: 0.730, 2: 1.545, 3: 2.428, 4: 3.359, 5: 4.321, 6: 5.300}
"""Bits a weight that any code needs at least for the error of the best quantiser of so many bits, on Gaussian
weights: log2(1 / D) / 2 (Shannon's rate-distortion function), D that of Lloyd and Max (Max 1960, table I)."""

_CRITERION = r"^[^/\s]+/[^/\s]+$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class SizeTarget(_Strict):
    """A size that a gate asks for, and the recipe that is meant to reach it; the bytes stand in the gate."""

    criterion: str = Field(pattern=_CRITERION)
    """GATE/CRITERION, whose bar is in bytes."""
    bits: float | None = Field(default=None, gt=0, le=32)
    """Bits of every weight that is kept, embeddings among them; None where the plan names no precision."""
    coded: bool = False
    """Stored by a lossless code (zstd): counted with ``CODED_BITS`` in place of ``bits``."""
    together_with: tuple[str, ...] = ()
    """Other planned models that the bytes also hold."""

    @model_validator(mode="after")
    def _codable(self) -> SizeTarget:
        if self.coded and self.bits not in CODED_BITS:
            raise ValueError(f"coded: bits must be a whole number from 1 to {max(CODED_BITS)}")
        return self


class Serving(_Strict):
    """Where the model is meant to answer, and by which means."""

    card: str
    """As ``cogumi.bandwidth.CARDS`` names it."""
    context: int = Field(default=2048, gt=0)
    """Tokens of context at which speeds are judged."""
    draft: str | None = None
    """Planned model that speculates."""
    k: int = Field(default=5, gt=0)
    """Tokens that it drafts at once."""
    acceptance: float = Field(default=0.75, ge=0, le=1)
    """Chance that a drafted token is accepted."""

    @model_validator(mode="after")
    def _known_card(self) -> Serving:
        if self.card not in CARDS:
            raise ValueError(f"no card {self.card!r}{nearest(self.card, list(CARDS))}")
        return self


class PlannedModel(_Strict):
    """A model of the plan with its size targets, checked by arithmetic before anything is spent.

    Either ``config`` or both counts of weights; a ``config`` that is a path or a hub name is read once, from
    the local files, and stands in place from then on.
    """

    name: str
    config: ModelConfig | None = None
    parameters: int = Field(gt=0)
    embedding_parameters: int = Field(ge=0)
    """Embedding and head."""
    source: str
    download_bytes_at_most: int | None = Field(default=None, gt=0)
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Share of weights in the linear layers that are pruned without structure."""
    criterion: str = ""
    """GATE/CRITERION that holds the size target."""
    targets: tuple[SizeTarget, ...] = ()
    """Further sizes on the way."""
    serving: Serving | None = None

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("config") is None:
            return given
        config = given["config"]
        if isinstance(config, str):
            try:
                config = find_config(config)
            except CogumiError as error:
                raise ValueError(str(error)) from None
        else:
            config = ModelConfig.model_validate(config)
        found = {"parameters": config.parameters, "embedding_parameters": config.embedding_parameters}
        for name, count in found.items():
            if given.get(name, count) != count:
                raise ValueError(
                    f"{name} is {given[name]}, but the config has {count:,}; leave it out beside a config"
                )
        return {**given, "config": config, **found}

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers; without a config, norms are counted among them."""
        if self.config is not None:
            return self.config.linear_parameters
        return self.parameters - self.embedding_parameters
