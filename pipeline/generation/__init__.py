"""Plan 1.1 to 1.5: questions, their validation, easy and hard answers, and the merged training set."""

from __future__ import annotations

from typing import Any

from cogumi.stage import Stage
from pipeline.generation import answers, merge, questions, validate

STAGES: tuple[Stage[Any], ...] = (
    Stage(
        name="generation.questions",
        version=2,
        title="Questions for every domain and difficulty",
        settings=questions.QuestionSettings,
        run=questions.run,
        teachers=("teachers",),
    ),
    Stage(
        name="generation.validate",
        version=2,
        title="A judge's scores, and replacements for what it drops",
        settings=validate.ValidateSettings,
        run=validate.run,
        inputs=("questions",),
        teachers=("judge", "teachers"),
    ),
    Stage(
        name="generation.answers_easy",
        version=2,
        title="Direct answers to the easy questions",
        settings=answers.AnswerSettings,
        run=answers.run_easy,
        inputs=("validated",),
        teachers=("teacher",),
    ),
    Stage(
        name="generation.answers_hard",
        version=2,
        title="Draft, critique and revision for the hard questions",
        settings=answers.AnswerSettings,
        run=answers.run_hard,
        inputs=("validated",),
        teachers=("teacher",),
    ),
    Stage(
        name="generation.merge",
        version=2,
        title="One training file in the plan's format, with its card",
        settings=merge.MergeSettings,
        run=merge.run,
        inputs=("questions", "validated", "answers_easy", "answers_hard"),
    ),
)
