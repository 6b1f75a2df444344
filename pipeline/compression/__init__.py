"""Compression: export to GGUF and quantisation."""

from __future__ import annotations

from typing import Any

from cogumi.stage import Stage
from pipeline.compression.awq import AWQ
from pipeline.compression.confidence import CONFIDENCE
from pipeline.compression.fidelity_stage import FIDELITY
from pipeline.compression.gguf_export import GGUF
from pipeline.compression.gptq import GPTQ
from pipeline.compression.grid import GRID
from pipeline.compression.hardest import HARDEST
from pipeline.compression.package import PACKAGE
from pipeline.compression.prune import PRUNE
from pipeline.compression.recipe import RECIPE
from pipeline.compression.recovery import RECOVER
from pipeline.compression.width_cut import WIDTH_CUT

STAGES: tuple[Stage[Any], ...] = (
    AWQ,
    CONFIDENCE,
    FIDELITY,
    GGUF,
    GPTQ,
    GRID,
    HARDEST,
    PACKAGE,
    PRUNE,
    RECOVER,
    RECIPE,
    WIDTH_CUT,
)
