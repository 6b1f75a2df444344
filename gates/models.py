"""Which models stand behind the names of a profile: its teachers, and the judge of its judged tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cogumi.digest import digest_of
from cogumi.errors import UsageError
from cogumi.prices import price_of
from cogumi.profile import Profile
from cogumi.subjects import Subject, resolve
from cogumi.workspace import Workspace
from evals.tasks import JUDGED, suite_task_names, suite_tasks

if TYPE_CHECKING:
    from evals.types import Task


def teacher_subject(profile: Profile, name: str) -> Subject:
    """Return the subject that stands for a teacher, named by everything that shapes its answers."""
    teacher, identity = profile.teachers[name], profile.teacher_identity(name)
    price = price_of(teacher)
    prices = {
        "input_usd_per_mtok": price.input_usd_per_mtok,
        "output_usd_per_mtok": price.output_usd_per_mtok,
    }
    return Subject(
        label=name,
        digest=digest_of({"local": None, **identity}),
        backend=teacher.api,
        model=teacher.model,
        base_url=teacher.base_url,
        key_env=teacher.key_env,
        simulated=teacher.base_url == "local",
        facts={key: price for key, price in prices.items() if price is not None},
    )


def judge_subject(profile: Profile, workspace: Workspace) -> Subject | None:
    """Return the model that grades judged tasks: a teacher of the profile, or whatever `cogumi eval` takes.

    Raises ``UsageError`` for a name that nothing has, and for the local teacher, which cannot grade.
    """
    if profile.judge is None:
        return None
    if profile.judge not in profile.teachers:
        return resolve(profile.judge, workspace)
    subject = teacher_subject(profile, profile.judge)
    if subject.simulated:
        raise UsageError(f"judge {profile.judge}: the local teacher cannot grade; name a real model")
    return subject


def tasks_of(profile: Profile, suite: str, workspace: Workspace) -> list[Task]:
    """Return a suite's tasks, the judged ones with the profile's judge."""
    judged = any(name in JUDGED for name in suite_task_names(suite, profile.suites))
    judge = judge_subject(profile, workspace) if judged else None
    return suite_tasks(suite, profile.suites, judge)
