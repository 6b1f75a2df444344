"""Profiles: one strict YAML file says what a run does; an unknown key is an error naming its neighbour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from cogumi.digest import digest_of
from cogumi.errors import UsageError, nearest
from cogumi.planned_model import PlannedModel
from cogumi.prices import price_of
from cogumi.stage import TeacherConfig
from cogumi.strict_yaml import explain, read_mapping
from cogumi.teacher_faults import CONTENT_FAULTS, Fault

if TYPE_CHECKING:
    from yaml import Node

_FOLDER = Path(__file__).parent / "profiles"


class Strict(BaseModel):
    """Base of everything that is read from YAML: no unknown key passes."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)


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
    """Both or neither; without them those of cogumi/prices.yaml hold, and 0 for a model that runs here."""
    cache_write_usd_per_mtok: float | None = Field(default=None, ge=0)
    cache_read_usd_per_mtok: float | None = Field(default=None, ge=0)
    batch_discount: float | None = Field(default=None, ge=0, le=1)
    """Share that a batch saves; without it the table's, else 0."""
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
            raise ValueError(
                "gguf: a server of ours answers, in OpenAI's format: leave base_url out, api: openai"
            )
        if (self.input_usd_per_mtok is None) != (self.output_usd_per_mtok is None):
            raise ValueError("give both input_usd_per_mtok and output_usd_per_mtok, or neither")
        return self

    def config(
        self, name: str, local: LocalTeacherSettings | None = None, local_url: str | None = None
    ) -> TeacherConfig:
        """Return what a stage needs to call this teacher; ``local_url`` is that of its server of ours."""
        simulated = self.base_url == "local"
        price = price_of(self)
        shape = local.shape() if simulated and local else None
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
            input_usd_per_mtok=price.input_usd_per_mtok,
            output_usd_per_mtok=price.output_usd_per_mtok,
            batch_discount=price.batch_discount,
            endpoint=endpoint,
            simulated=simulated,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            extra_body=self.extra_body,
            cache_write_usd_per_mtok=price.cache_write_usd_per_mtok,
            cache_read_usd_per_mtok=price.cache_read_usd_per_mtok,
            price_source=price.source,
        )


class LocalTeacherSettings(Strict):
    """How the local teacher errs: its error rate per domain is set, so the right verdict is known."""

    error_rate: float = Field(default=0.05, ge=0, le=1)
    error_rates: dict[str, float] = Field(default_factory=dict)
    judge_reject_rate: float = Field(default=0.05, ge=0, le=1)
    malformed_rate: float = Field(default=0.02, ge=0, le=1)
    seed: int = 0
    varied: bool = False
    """Put a scene before every written question, so that no two are near duplicates."""
    faults: dict[Fault, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Probability of each fault, by its name (docs/local-teacher.md)."""
    latency_ms: float = Field(default=0.0, ge=0)
    batch_delay: float = Field(default=0.0, ge=0)
    """Seconds between the creation of a batch and its processing."""
    stall_seconds: float = Field(default=30.0, ge=0)
    retry_after_seconds: float = Field(default=1.0, ge=0)

    @field_validator("faults", mode="before")
    @classmethod
    def _status_is_a_name(cls, value: Any) -> Any:
        # YAML reads 429 as a number.
        return {str(name): rate for name, rate in value.items()} if isinstance(value, dict) else value

    def shape(self) -> dict[str, Any]:
        """Return what its answers depend on, and not how fast or how reliably they come."""
        how = {"latency_ms", "batch_delay", "stall_seconds", "retry_after_seconds", "varied", "faults"}
        shape = self.model_dump(mode="json", exclude=how)
        # Named where set only, so that what was asked before they existed keeps its name.
        if self.varied:
            shape["varied"] = True
        if spoils := {name: rate for name, rate in self.faults.items() if name in CONTENT_FAULTS}:
            shape["faults"] = spoils
        return shape


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
    beside: str | None = None
    """Earlier stage that this one may run beside, where the machine has an accelerator for each."""


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
    """The accelerator that a profile trains on, what an hour of one costs, and how fast it is."""

    name: str
    """As its maker or driver names it, ``H100 SXM`` or ``A100 40GB``: its peak is looked up by it."""
    usd_per_hour: float | None = Field(default=None, ge=0)
    """Of one GPU; None where nobody knows: hours are told then, and their cost as unknown."""
    tokens_per_second: float | None = Field(default=None, gt=0)
    """Measured with this profile's first model on one GPU; without it the estimate reckons from ours."""
    source: str
    """Where and when the price was read."""


def _spread(value: Any) -> Any:
    return [value] * 3 if isinstance(value, int) else value


Spread = Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], BeforeValidator(_spread)]
"""Low, expected and high; one number stands for all three."""


class Expected(Strict):
    """Mean lengths in tokens that an estimate reckons with: a number, or [low, expected, high].

    Counted with ``evals.lint.tokens.estimate`` in the predecessor's data, or its planning figures: 13 tokens
    is the mean of its 42,606 questions, all easy, 33 that of its 681 hard ones and 65 their 95th percentile;
    25 mixes them 40 to 60. Its 395 easy answers have 17, its 681 hard ones with their reasoning 189; it
    planned with 75 and 750. 158 is what the plan's $2.52 pays for without batches, and at 1,024 an answer is
    cut short.
    """

    question_tokens: Spread = (13, 25, 65)
    easy_answer_tokens: Spread = (17, 75, 158)
    hard_answer_tokens: Spread = (189, 750, 1024)


class Profile(Strict):
    """Everything that a run needs to know; the same code runs every profile."""

    profile: str
    title: str
    extends: str | None = None
    """Profile, by name or path, whose other top-level keys hold where this one has none; None once merged."""
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
                wanted = [*step.inputs.values(), *([step.beside] if step.beside else [])]
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
        self._planned_names_hold()
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

    def _planned_names_hold(self) -> None:
        known = [model.name for model in self.models]
        for model in self.models:
            named = [name for target in model.targets for name in target.together_with]
            if model.serving is not None and model.serving.draft is not None:
                named.append(model.serving.draft)
            for name in named:
                if name not in known:
                    raise ValueError(
                        f"models.{model.name}: no model is called {name!r}{nearest(name, known)}"
                    )

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
            identity["local"] = self.local_teacher.shape()
        return identity

    def gate_names(self) -> list[str]:
        """Return the gates that this profile decides, in order, each once."""
        steps = (step.gate for step in self.steps if isinstance(step, GateStep))
        return list(dict.fromkeys([*steps, *self.gates]))

    def gate_steps(self, gate: str) -> list[GateStep]:
        """Return the steps that decide this gate, each on an artifact of its own, in order."""
        return [step for step in self.steps if isinstance(step, GateStep) and step.gate == gate]


def profile_names() -> list[str]:
    """Return the names of the profiles that come with the program."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read a profile by name, or by path of a YAML file, with what it inherits by ``extends``.

    Raises ``UsageError`` naming the file, the place and the nearest known key.
    """
    document, root = _read(name, ())
    return parse_profile(document, name, root)


def _read(name: str, below: tuple[str, ...]) -> tuple[dict[str, Any], Node]:
    """Return a document with what it inherits, and its own nodes; ``below`` names those that extend it."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    if not path.is_file():
        where = f"profile {below[-1]}: extends: " if below else ""
        if path.parent == _FOLDER:
            raise UsageError(f"{where}no profile {name!r}{nearest(name, profile_names())}")
        raise UsageError(f"{where}no such file {name}")
    data, root = read_mapping(path)
    parent = data.get("extends")
    if parent is None:
        return data, root
    if not isinstance(parent, str):
        raise UsageError(f"profile {name}: extends: the name or path of one profile is expected")
    if parent.endswith((".yaml", ".yml")):
        parent = str(path.parent / parent)
    if parent in (name, *below):
        raise UsageError(f"profile {name}: extends: {parent} extends this profile itself")
    inherited, parent_root = _read(parent, (*below, name))
    # What is wrong there is told of that file, with its lines.
    parse_profile(inherited, parent, parent_root)
    own = {key: value for key, value in data.items() if key != "extends"}
    return {key: value for key, value in inherited.items() if key not in ("profile", "title")} | own, root


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
