"""What every command that measures opens and must close: the models, the teachers, the progress line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cogumi.cli.common import Place
from cogumi.cli.progress import Line
from cogumi.cli.teachers import TeacherPool
from cogumi.profile import Profile

if TYPE_CHECKING:
    from evals.measure import Measurer


@contextmanager
def measuring(where: Place, profile: Profile) -> Iterator[tuple[Measurer, TeacherPool]]:
    """Give a measurer that tells its progress, and the profile's teachers; close all of it at the end."""
    from evals.measure import Measurer

    line = Line("answered")
    measurer = Measurer(
        where.workspace, where.data, lambda task, done, wanted: line.update(done, wanted, task=task)
    )
    with TeacherPool(where.workspace, profile) as teachers:
        try:
            yield measurer, teachers
        finally:
            measurer.close()
            line.close()
