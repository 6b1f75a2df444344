"""Plan 1.2: a judge scores every question; what falls below the bar is replaced until quotas are exact."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from cogumi.errors import RunError
from cogumi.stage import StageContext, StageResult
from cogumi.teachers import Message, TeacherRequest
from pipeline.generation.asking import Asker, Bill, CallSettings, teacher
from pipeline.generation.prompts import JUDGE_SYSTEM, REPAIR_JSON, SCORES, judge_prompt, parse_scores
from pipeline.generation.records import (
    QUESTION_FIELDS,
    QUESTIONS,
    RESERVE,
    STATS,
    VALIDATED,
    WRITER,
    Cell,
    Row,
    TeacherByDomain,
    cell_of,
    cells_of,
    counts_by_cell,
    read_rows,
    total_cost,
    write_json,
    write_rows,
)
from pipeline.generation.writer import QuestionWriter, WriterSettings

_JUDGE_TOKENS = 64
"""Three scores as JSON take about 25 tokens."""


class ValidateSettings(CallSettings):
    """Settings of the stage ``generation.validate``."""

    judge: str
    """Teacher that scores."""
    teachers: TeacherByDomain
    """Teacher per domain that writes the replacements."""
    mode: Literal["batch", "live"] = "batch"
    min_score: int = Field(default=7, ge=1, le=10)
    """A question is kept when each of its three scores reaches this."""
    reserve: int = Field(default=0, ge=0)
    """Judged questions per cell beyond the quota; they replace those that no teacher answers well."""
    max_rounds: int = Field(default=12, ge=1)


@dataclass
class _Judged:
    kept: dict[Cell, list[Row]]
    dropped: int = 0
    unreadable: int = 0
    score_sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SCORES, 0))
    seen: int = 0


def run(settings: ValidateSettings, ctx: StageContext) -> StageResult:
    """Judge, drop and refill; rows gain ``scores``, quotas stay exact, spare rows go to the reserve."""
    source = ctx.inputs["questions"]
    rows = read_rows(source.file(QUESTIONS), QUESTION_FIELDS)
    origin: dict[str, Any] = json.loads(source.file(WRITER).read_text(encoding="utf-8"))
    quotas = cells_of(origin["quotas"])
    bill, writing = Bill(), Bill()
    writer = QuestionWriter(
        ctx,
        WriterSettings.model_validate(origin["settings"]),
        settings.teachers,
        settings.options("live"),
        writing,
    )
    writer.resume(origin["accounts"], rows)
    judged = _Judged({cell: [] for cell in quotas})
    wanted = {cell: quota + settings.reserve for cell, quota in quotas.items()}
    rounds = _judge_until_full(settings, ctx, writer, rows, wanted, judged, bill)

    kept = [row for cell in quotas for row in judged.kept[cell][: quotas[cell]]]
    spare = [row for cell in quotas for row in judged.kept[cell][quotas[cell] :]]
    write_rows(ctx.out / VALIDATED, kept)
    write_rows(ctx.out / RESERVE, spare)
    write_json(ctx.out / WRITER, {**writer.document(), "quotas": origin["quotas"]})
    names = {settings.judge, *settings.teachers.values()}
    facts = {
        "rows": len(kept),
        "reserve_rows": len(spare),
        "cells": counts_by_cell(kept),
        "judged": judged.seen,
        "dropped": judged.dropped,
        "unreadable_judgements": judged.unreadable,
        "rounds": rounds,
        "mean_scores": {
            name: round(total / (judged.seen - judged.unreadable), 4)
            for name, total in judged.score_sums.items()
        },
        "finish_reasons": bill.finish_reasons(),
        "cost_usd": total_cost([*bill.replies, *writing.replies]),
        "simulated": any(ctx.teachers[name].simulated for name in names),
    }
    write_json(ctx.out / STATS, facts)
    bill.stats.add(writing.stats)
    return StageResult("dataset", facts, bill.stats.metrics())


def _judge_until_full(
    settings: ValidateSettings,
    ctx: StageContext,
    writer: QuestionWriter,
    rows: Sequence[Row],
    wanted: Mapping[Cell, int],
    judged: _Judged,
    bill: Bill,
) -> int:
    """Judge the rows and their replacements until every cell has what it wants; return the rounds."""
    candidates = list(rows)
    for number in range(1, settings.max_rounds + 1):
        if candidates:
            _judge(settings, ctx, candidates, judged, bill)
        missing = {cell: wanted[cell] - len(judged.kept[cell]) for cell in wanted}
        missing = {cell: count for cell, count in missing.items() if count > 0}
        if not missing:
            return number
        # A tenth more than missing, since the judge will drop some of these too: a batch may take hours.
        filled = writer.fill({cell: math.ceil(1.1 * count) for cell, count in missing.items()})
        candidates = [row for cell_rows in filled.values() for row in cell_rows]
    account = ", ".join(f"{cell} lacks {count}" for cell, count in missing.items())
    raise RunError(
        f"the judge still drops too much after {settings.max_rounds} rounds: {account} (dropped "
        f"{judged.dropped} of {judged.seen}); name another judge or teacher, or raise max_rounds"
    )


def _judge(
    settings: ValidateSettings, ctx: StageContext, rows: Sequence[Row], judged: _Judged, bill: Bill
) -> None:
    asker = Asker(
        ctx,
        teacher(ctx, settings.judge),
        settings.options(settings.mode),
        parse_scores,
        REPAIR_JSON,
        bill,
    )
    requests = [
        TeacherRequest(
            messages=(Message("user", judge_prompt(row["domain"], row["difficulty"], row["question"])),),
            max_tokens=_JUDGE_TOKENS,
            system=JUDGE_SYSTEM,
            temperature=0.0,
        )
        for row in rows
    ]
    outcome = asker.ask(
        requests, lambda done, total: ctx.progress.update(done, total, dropped=judged.dropped)
    )
    for row, scores in zip(rows, outcome, strict=True):
        judged.seen += 1
        if scores is None:
            judged.unreadable += 1
            continue
        for name, score in scores.items():
            judged.score_sums[name] += score
        if min(scores.values()) >= settings.min_score:
            judged.kept[cell_of(row)].append({**row, "scores": scores})
        else:
            judged.dropped += 1
