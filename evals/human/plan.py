"""A study's plan: everything that is decided before the first rater, in one file with a digest."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from cogumi.digest import digest_of
from cogumi.errors import RunError, UsageError
from cogumi.store import write_atomic
from cogumi.strict_yaml import explain

PLAN_FILE = "plan.json"
SCHEMA_VERSION = 1
STUDIES = "studies"
"""The workspace's folder of studies."""
PLANTED = "planted"
"""What stands for the system of a planted bad answer."""
SCALE = (1, 10)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class Strict(BaseModel):
    """Base of what a study's plan is made of: no unknown key passes, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StudyTask(Strict):
    """One task: a prompt and each system's answer to it, blinded."""

    task_id: Name
    domain: Name
    prompt: Text
    answers: dict[Name, Text]
    """By system."""
    bad_answer: Text | None = None
    """What a planted item shows; without it the subject's answer to a task of another domain is shown."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if not self.answers:
            raise ValueError("a task needs the answer of at least one system")
        if self.task_id.startswith("practice-"):
            raise ValueError(f"task_id {self.task_id!r}: names with practice- belong to the practice items")
        if PLANTED in self.answers:
            raise ValueError(f"no system can be called {PLANTED!r}: give a bad answer as bad_answer")
        return self


class StudyPlan(Strict):
    """A study as it was created; it never changes afterwards.

    Raises pydantic's ``ValidationError`` where the design cannot be dealt: too few tasks, a task without the
    subject's answer, fewer scored items than planted and repeated ones need around them.
    """

    name: str
    title: Name
    subject: Name
    """The system that is judged."""
    reference: Name | None = None
    """The other system of pairs."""
    seed: int = Field(ge=0, lt=2**63)
    raters: int = Field(default=100, ge=1, le=10_000)
    """Slots: raters wanted."""
    items: int = Field(default=20, ge=1, le=200)
    """Scored items a rater."""
    planted: int = Field(default=2, ge=0, le=10)
    repeats: int = Field(default=1, ge=0, le=10)
    practice: int = Field(default=2, ge=0, le=2)
    pairs: int = Field(default=0, ge=0, le=100)
    lease_hours: float = Field(default=48, gt=0, le=24 * 365)
    contact: str
    estimand: Literal["population", "these tasks"] = "population"
    """What the mean is a mean over: tasks like these, or these tasks only."""
    consent_version: str = "1"
    pilot_p10_seconds: float | None = Field(default=None, gt=0)
    """10th percentile of the focus time of an item in a pilot; a third of it marks hurried raters."""
    scrubbed: int = Field(default=0, ge=0)
    """Names of models and makers that were replaced in the answers."""
    tasks: tuple[StudyTask, ...]
    database: Literal["sqlite", "postgresql"] = "sqlite"
    schema_version: int = SCHEMA_VERSION

    @model_validator(mode="after")
    def _dealable(self) -> Self:
        check_study_name(self.name)
        seen: set[str] = set()
        for task in self.tasks:
            if task.task_id in seen:
                raise ValueError(f"task {task.task_id!r} stands twice")
            seen.add(task.task_id)
            if self.subject not in task.answers:
                raise ValueError(f"task {task.task_id!r} has no answer of {self.subject!r}")
        if len(self.tasks) < self.items:
            raise ValueError(
                f"{len(self.tasks)} tasks for {self.items} items a rater: add tasks, or ask for fewer items"
            )
        self._room_for_checks()
        if self.pairs:
            self._pairs_possible()
        return self

    def _room_for_checks(self) -> None:
        # Planted and repeated items come after the third scored one, a repeat five or more after its first.
        if self.planted > max(0, self.items - 3):
            raise ValueError(f"{self.planted} planted answers need at least {self.planted + 3} scored items")
        if self.repeats > max(0, self.items - 5):
            raise ValueError(f"{self.repeats} repeats need at least {self.repeats + 5} scored items")
        if self.planted > len(self.tasks) or (self.planted and len(self.tasks) < 2):
            raise ValueError(f"{self.planted} planted answers need at least as many tasks, and two")

    def _pairs_possible(self) -> None:
        if self.reference is None or self.reference == self.subject:
            raise ValueError("pairs need a reference: another system than the subject")
        both = len(self.paired)
        if both < self.pairs:
            raise ValueError(
                f"{self.pairs} pairs a rater, but only {both} tasks have answers of both {self.subject!r} "
                f"and {self.reference!r}"
            )

    @property
    def paired(self) -> tuple[StudyTask, ...]:
        """The tasks that both systems answered."""
        return tuple(task for task in self.tasks if self.reference in task.answers)

    @cached_property
    def by_id(self) -> dict[str, StudyTask]:
        """The tasks by their ids."""
        return {task.task_id: task for task in self.tasks}

    @property
    def length(self) -> int:
        """Items of a rater's whole sequence, practice and pairs too."""
        return self.practice + self.items + self.planted + self.repeats + self.pairs

    @cached_property
    def digest(self) -> str:
        """``sha256:<hex>`` of the whole plan."""
        return digest_of(self.model_dump(mode="json"))


def check_study_name(name: str) -> str:
    """Return the name of a study if it can be a folder's name too, else raise ``UsageError``."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"study name {name!r}: use 1 to 80 letters, digits, dots, dashes or underscores, a letter first"
        )
    return name


def study_folder(workspace_root: Path, name: str) -> Path:
    """Return where a workspace keeps a study, whether or not there is one; raises ``UsageError``."""
    return workspace_root / STUDIES / check_study_name(name)


def make_plan(**settings: object) -> StudyPlan:
    """Return a plan of these settings; raises ``UsageError`` with one line where they make none."""
    try:
        return StudyPlan.model_validate(settings)
    except ValidationError as error:
        raise UsageError(explain(error, StudyPlan)) from None


def write_plan(plan: StudyPlan, folder: Path) -> None:
    """Write a plan into a study's folder; raises ``RunError`` on a full disk."""
    write_atomic(folder / PLAN_FILE, (plan.model_dump_json(indent=1) + "\n").encode())


def read_plan(folder: Path) -> StudyPlan:
    """Read the plan of a study's folder.

    Raises ``UsageError`` where there is none, ``RunError`` where it is broken or newer than this program.
    """
    path = folder / PLAN_FILE
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise UsageError(
            f"{folder}: no study there; `cogumi humaneval create {folder.name}` makes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); restore it from a backup") from None
    newer = re.search(r'"schema_version":\s*(\d{1,6})\b', text[-200:])
    if newer and int(newer[1]) > SCHEMA_VERSION:
        raise RunError(f"{path}: schema {newer[1]} is newer than this program's {SCHEMA_VERSION}: update it")
    try:
        return StudyPlan.model_validate_json(text)
    except ValidationError as error:
        told = explain(error, StudyPlan)
        raise RunError(f"{path}: broken plan ({told}); restore it from a backup") from None
