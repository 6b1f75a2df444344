"""What a stage is: settings and input artifacts in, one artifact out, nothing else touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from cogumi.store import Artifact
    from cogumi.workspace import Workspace

ArtifactKind = Literal["dataset", "model", "gguf", "adapter", "tokenizer", "file"]


class Settings(BaseModel):
    """Base of every stage's settings: strict, so that a mistyped key is an error and not a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Progress(Protocol):
    """Where a stage tells how far it is; safe to call from any thread."""

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """Report ``done`` of ``total`` units and current facts (``loss=0.31``, ``tok_s=9800``)."""
        ...


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """An endpoint that a stage may call; the key is read from ``key_env`` at the moment of use."""

    name: str
    api: Literal["openai", "anthropic"]
    model: str
    base_url: str | None
    key_env: str | None
    input_usd_per_mtok: float | None
    output_usd_per_mtok: float | None
    batch_discount: float
    endpoint: str
    """Names the endpoint for ever: its address, or the local teacher's settings, whose port changes."""
    simulated: bool
    """True for the local teacher: its dollars are play money and are told so everywhere."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """What the provider allows, tokens of prompt and answer together; None where it names no limit."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request's body that only this endpoint knows."""
    cache_write_usd_per_mtok: float | None = None
    cache_read_usd_per_mtok: float | None = None
    """Price of cached input; None counts it at no less than any provider asks."""
    price_source: str = ""
    """Where and when the prices were read."""

    @property
    def provider(self) -> tuple[str, str | None, str | None]:
        """Return what names the account that this teacher's calls count against."""
        return (self.api, self.base_url, self.key_env)


class Calls(Protocol):
    """The ledger's memory of paid calls: what was acknowledged is never paid twice, also after a kill."""

    def recorded(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return ``{key: response}`` for those keys whose response is already in the ledger."""
        ...

    def known(self, keys: Sequence[str]) -> set[str]:
        """Return those of the keys whose response is already in the ledger."""
        ...

    def record(self, calls: Sequence[CallRecord]) -> None:
        """Commit responses in one transaction, before they are counted as received.

        Raises ``BudgetError`` after the commit when the spending limit of the run is reached.
        """
        ...

    def spent_usd(self) -> tuple[float, float]:
        """Return (real, simulated) dollars of the run so far."""
        ...

    def check_budget(self, expected_usd: float) -> None:
        """Raise ``BudgetError`` when ``expected_usd`` more would pass the spending limit of the run."""
        ...

    def open_batches(self, provider: str) -> list[OpenBatch]:
        """Return the batches that were submitted to a provider and not collected yet, the oldest first."""
        ...

    def save_batch(self, provider: str, batch: OpenBatch) -> None:
        """Remember a batch under way, so that a restart collects it and does not pay again."""
        ...

    def close_batch(self, key: str) -> None:
        """Mark a batch as collected; its responses were recorded before."""
        ...


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch under way at a provider."""

    key: str
    """Digest of what is asked."""
    batch_id: str
    """The provider's id, or what marks a submission whose answer has not arrived."""
    requests: tuple[str, ...]
    """Keys of the calls in the batch, in the order in which they were submitted."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One acknowledged response of a teacher; ``key`` is the digest of everything that was asked."""

    key: str
    provider: str
    model: str
    response: Mapping[str, Any]
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    """None when the model's price is unknown; never 0 for unknown."""
    simulated: bool = False
    batch_id: str | None = None


@dataclass(frozen=True, slots=True)
class StageContext:
    """Everything that a stage may read, and the one folder that it may fill."""

    inputs: Mapping[str, Artifact]
    out: Path
    """Empty folder; what the stage leaves in it becomes the artifact."""
    scratch: Path
    """Survives a kill and belongs to this exact work (same settings and inputs): checkpoints go here."""
    seed: int
    progress: Progress
    calls: Calls
    teachers: Mapping[str, TeacherConfig]
    data: Path | None
    """Folder with benchmark data, where one was found."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage says about its output; ``facts`` describe content and so must not hold times."""

    kind: ArtifactKind
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Deterministic description, stored in the manifest: rows, parameters, losses, tokenizer digest."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Measured on this machine (seconds, tokens per second, peak bytes): stored in the ledger only."""


SettingsT = TypeVar("SettingsT", bound=Settings)


@dataclass(frozen=True, slots=True)
class Stage(Generic[SettingsT]):
    """A registered kind of work; ``version`` changes whenever the same inputs would give another output."""

    name: str
    version: int
    title: str
    settings: type[SettingsT]
    run: Callable[[SettingsT, StageContext], StageResult]
    inputs: tuple[str, ...] = ()
    """Names of the input artifacts that ``run`` wants in its context."""
    optional_inputs: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    """Names of the settings fields that hold a teacher's name."""
    check: Callable[[Mapping[str, Artifact]], None] | None = None
    """Called with the inputs before ``run``, in the process of the run."""
    outside: Callable[[SettingsT, Workspace], str | None] | None = None
    """Returns the digest of what the settings name outside the store; it is part of what the work is."""
