"""A study made for load, crashes and the browser: real plan, real database, texts of ordinary length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evals.human.plan import make_plan
from evals.human.store import StudyStore

SUBJECT, REFERENCE = "candidate-1", "candidate-2"
_PARAGRAPH = (
    "Water boils when the pressure of its vapour equals the pressure around it. On a mountain the air weighs "
    "less, so this happens at a lower temperature, and an egg takes longer to cook. "
)


def tasks(count: int) -> list[dict[str, Any]]:
    """Return tasks of two domains whose answers are one to eight paragraphs long."""
    return [
        {
            "task_id": f"task-{number:03d}",
            "domain": ("general", "science")[number % 2],
            "prompt": f"Question {number}: why does water boil earlier on a mountain?\nAnswer for a pupil.",
            "answers": {
                SUBJECT: f"Answer {number}.\n\n" + "\n\n".join([_PARAGRAPH * 2] * (1 + number % 8)),
                REFERENCE: f"Another answer {number}.\n\n- {_PARAGRAPH}\n- {_PARAGRAPH}",
            },
        }
        for number in range(count)
    ]


def make_study(folder: Path, *, raters: int, items: int = 20, **settings: Any) -> StudyStore:
    """Create a study in ``folder`` with as many tasks as items; other settings as in ``StudyPlan``."""
    plan = make_plan(
        **{
            "name": folder.name,
            "title": "Answers to questions of science",
            "subject": SUBJECT,
            "reference": REFERENCE,
            "seed": 7,
            "raters": raters,
            "items": items,
            "contact": "study@example.org",
            "tasks": tasks(items),
            **settings,
        }
    )
    return StudyStore.create(folder, plan)
