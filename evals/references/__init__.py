"""References: what other models scored, published or item by item, and the shapes that gates compare with."""

from __future__ import annotations

from evals.references.registry import ReferenceRow, add, get, load_all, save_rows, table
from evals.references.scores import (
    MetricValue,
    NotMeasuredError,
    PairedScores,
    ReferenceKind,
    ReferenceScores,
)

__all__ = [
    "MetricValue",
    "NotMeasuredError",
    "PairedScores",
    "ReferenceKind",
    "ReferenceRow",
    "ReferenceScores",
    "add",
    "get",
    "load_all",
    "save_rows",
    "table",
]
