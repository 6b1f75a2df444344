"""Compression: export to GGUF and quantisation."""

from __future__ import annotations

from typing import Any

from cogumi.stage import Stage
from pipeline.compression.gguf_export import GGUF

STAGES: tuple[Stage[Any], ...] = (GGUF,)
