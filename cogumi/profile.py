"""Profiles: one strict YAML file says what a run does; an unknown key is an error naming its neighbour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cogumi.digest import digest_of
from cogumi.errors import UsageError, nearest
from cogumi.stage import TeacherConfig
from cogumi.strict_yaml import explain, read_mapping

if TYPE_CHECKING:
    from yaml import Node

_FOLDER = Path(__file__).parent / "profiles"


class Strict(BaseModel):
    """Base of everything that is read from YAML: no unknown key passes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Teacher(Strict):
    """An endpoint that writes questions, judges or answers."""

    api: Literal["openai", "anthropic"]
    model: str
    base_url: str | None = None
    """None means the provider's own address; ``local`` means the local teacher process."""
    gguf: str | None = None
    """A GGUF file, or a model as `cogumi eval` names it, that a server of ours on loopback answers with."""
    key_env: str | None = None
    """Environment variable that holds the key; never the key itself."""
    input_usd_per_mtok: float | None = Field(default=None, ge=0)
    output_usd_per_mtok: float | None = Field(default=None, ge=0)
    batch_discount: float = Field(default=0.5, ge=0, le=1)
    price_source: str = ""
    """Where and when the prices were read."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Limits of the account; teachers of one endpoint and key share the lowest that any of them names."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Fields that go into every request as they are, as `provider: {data_collection: deny}` at OpenRouter."""

    @model_validator(mode="after")
    def _one_endpoint(self) -> Teacher:
        if self.gguf is not None and (self.base_url is not None or self.api != "openai"):
            raise ValueError("gguf: a server of ours answers, in OpenAI's format: leave base_url out, api: openai")
        return self

    def config(
        self, name: str, local: LocalTeacherSettings | None = None, local_url: str | None = None
    ) -> TeacherConfig:
        """Return what a stage needs to call this teacher; ``local_url`` is that of its server of ours."""
        simulated = self.base_url == "local"
        shape = local.model_dump(mode="json") if simulated and local else None
        if simulated:
            endpoint = digest_of(shape)
        else:
            endpoint = f"gguf:{self.gguf}" if self.gguf else self.base_url or ""
        return TeacherConfig(
            name=name,
            api=self.api,
            model=self.model,
            base_url=local_url if simulated or self.gguf else self.base_url,
            key_env=self.key_env,
            input_usd_per_mtok=self.input_usd_per_mtok,
            output_usd_per_mtok=self.output_usd_per_mtok,
            batch_discount=self.batch_discount,
            endpoint=endpoint,
            simulated=simulated,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            extra_body=self.extra_body,
        )


class LocalTeacherSettings(Strict):
    """How the local teacher errs: its error rate per domain is set, so the right verdict is known."""

    error_rate: float = Field(default=0.05, ge=0, le=1)
    error_rates: dict[str, float] = Field(default_factory=dict)
    judge_reject_rate: float = Field(default=0.05, ge=0, le=1)
    malformed_rate: float = Field(default=0.02, ge=0, le=1)
    seed: int = 0


class ReferenceChoice(Strict):
    """What stands for a reference name: rows of the registry, or a teacher measured on the same items."""

    rows: dict[str, str] = Field(default_factory=dict)
    """Task name to registry row id."""
    teacher: str | None = None
    """Name of a teacher; with a local one the reference is simulated and every verdict says so."""

    @model_validator(mode="after")
    def _one_of(self) -> ReferenceChoice:
        if bool(self.rows) == bool(self.teacher):
            raise ValueError("give either rows or teacher")
        return self


class StageStep(Strict):
    """Run a stage; ``attempts`` are overrides of ``settings`` that are tried one after another."""

    id: str
    plan: str = ""
    uses: str
    inputs: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    attempts: list[dict[str, Any]] = Field(default_factory=list)
    plan_says: str = ""
    """The owner's figure for this step, shown beside the estimate."""
    files: dict[str, str] = Field(default_factory=dict)
    """File of the artifact to the path under the workspace where the plan has it."""


class MeasureStep(Strict):
    """Evaluate the artifact of an earlier step on a suite; ``limit`` measures the first items only."""

    id: str
    plan: str = ""
    measure: str
    suite: str
    limit: int | None = Field(default=None, ge=1)


class GateStep(Strict):
    """Decide a gate on the artifact of an earlier step; on FAIL or UNDECIDED try ``retry`` again, harder."""

    id: str
    plan: str = ""
    gate: str
    artifact: str
    baseline: str | None = None
    """Step whose artifact retention criteria compare with."""
    retry: str | None = None
    criteria: list[str] = Field(default_factory=list)
    """Criteria of the gate that this step asks for, by id; all of them without."""


Step = StageStep | MeasureStep | GateStep


class Limits(Strict):
    """When a run stops by itself."""

    max_usd: float | None = Field(default=None, ge=0)
    max_minutes: float | None = Field(default=None, gt=0)


class GpuPrice(Strict):
    """What training hardware costs, for the plan's estimate."""

    name: str
    usd_per_hour: float = Field(ge=0)
    tokens_per_second: float = Field(gt=0)
    source: str


class Expected(Strict):
    """Mean lengths in tokens that an estimate reckons with.

    Defaults are the predecessor's: 42,606 questions of 56 characters, 14 tokens and 4 for JSON's quotes; 75
    tokens for an easy answer, 750 for a hard one with its reasoning.
    """

    question_tokens: int = Field(default=18, gt=0)
    easy_answer_tokens: int = Field(default=75, gt=0)
    hard_answer_tokens: int = Field(default=750, gt=0)


class PlannedModel(Strict):
    """A model of the plan with its size target, checked by arithmetic before anything is spent."""

    name: str
    parameters: int = Field(gt=0)
    embedding_parameters: int = Field(ge=0)
    source: str
    download_bytes_at_most: int | None = Field(default=None, gt=0)
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Share of weights in the linear layers that are pruned without structure."""
    criterion: str = ""
    """GATE/CRITERION that holds the size target."""


class Profile(Strict):
    """Everything that a run needs to know; the same code runs every profile."""

    profile: str
    title: str
    seed: int = 20261123
    teachers: dict[str, Teacher] = Field(default_factory=dict)
    local_teacher: LocalTeacherSettings | None = None
    references: dict[str, ReferenceChoice] = Field(default_factory=dict)
    suites: dict[str, list[str]] = Field(default_factory=dict)
    """Suite name to task names; these come before the built-in suites of the same name."""
    judge: str | None = None
    """Who grades judged tasks: a teacher of this profile, or a model as `cogumi eval` names it."""
    models: list[PlannedModel] = Field(default_factory=list)
    expected: Expected = Expected()
    gpu: GpuPrice | None = None
    limits: Limits = Limits()
    gates: list[str] = Field(default_factory=list)
    """Gates that are decided on an artifact that is named, beside those among the steps."""
    steps: list[Annotated[Step, Field(union_mode="left_to_right")]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _links_hold(self) -> Profile:
        stages: set[str] = set()
        ids: set[str] = set()
        for step in self.steps:
            if step.id in ids:
                raise ValueError(f"steps: two steps are called {step.id!r}")
            ids.add(step.id)
            wanted: list[str] = []
            if isinstance(step, StageStep):
                wanted = list(step.inputs.values())
            elif isinstance(step, MeasureStep):
                wanted = [step.measure]
            else:
                wanted = [name for name in (step.artifact, step.baseline, step.retry) if name]
            for name in wanted:
                if name not in stages:
                    raise ValueError(
                        f"steps.{step.id}: no earlier stage is called {name!r}{nearest(name, sorted(stages))}"
                    )
            if isinstance(step, StageStep):
                stages.add(step.id)
        local = [name for name, teacher in self.teachers.items() if teacher.base_url == "local"]
        if local and self.local_teacher is None:
            raise ValueError(f"teachers.{local[0]}: base_url is local, but local_teacher is not set")
        for name, choice in self.references.items():
            if choice.teacher and choice.teacher not in self.teachers:
                known = sorted(self.teachers)
                raise ValueError(
                    f"references.{name}: no teacher {choice.teacher!r}{nearest(choice.teacher, known)}"
                )
        return self

    def teacher_identity(self, name: str) -> dict[str, Any]:
        """Return everything that shapes a teacher's answers; how the local one errs is part of it."""
        teacher = self.teachers[name]
        identity: dict[str, Any] = {
            "api": teacher.api,
            "model": teacher.model,
            "base_url": teacher.base_url,
        }
        if teacher.gguf:
            identity["gguf"] = teacher.gguf
        if teacher.extra_body:
            identity["extra_body"] = teacher.extra_body
        if teacher.base_url == "local" and self.local_teacher:
            identity["local"] = self.local_teacher.model_dump(mode="json")
        return identity

    def gate_names(self) -> list[str]:
        """Return the gates that this profile decides, in order."""
        return [*(step.gate for step in self.steps if isinstance(step, GateStep)), *self.gates]

    def gate_step(self, gate: str) -> GateStep | None:
        """Return the step that decides this gate, or None when the profile has none."""
        return next((step for step in self.steps if isinstance(step, GateStep) and step.gate == gate), None)


def profile_names() -> list[str]:
    """Return the names of the profiles that come with the program."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read a profile by name, or by path of a YAML file.

    Raises ``UsageError`` naming the file, the place and the nearest known key.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    if not path.is_file():
        if path.parent == _FOLDER:
            raise UsageError(f"no profile {name!r}{nearest(name, profile_names())}")
        raise UsageError(f"no such file {name}")
    data, root = read_mapping(path)
    return parse_profile(data, str(name), root)


def parse_profile(document: Mapping[str, Any], origin: str, root: Node | None = None) -> Profile:
    """Validate a profile document; ``origin`` names it in errors, ``root`` knows the lines of its file."""
    steps = document.get("steps", [])
    if isinstance(steps, list):
        _check_steps(steps, origin, root)
    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"profile {origin}: {explain(error, Profile, root)}") from None


def _check_steps(steps: list[Any], origin: str, root: Node | None) -> None:
    # A union reports the errors of all its members; decide the member first, so that one line suffices.
    kinds: dict[str, type[BaseModel]] = {"uses": StageStep, "measure": MeasureStep, "gate": GateStep}
    for index, step in enumerate(steps):
        where = f"profile {origin}: steps[{index}]"
        if not isinstance(step, dict):
            raise UsageError(f"{where}: a mapping is expected")
        chosen = [kind for kind in kinds if kind in step]
        if len(chosen) != 1:
            raise UsageError(
                f"{where}: exactly one of uses, measure, gate is expected, found {chosen or 'none'}"
            )
        model = kinds[chosen[0]]
        try:
            model.model_validate(step)
        except ValidationError as error:
            told = explain(error, model, root, ("steps", index))
            raise UsageError(f"{where} ({step.get('id', '?')}): {told}") from None
