from __future__ import annotations

import pytest

from cogumi.errors import UsageError
from evals.micro import DOMAINS
from evals.tasks import MICRO, get_task, suite_tasks, task_names


def test_every_name_gives_its_task() -> None:
    assert [get_task(name).name for name in task_names()] == task_names()
    assert tuple(f"micro/{domain}" for domain in DOMAINS) == MICRO


def test_a_profiles_suite_comes_before_the_built_in_one() -> None:
    assert [task.name for task in suite_tasks("instruction", {})] == ["ifeval"]
    assert [task.name for task in suite_tasks("instruction", {"instruction": ["micro/math"]})] == [
        "micro/math"
    ]


def test_an_unknown_name_is_told_its_nearest_neighbour() -> None:
    with pytest.raises(UsageError, match="did you mean 'micro/math'"):
        get_task("micro/mat")
    with pytest.raises(UsageError, match="did you mean 'instruction'"):
        suite_tasks("instructions", {})
