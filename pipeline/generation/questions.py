"""Plan 1.1: questions for every cell, exactly as many as its quota."""

from __future__ import annotations

from pydantic import Field, model_validator

from cogumi.stage import StageContext, StageResult
from pipeline.generation.asking import Bill, CallSettings, total_cost
from pipeline.generation.records import (
    QUESTIONS,
    STATS,
    WRITER,
    Quotas,
    TeacherByDomain,
    cells_of,
    counts_by_cell,
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
    write_json(ctx.out / WRITER, {**writer.document(), "quotas": settings.quotas})
    accounts = {str(cell): account.counts() for cell, account in writer.accounts.items()}

    def total(name: str) -> int:
        return sum(account[name] for account in accounts.values())

    facts = {
        "rows": len(rows),
        "cells": counts_by_cell(rows),
        "calls": total("calls"),
        "offered": total("offered"),
        "duplicates_dropped": total("duplicates"),
        "near_duplicates_dropped": total("near_duplicates"),
        "leaks_dropped": total("leaks"),
        "too_long_dropped": total("too_long"),
        "surplus": total("surplus"),
        "unusable_answers": total("unusable_calls"),
        "refused_answers": total("refused_calls"),
        "accounts": accounts,
        "finish_reasons": bill.finish_reasons(),
        **bill.tokens(),
        "cost_usd": total_cost(bill),
        "simulated": any(ctx.teachers[name].simulated for name in settings.teachers.values()),
    }
    write_json(ctx.out / STATS, facts)
    return StageResult("dataset", facts, bill.stats.metrics())
