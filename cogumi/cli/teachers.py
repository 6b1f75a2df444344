"""The teachers of a profile, with the local teacher process started when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from cogumi.cli.common import say
from cogumi.profile import Profile
from cogumi.stage import TeacherConfig
from cogumi.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.local_teacher.process import LocalTeacher


class TeacherPool:
    """Gives teacher configurations; use it as a context manager, so that the local process ends."""

    def __init__(self, workspace: Workspace, profile: Profile) -> None:
        self._workspace = workspace
        self._profile = profile
        self._local: LocalTeacher | None = None

    def __call__(self) -> Mapping[str, TeacherConfig]:
        """Return all teachers of the profile, starting the local one if any of them is local."""
        teachers = self._profile.teachers
        local = any(teacher.base_url == "local" for teacher in teachers.values())
        url = self._start() if local else None
        return {
            name: teacher.config(name, self._profile.local_teacher, url) for name, teacher in teachers.items()
        }

    def _start(self) -> str:
        if self._local is None:
            from pipeline.local_teacher.options import TeacherOptions
            from pipeline.local_teacher.process import LocalTeacher

            settings = self._profile.local_teacher
            assert settings is not None  # the profile's own check holds this
            options = TeacherOptions(
                state=self._workspace.root / "local-teacher",
                error_rate=settings.error_rate,
                error_rates=settings.error_rates,
                judge_reject_rate=settings.judge_reject_rate,
                malformed_rate=settings.malformed_rate,
                seed=settings.seed,
            )
            teacher = LocalTeacher(options)
            teacher.start()
            self._local = teacher
            say(f"  local teacher answers at {teacher.base_url} (simulated: nothing is paid)")
        return self._local.base_url

    def close(self) -> None:
        """End the local teacher, if it was started."""
        if self._local is not None:
            self._local.stop()
            self._local = None

    def __enter__(self) -> TeacherPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
