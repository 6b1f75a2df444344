"""The teachers of a profile, with the servers of ours behind them started when they are first needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from cogumi.cli.common import say
from cogumi.digest import digest_of
from cogumi.profile import Profile
from cogumi.stage import TeacherConfig
from cogumi.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.local_teacher.process import LocalTeacher

_GGUF_START_SECONDS = 600.0
"""Reading 40 GB from a slow disk takes minutes."""


class TeacherPool:
    """Gives teacher configurations; use it as a context manager, so that the local processes end."""

    def __init__(self, workspace: Workspace, profile: Profile) -> None:
        self._workspace = workspace
        self._profile = profile
        self._local: LocalTeacher | None = None
        self._gguf: dict[str, LocalTeacher] = {}

    def __call__(self) -> Mapping[str, TeacherConfig]:
        """Return all teachers of the profile; looking one up starts the server of ours that it needs."""
        return _Teachers(self)

    def names(self) -> list[str]:
        """Return the names of the profile's teachers."""
        return list(self._profile.teachers)

    def config(self, name: str) -> TeacherConfig:
        """Return one teacher's configuration; raises ``KeyError``, and ``RunError`` for no server."""
        teacher = self._profile.teachers[name]
        url = None
        if teacher.gguf is not None:
            url = self._start_gguf(teacher.gguf)
        elif teacher.base_url == "local":
            url = self._start()
        return teacher.config(name, self._profile.local_teacher, url)

    def _start(self) -> str:
        if self._local is None:
            from pipeline.local_teacher.options import TeacherOptions
            from pipeline.local_teacher.process import LocalTeacher

            settings = self._profile.local_teacher
            assert settings is not None  # the profile's own check holds this
            # A profile names these as the process does.
            state = self._workspace.root / "local-teacher"
            options = TeacherOptions(state=state, **settings.model_dump())
            teacher = LocalTeacher(options)
            teacher.start()
            self._local = teacher
            say(f"  local teacher answers at {teacher.base_url} (simulated: nothing is paid)")
        return self._local.base_url

    def _start_gguf(self, name: str) -> str:
        if name not in self._gguf:
            from pipeline.local_teacher.gguf_answerer import find_gguf
            from pipeline.local_teacher.options import TeacherOptions
            from pipeline.local_teacher.process import LocalTeacher

            path = find_gguf(name, self._workspace)
            state = self._workspace.root / "gguf-teachers" / digest_of(name)[7:23]
            teacher = LocalTeacher(TeacherOptions(state=state, gguf=str(path.absolute())))
            teacher.start(timeout_seconds=_GGUF_START_SECONDS)
            self._gguf[name] = teacher
            say(f"  {name} answers at {teacher.base_url} (on this machine: nothing is paid)")
        return f"{self._gguf[name].base_url}/v1"

    def close(self) -> None:
        """End the servers that were started."""
        started = [*([self._local] if self._local is not None else []), *self._gguf.values()]
        self._local = None
        self._gguf = {}
        for teacher in started:
            teacher.stop()

    def __enter__(self) -> TeacherPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Teachers(Mapping[str, TeacherConfig]):
    """A profile's teachers by name; a stage that uses one of five starts that one's server only."""

    def __init__(self, pool: TeacherPool) -> None:
        self._pool = pool

    def __getitem__(self, name: str) -> TeacherConfig:
        return self._pool.config(name)

    def __contains__(self, name: object) -> bool:
        return name in self._pool.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._pool.names())

    def __len__(self) -> int:
        return len(self._pool.names())
