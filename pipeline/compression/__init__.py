"""Compression: export to GGUF and quantisation."""

from __future__ import annotations

STAGES = {
    "compression.awq": "pipeline.compression.awq:AWQ",
    "compression.confidence": "pipeline.compression.confidence:CONFIDENCE",
    "compression.fidelity": "pipeline.compression.fidelity_stage:FIDELITY",
    "compression.gguf": "pipeline.compression.gguf_export:GGUF",
    "compression.gptq": "pipeline.compression.gptq:GPTQ",
    "compression.grid": "pipeline.compression.grid:GRID",
    "compression.hardest": "pipeline.compression.hardest:HARDEST",
    "compression.package": "pipeline.compression.package:PACKAGE",
    "compression.prune": "pipeline.compression.prune:PRUNE",
    "compression.recover": "pipeline.compression.recovery:RECOVER",
    "compression.recipe": "pipeline.compression.recipe:RECIPE",
    "models.width_cut": "pipeline.compression.width_cut:WIDTH_CUT",
}
"""Where each stage stands, by its name."""
