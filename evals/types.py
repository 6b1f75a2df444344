"""The words that every evaluation speaks: item, generation, backend, task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a task.

    ``target`` is what the scorer needs and is never shown to a model; ``id`` is stable within the task.
    """

    id: str
    prompt: str
    target: Mapping[str, Any]
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model answered to one prompt; ``seconds`` is wall time attributed to this answer."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class ItemScore:
    """``score`` in [0, 1] is what gates use; ``details`` holds secondary metrics of the same answer."""

    score: float
    details: Mapping[str, float] = field(default_factory=dict)


class Backend(Protocol):
    """A loaded model that answers chat prompts greedily with its own chat template and stop tokens."""

    @property
    def stack(self) -> dict[str, str]:
        """What produced the answers: backend name, dtype, library versions; part of the protocol digest."""
        ...

    @property
    def batch_size(self) -> int:
        """How many prompts one ``generate`` call handles best."""
        ...

    def generate(self, prompts: Sequence[str], *, max_tokens: int) -> list[Generation]:
        """Answer each user prompt, in the order given; one list entry per prompt, never missing."""
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


class Task(Protocol):
    """A benchmark: its items, its protocol and its scorer."""

    name: str
    version: int
    family: str
    """Protocol family, e.g. ``ifeval/prompt_level_strict/0-shot-chat``; references must share it."""
    max_tokens: int

    def items(self, data: Path | None) -> list[Item]:
        """Load all items in the source's order; ``data`` is the benchmark folder, if one was found."""
        ...

    def score(self, item: Item, answer: str) -> ItemScore:
        """Score one complete answer; truncated and failed ones never reach this method (they score 0)."""
        ...
