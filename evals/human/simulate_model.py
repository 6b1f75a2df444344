"""Who the simulated raters are and what they would say: drawn from one seed, marked as simulated for ever.

An honest rater's latent score is a mean plus effects of the rater, of the task and of this one look (crossed
random effects), rounded and cut to 1..10. Standard deviations are the middle case of the study by which the
plan's design was chosen: 1.2 of raters, 0.8 of tasks, 1.3 of a look; observed 0.97, 0.64 and 1.15 after
the cut.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from cogumi.errors import UsageError, nearest

LOW, HIGH = 1, 10

Behaviour = Literal["honest", "careless", "straight", "abandon", "double", "correct"]
"""What a simulated rater does.

``careless`` clicks anything, fast; ``straight`` gives one high score to all; ``abandon`` stops midway;
``double`` sends every rating twice at once; ``correct`` goes back and changes one before finishing.
"""

BEHAVIOURS: tuple[Behaviour, ...] = ("honest", "careless", "straight", "abandon", "double", "correct")
DEFAULT_MIX = "honest=0.9,careless=0.05,straight=0.02,abandon=0.02,double=0.01"

_RATER_SD, _TASK_SD, _LOOK_SD = 1.2, 0.8, 1.3
# What a planted bad answer gets, and how far a second look at the same item is from the first.
_BAD_MEAN, _BAD_SD, _AGAIN_SD = 3.0, 1.3, 0.6
_REFERENCE_STEP = -0.3
"""How much less the other system's answer is liked in a pair."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Which share of the raters does what; the shares add up to 1."""

    shares: Mapping[Behaviour, float]

    def dealt(self, raters: int, seed: int) -> list[Behaviour]:
        """Return the behaviour of each rater: shares by largest remainder, order by the seed."""
        exact = {name: self.shares.get(name, 0.0) * raters for name in BEHAVIOURS}
        counts = {name: math.floor(value + 1e-9) for name, value in exact.items()}
        by_remainder = sorted(BEHAVIOURS, key=lambda name: counts[name] - exact[name])
        for name in by_remainder[: raters - sum(counts.values())]:
            counts[name] += 1
        dealt = [name for name in BEHAVIOURS for _ in range(counts[name])]
        random.Random(f"{seed}/behaviours").shuffle(dealt)
        return dealt


def parse_mix(text: str) -> Mix:
    """Return the mix that ``honest=0.9,careless=0.1`` names; what is missing up to 1 is honest.

    Raises ``UsageError`` for an unknown name, a share that is no number from 0 to 1, or a sum above 1.
    """
    shares: dict[Behaviour, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, sign, value = (piece.strip() for piece in part.partition("="))
        known = next((one for one in BEHAVIOURS if one == name), None)
        if known is None or not sign:
            hint = "" if known else nearest(name, list(BEHAVIOURS))
            raise UsageError(f"--behaviour {part!r}: write NAME=SHARE, as in honest=0.9{hint}")
        if known in shares:
            raise UsageError(f"--behaviour names {name} twice; name it once")
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            raise UsageError(f"--behaviour {part!r}: the share must be a number from 0 to 1")
        shares[known] = share
    total = sum(shares.values())
    if total > 1 + 1e-9:
        raise UsageError(f"--behaviour: the shares add up to {total:g}; make them 1 or less")
    shares["honest"] = shares.get("honest", 0.0) + max(0.0, 1 - total)
    return Mix(shares)


@cache
def latent_mean(true_mean: float) -> float:
    """Return the latent mean at which rounded and cut scores have the mean ``true_mean``, by bisection.

    Raises ``UsageError`` outside 1.5 to 9.5, where too few scores would vary.
    """
    if not 1.5 <= true_mean <= 9.5:
        raise UsageError(f"--true-mean {true_mean:g}: choose a mean from 1.5 to 9.5")
    spread = math.sqrt(_RATER_SD**2 + _TASK_SD**2 + _LOOK_SD**2)
    low, high = -10.0, 21.0
    for _ in range(60):
        middle = (low + high) / 2
        if _observed_mean(middle, spread) < true_mean:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _observed_mean(latent: float, spread: float) -> float:
    """Return the mean of round(N(latent, spread)) cut to 1..10: 1 + the sum of P(score > k)."""
    above = (0.5 * math.erfc((k + 0.5 - latent) / (spread * math.sqrt(2))) for k in range(LOW, HIGH))
    return LOW + sum(above)


@dataclass(frozen=True, slots=True)
class Seen:
    """What stands on an item's page, as far as a rater tells things apart."""

    prompt: str
    answer: str
    good: bool
    """Whether the answer belongs to the prompt; an honest rater sees that a planted one does not."""


class Mind:
    """One simulated rater's opinions and speed: a pure function of seed, number and what is looked at."""

    def __init__(self, seed: int, number: int, behaviour: Behaviour, true_mean: float) -> None:
        self.behaviour: Behaviour = behaviour
        self._seed, self._number = seed, number
        self._mean = latent_mean(true_mean)
        self._said: dict[tuple[str, str], int] = {}
        own = random.Random(f"{seed}/rater/{number}")
        self._effect = own.gauss(0, _RATER_SD)
        self._straight = own.choice((8, 9, 9, 10))
        self.stops_after = own.uniform(0.2, 0.8)
        """Share of the items after which an abandoning rater is gone."""
        self.corrects = own.randrange(1_000_000)
        """Which item a correcting rater goes back to, modulo their number."""

    def score(self, seen: Seen, position: int) -> int:
        """Return 1 to 10; the same item again is rated close to what was said first."""
        if self.behaviour == "straight":
            return self._straight
        chance = self._chance("score", position)
        if self.behaviour == "careless":
            return chance.randint(LOW, HIGH)
        item = (seen.prompt, seen.answer)
        if item in self._said:
            return _cut(self._said[item] + chance.gauss(0, _AGAIN_SD))
        if seen.good:
            found = _cut(self._mean + self._effect + self._of_task(seen.prompt) + chance.gauss(0, _LOOK_SD))
        else:
            found = _cut(_BAD_MEAN + self._effect + chance.gauss(0, _BAD_SD))
        self._said[item] = found
        return found

    def corrected(self, score: int) -> int:
        """Return the score that a second thought makes of a score."""
        return score - 1 if score > LOW else score + 1

    def preference(self, left: str, right: str, subject: str, position: int) -> str:
        """Return ``left``, ``right`` or ``tie``; ``subject`` is the judged system's answer."""
        chance = self._chance("pair", position)
        if self.behaviour == "straight":
            return "left"
        if self.behaviour == "careless" or left == right:
            return chance.choice(("left", "right", "tie"))
        liked = [
            (0.0 if answer == subject else _REFERENCE_STEP) + chance.gauss(0, _LOOK_SD)
            for answer in (left, right)
        ]
        if abs(liked[0] - liked[1]) < 0.5:
            return "tie"
        return "left" if liked[0] > liked[1] else "right"

    def focus_ms(self, position: int) -> int:
        """Return how long this look takes, in milliseconds of focus: claimed, not waited."""
        chance = self._chance("focus", position)
        if self.behaviour in ("careless", "straight"):
            return round(chance.uniform(400, 2500))
        return round(1000 * chance.lognormvariate(math.log(14), 0.5))

    def comment(self, position: int) -> str:
        """Return a comment, mostly none."""
        chance = self._chance("comment", position)
        return "simulated: reads well" if chance.random() < 0.03 else ""

    def _of_task(self, prompt: str) -> float:
        # Of the task and not of the rater: the crossed effect that all raters share.
        return random.Random(f"{self._seed}/task/{prompt}").gauss(0, _TASK_SD)

    def _chance(self, what: str, position: int) -> random.Random:
        return random.Random(f"{self._seed}/{what}/{self._number}/{position}")


def _cut(latent: float) -> int:
    return min(HIGH, max(LOW, math.floor(latent + 0.5)))
