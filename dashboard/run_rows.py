"""One run as the first pages need it: its row, profile, steps, spending and plan, from the ledger alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from cogumi.errors import CogumiError
from cogumi.ledger import StepRow
from cogumi.ledger.schema import verdicts
from cogumi.profile import Profile, parse_profile
from dashboard.costs import Spent, spent_rows
from dashboard.phases import Phase, phases_of
from dashboard.plan import Plan, plan_of
from dashboard.view import Kept, View

# Adding up a hundred thousand calls is no work for every glance at a live run.
_TOTALS_HOLD_S = 5
_TOTALS: Kept[list[dict[str, Any]]] = Kept(32)


@dataclass(frozen=True, slots=True)
class RunRows:
    """What the ledger knows of a run, and what the plan says of its profile."""

    row: Mapping[str, Any]
    profile: Profile
    unreadable: str
    """Why the recorded profile is not readable by this version; then ``profile`` has no steps."""
    steps: Sequence[StepRow]
    spent: Sequence[Spent]
    plan: Plan | None
    """None while it is being estimated."""

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.row["name"])

    @property
    def running(self) -> bool:
        """Whether the ledger has the run as running."""
        return bool(self.row["status"] == "running")

    @property
    def known_plan(self) -> Plan:
        """The plan, or an empty one while it is being estimated."""
        return self.plan or Plan()


def read_run(view: View) -> RunRows | None:
    """Return the view's run, or None where there is none; raises ``RunError`` on an unreadable ledger."""
    ledger = view.workspace.ledger
    found = ledger.run(view.run) if view.run is not None else None
    if found is None:
        return None
    row: dict[str, Any] = dict(found)
    unreadable = ""
    try:
        profile = parse_profile(row["profile"], f"of run {row['name']}")
    except CogumiError as error:
        unreadable = f"{error}; what the ledger has of the run is shown without its plan"
        profile = Profile(profile=str(row["profile_name"]), title="")
    return RunRows(
        row=row,
        profile=profile,
        unreadable=unreadable,
        steps=ledger.steps(str(row["name"])),
        spent=spent_of(view, row, profile),
        plan=planned(row) if not unreadable else Plan(why="the recorded profile is not readable"),
    )


def read_phases(view: View, run: RunRows) -> list[Phase]:
    """Return the run's phases; of its verdicts only those documents are read that the phases show."""
    engine = view.workspace.ledger.engine
    shown = [column for column in verdicts.c if column.name != "document"]
    query = select(*shown).where(verdicts.c.run == run.name).order_by(verdicts.c.created_at)
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(query).mappings()]

        def document(digest: str) -> Any:
            return connection.execute(
                select(verdicts.c.document).where(verdicts.c.digest == digest)
            ).scalar_one()

        # A step that a kill left as running took no time after the last entry of a run that is over.
        now = time.time() if run.running else float(run.row["updated_at"])
        return phases_of(run.profile, run.steps, rows, document, now)


def planned(row: Mapping[str, Any]) -> Plan | None:
    """Return the plan of a run's row, or None while it is being estimated."""
    future = plan_of(row["profile"], str(row["profile_digest"]))
    return future.result() if future.done() else None


def spent_of(view: View, row: Mapping[str, Any], profile: Profile) -> list[Spent]:
    """Return what a run has spent, as of at most five seconds ago."""
    return spent_rows(profile, _call_totals(view, str(row["name"]), float(row["updated_at"])))


def _call_totals(view: View, run: str, stamp: float) -> list[dict[str, Any]]:
    state = (str(view.workspace.root), run, stamp, int(time.monotonic() / _TOTALS_HOLD_S))
    return _TOTALS.get(state, lambda: [dict(row) for row in view.workspace.ledger.call_totals(run)])
