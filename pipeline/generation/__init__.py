"""Plan 1.1 to 1.5: questions, their validation, easy and hard answers, and the merged training set."""

from __future__ import annotations

STAGES = {
    "generation.questions": "pipeline.generation.stages:QUESTIONS",
    "generation.validate": "pipeline.generation.stages:VALIDATE",
    "generation.answers_easy": "pipeline.generation.stages:ANSWERS_EASY",
    "generation.answers_hard": "pipeline.generation.stages:ANSWERS_HARD",
    "generation.merge": "pipeline.generation.stages:MERGE",
}
"""Where each stage stands, by its name."""
