"""The tasks that can be measured, by name; a task is imported when it is asked for."""

from __future__ import annotations

from cogumi.errors import UsageError, nearest
from evals.types import Task

# The rehearsal's micro-domains, in the plan's order; spelt out so that naming them imports none of them.
_DOMAINS = (
    "coding",
    "math",
    "tool_use",
    "reasoning",
    "reading",
    "summarization",
    "common_sense",
    "instruction",
)
MICRO = tuple(f"micro/{domain}" for domain in _DOMAINS)

SUITES: dict[str, tuple[str, ...]] = {"instruction": ("ifeval",), "micro": MICRO}
"""Built-in suites; a profile may add to them and may give these names other tasks."""


def task_names() -> list[str]:
    """Return the names of all tasks."""
    return ["ifeval", *MICRO]


def get_task(name: str) -> Task:
    """Return a task by name; raises ``UsageError`` naming the nearest one."""
    if name == "ifeval":
        from evals.tasks.ifeval import IFEval

        return IFEval()
    if name in MICRO:
        from evals.micro import MicroTask

        return MicroTask(name.removeprefix("micro/"))
    raise UsageError(f"no task {name!r}{nearest(name, task_names())}")


def suite_tasks(name: str, of_profile: dict[str, list[str]]) -> list[Task]:
    """Return a suite's tasks: the profile's suite of that name, else the built-in one.

    Raises ``UsageError`` naming the nearest suite.
    """
    if name in of_profile:
        names = list(of_profile[name])
    elif name in SUITES:
        names = list(SUITES[name])
    else:
        raise UsageError(f"no suite {name!r}{nearest(name, sorted({*of_profile, *SUITES}))}")
    return [get_task(task) for task in names]
