"""Where each model of a run lies in the plot of quality, size and speed, on two axes of choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dashboard.models import Models
from dashboard.pareto import Better, Candidate, Value, standings
from dashboard.relative import Against, Share, share
from gates.frontier import Standing
from reports.measured import EvidenceIndex
from reports.schema import ArtifactPart, FrontierPart, FrontierPointPart, SuitePart, TaskPart


@dataclass(frozen=True, slots=True)
class Axis:
    """A number of a model that is no score."""

    label: str
    better: Better
    metric: str
    """What gates call it."""
    is_bytes: bool = False


AXES = {
    "download size": Axis("Bytes to download", "less", "bytes_download", is_bytes=True),
    "size in memory": Axis("Bytes in memory", "less", "bytes_resident", is_bytes=True),
    "bits a weight": Axis("Bits a weight", "less", "bits_per_weight"),
    "tokens a second": Axis("Tokens a second, while it was measured", "more", "tokens_per_second"),
    "seconds an answer": Axis("Seconds an answer, mean while it was measured", "less", ""),
}
"""Axes by the word that the address has for them."""
QUALITY, KL = "quality", "KL divergence"


@dataclass(frozen=True, slots=True)
class Choice:
    """What is plotted against what: ``x`` of ``AXES``, ``y`` ``QUALITY``, ``KL`` or one of ``AXES``."""

    x: str
    y: str
    suite: str
    task: str | None = None
    """None for the whole suite."""
    relative: str | None = None
    """The name of a reference of the profile, or of a model; None for the score itself."""
    dense: str | None = None
    """For ``KL``: which of ``frontiers_by_name``."""
    third: str | None = None
    """Of ``AXES``: one more number that counts for the frontier."""

    @property
    def tasks(self) -> str:
        """What quality is of: the task, or the suite."""
        return self.task or self.suite

    @property
    def better(self) -> tuple[Better, ...]:
        """Which way each objective is better: x, y and the third."""
        y: Better = "more" if self.y == QUALITY else "less" if self.y == KL else AXES[self.y].better
        third = () if self.third is None else (AXES[self.third].better,)
        return (AXES[self.x].better, y, *third)


@dataclass(frozen=True, slots=True)
class Place:
    """One model in the plot; an unknown value is None, and without x or y it is not drawn."""

    digest: str | None
    """None for a model that is gone from the store."""
    number: int | None
    name: str
    kind: str
    recipe: str
    x: Value | None
    y: Value | None
    n: int
    n_total: int
    numbers: Mapping[str, float | None]
    """Every number of ``AXES``."""
    standing: Standing | None = None
    """None for one that lacks a value which counts."""

    @property
    def key(self) -> str:
        """What names it here: its digest, or its name where that is unknown."""
        return self.digest or self.name

    @property
    def drawn(self) -> bool:
        """Tell whether it has a place in the plot."""
        return self.x is not None and self.y is not None


def places(models: Models, choice: Choice, against: Against | None = None) -> list[Place]:
    """Return every model in its place with its standing, in the order of the report's table.

    ``against`` gives the scores of what ``choice.relative`` names.
    """
    if choice.y == KL:
        found = [_of_frontier(models, point, choice) for point in _points(models, choice)]
    else:
        found = [_of_artifact(models, part, choice, against) for part in models.artifacts]
    candidates = [Candidate(one.key, _objectives(one, choice)) for one in found]
    judged = standings(candidates, choice.better)
    return [replace(one, standing=standing) for one, standing in zip(found, judged, strict=True)]


def _objectives(place: Place, choice: Choice) -> tuple[Value | None, ...]:
    third = () if choice.third is None else (_exactly(place.numbers[choice.third]),)
    return (place.x, place.y, *third)


def _exactly(number: float | None) -> Value | None:
    return None if number is None else Value.exactly(number)


def _of_artifact(models: Models, part: ArtifactPart, choice: Choice, against: Against | None) -> Place:
    numbers = numbers_of(models.index, part)
    quality = _quality(part, choice)
    if choice.y != QUALITY:
        y = _exactly(numbers[choice.y])
    elif choice.relative is None:
        y = _score(quality)
    else:
        found = share_of(models, part, choice, against)
        y = found.value if found is not None else None
    return Place(
        digest=part.digest,
        number=part.number,
        name=part.name,
        kind=part.kind,
        recipe=models.recipes.get(part.digest, ""),
        x=_exactly(numbers[choice.x]),
        y=y,
        n=quality.n if quality is not None else 0,
        n_total=quality.n_total if quality is not None else 0,
        numbers=numbers,
    )


def numbers_of(index: EvidenceIndex, part: ArtifactPart) -> dict[str, float | None]:
    """Return every number of ``AXES`` of a model."""
    measured = [found for task in index.tasks(part.digest) if (found := index.best(part.digest, task))]
    answers, seconds = sum(one.n for one in measured), sum(one.seconds for one in measured)
    known: tuple[float | None, ...] = (
        part.bytes_download,
        part.bytes_resident,
        part.bits_per_weight,
        part.tokens_per_second,
        seconds / answers if seconds and answers else None,
    )
    return dict(zip(AXES, known, strict=True))


def _quality(part: ArtifactPart, choice: Choice) -> SuitePart | TaskPart | None:
    for suite in part.quality:
        if suite.suite == choice.suite:
            if choice.task is None:
                return suite
            return next((task for task in suite.tasks if task.task == choice.task), None)
    return None


def _score(part: SuitePart | TaskPart | None) -> Value | None:
    if part is None or part.score is None or part.lower is None or part.upper is None:
        return None
    return Value(part.score, part.lower, part.upper)


def share_of(models: Models, part: ArtifactPart, choice: Choice, against: Against | None) -> Share | None:
    """Return a model's score as a share of a reference's on what is chosen; None where one is unknown."""
    suite = next((one for one in part.quality if one.suite == choice.suite), None)
    if against is None or suite is None:
        return None
    tasks = [choice.task] if choice.task is not None else [task.task for task in suite.tasks]
    if choice.task is None and len(tasks) < suite.tasks_total:
        return None
    return share(models.index, part.digest, tasks, against)


# Divergence ---------------------------------------------------------------------------------------


def frontiers_by_name(models: Models) -> dict[str, FrontierPart]:
    """Return what was measured along the same rows, by the name of the model that divergences are from."""
    found: dict[str, FrontierPart] = {}
    for part in models.frontiers:
        number = sum(other.baseline == part.baseline for other in found.values())
        found[f"{part.baseline}, rows {number + 1}" if number else part.baseline] = part
    return found


def _points(models: Models, choice: Choice) -> list[FrontierPointPart]:
    part = frontiers_by_name(models).get(choice.dense or "")
    return part.points if part is not None else []


def _of_frontier(models: Models, point: FrontierPointPart, choice: Choice) -> Place:
    part = next((one for one in models.artifacts if one.number == point.number), None)
    numbers = dict.fromkeys(AXES) if part is None else numbers_of(models.index, part)
    numbers |= {
        "download size": point.bytes_download,
        "size in memory": point.bytes_resident,
        "bits a weight": point.bits_per_weight,
    }
    return Place(
        digest=part.digest if part is not None else None,
        number=point.number,
        name=point.name,
        kind=part.kind if part is not None else "missing",
        recipe=point.recipe,
        x=_exactly(numbers[choice.x]),
        y=Value(point.kl, point.kl_lower, point.kl_upper),
        n=point.tokens or 0,
        n_total=point.tokens or 0,
        numbers=numbers,
    )
