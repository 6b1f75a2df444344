"""The tables of the data page; `dashboard.data_plots` draws some of them.

Unknown is None, which a page shows as such, and never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dashboard.data_sets import (
    ANSWERS,
    MERGE,
    QUESTIONS,
    VALIDATE,
    DataSets,
    DataStep,
    counts,
    number,
    part,
    plan_order,
)

if TYPE_CHECKING:
    import pandas as pd

_STATUS = {
    "waiting": "○ waiting",
    "running": "▶ running",
    "done": "✓ done",
    "failed": "✗ failed",
    "stopped": "■ stopped",
}
ASPECTS = ("quality", "relevance", "clarity")
"""What a judge scores, from 1 to 10."""
FATES = {
    "accepted": "new",
    "duplicates": "duplicates",
    "near_duplicates": "near duplicates",
    "leaks": "held out (benchmark items)",
    "too_long": "too long",
}
"""What becomes of an offered question, by its name in the writer's accounts."""
_PERCENTILES = ("p5", "p25", "p50", "p75", "p95", "p99", "max")
_DIFFICULTIES = ("easy", "hard")


def step_table(found: DataSets) -> pd.DataFrame:
    """Return one row for each step: how it stands, what it made and what it asked of teachers."""
    import pandas as pd

    return pd.DataFrame(
        {
            "Plan": step.plan,
            "Step": step.step,
            "Status": _STATUS.get(step.status, step.status),
            "Rows": number(step.facts, "rows"),
            "Calls": number(step.metrics, "calls_asked"),
            "Replayed": number(step.metrics, "calls_from_ledger"),
            "Repaired": number(step.facts, "repaired"),
            "Refused": _refused(step.facts),
            "Tokens in": number(step.facts, "input_tokens"),
            "Tokens out": number(step.facts, "output_tokens"),
            "Seconds": None if step.seconds is None else round(step.seconds, 1),
        }
        for step in found.steps
    )


def cost_table(found: DataSets) -> pd.DataFrame:
    """Return what each step that asked teachers cost; real and simulated stand apart, unknown is None."""
    import pandas as pd

    rows = []
    for step in found.steps:
        teachers = _teachers(step)
        if not teachers:
            continue
        cost, simulated = number(step.facts, "cost_usd"), step.facts.get("simulated") is True
        rows.append(
            {
                "Plan": step.plan,
                "Step": step.step,
                "USD paid": None if simulated else cost,
                "USD simulated": cost if simulated else None,
                "Plan says": step.plan_says or None,
                "Teachers": teachers,
            }
        )
    table = pd.DataFrame(rows)
    # Most profiles quote no figure of the plan's: an empty column says nothing.
    return table if not len(table) or table["Plan says"].notna().any() else table.drop(columns="Plan says")


def _refused(facts: Mapping[str, Any]) -> float | None:
    return number(facts, "refused") if "refused" in facts else number(facts, "refused_answers")


def _teachers(step: DataStep) -> str:
    asked = part(step.artifact.manifest, "made_by", "teachers") if step.artifact else {}
    models = {
        str(one["model"]): None for one in asked.values() if isinstance(one, Mapping) and "model" in one
    }
    return ", ".join(models)


def cell_table(found: DataSets) -> pd.DataFrame:
    """Return one row for each cell: quota, rows after every step, what was thrown away, tokens and shares.

    Shares are of 1: ``Judge dropped`` of the cell's judged questions, the others of the merged file.
    """
    import pandas as pd

    merged, judged = found.facts(MERGE), found.facts(VALIDATE)
    answers = {name: rows for stage in ANSWERS for name, rows in counts(found.facts(stage), "cells").items()}
    total = number(merged, "rows")
    held = counts(merged, "cells")
    names = [*found.quotas, *sorted((set(held) | set(found.accounts)) - set(found.quotas), key=plan_order)]
    rows = []
    for name in names:
        domain, _, level = name.partition("/")
        tokens = part(merged, "tokens", "cells", name)
        rows.append(
            {
                "Cell": name,
                "Domain": domain,
                "Difficulty": level,
                "Quota": found.quotas.get(name),
                "Written": counts(found.facts(QUESTIONS), "cells").get(name),
                "Validated": counts(judged, "cells").get(name),
                "Answered": answers.get(name),
                "Merged": held.get(name),
                "Judge dropped": number(judged, "dropped_share", name),
                "Offered": number(found.accounts, name, "offered"),
                **{fate: number(found.accounts, name, fate) for fate in FATES},
                "Question tokens": number(tokens, "question"),
                "Answer tokens": number(tokens, "answer"),
                "Reasoning tokens": number(tokens, "reasoning"),
                "Share of rows": held[name] / total if total and name in held else None,
                "Share of answer tokens": number(tokens, "answer_share"),
                "Share of trained tokens": number(tokens, "trained_share"),
            }
        )
    return pd.DataFrame(rows)


def thrown_away(found: DataSets) -> pd.DataFrame:
    """Return what writing, judging and answering threw away, and of how many, in the order of the steps."""
    import pandas as pd

    judged = found.facts(VALIDATE)
    lowest = number(found.settings(VALIDATE), "min_score")
    under = "dropped by the judge" + (f", under {lowest:g} of 10" if lowest is not None else "")
    offered, looked_at = _sum(found.accounts, "offered"), number(judged, "judged")
    rows = [
        ("writing", FATES[fate], _sum(found.accounts, fate), offered)
        for fate in ("duplicates", "near_duplicates", "leaks", "too_long")
    ]
    rows += [
        ("judging", under, number(judged, "dropped"), looked_at),
        ("judging", "of which without a readable score", number(judged, "unreadable_judgements"), looked_at),
    ]
    for stage, level in zip(ANSWERS, _DIFFICULTIES, strict=True):
        facts = found.facts(stage)
        asked = number(facts, "requests")
        rows.append(("answering", f"{level} questions without a usable answer", _refused(facts), asked))
    return pd.DataFrame(
        {
            "In": step,
            "Thrown away": what,
            "Questions": count,
            "Of": of,
            "Share": count / of if count is not None and of else None,
        }
        for step, what, count, of in rows
    )


def _sum(accounts: Mapping[str, Any], name: str) -> float | None:
    known = [number(accounts, cell, name) for cell in accounts]
    # A sum over some of the cells would pass for all of them.
    return sum(value for value in known if value is not None) if known and None not in known else None


def left_over(found: DataSets) -> pd.DataFrame:
    """Return what was counted in the merged file itself: all of it should be 0, but for near duplicates."""
    import pandas as pd

    facts = found.facts(MERGE)
    why = part(facts, "unmeasured").get("benchmark_leaks")
    checks = [
        ("Rows in all", number(facts, "rows"), ""),
        ("Cells that miss their quota", number(facts, "metrics", "cells_off_quota"), ""),
        ("Questions that are there twice", number(facts, "duplicates"), "case and spacing apart"),
        ("Near duplicates that the profile refuses", number(facts, "near_duplicates"), _near_told(found)),
        (
            "Benchmark items",
            None if why else number(facts, "leaks"),
            str(why or "exact, nearly, or 13 words"),
        ),
        ("Lowest score of a judge", number(facts, "metrics", "judge_score_min"), "of 10"),
        (
            "Answers that cannot be used",
            number(facts, "metrics", "answers_invalid"),
            "blank, cut, or malformed",
        ),
        (
            "Questions missing, unknown or twice",
            number(facts, "metrics", "rows_missing_or_twice"),
            "by their id",
        ),
        ("Rows of another form", number(facts, "metrics", "schema_errors"), "than the plan's record"),
    ]
    return pd.DataFrame([{"Check": what, "Found": count, "Note": note} for what, count, note in checks])


def _near_told(found: DataSets) -> str:
    threshold = number(found.settings(QUESTIONS), "writer", "near_duplicate_threshold")
    if threshold is None:
        return ""
    return f"Jaccard from {threshold:g} on" if threshold < 1 else "this profile refuses none"


def score_table(found: DataSets) -> pd.DataFrame:
    """Return questions by score, for each aspect: those judged, and those of the merged file."""
    import pandas as pd

    judged, kept = found.facts(VALIDATE), found.facts(MERGE)
    rows = []
    for aspect in ASPECTS:
        all_of, of_kept = counts(judged, "score_histograms", aspect), counts(kept, "judge_scores", aspect)
        if not all_of and not of_kept:
            continue
        rows += [
            {
                "Aspect": aspect,
                "Score": score,
                "Judged": all_of.get(str(score), 0) if all_of else None,
                "Merged": of_kept.get(str(score), 0) if of_kept else None,
            }
            for score in range(1, 11)
        ]
    return pd.DataFrame(rows, columns=["Aspect", "Score", "Judged", "Merged"])


def length_table(found: DataSets) -> pd.DataFrame:
    """Return percentiles of the tokens of one row's parts, by difficulty."""
    import pandas as pd

    held = part(found.facts(MERGE), "tokens", "percentiles")
    rows = [
        {"Difficulty": level, "Part": name, **{rank: number(lengths, name, rank) for rank in _PERCENTILES}}
        for level, lengths in held.items()
        if isinstance(lengths, Mapping)
        for name in ("question", "answer", "reasoning")
        if part(lengths, name)
    ]
    return pd.DataFrame(rows, columns=["Difficulty", "Part", *_PERCENTILES])
