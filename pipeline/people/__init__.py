"""People: a study of a model's answers, in the rehearsal with simulated raters."""

from __future__ import annotations

STAGES = {"people.study": "pipeline.people.study:STUDY"}
"""Where each stage stands, by its name."""
