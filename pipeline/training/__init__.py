"""Training: models made, cut or fetched, fine-tuning, drafts and how many of their tokens are accepted."""

from __future__ import annotations

from typing import Any

from cogumi.stage import Stage
from pipeline.training.acceptance import ACCEPTANCE
from pipeline.training.depth_cut import DEPTH_CUT
from pipeline.training.micro_model import MICRO_MODEL
from pipeline.training.pretrained import PRETRAINED
from pipeline.training.self_answers import SELF_ANSWERS
from pipeline.training.sft import SFT

STAGES: tuple[Stage[Any], ...] = (MICRO_MODEL, PRETRAINED, DEPTH_CUT, SFT, SELF_ANSWERS, ACCEPTANCE)
