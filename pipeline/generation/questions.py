"""Plan 1.1: questions for every cell, exactly as many as its quota."""

from __future__ import annotations

from pydantic import Field, model_validator

from cogumi.stage import StageContext, StageResult
from pipeline.generation.asking import Bill, CallSettings
from pipeline.generation.records import (
    QUESTIONS,
    STATS,
    WRITER,
    Quotas,
    TeacherByDomain,
    cells_of,
    counts_by_cell,
    total_cost,
    write_json,
    write_rows,
)
from pipeline.generation.writer import QuestionWriter, WriterSettings


class QuestionSettings(CallSettings):
    """Settings of the stage ``generation.questions``."""

    quotas: Quotas
    teachers: TeacherByDomain
    """Teacher per domain of the quotas."""
    writer: WriterSettings = Field(default_factory=WriterSettings)

    @model_validator(mode="after")
    def _every_domain_has_a_teacher(self) -> QuestionSettings:
        for domain in self.quotas:
            if domain not in self.teachers:
                raise ValueError(f"teachers: no teacher for the domain {domain!r}")
        return self


def run(settings: QuestionSettings, ctx: StageContext) -> StageResult:
    """Write the questions; rows are {question_id, domain, difficulty, question, model}."""
    bill = Bill()
    writer = QuestionWriter(ctx, settings.writer, settings.teachers, settings.options("live"), bill)
    filled = writer.fill(cells_of(settings.quotas))
    rows = [row for cell_rows in filled.values() for row in cell_rows]
    write_rows(ctx.out / QUESTIONS, rows)
    document = writer.document()
    write_json(ctx.out / WRITER, {**document, "quotas": settings.quotas})
    accounts = document["accounts"].values()
    facts = {
        "rows": len(rows),
        "cells": counts_by_cell(rows),
        "calls": sum(account["calls"] for account in accounts),
        "offered": sum(account["offered"] for account in accounts),
        "duplicates_dropped": sum(account["duplicates"] for account in accounts),
        "near_duplicates_dropped": sum(account["near_duplicates"] for account in accounts),
        "leaks_dropped": sum(account["leaks"] for account in accounts),
        "unusable_answers": sum(account["unusable_calls"] for account in accounts),
        "finish_reasons": bill.finish_reasons(),
        "cost_usd": total_cost(bill.replies),
        "simulated": any(ctx.teachers[name].simulated for name in settings.teachers.values()),
    }
    write_json(ctx.out / STATS, facts)
    return StageResult("dataset", facts, bill.stats.metrics())
