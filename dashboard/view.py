"""What a page is drawn from: a workspace and one of its runs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from cogumi.errors import UsageError, nearest
from cogumi.workspace import Workspace
from dashboard.source import ReadOnlyWorkspace, State

if TYPE_CHECKING:
    from reports.measured import EvidenceIndex
    from reports.schema import Report

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class View:
    """A workspace and the run that is looked at; made anew for every drawing of a page."""

    workspace: ReadOnlyWorkspace
    run: str | None
    """None in a workspace without runs."""

    def report(self) -> Report:
        """Return the run's report, built once for a state of ledger and evidence; never change it.

        Raises ``UsageError`` without a run, ``RunError`` on broken evidence or an unreadable ledger.
        """
        if self.run is None:
            raise UsageError("no run yet: `cogumi run` starts the rehearsal")
        run = self.run
        # Taken before anything is read: what changes while it is read is another state, and read again.
        state = (*self._place(), run, self.workspace.ledger.state(), self.workspace.evidence_state)

        def build() -> Report:
            from reports.model import build_report

            return build_report(self.workspace, run)

        return _REPORTS.get(state, build)

    def evidence(self) -> EvidenceIndex:
        """Return the index of all evidence, made once for a state of it; never change it."""

        def build() -> EvidenceIndex:
            from reports.measured import EvidenceIndex

            return EvidenceIndex(self.workspace)

        return _INDEXES.get((*self._place(), self.workspace.evidence_state), build)

    def _place(self) -> State:
        return (str(self.workspace.root), str(self.workspace.ledger.engine.url))


def open_view(workspace: Path | None, run: str | None) -> View:
    """Return the view of a run, by default of the one touched last.

    ``workspace``: its folder, else ``COGUMI_WORKSPACE``, else ``.cogumi``; it need not exist. Raises
    ``UsageError`` naming the nearest run when there is none so called, ``RunError`` on an unreadable ledger.
    """
    found = ReadOnlyWorkspace(Workspace.find(workspace).root)
    names = [str(row["name"]) for row in found.ledger.run_rows()]
    if run is not None and run not in names:
        raise UsageError(f"no run {run!r}{nearest(run, names)}")
    return View(found, run or next(iter(names), None))


class Kept(Generic[_T]):
    """The values of the last few states, each made once however many viewers ask at the same time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[State, _T] = OrderedDict()
        self._lock = threading.Lock()
        self._making: dict[State, threading.Lock] = {}

    def get(self, state: State, make: Callable[[], _T]) -> _T:
        """Return the value of a state, made by ``make`` where it is not kept; its errors are not kept."""
        with self._lock:
            if state in self._values:
                self._values.move_to_end(state)
                return self._values[state]
            making = self._making.setdefault(state, threading.Lock())
        with making:
            with self._lock:
                if state in self._values:
                    return self._values[state]
            try:
                value = make()
                with self._lock:
                    self._values[state] = value
                    while len(self._values) > self._most:
                        self._values.popitem(last=False)
            finally:
                with self._lock:
                    self._making.pop(state, None)
            return value


_REPORTS: Kept[Report] = Kept(4)
_INDEXES: Kept[EvidenceIndex] = Kept(2)
