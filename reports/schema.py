"""What a report says, as data: every page is drawn from this, and ``report.json`` is this."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FORMAT = 4
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


class LookPart(_Part):
    """One look at a training: losses in nats per answer token, None where that one was not taken."""

    step: float
    """Optimizer steps so far."""
    train_loss: float | None
    """Mean since the look before."""
    held_out_loss: float | None
    """On held-out rows; in meta-learning on the query rows of held-out tasks, after adapting."""


class LeftOutPart(_Part):
    """Rows of the data that a training left out or cut, and why."""

    why: str
    rows: int


class TrainingPart(_Part):
    """What a training saw, how fast it was and what it took; None is unknown, and never 0."""

    objective: str
    held_out_name: str
    looks: list[LookPart]
    steps: int | None
    stopped_early: bool
    rows: int | None
    held_out_rows: int | None
    left_out: list[LeftOutPart]
    tokens_seen: int | None
    supervised_share: float | None
    padding_share: float | None
    parameters: int | None
    trainable_parameters: int | None
    seconds: float | None
    """Of the process that finished it."""
    tokens_per_second: float | None
    model_flop_utilization: float | None
    peak_bytes: int | None
    joules: float | None
    gpus: int | None
    gpu_hours: float | None
    """Of all processes that worked on it, as are ``joules``."""
    gpu_usd: float | None


class ReliabilityBinPart(_Part):
    """Answers of like confidence: what they claim, and the share of right ones with its bounds."""

    n: int
    confidence: float
    accuracy: float
    lower: float
    upper: float


class ScalingPart(_Part):
    """How far a scaling of confidence leaves it from the chance of being right."""

    name: str
    """``none``, ``temperature`` or ``platt``."""
    ece: float
    """Expected calibration error without the bias of its bins, over bins of equal mass."""
    lower: float
    upper: float
    brier: float
    log_loss: float
    """In nats."""
    auroc: float | None
    """None where all answers are right, or all wrong."""
    reliability: list[ReliabilityBinPart]


class ConfidencePart(_Part):
    """A model's confidence in its answers against how many of them are right, on held-out questions."""

    method: str
    """The scaling that is shipped and that a gate judges."""
    temperature: float
    platt: tuple[float, float]
    items: int
    accuracy: float
    mean_confidence: float
    """Before scaling."""
    alpha: float
    scalings: list[ScalingPart]


class MetricPart(_Part):
    """A number that a stage measured and a gate may ask for; ``about`` says what it is."""

    metric: str
    about: str
    value: float | int
    lower: float | None = None
    upper: float | None = None
    alpha: float | None = None
    """None, as the bounds, for a number that is known without error."""
    n: int | None = None
    """Items behind it."""
    note: str = ""


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
    measured: list[MetricPart]
    """What the step's stage measured by the names that gates know."""
    training: TrainingPart | None
    """None for a step that trained nothing."""
    confidence: ConfidencePart | None
    """None for a step that calibrated nothing."""


class FrontierPointPart(_Part):
    """A compressed model of the run: two sizes in bytes, and its KL from the dense one in nats per token."""

    number: int | None
    """In the table of models; None for one that is gone."""
    name: str
    recipe: str
    bytes_resident: int
    bytes_download: int
    bits_per_weight: float | None
    kl: float
    kl_lower: float
    kl_upper: float
    perplexity: float | None
    """Of held-out answers."""
    baseline_perplexity: float | None
    top1_agreement: float | None
    tokens: int | None
    rows: int | None
    standing: str
    """``best``: none is as small and as near; ``behind``: one is, by their bounds; ``not told apart``."""


class FrontierPart(_Part):
    """Size against quality: every model that was compared with one dense model along the same rows."""

    baseline: str
    points: list[FrontierPointPart]
    """The smallest download first."""


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


class GpuPart(_Part):
    """What GPU hours cost this run: the profile's price, and the hours that it paid for."""

    name: str
    usd_per_hour: float | None
    source: str
    hours: float
    usd: float | None


class MoneyPart(_Part):
    """What was paid, and what a local teacher would have cost."""

    real_usd: float
    simulated_usd: float
    unpriced_calls: int
    calls: list[CallsPart]
    gpu: GpuPart | None
    """None for a run without GPU hours; not in ``real_usd``, which teachers asked for."""


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
    frontiers: list[FrontierPart]
    """Empty where no divergence was measured."""
    steps: list[StepPart]
    money: MoneyPart
    reproduce: ReproducePart
    caveats: list[str]
