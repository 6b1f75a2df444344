"""A closed study's ratings as files for anybody: CSV, Parquet, JSON, and a dictionary that explains them."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from evals.human.frozen import COLUMNS, FOLDER, RATINGS_FILE

if TYPE_CHECKING:
    from evals.human.frozen import Frozen

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection)."""

MEANING = {
    "rater": "number of the rater (r0001, …), given in the order of consent; who it is is stored nowhere",
    "source": "human or simulated",
    "rater_state": "finished counts; active, withdrawn and expired stopped before the end",
    "slot": "the rater's place in the design; it decides tasks and order",
    "position": "place of the item in the rater's sequence, from 1, practice counted",
    "kind": "scored counts; planted is a bad answer, repeat an item shown again, pair a comparison",
    "task_id": "the task, as in study.json",
    "domain": "the task's domain",
    "system": "whose answer was rated; for a planted one: planted",
    "score": "1 to 10; empty for pairs",
    "preference": "of pairs: subject, reference or tie; empty for the rest",
    "focus_ms": "milliseconds in which the page had the focus, as the browser tells it",
    "wall_ms": "milliseconds from the first showing to the first submission",
    "revisions": "1 for the first answer, one more for every correction",
    "comment": "what the rater wrote, unchanged but for the guard against formulas in the CSV",
    "flag": "whether the rater flagged the item",
    "locale": "language of the pages",
}
"""What each column of the ratings says."""


def export_files(frozen: Frozen) -> dict[str, bytes]:
    """Return the files by name, the dictionary last; equal studies give equal bytes."""
    rows: list[dict[str, Any]] = frozen.table.to_pylist()
    names = list(frozen.table.column_names)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(names)
    writer.writerows([[_cell(row[name]) for name in names] for row in rows])
    plan = frozen.plan.model_dump(mode="json")
    study = {
        "study": frozen.plan.name,
        "plan_digest": frozen.plan.digest,
        "ratings_sha256": frozen.digest,
        "closed_at": frozen.closed_at,
        "counts": dict(frozen.counts),
        "consents": dict(frozen.consents),
        "plan": plan,
    }
    return {
        "ratings.csv": text.getvalue().encode("utf-8", "replace"),
        "ratings.parquet": (frozen.folder / FOLDER / RATINGS_FILE).read_bytes(),
        "ratings.json": _json(rows),
        "study.json": _json(study),
        "README.md": _dictionary(frozen, names).encode(),
    }


def _cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula; numbers stay numbers."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _json(document: Any) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace")


def _dictionary(frozen: Frozen, names: list[str]) -> str:
    plan = frozen.plan
    lines = [
        f"# Ratings of the study {plan.name}",
        "",
        f"{frozen.table.num_rows:,} ratings, one a row; practice items are left out. Judged system: "
        f"`{_code(plan.subject)}`. Sorted by slot and position. All `ratings` files hold the same rows.",
        "",
        f"`study.json` holds the plan with all tasks and answers (plan {plan.digest}), the counts of raters "
        f"and the SHA-256 of `ratings.parquet` ({frozen.digest}).",
        "",
        "Only rows of kind `scored`, of the judged system, by raters who finished, belong into a mean; "
        "ratings of one rater, and of one task, are not independent of each other.",
        "",
        "| column | type | meaning |",
        "|---|---|---|",
        *(f"| `{name}` | {COLUMNS.get(name, '')} | {MEANING.get(name, '')} |" for name in names),
        "",
        "Raters are pseudonymous, not anonymous: a comment may tell who wrote it. Read the comments before "
        "you publish this folder.",
    ]
    if frozen.counts.get("simulated"):
        lines[2:2] = ["**Simulated raters: these are no people's ratings, for ever.**", ""]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return text.replace("`", "'").replace("|", "/")
