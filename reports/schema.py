"""What a report says, as data: every page is drawn from this, and ``report.json`` is this."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FORMAT = 1
"""Version of the JSON; changes whenever a reader of the old one would be misled."""

Scalar = str | float | int | bool | None


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunPart(_Part):
    """Which run, and how it stands."""

    name: str
    profile: str
    profile_title: str
    profile_digest: str
    status: str
    """``running``, ``done``, ``stopped`` or ``failed``."""
    exit_code: int | None
    note: str
    started: str
    as_of: str
    """The last moment that the ledger knows of this run (UTC)."""
    seconds: float
    """Sum of its steps' wall time on this machine."""
    accepted_infeasible: list[str]


class Decision(_Part):
    """One verdict of a gate; ``document`` is what ``cogumi gate --json`` printed."""

    verdict: str
    attempt: int
    artifact: str
    artifact_name: str
    decided: str
    document: dict[str, Any]


class GatePart(_Part):
    """A gate of the run: its last verdict and all that came before; ``verdict`` is None while undecided."""

    gate: str
    title: str
    step: str | None
    """None for a gate that the profile does not have and that somebody asked all the same."""
    verdict: str | None
    decisions: list[Decision]
    """Oldest first; the last one stands."""


class TaskPart(_Part):
    """Score of one artifact on one task: the mean over the first ``n`` of ``n_total`` items."""

    task: str
    score: float | None
    lower: float
    upper: float
    n: int
    n_total: int
    truncated: int
    errors: int
    tokens_per_second: float | None
    reference_score: float | None
    """The reference's mean over the same items, or its published score."""
    protocol: str


class SuitePart(_Part):
    """Macro mean of one artifact over the tasks of a suite; no score while a task has no item."""

    suite: str
    score: float | None
    lower: float | None
    upper: float | None
    alpha: float
    n: int
    n_total: int
    tasks: list[TaskPart]
    tasks_total: int
    reference: str | None
    reference_simulated: bool
    ratio: float | None
    """Score over the reference's score on the same items."""


class ArtifactPart(_Part):
    """A model or GGUF file that the run made."""

    number: int
    """Its number in the table and in the plots of this report."""
    name: str
    digest: str
    kind: str
    stage: str
    parameters: int | None
    bytes_resident: int | None
    bytes_download: int | None
    bits_per_weight: float | None
    tokens_per_second: float | None
    quality: list[SuitePart]
    parents: list[str]
    settings: dict[str, Any]


class ReferencePart(_Part):
    """What the reference scores on a suite, over all of its own items."""

    suite: str
    name: str
    score: float
    simulated: bool


class StepPart(_Part):
    """One attempt of one step; ``seconds`` is None for a step that has not ended."""

    plan: str
    step: str
    kind: str
    status: str
    attempt: int
    seconds: float | None
    artifact: str | None
    note: str
    metrics: dict[str, Scalar]
    facts: dict[str, Scalar]
    curve: list[tuple[float, float]]
    """(step, held-out loss) of a training, empty for other stages."""


class CallsPart(_Part):
    """Calls of one step to one model; ``cost_usd`` is None when no call has a known price."""

    step: str
    provider: str
    model: str
    simulated: bool
    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    unpriced: int


class MoneyPart(_Part):
    """What was paid, and what a local teacher would have cost."""

    real_usd: float
    simulated_usd: float
    unpriced_calls: int
    calls: list[CallsPart]


class DataPart(_Part):
    """A set of items that was measured on, or a file that a stage wrote."""

    kind: Literal["benchmark", "file"]
    name: str
    digest: str
    detail: str


class ReproducePart(_Part):
    """What somebody else needs to get the same verdicts."""

    commands: list[str]
    seed: int
    software: list[dict[str, str]]
    """The stacks that answered, as the evidence has them."""
    data: list[DataPart]
    profile: dict[str, Any]


class Report(_Part):
    """One run, told once."""

    format: int = FORMAT
    run: RunPart
    gates: list[GatePart]
    artifacts: list[ArtifactPart]
    references: list[ReferencePart]
    steps: list[StepPart]
    money: MoneyPart
    reproduce: ReproducePart
    caveats: list[str]
