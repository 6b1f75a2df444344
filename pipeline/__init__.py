"""What is built: generation, training, compression, meta-learning, studies."""

from __future__ import annotations

from functools import cache

from pipeline.registry import StageRegistry


@cache
def all_stages() -> StageRegistry:
    """Return every registered stage by its name; each is imported when it is first asked for."""
    from pipeline.compression import STAGES as COMPRESSION
    from pipeline.generation import STAGES as GENERATION
    from pipeline.meta import STAGES as META
    from pipeline.people import STAGES as PEOPLE
    from pipeline.training import STAGES as TRAINING

    return StageRegistry({**GENERATION, **TRAINING, **COMPRESSION, **META, **PEOPLE})
