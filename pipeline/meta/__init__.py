"""Meta-learning measured: what it adds to few-shot performance on families that nobody trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cogumi.stage import Stage
from pipeline.meta.few_shot import FEW_SHOT
from pipeline.training.sft import SFT

# The same training under the family's own name: `--until training` ends before phase 6.
META_TRAIN = replace(SFT, name="meta.train", title="Learn to learn, or its control of equal compute")

STAGES: tuple[Stage[Any], ...] = (META_TRAIN, FEW_SHOT)
