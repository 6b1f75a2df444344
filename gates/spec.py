"""Gate files: what a gate claims, checked strictly when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from cogumi.errors import UsageError, nearest
from cogumi.strict_yaml import load_strict
from gates.metrics import DATA_METRICS, ITEM_RATES, METRICS
from gates.verdicts import Comparison

FOLDER = Path(__file__).parent

Scope = Literal["benchmark", "population"]
Combine = Literal["mean_of", "all_of", "pooled_items"]

BEST_RATING = 10
"""People rate from 1 to 10."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True, allow_inf_nan=False)


class Relative(_Strict):
    """At least a share of what a reference scores on a suite."""

    suite: str
    reference: str


class Retention(_Strict):
    """Nearly as good as an earlier artifact on a suite, item by item."""

    suite: str
    baseline: str


class Threshold(_Strict):
    """A number that is compared with a fixed bar; ``suite`` where it is measured on one.

    ``tiers``: named sizes up to the bar; the verdict says which is the smallest that the number fits into.
    """

    metric: str
    suite: str | None = None
    tiers: dict[str, Annotated[float, Field(gt=0)]] | None = None

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"no such metric{nearest(metric, list(METRICS))}")
        return metric


class Human(_Strict):
    """The mean rating that people give in a study, on a scale of 1 to 10.

    ``raters``: how many must have finished their share before the study decides anything.
    """

    study: str
    raters: Annotated[int, Field(ge=2)] = 100


KINDS = ("relative", "retention", "threshold", "human")


class Criterion(_Strict):
    """One claim of a gate."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    relative: Relative | None = None
    retention: Retention | None = None
    threshold: Threshold | None = None
    human: Human | None = None
    at_least: Annotated[float, Field(ge=0)] | None = None
    at_most: Annotated[float, Field(ge=0)] | None = None
    margin: Annotated[float, Field(ge=0, lt=1)] | None = None
    """For retention: the share that may be lost."""
    combine: Combine = "mean_of"
    """How the tasks of a suite become one claim."""
    weights: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """For mean_of: weight by task name; equal weights without."""

    @model_validator(mode="after")
    def _one_claim(self) -> Criterion:
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"a criterion needs exactly one of {', '.join(KINDS)}")
        given = {key for key in ("at_least", "at_most", "margin") if getattr(self, key) is not None}
        if self.relative is not None and (given != {"at_least"} or self.at_least == 0):
            raise ValueError("relative needs at_least, above 0, and nothing else to compare with")
        if self.retention is not None and given != {"margin"}:
            raise ValueError("retention needs margin and nothing else to compare with")
        if self.human is not None and (given != {"at_least"} or not 1 <= self.bar < BEST_RATING):
            raise ValueError(f"human needs at_least, from 1 to below {BEST_RATING}, and nothing else")
        if self.threshold is not None:
            self._check_threshold(self.threshold, given)
        if self.weights is not None and (self.combine != "mean_of" or self.suite is None):
            raise ValueError("weights are for combine: mean_of on a suite")
        return self

    def _check_threshold(self, threshold: Threshold, given: set[str]) -> None:
        if given not in ({"at_least"}, {"at_most"}):
            raise ValueError("threshold needs exactly one of at_least, at_most")
        if threshold.metric in ITEM_RATES and (threshold.suite is None or self.bar > 1):
            raise ValueError(f"{threshold.metric} needs a suite and a bar within [0, 1]")
        if threshold.tiers is not None and (
            self.at_most is None or max(threshold.tiers.values(), default=0.0) != self.at_most
        ):
            raise ValueError("the largest of the tiers is the bar of at_most")

    @property
    def suite(self) -> str | None:
        """The suite that the criterion looks at, if it looks at one."""
        kind = self.relative or self.retention or self.threshold
        return kind.suite if kind is not None else None

    @property
    def bar(self) -> float:
        """The number that the value is compared with."""
        if self.margin is not None:
            return 1 - self.margin
        return self.at_least if self.at_least is not None else (self.at_most or 0.0)

    @property
    def comparison(self) -> Comparison:
        """How the value is compared with the bar."""
        return "<=" if self.at_most is not None else ">="

    @property
    def item_rate(self) -> str | None:
        """The rate over items that the criterion tests, if it does."""
        metric = self.threshold.metric if self.threshold is not None else None
        return metric if metric in ITEM_RATES else None


class GateSpec(_Strict):
    """A gate: its criteria and the chance of a wrong verdict that each of them may spend."""

    gate: str
    title: str
    alpha: Annotated[float, Field(gt=0, le=0.5)]
    scope: Scope = "benchmark"
    criteria: Annotated[list[Criterion], Field(min_length=1)]
    _study: str | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _consistent(self) -> GateSpec:
        ids = [criterion.id for criterion in self.criteria]
        if len(set(ids)) != len(ids):
            raise ValueError("two criteria have the same id")
        if self.scope == "population" and any(c.combine == "pooled_items" for c in self.criteria):
            raise ValueError("pooled_items has no meaning in scope population; use mean_of or all_of")
        studies = {criterion.human.study for criterion in self.criteria if criterion.human is not None}
        if len(studies) > 1:
            raise ValueError(f"a gate asks about one study, not about {' and '.join(sorted(studies))}")
        self._study = next(iter(studies), None)
        return self

    @property
    def study(self) -> str | None:
        """The study of people that the gate asks about, if it does; also of a part that ``only`` kept."""
        return self._study

    @property
    def about_data(self) -> bool:
        """Whether the gate asks of nothing but a merged data set."""
        metrics = [
            criterion.threshold.metric for criterion in self.criteria if criterion.threshold is not None
        ]
        return len(metrics) == len(self.criteria) and DATA_METRICS.issuperset(metrics)

    def only(self, ids: Sequence[str]) -> GateSpec:
        """Return the gate with the criteria of these ids, in the file's order; without ids, all of them.

        Raises ``UsageError`` naming the nearest criterion for an id that the gate does not have.
        """
        known = [criterion.id for criterion in self.criteria]
        for name in ids:
            if name not in known:
                raise UsageError(f"gate {self.gate} has no criterion '{name}'{nearest(name, known)}")
        kept = [criterion for criterion in self.criteria if not ids or criterion.id in ids]
        return self.model_copy(update={"criteria": kept})


def known_gates(folder: Path = FOLDER) -> list[str]:
    """Return the names of the gates that exist."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_gate(name: str, folder: Path = FOLDER) -> GateSpec:
    """Read a gate by its name, or the gate file at a path that ends in ``.yaml``.

    Raises ``UsageError`` for a gate that does not exist (yet) or a key that does not fit.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UsageError(f"no such file {name}")
        return load_strict(Path(name), GateSpec)
    if name not in known_gates(folder):
        raise UsageError(f"no such gate yet: {name} (known: {', '.join(known_gates(folder))})")
    path = folder / f"{name}.yaml"
    spec = load_strict(path, GateSpec)
    if spec.gate != name:
        raise UsageError(
            f"{path}: line 1: the gate is called '{spec.gate}', its file '{name}'; make them equal"
        )
    return spec
