"""What an estimate says, of a step and of a whole run: calls, tokens, dollars, GPU hours."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cogumi.gpu_cost import gpu_usd
from cogumi.profile import GpuPrice
from pipeline.assumptions import Assumption


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """What one step is expected to take; dollars are None when a price is unknown."""

    step: str
    plan: str
    calls: int = 0
    input_tokens: int = 0
    """Every token of the prompts, those written to and read from a cache among them."""
    output_tokens: int = 0
    usd: float | None = 0.0
    """As expected; so are calls and tokens."""
    simulated: bool = False
    training_tokens: int = 0
    """Tokens that go through training, every attempt and epoch counted; as expected, as are GPU hours."""
    gpu_hours: float = 0.0
    plan_says: str = ""
    usd_low: float | None = 0.0
    usd_high: float | None = 0.0
    usd_live: float | None = 0.0
    """As expected without batches."""
    saves: float | None = 0.0
    """What batches save of ``usd_live``."""
    usd_known: float = 0.0
    """As expected, without the teachers whose price is unknown."""
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0
    teachers: tuple[str, ...] = ()
    hours: float = 0.0
    """Least time that the requests of the accounts allow; 0 where no limit is known."""
    pace: str = ""
    """How that time comes about."""
    training_tokens_low: int = 0
    training_tokens_high: int = 0
    answer_tokens: int = 0
    """Tokens that a model of the run writes, as expected."""
    gpu_hours_low: float = 0.0
    gpu_hours_high: float = 0.0
    gpu_usd: float | None = None
    gpu_usd_low: float | None = None
    gpu_usd_high: float | None = None
    """At the profile's price of a GPU hour; None without one, and for a step without GPUs."""
    gpu_pace: str = ""
    """The speed that the GPU hours rest on, or why there is none."""


@dataclass(frozen=True, slots=True)
class UsedPrice:
    """The price that an estimate reckons with, in dollars for a million tokens."""

    teacher: str
    model: str
    input_usd_per_mtok: float | None
    output_usd_per_mtok: float | None
    source: str


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """The estimate of a profile, or of some of its steps."""

    steps: list[StepEstimate] = field(default_factory=list)
    gpu: GpuPrice | None = None
    prices: list[UsedPrice] = field(default_factory=list)
    assumptions: list[Assumption] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Teachers without a price, each with the mend."""
    warnings: list[str] = field(default_factory=list)

    @property
    def real_usd(self) -> float | None:
        """Dollars that providers will ask for, as expected; None when a price is unknown."""
        return self._real("usd")

    @property
    def simulated_usd(self) -> float:
        """Play money of the local teacher."""
        return sum(step.usd or 0.0 for step in self.steps if step.simulated)

    @property
    def gpu_hours(self) -> float:
        """Hours on the profile's accelerator, as expected."""
        return self._hours("gpu_hours")

    def _hours(self, name: str) -> float:
        return float(sum(getattr(step, name) for step in self.steps))

    def document(self) -> dict[str, Any]:
        """Return the estimate as JSON: the steps, the totals, prices, assumptions and warnings."""
        return {
            "steps": [asdict(step) for step in self.steps],
            "calls": sum(step.calls for step in self.steps),
            "usd": self.real_usd,
            "usd_low": self._real("usd_low"),
            "usd_high": self._real("usd_high"),
            "usd_live": self._real("usd_live"),
            "saves": self._real("saves"),
            "usd_known": sum(step.usd_known for step in self.steps if not step.simulated),
            "simulated_usd": self.simulated_usd,
            "gpu_hours": self.gpu_hours,
            "gpu_hours_low": self._hours("gpu_hours_low"),
            "gpu_hours_high": self._hours("gpu_hours_high"),
            "gpu_usd": gpu_usd(self.gpu_hours, self.gpu),
            "gpu_usd_low": gpu_usd(self._hours("gpu_hours_low"), self.gpu),
            "gpu_usd_high": gpu_usd(self._hours("gpu_hours_high"), self.gpu),
            "gpu": self.gpu.model_dump() if self.gpu else None,
            "prices": [asdict(price) for price in self.prices],
            "assumptions": [asdict(assumption) for assumption in self.assumptions],
            "unknown_prices": self.unknown,
            "warnings": self.warnings,
        }

    def _real(self, name: str) -> float | None:
        values: list[float | None] = [getattr(step, name) for step in self.steps if not step.simulated]
        return None if None in values else sum(value for value in values if value is not None)
