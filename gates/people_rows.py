"""The rows of a closed study as arrays: who counts, and the grid of raters and tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cogumi.errors import RunError
from gates.crossed import FloatArray

if TYPE_CHECKING:
    from evals.human.frozen import Frozen

Mask = npt.NDArray[np.bool_]
Strings = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Rows:
    """Columns of a study's submitted ratings, (n,) each, in the order of the file.

    ``seconds``: time with the page in focus, else (a browser without scripts does not tell) from showing to
    submission, else NaN. ``score`` and ``preference`` (1 subject, 0.5 tie, 0 reference) are NaN where the
    item has none.
    """

    rater: Strings
    simulated: Mask
    finished: Mask
    kind: Strings
    task: Strings
    domain: Strings
    system: Strings
    position: FloatArray
    score: FloatArray
    preference: FloatArray
    seconds: FloatArray
    comments: Mask
    flags: Mask

    @classmethod
    def of(cls, frozen: Frozen) -> Rows:
        """Read the columns of a closed study; raises ``RunError`` for a score that is not 1 to 10."""
        table = frozen.table

        def text(name: str) -> Strings:
            return np.array(table[name].to_pylist(), dtype=object)

        def number(name: str) -> FloatArray:
            return np.array([np.nan if v is None else v for v in table[name].to_pylist()], dtype=np.float64)

        score = number("score")
        known = score[~np.isnan(score)]
        if not np.isin(known, np.arange(1, 11)).all():
            raise RunError(f"study {frozen.plan.name}: a score is not one of 1 to 10")
        focus, wall = number("focus_ms"), number("wall_ms")
        milliseconds = np.where(focus > 0, focus, np.where(wall > 0, wall, np.nan))
        sides = {"subject": 1.0, "tie": 0.5, "reference": 0.0}
        return cls(
            rater=text("rater"),
            simulated=np.asarray(text("source") != "human", dtype=bool),
            finished=np.asarray(text("rater_state") == "finished", dtype=bool),
            kind=text("kind"),
            task=text("task_id"),
            domain=text("domain"),
            system=text("system"),
            position=number("position"),
            score=score,
            preference=np.array([sides.get(v, np.nan) for v in text("preference")], dtype=np.float64),
            seconds=milliseconds / 1000,
            comments=np.array([bool(v) for v in text("comment")], dtype=bool),
            flags=np.array([bool(v) for v in text("flag")], dtype=bool),
        )

    def where(self, mask: Mask) -> Rows:
        """Return the rows of a mask (n,)."""
        return Rows(**{name: getattr(self, name)[mask] for name in self.__dataclass_fields__})

    def of_kind(self, kind: str) -> Rows:
        """Return the rows of one kind of item."""
        return self.where(np.asarray(self.kind == kind, dtype=bool))

    def without(self, raters: set[str]) -> Rows:
        """Return the rows of all raters but these."""
        return self.where(np.array([name not in raters for name in self.rater], dtype=bool))

    def __len__(self) -> int:
        return len(self.rater)


def counted(rows: Rows, subject: str) -> Rows:
    """Return what the mean is a mean of: scored items of the judged system, by raters who finished."""
    ours = (rows.kind == "scored") & (rows.system == subject) & rows.finished & ~np.isnan(rows.score)
    return rows.where(np.asarray(ours, dtype=bool))


def grid(rows: Rows, values: FloatArray) -> tuple[FloatArray, Strings, Strings]:
    """Return values as raters x tasks, NaN in gaps, and both their names; raises ``RunError`` for doubles."""
    raters, i = np.unique(rows.rater.astype(str), return_inverse=True)
    tasks, j = np.unique(rows.task.astype(str), return_inverse=True)
    y = np.full((len(raters), len(tasks)), np.nan)
    y[i, j] = values
    if int((~np.isnan(y)).sum()) != len(values):
        raise RunError("a rater has two scored ratings of one task; the study's file is not as it was closed")
    return y, raters.astype(object), tasks.astype(object)


def complete_raters(rows: Rows, plan: Any) -> list[str]:
    """Return the raters who finished and whose share of scored items is all there, sorted."""
    scored = counted(rows, plan.subject)
    names, counts = np.unique(scored.rater.astype(str), return_counts=True)
    return [str(name) for name, n in zip(names, counts, strict=True) if n >= plan.items]
