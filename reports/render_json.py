"""A report as JSON: the model itself, nothing rounded and nothing left out."""

from __future__ import annotations

import json

from reports.schema import Report


def render_json(report: Report) -> str:
    """Return the document; its keys are those of ``reports.schema.Report``."""
    return json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
