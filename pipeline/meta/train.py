"""Meta-training under its own name: the same stage as fine-tuning, with other settings."""

from __future__ import annotations

from dataclasses import replace

from pipeline.training.sft import SFT

# The same training under the family's own name: `--until training` ends before phase 6.
META_TRAIN = replace(SFT, name="meta.train", title="Learn to learn, or its control of equal compute")
