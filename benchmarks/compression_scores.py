"""Answers scored by their tasks, each candidate beside a baseline on the items that both answered.

Retention is the ratio of the scores; its interval is the gates' own bet on paired items inverted
(``pipeline.meta.gain``), with the items as a sample of their family. An answer that was cut or failed scores
0, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compression_questions import Question, loaded_tasks, read_answers
from cogumi.errors import RunError, nearest
from evals.types import Item, Task

ALPHA = 0.05
"""Chance that an interval misses, both of its sides together."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate on a task, on the ``n`` of its ``n_total`` items that it and the baseline answered.

    ``lower`` and ``upper``: Clopper-Pearson, the items as a sample. ``retention`` is the ratio to the
    baseline's score, None where that is 0; its upper bound is None where nothing bounds it. ``lost`` and
    ``won`` count items on which only the baseline, only the candidate scored higher, ``p_value`` is exact
    McNemar's. ``cut`` and ``failed`` answers score 0.
    """

    candidate: str
    task: str
    n: int
    n_total: int
    score: float
    lower: float
    upper: float
    retention: float | None
    retention_lower: float | None
    retention_upper: float | None
    lost: int
    won: int
    p_value: float
    cut: int
    failed: int
    tokens: float
    """Mean tokens of an answer."""


def scores_of(task: Task, items: Sequence[Item], lines: dict[str, dict[str, Any]], where: str) -> list[float]:
    """Score a candidate's answers to ``items``; cut and failed ones are 0.

    Raises ``RunError`` where an answer is to another prompt than the task asks today.
    """
    for item in items:
        if Question(task.name, item.id, task.ask(item), task.max_tokens).asked != lines[item.id]["asked"]:
            raise RunError(f"{where}: {task.name} {item.id} was asked otherwise; answer it again")
    complete = [(item, lines[item.id]["text"]) for item in items if lines[item.id]["finish_reason"] == "stop"]
    scored = {
        item.id: found.score for (item, _), found in zip(complete, task.score_all(complete), strict=True)
    }
    return [scored.get(item.id, 0.0) for item in items]


def scored(
    name: str, task: Task, total: int, values: Sequence[list[float]], lines: list[dict[str, Any]]
) -> Scored:
    """Put a candidate's scores beside the baseline's (``values``), on the items that both answered."""
    import numpy as np

    from gates.intervals import clopper_pearson
    from gates.paired_tests import exact_mcnemar
    from pipeline.meta.gain import paired_gain

    ours, theirs = np.asarray(values[0]), np.asarray(values[1])
    score = float(ours.mean())
    lower, upper = clopper_pearson(score, len(ours), ALPHA / 2)
    gain = paired_gain(values[0], values[1], ALPHA)
    lost, won = int((theirs > ours).sum()), int((ours > theirs).sum())
    reasons = [line["finish_reason"] for line in lines]
    return Scored(
        candidate=name,
        task=task.name,
        n=len(ours),
        n_total=total,
        score=score,
        lower=lower,
        upper=upper,
        retention=None if gain is None else 1 + gain.value,
        retention_lower=None if gain is None else 1 + gain.lower,
        retention_upper=None if gain is None or gain.upper is None else 1 + gain.upper,
        lost=lost,
        won=won,
        p_value=exact_mcnemar(lost, won),
        cut=reasons.count("length"),
        failed=reasons.count("error"),
        tokens=sum(line["completion_tokens"] for line in lines) / len(lines),
    )


def score(answers: Path, suites: str, data: Path | None, baseline: str) -> list[Scored]:
    """Return what every candidate scored on every task that it answered, the baseline first.

    Raises ``RunError`` without answers of the baseline, and as ``scores_of``.
    """
    found: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for path in sorted(answers.glob("*.jsonl")):
        for line in read_answers(path):
            found.setdefault(line["candidate"], {})[line["task"], line["item"]] = line
    if baseline not in found:
        raise RunError(f"{answers}: no answers of the baseline{nearest(baseline, sorted(found))}")
    rows = []
    for task, items in loaded_tasks(suites, data):
        task.prepare()
        known: dict[str, float] = {}
        for name in [baseline, *(each for each in found if each != baseline)]:
            both = [
                item for item in items if all((task.name, item.id) in found[one] for one in (name, baseline))
            ]
            if not both:
                continue
            lines = {item.id: found[name][task.name, item.id] for item in both}
            values = scores_of(task, both, lines, f"{answers}: {name}")
            if name == baseline:
                known = dict(zip((item.id for item in both), values, strict=True))
            theirs = [known[item.id] for item in both]
            rows.append(scored(name, task, len(items), (values, theirs), list(lines.values())))
    return rows


def table(rows: Sequence[Scored]) -> None:
    """Print the scores."""
    heads = ("n", "score", "", "retention", "", "lost", "won", "p", "cut", "tokens")
    form = "{:28} {:10} {:>5} {:>6} {:15} {:>9} {:15} {:>4} {:>4} {:>6} {:>4} {:>6}"
    print(form.format("candidate", "task", *heads))
    for row in sorted(rows, key=lambda row: row.task):
        bounds = [
            "–" if each is None else f"{each:.3f}" for each in (row.retention_lower, row.retention_upper)
        ]
        print(
            form.format(
                row.candidate,
                row.task,
                row.n,
                f"{row.score:.4f}",
                f"[{row.lower:.3f}, {row.upper:.3f}]",
                "–" if row.retention is None else f"{row.retention:.4f}",
                f"[{', '.join(bounds)}]",
                row.lost,
                row.won,
                f"{row.p_value:.3f}",
                row.cut,
                f"{row.tokens:.0f}",
            )
        )
