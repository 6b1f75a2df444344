"""A cold gate on recorded evidence has a second: what it imports and what it computes must stay small."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from cogumi.verdict import Verdict
from gates.betting import RatioSample, sequential_test


def test_importing_the_engine_brings_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "scipy", "pandas", "pyarrow", "sqlalchemy", "lm_eval", "rich"]
    code = (
        "import sys, gates.engine, gates.spec, gates.render\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_hundred_thousand_items_near_the_bar_are_no_trouble() -> None:
    """The slowest case: undecided for long, with bounds searched over nearly all items."""
    rng = np.random.default_rng(20261123)
    n = 100_000
    x = (rng.random(n) < 0.68).astype(np.float64)
    y = (rng.random(n) < 0.77).astype(np.float64)
    result = sequential_test(RatioSample(x, y, y, n), 0.88, 0.05)
    assert result.verdict is (Verdict.PASS if x.sum() >= 0.88 * y.sum() else Verdict.FAIL)
    assert result.lower <= x.mean() / y.mean() <= result.upper
