"""The few-shot gain of one model over another on the same episodes, with an interval that counts episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cogumi.verdict import Verdict
from gates.betting import RatioSample, confidence_bounds


@dataclass(frozen=True, slots=True)
class Gain:
    """``value`` = mean(model) / mean(control) - 1; ``upper`` is None where nothing bounds it."""

    value: float
    lower: float
    upper: float | None


def paired_gain(model: Sequence[float], control: Sequence[float], alpha: float) -> Gain | None:
    """Return the gain over episodes that were drawn independently, or None where the control scores nothing.

    ``model[i]`` and ``control[i]`` in [0, 1] are both models' mean scores on the queries of episode i: these
    share their support rows, so an episode is one draw, whatever its size. The interval misses the gain over
    all episodes that could be drawn with chance at most ``alpha``, for any number of them and any scores: it
    is the gates' own bet on mean(X) - c * mean(Y) >= 0 inverted (gates.betting), at alpha / 2 for each
    bound.
    """
    x, y = np.asarray(model, dtype=np.float64), np.asarray(control, dtype=np.float64)
    if not y.sum():
        return None
    ratio = float(x.sum() / y.sum())
    sample = RatioSample(x, y, y, None)
    # At ratio 0 there is nothing below, and the search for an upper bound starts above it.
    lower, upper = confidence_bounds(sample, max(ratio, 1e-3), (alpha / 2, alpha / 2), Verdict.UNDECIDED)
    highest = max(upper, ratio) - 1
    return Gain(ratio - 1, min(lower, ratio) - 1, highest if np.isfinite(highest) else None)
