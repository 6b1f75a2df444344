"""Tasks of meta-learning: k rows to learn from and q others to be judged by, all of one family.

A family is a cell (domain, difficulty) of the merged data, a domain, or a group of these with a name. Nobody
trains on the families that are held out: few-shot performance is measured on them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import Field, model_validator

from cogumi.errors import RunError, UsageError, nearest
from cogumi.stage import Settings
from pipeline.training.data import Example

Row = TypeVar("Row")


class FamilySettings(Settings):
    """What a family is, and which are kept from training."""

    by: Literal["cell", "domain"] | dict[str, tuple[str, ...]] = "cell"
    """Cells are named ``math/easy``. A mapping names families, each a list of domains or cells; rows that are
    in none of them are left out."""
    held_out: tuple[str, ...] | Annotated[float, Field(gt=0, lt=1)] = ()
    """Names of families, or the share of them that the digests of their names choose."""

    @model_validator(mode="after")
    def _apart(self) -> FamilySettings:
        if isinstance(self.by, dict):
            members = [member for group in self.by.values() for member in group]
            for member in members:
                if members.count(member) > 1 or ("/" in member and member.partition("/")[0] in members):
                    raise ValueError(f"families.by: {member} is in two families, or in one of them twice")
        return self


class MetaSettings(Settings):
    """What a task is and how it is learnt; the outer steps are the ``steps`` of the training."""

    tasks: int = Field(default=10_000, gt=0)
    """Different tasks; all of them are seen before one comes again."""
    tasks_per_step: int = Field(default=4, gt=0)
    support: int = Field(default=5, gt=0)
    """Rows that a task is learnt from."""
    query: int = Field(default=5, gt=0)
    """Other rows of the same family, by which the adapted model is judged."""
    inner_steps: int = Field(default=2, gt=0)
    inner_learning_rate: float = Field(gt=0)
    """Of plain gradient descent in the inner loop."""
    families: FamilySettings = FamilySettings()
    look_tasks: int = Field(default=32, gt=0)
    """Tasks of a look, from the held-out rows of the families that are trained on: a look, and early stopping
    with it, never sees a held-out family."""


@dataclass(frozen=True, slots=True)
class Task(Generic[Row]):
    """One draw from a family; no row is in both sets."""

    family: str
    support: tuple[Row, ...]
    query: tuple[Row, ...]


def cell_of(example: Example) -> str:
    """Return a row's cell, ``domain/difficulty``, or its domain where the data name no difficulty."""
    return example.domain if example.difficulty is None else f"{example.domain}/{example.difficulty}"


def family_of(example: Example, families: FamilySettings) -> str | None:
    """Return the family of a row; None for a row that the named families leave out.

    Raises ``RunError`` where cells are wanted and the row has no difficulty.
    """
    if families.by == "domain":
        return example.domain
    if families.by == "cell":
        if example.difficulty is None:
            raise RunError(
                f"row {example.question_id} has no 'difficulty', so it is in no cell; set families.by: domain"
            )
        return cell_of(example)
    places = (example.domain, cell_of(example))
    return next((name for name, group in families.by.items() if any(p in group for p in places)), None)


def held_out_families(examples: Iterable[Example], families: FamilySettings) -> tuple[str, ...]:
    """Return the held-out families by name, sorted.

    Raises ``UsageError`` for a name that the data has not, or when no family is left to train on.
    """
    known = sorted({name for example in examples if (name := family_of(example, families)) is not None})
    if isinstance(families.held_out, float):
        # By digest: which they are depends on the names alone, and on no order.
        ranked = sorted(known, key=lambda name: hashlib.sha256(name.encode()).digest())
        chosen = ranked[: max(1, round(families.held_out * len(known)))]
    else:
        chosen = list(families.held_out)
        for name in chosen:
            if name not in known:
                raise UsageError(f"families.held_out: the data has no family {name!r}{nearest(name, known)}")
    if known and set(chosen) >= set(known):
        raise UsageError("families.held_out: no family is left to train on; hold fewer out")
    return tuple(sorted(chosen))


def without_held_out(examples: Sequence[Example], families: FamilySettings) -> list[Example]:
    """Return the rows that may be trained on: those of families that are not held out."""
    held_out = held_out_families(examples, families)
    return [row for row in examples if family_of(row, families) not in (None, *held_out)]


def trained_cells(examples: Iterable[Example], before: Collection[str] = ()) -> list[str]:
    """Return the cells that a model has seen, sorted; ``before``: those that its own start had seen."""
    return sorted({*before, *(cell_of(example) for example in examples)})


def group_rows(
    rows: Sequence[Row], examples: Sequence[Example], families: FamilySettings
) -> dict[str, list[Row]]:
    """Return rows by family, in the order given; ``examples`` are theirs, one each."""
    groups: dict[str, list[Row]] = {}
    for row, example in zip(rows, examples, strict=True):
        name = family_of(example, families)
        if name is not None:
            groups.setdefault(name, []).append(row)
    return groups


class Tasks(Generic[Row]):
    """Tasks 0 to ``count`` - 1, each a fixed draw: of a family, all alike, and then of its rows.

    ``left_out``: families with fewer than ``support + query`` rows, and how many they have. Raises
    ``RunError`` when no family has enough.
    """

    def __init__(
        self, families: Mapping[str, Sequence[Row]], *, support: int, query: int, count: int, seed: str
    ) -> None:
        self.count = count
        self._sizes = (support, query)
        self._seed = seed
        self._rows = {name: rows for name, rows in families.items() if len(rows) >= support + query}
        self.families = sorted(self._rows)
        self.left_out = {name: len(rows) for name, rows in sorted(families.items()) if name not in self._rows}
        if not self.families:
            most = max((len(rows) for rows in families.values()), default=0)
            raise RunError(
                f"no family has the {support + query} rows of a task (support {support}, query {query}); the "
                f"largest has {most}: lower support or query, or give more data"
            )

    def __getitem__(self, number: int) -> Task[Row]:
        """Return a task: a function of the seed and its number alone."""
        family, places = self._draw(number)
        rows, (support, _) = self._rows[family], self._sizes
        chosen = [rows[place] for place in places]
        return Task(family, tuple(chosen[:support]), tuple(chosen[support:]))

    def endless(self, per_step: int, *, skip: int = 0) -> Iterator[list[Task[Row]]]:
        """Yield the tasks of each step, from step number ``skip`` on.

        All tasks come once, in random order, before any comes again: a function of the seed and the step.
        """
        at = skip * per_step
        epoch, order = -1, [0]
        while True:
            step = []
            for place in range(at, at + per_step):
                if place // self.count != epoch:
                    epoch = place // self.count
                    order = list(range(self.count))
                    random.Random(f"{self._seed}/order/{epoch}").shuffle(order)
                step.append(self[order[place % self.count]])
            yield step
            at += per_step

    def distinct(self, drawn: int) -> int:
        """Return how many different tasks the first ``drawn`` of ``endless`` are: small families repeat."""
        order = list(range(self.count))
        random.Random(f"{self._seed}/order/0").shuffle(order)
        support, _ = self._sizes
        seen = set()
        for number in order[: min(drawn, self.count)]:
            family, places = self._draw(number)
            seen.add((family, frozenset(places[:support]), frozenset(places[support:])))
        return len(seen)

    def _draw(self, number: int) -> tuple[str, list[int]]:
        rng = random.Random(f"{self._seed}/task/{number}")
        family = rng.choice(self.families)
        return family, rng.sample(range(len(self._rows[family])), sum(self._sizes))
