"""Training: models made on the spot and supervised fine-tuning."""

from __future__ import annotations

from typing import Any

from cogumi.stage import Stage
from pipeline.training.micro_model import MICRO_MODEL
from pipeline.training.sft import SFT

STAGES: tuple[Stage[Any], ...] = (MICRO_MODEL, SFT)
