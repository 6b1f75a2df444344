"""Reading what lm-eval logs of every sample: ``samples_TASK_DATE.jsonl`` as its ``--log_samples`` writes it.

Format: lm-eval 0.4.13, ``loggers/evaluation_tracker.py`` and ``result_schema.py``. A file holds each document
once for every filter of its task. The name of the model and the number of documents stand in the file
``results_DATE.json`` beside it, where there is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogumi.errors import RunError, UsageError, nearest
from evals.datafiles import read_jsonl
from evals.logs import Log, LoggedItem

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d{2}-\d{2}T[\d.-]+)\.jsonl")
_COLUMNS = ("doc_id", "arguments", "resps", "filter", "metrics")


def read_lm_eval_log(path: Path, *, filter_name: str | None = None, metric: str | None = None) -> Log:
    """Return one filter's samples of a log, each with one of its metrics as score.

    Without ``filter_name`` and ``metric`` the first of each is taken, as lm-eval wrote them. Raises
    ``RunError`` for a broken file, ``UsageError`` for a filter or metric that it does not have.
    """
    rows = read_jsonl(path)
    if not rows:
        raise RunError(f"{path}: an empty log")
    for number, row in enumerate(rows, 1):
        missing = [name for name in _COLUMNS if name not in row]
        if missing:
            raise RunError(f"{path}, line {number}: no {missing[0]!r}; is it a samples file of lm-eval?")
    try:
        return _log(path, rows, filter_name, metric)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        told = f"{type(error).__name__}: {error}"[:120]
        raise RunError(f"{path}: not in the shape that lm-eval writes ({told}); log it again") from error


def _log(path: Path, rows: list[dict[str, Any]], filter_name: str | None, metric: str | None) -> Log:
    chosen = _one_of(filter_name, list(dict.fromkeys(row["filter"] for row in rows)), f"{path}: no filter")
    rows = [row for row in rows if row["filter"] == chosen]
    scored_by = _one_of(metric, list(rows[0]["metrics"]), f"{path}: no metric")
    named = _NAME.fullmatch(path.name)
    results = _results_beside(path, named["date"] if named else None)
    task = named["task"] if named else path.stem
    wanted = results.get("n-samples", {}).get(task, {}).get("original")
    return Log(
        path=path,
        harness="lm-eval",
        task=task,
        model=str(results.get("model_name") or path.parent.name),
        complete=None if wanted is None else len(rows) >= int(wanted),
        items=tuple(_item(path, row, scored_by) for row in rows),
    )


def _one_of(wanted: str | None, known: list[str], complaint: str) -> str:
    if wanted is None:
        return known[0]
    if wanted not in known:
        raise UsageError(f"{complaint} {wanted!r}{nearest(wanted, known)}; it has {', '.join(known)}")
    return wanted


def _item(path: Path, row: Mapping[str, Any], metric: str) -> LoggedItem:
    score = row.get(metric)
    # Corpus metrics (perplexity, BLEU) log pairs that only their aggregation understands.
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise RunError(f"{path}: document {row['doc_id']} has no score in [0, 1] for {metric}")
    requests = list(row["arguments"].values())
    answered = row["resps"][0][0] if len(requests) == 1 else None
    details = {
        name: float(row[name])
        for name in row["metrics"]
        if isinstance(row.get(name), int | float) and not isinstance(row.get(name), bool)
    }
    return LoggedItem(
        id=str(row["doc_id"]),
        score=float(score),
        prompt=str(requests[0]["arg_0"]),
        output=answered if isinstance(answered, str) else "",
        finish_reason="stop",
        details=details,
    )


def _results_beside(path: Path, date: str | None) -> dict[str, Any]:
    found = path.parent / f"results_{date}.json"
    if date is None or not found.is_file():
        return {}
    try:
        document = json.loads(found.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{found}: not readable as JSON ({error})") from None
    return document if isinstance(document, dict) else {}
