"""The five stages of the training set; a profile that has one of them has all."""

from __future__ import annotations

from cogumi.stage import Stage
from pipeline.generation import answers, merge, questions, validate

QUESTIONS = Stage(
    name="generation.questions",
    version=2,
    title="Questions for every domain and difficulty",
    settings=questions.QuestionSettings,
    run=questions.run,
    teachers=("teachers",),
)
VALIDATE = Stage(
    name="generation.validate",
    version=2,
    title="A judge's scores, and replacements for what it drops",
    settings=validate.ValidateSettings,
    run=validate.run,
    inputs=("questions",),
    teachers=("judge", "teachers"),
)
ANSWERS_EASY = Stage(
    name="generation.answers_easy",
    version=2,
    title="Direct answers to the easy questions",
    settings=answers.AnswerSettings,
    run=answers.run_easy,
    inputs=("validated",),
    teachers=("teacher",),
)
ANSWERS_HARD = Stage(
    name="generation.answers_hard",
    version=2,
    title="Draft, critique and revision for the hard questions",
    settings=answers.AnswerSettings,
    run=answers.run_hard,
    inputs=("validated",),
    teachers=("teacher",),
)
MERGE = Stage(
    name="generation.merge",
    version=2,
    title="One training file in the plan's format, with its card",
    settings=merge.MergeSettings,
    run=merge.run,
    inputs=("questions", "validated", "answers_easy", "answers_hard"),
)
