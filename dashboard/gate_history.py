"""Verdicts and attempts as the ledger keeps them, made ready for a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import String, select, type_coerce

from cogumi.errors import UsageError
from cogumi.ledger import Ledger
from cogumi.ledger.schema import gate_attempts, verdicts
from dashboard import kit
from gates.attempts import alpha_of
from gates.spec import load_gate
from gates.verdicts import CriterionVerdict, GateVerdict
from reports.text import moment, short, when

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "–"
NO_RUN = "no run"
"""What stands for the run of a verdict that ``cogumi gate --artifact`` brought."""


@dataclass(frozen=True, slots=True)
class Decided:
    """One verdict of the ledger; ``name`` is short, readable and different from all others of a page."""

    name: str
    digest: str
    run: str
    decided: str
    verdict: GateVerdict

    @property
    def when(self) -> str:
        """The minute of the decision, for people."""
        return when(self.decided)


def read_verdicts(ledger: Ledger, run: str | None) -> tuple[list[Decided], list[str]]:
    """Return a run's verdicts, newest first, and one line for each that is unreadable.

    ``run`` None: those of all runs, and of no run at all.
    """
    columns = [verdicts.c[name] for name in ("digest", "run", "gate", "created_at")]
    query = select(*columns, type_coerce(verdicts.c.document, String).label("document"))
    if run is not None:
        query = query.where(verdicts.c.run == run)
    with ledger.engine.connect() as connection:
        rows = connection.execute(query.order_by(verdicts.c.created_at.desc())).mappings().all()
    found: list[Decided] = []
    broken = []
    names: dict[str, int] = {}
    for row in reversed(rows):
        try:
            document = row["document"]
            verdict = GateVerdict.from_json(json.loads(document) if isinstance(document, str) else document)
            name = f"{verdict.gate}.{verdict.attempt}.{verdict.artifact.removeprefix('sha256:')[:8]}"
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            decided = when(moment(row["created_at"] or 0.0))
            broken.append(
                f"the ledger's verdict of gate {row['gate']} of {decided} is not readable by this version "
                f"({type(error).__name__})"
            )
            continue
        # Older ones of the same name keep theirs when another comes: links go on meaning the same.
        names[name] = names.get(name, 0) + 1
        name = name if names[name] == 1 else f"{name}.{names[name]}"
        found.append(
            Decided(
                name, str(row["digest"]), str(row["run"] or ""), moment(row["created_at"] or 0.0), verdict
            )
        )
    return found[::-1], broken


def history_rows(found: Sequence[Decided]) -> list[tuple[Decided, CriterionVerdict]]:
    """Return every criterion of every verdict, in the order of the verdicts."""
    return [(decided, criterion) for decided in found for criterion in decided.verdict.criteria]


def history_table(
    rows: Sequence[tuple[Decided, CriterionVerdict]], names: Mapping[str, str], *, runs: bool
) -> pd.DataFrame:
    """Return one row a criterion; ``names`` of artifacts by digest, ``runs``: with the run's name."""
    import pandas as pd

    return pd.DataFrame([_history_row(*row, names, runs) for row in rows])


def _history_row(
    decided: Decided, criterion: CriterionVerdict, names: Mapping[str, str], runs: bool
) -> dict[str, Any]:
    told = decided.verdict
    return {
        "Decided (UTC)": decided.when.removesuffix(" UTC"),
        **({"Run": decided.run or NO_RUN} if runs else {}),
        "Gate": told.gate,
        "Attempt": told.attempt or None,
        "Criterion": criterion.id,
        "Verdict": kit.badge(criterion.verdict.value),
        "Value": criterion.value,
        "Lower bound": criterion.lower,
        "Upper bound": criterion.upper,
        "Bar": f"{'≥' if criterion.comparison == '>=' else '≤'} {criterion.bar:,.10g}",
        "Measure": criterion.measure,
        "Items used": criterion.n_used,
        "Items in all": criterion.n_total,
        "Alpha": criterion.alpha,
        "Artifact": artifact_name(told.artifact, names),
        "Reference": criterion.reference or UNKNOWN,
        "Kind": ", ".join(filter(None, (criterion.reference_kind, criterion.simulated_part))) or UNKNOWN,
        "Note": criterion.note,
        "The gate says": kit.badge(told.verdict.value),
        "Name": decided.name,
    }


def artifact_name(digest: str, names: Mapping[str, str]) -> str:
    """Return what a run calls an artifact, with the start of its digest."""
    return f"{names[digest]} ({short(digest)})" if names.get(digest) else short(digest)


# Attempts -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """One artifact that a gate judged on the same items; ``alpha`` is None where the gate file is gone."""

    gate: str
    items: str
    number: int
    artifact: str
    started: str
    alpha: float | None
    spent: float | None
    """By this attempt and all before it, of a criterion."""
    left: float | None


def read_attempts(ledger: Ledger) -> list[Attempt]:
    """Return the attempts of all gates on all items, each series in its order."""
    order = (gate_attempts.c.gate, gate_attempts.c.items_digest, gate_attempts.c.number)
    with ledger.engine.connect() as connection:
        rows = connection.execute(select(gate_attempts).order_by(*order)).mappings().all()
    alphas = {str(row["gate"]): gate_alpha(str(row["gate"])) for row in rows}
    found: list[Attempt] = []
    spent: dict[tuple[str, str], float] = {}
    for row in rows:
        gate, items, number = str(row["gate"]), str(row["items_digest"]), int(row["number"])
        whole, started = alphas[gate], moment(row["created_at"] or 0.0)
        mine = total = None
        if whole is not None:
            mine = alpha_of(number, whole)
            total = spent[gate, items] = spent.get((gate, items), 0.0) + mine
        left = None if whole is None or total is None else whole - total
        found.append(Attempt(gate, items, number, str(row["artifact"]), started, mine, total, left))
    return found


def gate_alpha(gate: str) -> float | None:
    """Return the error rate of a gate's criteria over all attempts; None for a gate that has no file here."""
    try:
        return load_gate(gate).alpha
    except UsageError:
        return None


def attempts_table(
    attempts: Sequence[Attempt], found: Sequence[Decided], names: Mapping[str, str]
) -> pd.DataFrame:
    """Return one row an attempt, with the criteria that it decided."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "Gate": one.gate,
                "Attempt": one.number,
                "Alpha of this attempt": one.alpha,
                "Alpha spent so far": one.spent,
                "Alpha left": one.left,
                "Said": _said(one, found),
                "Artifact": artifact_name(one.artifact, names),
                "First judged": when(one.started),
                "Items": short(one.items),
            }
            for one in attempts
        ]
    )


def _said(attempt: Attempt, found: Sequence[Decided]) -> str:
    """Return the latest verdict of each criterion that this attempt decided."""
    told: dict[str, str] = {}
    for decided in found:
        if (decided.verdict.gate, decided.verdict.artifact) != (attempt.gate, attempt.artifact):
            continue
        for criterion in decided.verdict.criteria:
            if criterion.attempt == attempt.number:
                told.setdefault(criterion.id, kit.badge(criterion.verdict.value))
    return ", ".join(f"{name} {verdict}" for name, verdict in told.items()) or UNKNOWN
