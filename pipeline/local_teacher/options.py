"""What the local teacher is told at start: how often it errs, how it misbehaves, where it remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cogumi.errors import UsageError, nearest
from cogumi.teacher_faults import CONTENT_FAULTS, FAULTS

MODELS = ("deepseek-chat", "llama-3.1-405b-instruct", "gpt-4o-mini", "gpt-4", "claude-sonnet-4")
"""What ``/v1/models`` lists when no models are named; then every model name is served."""

READY = "local teacher ready at "
"""What the process prints before its address, once it answers."""


@dataclass(frozen=True, slots=True)
class TeacherOptions:
    """Settings of the local teacher; every rate is a probability from 0 to 1."""

    state: Path
    """Folder that outlives the process: files, batches and the log of answered requests."""
    error_rate: float = 0.05
    """Share of questions that are answered wrongly, in domains that ``error_rates`` does not name."""
    error_rates: Mapping[str, float] = field(default_factory=dict)
    judge_reject_rate: float = 0.05
    malformed_rate: float = 0.02
    """Share of first hard answers, and of first judgements, that break their form."""
    seed: int = 0
    latency_ms: float = 0.0
    batch_delay: float = 0.0
    """Seconds between the creation of a batch and its processing."""
    faults: Mapping[str, float] = field(default_factory=dict)
    stall_seconds: float = 30.0
    retry_after_seconds: float = 1.0
    """What the 429 fault asks its client to wait."""
    models: Sequence[str] = ()
    """The only models that exist; none named means that any name is served."""
    require_key: str | None = None
    varied: bool = False
    """Put a scene before every written question, so that no two are near duplicates."""
    gguf: str | None = None
    """GGUF file, or a model as ``cogumi eval`` names it, that answers in place of the micro answerer."""
    context: int = 8192
    """Tokens of prompt and answer that ``gguf`` is given; cut to what it was trained for."""

    def __post_init__(self) -> None:
        for name in self.faults:
            if name not in FAULTS:
                raise UsageError(f"--faults: no fault {name!r}{nearest(name, list(FAULTS))}")
        made_up = [name for name in CONTENT_FAULTS if name in self.faults] + ["varied"] * self.varied
        if self.gguf is not None and made_up:
            raise UsageError(
                f"{made_up[0]}: a real model answers (--gguf) and says what it says; leave it out"
            )
        if self.context < 1:
            raise UsageError(f"--context: {self.context} tokens hold no prompt; leave it out for 8192")
        rates = {
            "--error-rate": self.error_rate,
            "--judge-reject-rate": self.judge_reject_rate,
            "--malformed-rate": self.malformed_rate,
            **{f"--error-rates {name}": rate for name, rate in self.error_rates.items()},
            **{f"--faults {name}": rate for name, rate in self.faults.items()},
        }
        for name, rate in rates.items():
            if not 0 <= rate <= 1:
                raise UsageError(f"{name}: {rate} is no probability; give a number from 0 to 1")

    def arguments(self) -> list[str]:
        """Return these options as the command line that ``python -m pipeline.local_teacher`` takes."""
        words = ["--state", str(self.state), "--error-rate", repr(self.error_rate)]
        words += ["--judge-reject-rate", repr(self.judge_reject_rate)]
        words += ["--malformed-rate", repr(self.malformed_rate), "--seed", str(self.seed)]
        words += ["--latency-ms", repr(self.latency_ms), "--batch-delay", repr(self.batch_delay)]
        words += ["--stall-seconds", repr(self.stall_seconds)]
        words += ["--retry-after-seconds", repr(self.retry_after_seconds)]
        for option, rates in (("--error-rates", self.error_rates), ("--faults", self.faults)):
            if rates:
                words += [option, ",".join(f"{name}={rate!r}" for name, rate in rates.items())]
        if self.models:
            words += ["--models", ",".join(self.models)]
        if self.require_key is not None:
            words += ["--require-key", self.require_key]
        if self.varied:
            words += ["--varied"]
        if self.gguf is not None:
            words += ["--gguf", self.gguf, "--context", str(self.context)]
        return words


def parse_rates(text: str) -> dict[str, float]:
    """Read ``name=rate,name=rate``; raises ``UsageError`` naming the part that is not of this form."""
    rates: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, rate = part.partition("=")
        try:
            rates[name.strip()] = float(rate)
        except ValueError:
            raise UsageError(f"{part!r} is not of the form name=rate, for example 429=0.1") from None
    return rates
