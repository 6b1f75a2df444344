"""What an estimate assumes where no run has measured it yet: each with three values and its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cogumi.profile import Expected, Profile

CaseName = Literal["low", "expected", "high"]


@dataclass(frozen=True, slots=True)
class Assumption:
    """One assumed figure: its value where the cost is low, as expected and high."""

    name: str
    low: float
    expected: float
    high: float
    source: str


@dataclass(frozen=True, slots=True)
class Case:
    """One of the three cases: every assumption takes its value of this name."""

    name: CaseName
    assumptions: Mapping[str, Assumption]
    used: set[str]
    """Names of those that were asked for; the estimate tells no others."""

    def __getitem__(self, name: str) -> float:
        """Return the value of an assumption."""
        self.used.add(name)
        return float(getattr(self.assumptions[name], self.name))


SPEED = "training tokens a second"
ANSWERING = "answer tokens a second"

# The speed of training, low cost first: the one entry to change when a benchmark has measured another.
TRAINING_SPEED = Assumption(
    SPEED,
    17_221,
    15_050,
    9_772,
    "LoRA rank 64, bf16, Llama-3.1-8B's shape, one H100 SXM, 2026-11-23: packed 17,221 on its lengths; "
    "plain PEFT 9,772 on full rows (reports/published/training-h100.md); 15,050 leaves an eighth for looks",
)

# Tests hold that every one of them matters to an estimate.
_COMMON = (
    Assumption(
        "prompt tokens", 0.82, 1.0, 1.18, "times evals.lint.tokens.estimate, which errs by 18 % at most"
    ),
    Assumption(
        "kept of the written",
        0.97,
        0.67,
        0.33,
        "41,196 of the predecessor's 42,606 questions are no near duplicates; 6,685 of 10,000 in its "
        "spoilt run; half of that is assumed",
    ),
    Assumption("kept by the judge", 1.0, 0.95, 0.80, "assumed: no judge has been asked yet"),
    Assumption("judgement tokens", 25, 25, 64, "three scores as JSON; the stage allows 64"),
    Assumption("repaired answers", 0.0, 0.02, 0.10, "assumed; the fault tests of the stages use 10 %"),
    Assumption("refused and replaced", 0.0, 0.005, 0.03, "assumed; at most the reserve_share of 3 %"),
    Assumption(
        "cache hits in batches",
        0.98,
        0.64,
        0.30,
        "30 % to 98 % (platform.claude.com, batch processing), and the middle; a miss writes the cache again",
    ),
    Assumption(
        "cache hits live", 0.98, 0.98, 0.64, "assumed: a steady stream keeps a cache of five minutes warm"
    ),
    TRAINING_SPEED,
    Assumption(
        "chat template tokens",
        12,
        36,
        36,
        "a row's own in Llama-3.1's template with its date; 12 in shorter ones",
    ),
    Assumption(
        "answer without its reasoning",
        0.30,
        0.47,
        0.60,
        "share of a hard answer's tokens: 47 % of the characters in 681 answers of the predecessor",
    ),
    Assumption(
        ANSWERING, 2_000, 1_000, 500, "assumed: transformers, 32 answers at once, 15 to 60 steps a second"
    ),
)
_LENGTHS = {
    "question tokens": (
        "question_tokens",
        "means of the predecessor's easy and hard questions, 95th percentile",
    ),
    "easy answer tokens": (
        "easy_answer_tokens",
        "mean of 395 easy answers, the predecessor's planning figure, what $2.52 pays for",
    ),
    "hard answer tokens": (
        "hard_answer_tokens",
        "mean of 681 hard answers, the predecessor's planning figure, where answers are cut short",
    ),
}


def assumptions_of(profile: Profile) -> dict[str, Assumption]:
    """Return all assumptions by name; the lengths are the profile's ``expected``."""
    found = {each.name: each for each in _COMMON}
    for name, (key, source) in _LENGTHS.items():
        values: tuple[int, int, int] = getattr(profile.expected, key)
        own = values != getattr(Expected(), key)
        found[name] = Assumption(name, *values, "profile: expected" if own else source)
    return found
