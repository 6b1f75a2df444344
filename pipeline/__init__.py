"""What is built: generation, training, compression, meta-learning."""

from __future__ import annotations

from typing import Any

from cogumi.stage import Stage


def all_stages() -> dict[str, Stage[Any]]:
    """Return every registered stage by its name; importing them loads no model library."""
    from pipeline.compression import STAGES as COMPRESSION
    from pipeline.generation import STAGES as GENERATION
    from pipeline.meta import STAGES as META
    from pipeline.training import STAGES as TRAINING

    return {stage.name: stage for stage in (*GENERATION, *TRAINING, *COMPRESSION, *META)}
