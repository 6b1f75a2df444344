"""Human studies of a workspace, only read: progress while one is open, its analysis once it is closed.

Of an open study nothing is read that a mean could follow from: its ratings stay in its database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cogumi.errors import CogumiError
from dashboard.view import Kept
from evals.human.plan import PLAN_FILE, STUDIES, StudyPlan, read_plan
from evals.human.rows import Progress

if TYPE_CHECKING:
    import pandas as pd

    from evals.human.frozen import Frozen
    from gates.people import Analysis
    from gates.people_tables import GroupMean, Tables


@dataclass(frozen=True, slots=True)
class Study:
    """One study: ``frozen`` once it is closed, else ``progress``; ``why`` says what cannot be read."""

    name: str
    plan: StudyPlan | None
    progress: Progress | None = None
    frozen: Frozen | None = None
    why: str = ""

    @property
    def state(self) -> str:
        """``open``, ``closed`` or ``not readable``."""
        if self.frozen is not None:
            return "closed"
        return "open" if self.progress is not None else "not readable"


def study_names(root: Path) -> list[str]:
    """Return the names of a workspace's studies, in the order of the alphabet."""
    return sorted(path.parent.name for path in (root / STUDIES).glob(f"*/{PLAN_FILE}"))


def read_study(root: Path, name: str) -> Study:
    """Return a study as its files and its database say now; what is wrong with it is one line of it."""
    from evals.human.frozen import FOLDER, STUDY_FILE, read_frozen
    from evals.human.store import StudyStore

    folder = root / STUDIES / name
    plan = None
    try:
        plan = read_plan(folder)
        if (folder / FOLDER / STUDY_FILE).exists():
            return Study(name, plan, frozen=read_frozen(folder))
        store = StudyStore.open(folder, read_only=True)
        try:
            return Study(name, plan, progress=store.progress())
        finally:
            store.dispose()
    except CogumiError as error:
        return Study(name, plan, why=str(error))


_ANALYSES: Kept[Analysis] = Kept(4)


def analysis_of(frozen: Frozen, bar: float) -> Analysis:
    """Return the analysis of a closed study, made once for its bytes; never change it."""

    def make() -> Analysis:
        from gates.people import analyse

        return analyse(frozen, bar=bar)

    return _ANALYSES.get((str(frozen.folder), frozen.digest, frozen.plan.digest, bar), make)


# Tables -------------------------------------------------------------------------------------------


def list_table(studies: list[Study]) -> pd.DataFrame:
    """Return one row a study: counts alone, no score."""
    import pandas as pd

    return pd.DataFrame([_row(one) for one in studies])


def _row(one: Study) -> dict[str, object]:
    finished: int | None = None
    simulated: int | None = None
    if one.progress is not None:
        finished, simulated = one.progress.states.get("finished", 0), one.progress.simulated
    if one.frozen is not None:
        finished, simulated = one.frozen.counts.get("finished"), one.frozen.counts.get("simulated")
    return {
        "Study": one.name,
        "State": {"open": "→ open", "closed": "✓ closed"}.get(one.state, "✗ not readable"),
        "Raters finished": finished,
        "Raters wanted": one.plan.raters if one.plan else None,
        "Simulated raters": simulated,
        "Tasks": len(one.plan.tasks) if one.plan else None,
        "Judged system": one.plan.subject if one.plan else "",
    }


def counts_table(counts: Mapping[str, int]) -> pd.DataFrame:
    """Return counts by name, as they are."""
    import pandas as pd

    return pd.DataFrame({"State": list(counts), "Raters": list(counts.values())})


def remarks_table(progress: Progress) -> pd.DataFrame:
    """Return flags and comments, the latest first."""
    import pandas as pd

    rows = [
        {
            "Rater": one.pseudonym,
            "Item": one.position,
            "Task": one.task_id,
            "Flag": "⚑ flagged" if one.flag else "",
            "Comment": one.comment,
            "Given (UTC)": one.at,
        }
        for one in progress.remarks
    ]
    return pd.DataFrame(rows)


def histogram_table(tables: Tables) -> pd.DataFrame:
    """Return how often each score was given."""
    import pandas as pd

    total = max(1, sum(tables.histogram))
    shares = [count / total for count in tables.histogram]
    return pd.DataFrame({"Score": range(1, 11), "Ratings": tables.histogram, "Share": shares})


def means_table(groups: tuple[GroupMean, ...]) -> pd.DataFrame:
    """Return means with bounds, the lowest first."""
    import pandas as pd

    rows = [
        {
            "Task": one.name,
            "Domain": one.domain,
            "Mean": one.mean,
            "Lower bound": one.lower,
            "Upper bound": one.upper,
            "Ratings": one.n,
        }
        for one in sorted(groups, key=lambda one: one.mean)
    ]
    return pd.DataFrame(rows)


def agreement_table(analysis: Analysis) -> pd.DataFrame:
    """Return the coefficients of agreement with bounds."""
    import pandas as pd

    rows = [
        {"Coefficient": one.name, "Value": one.value, "Lower bound": one.lower, "Upper bound": one.upper}
        for one in analysis.agreement
    ]
    return pd.DataFrame(rows)


def flags_table(analysis: Analysis) -> pd.DataFrame:
    """Return the raters that a rule flagged."""
    import pandas as pd

    rows = [
        {
            "Rater": one.rater,
            "Rules": ", ".join(one.flags),
            "Left out": "left out" if one.excluded else "kept",
        }
        for one in analysis.judged.flags
    ]
    return pd.DataFrame(rows)
