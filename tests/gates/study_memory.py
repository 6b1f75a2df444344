"""Closed studies made up on the spot, with a known true mean: what ``read_frozen`` would return."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evals.human.frozen import COLUMNS, Frozen
from evals.human.plan import StudyPlan, StudyTask

SDS = (1.2, 0.8, 1.3)
"""Raters, tasks and the rest: the middle case of the research note."""
SUBJECT = "ours"


def plan_of(raters: int, tasks: int, **given: Any) -> StudyPlan:
    made = [
        StudyTask(
            task_id=f"t{k:03}",
            domain=("coding", "math")[k % 2],
            prompt=f"prompt {k}",
            answers={SUBJECT: f"answer {k}", "theirs": f"other {k}"},
        )
        for k in range(tasks)
    ]
    settings: dict[str, Any] = {
        "name": "phase8",
        "title": "A study",
        "subject": SUBJECT,
        "reference": "theirs",
        "seed": 5,
        "raters": raters,
        "items": min(20, tasks),
        "planted": 2,
        "contact": "study@example.org",
        "tasks": tuple(made),
    }
    return StudyPlan(**{**settings, **given})


def latent(
    rng: np.random.Generator, raters: int, tasks: int, mean: float, sds: tuple[float, ...] = SDS
) -> Any:
    """Ratings (U, T): 1 to 10, whole, with effects of raters and tasks."""
    u, t, e = sds
    effects = rng.normal(0, u, (raters, 1)) + rng.normal(0, t, (1, tasks)) + rng.normal(0, e, (raters, tasks))
    return np.clip(np.rint(mean + effects), 1, 10)


def study(
    raters: int = 100,
    tasks: int = 20,
    *,
    mean: float = 8.0,
    seed: int = 0,
    simulated: int = 0,
    pairs: float | None = None,
    plan: Mapping[str, Any] | None = None,
    sds: tuple[float, ...] = SDS,
) -> Frozen:
    """A study in which all raters finished; beyond 20 tasks each rater sees a dealt part.

    ``pairs``: how often the subject wins each of four pairs.
    """
    rng = np.random.default_rng(seed)
    made = plan_of(raters, tasks, pairs=0 if pairs is None else 4, **(plan or {}))
    y = latent(rng, raters, tasks, mean, sds)
    rows: list[dict[str, Any]] = []
    for u in range(raters):
        seen = rng.permutation([(u * made.items + k) % tasks for k in range(made.items)])
        source = "simulated" if u < simulated else "human"
        first = int(seen[0])
        asked = [("scored", int(k), float(y[u, k])) for k in seen]
        asked += [("planted", int(k), float(rng.integers(1, 5))) for k in seen[: made.planted]]
        asked += [("repeat", first, float(np.clip(y[u, first] + rng.integers(-1, 2), 1, 10)))]
        asked += [("pair", int(k), 0.0) for k in seen[: made.pairs]]
        for position, (kind, k, score) in enumerate(asked, 3):
            won = kind == "pair" and rng.random() < (pairs or 0)
            rows.append(
                row(u, position, kind, made.tasks[k], source=source)
                | {
                    "score": None if kind == "pair" else int(score),
                    "preference": None if kind != "pair" else "subject" if won else "reference",
                    "focus_ms": int(rng.integers(15_000, 60_000)),
                }
            )
    return frozen(made, rows)


def row(u: int, position: int, kind: str, task: StudyTask, source: str = "human") -> dict[str, Any]:
    return {
        "rater": f"r{u:04}",
        "source": source,
        "rater_state": "finished",
        "slot": u,
        "position": position,
        "kind": kind,
        "task_id": task.task_id,
        "domain": task.domain,
        "system": "planted" if kind == "planted" else SUBJECT,
        "score": None,
        "preference": None,
        "focus_ms": 0,
        "wall_ms": None,
        "revisions": 1,
        "comment": "",
        "flag": False,
        "locale": "en",
    }


def frozen(plan: StudyPlan, rows: list[dict[str, Any]]) -> Frozen:
    """Freeze rows without a disk."""
    types = {"string": pa.string(), "int8": pa.int8(), "int32": pa.int32(), "int64": pa.int64()}
    schema = pa.schema([(name, types.get(kind, pa.bool_())) for name, kind in COLUMNS.items()])
    table = pa.Table.from_pylist(rows, schema=schema)
    raters = {(one["rater"], one["source"]) for one in rows}
    counts = {
        **{"invited": 130, "started": 118, "consented": 110, "finished": len(raters), "withdrawn": 4},
        **{"erased": 1, "expired": 5, "simulated": sum(source != "human" for _, source in raters)},
    }
    return Frozen(plan, counts, {"ab" * 32: 110}, table, "sha256:" + "0" * 64, "2026-11-24T10:00:00Z", Path())


def rows_of(found: Frozen) -> list[dict[str, Any]]:
    """The rows of a study, to be changed and frozen again."""
    made: list[dict[str, Any]] = found.table.to_pylist()
    return made
