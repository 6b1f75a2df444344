"""Meta-learning measured: what it adds to few-shot performance on families that nobody trained on."""

from __future__ import annotations

STAGES = {
    "meta.train": "pipeline.meta.train:META_TRAIN",
    "meta.few_shot": "pipeline.meta.few_shot:FEW_SHOT",
}
"""Where each stage stands, by its name."""
