"""A closed study as a gate's evidence: the mean rating with its bounds, and how many rated how much."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evals.references.scores import MetricValue, NotMeasuredError
from gates.spec import Human

if TYPE_CHECKING:
    from evals.human.frozen import Frozen

PLANS_STUDY = "phase8"
"""The study that a count of raters or tasks is of, where the gate names none."""


def closed_study(workspace_root: Path, study: str, artifact: Path | None) -> Frozen:
    """Return the closed study in an artifact's payload, else the workspace's study of that name.

    Raises ``NotMeasuredError`` where there is none, or where it is still open: its ratings are nobody's to
    look at. Raises ``RunError`` for one that is broken.
    """
    from evals.human.frozen import FOLDER, STUDY_FILE, find_frozen, read_frozen, study_state

    if artifact is not None and (artifact / FOLDER / STUDY_FILE).is_file():
        return read_frozen(artifact)
    found = find_frozen(workspace_root, study)
    if found is not None:
        return found
    if study_state(workspace_root, study) == "open":
        raise NotMeasuredError(
            f"not measured: study {study} is open, and is judged once it is closed: "
            f"`cogumi humaneval close {study}` ends it"
        )
    raise NotMeasuredError(
        f"not measured: no closed study {study}; `cogumi humaneval create {study}` begins one"
    )


def rating(frozen: Frozen, asked: Human, bar: float, alpha: float) -> MetricValue:
    """Return a study's mean rating, 1 to 10, with one-sided bounds at ``alpha``; unbounded where it has none.

    ``undecided`` has the reasons why it decides nothing: too few raters, or careless ones that make the
    difference. Raises ``NotMeasuredError`` where nobody has finished.
    """
    from gates.people import judge_study

    found = judge_study(frozen, bar=bar, alpha=alpha, needed=asked.raters)
    estimate = found.estimate
    if not estimate.n:
        raise NotMeasuredError(f"not measured: study {frozen.plan.name} has no rating of a finished rater")
    people = f"{estimate.raters} {'simulated ' if found.simulated else ''}raters"
    told = f"{frozen.plan.subject}: {people} x {estimate.tasks} tasks, {estimate.method}"
    left_out = f"{len(found.excluded)} left out by the rules" if found.excluded else ""
    these = "on these tasks only" if frozen.plan.estimand == "these tasks" else ""
    return MetricValue(
        estimate.mean,
        float("-inf") if estimate.lower is None else estimate.lower,
        float("inf") if estimate.upper is None else estimate.upper,
        exact=False,
        n=estimate.n,
        protocol_digest=frozen.digest,
        note="; ".join(filter(None, (told, these, left_out, estimate.note))),
        simulated=found.simulated > 0,
        undecided="; ".join(found.obstacles),
    )


def people_count(frozen: Frozen, metric: str) -> MetricValue:
    """Return how many raters finished their share (``human_raters``), or the tasks that they rated."""
    from gates.people_rows import Rows, complete_raters, counted

    rows = Rows.of(frozen)
    if metric == "human_raters":
        count = len(complete_raters(rows, frozen.plan))
    else:
        count = len(set(counted(rows, frozen.plan.subject).task.tolist()))
    made_up = bool(rows.simulated.any())
    return MetricValue(count, count, count, True, protocol_digest=frozen.digest, simulated=made_up)
