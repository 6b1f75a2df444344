"""Training: models made, cut or fetched, fine-tuning, drafts and how many of their tokens are accepted."""

from __future__ import annotations

STAGES = {
    "models.micro": "pipeline.training.micro_model:MICRO_MODEL",
    "models.pretrained": "pipeline.training.pretrained:PRETRAINED",
    "models.depth_cut": "pipeline.training.depth_cut:DEPTH_CUT",
    "training.sft": "pipeline.training.sft:SFT",
    "training.self_answers": "pipeline.training.self_answers:SELF_ANSWERS",
    "training.acceptance": "pipeline.training.acceptance:ACCEPTANCE",
}
"""Where each stage stands, by its name."""
