"""Plan 1.3 and 1.4: answers to the easy and to the hard questions.

A question whose answer stays unusable after one repair request is refused; the next question of its
cell's reserve takes its place, so that quotas stay exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from cogumi.errors import RunError
from cogumi.stage import StageContext, StageResult
from cogumi.teachers import Message, TeacherRequest
from pipeline.generation import prompts
from pipeline.generation.asking import Asker, Bill, CallSettings, teacher
from pipeline.generation.few_shot import HARD_SYSTEM
from pipeline.generation.prompts import HardAnswer
from pipeline.generation.records import (
    ANSWERS_EASY,
    ANSWERS_HARD,
    QUESTION_FIELDS,
    RESERVE,
    STATS,
    VALIDATED,
    Cell,
    Row,
    cell_of,
    counts_by_cell,
    read_rows,
    total_cost,
    write_json,
    write_rows,
)

REFUSED = "refused.jsonl"


class AnswerSettings(CallSettings):
    """Settings of the stages ``generation.answers_easy`` and ``generation.answers_hard``."""

    teacher: str
    mode: Literal["batch", "live"] = "batch"
    max_tokens: int = Field(default=1024, ge=1)
    """An answer that reaches this is cut short, and never kept."""
    temperature: float | None = Field(default=None, ge=0)


def run_easy(settings: AnswerSettings, ctx: StageContext) -> StageResult:
    """Answer the easy questions directly; rows are {question_id, answer}."""

    def row_of(question: Row, answer: str) -> Row:
        return {"question_id": question["question_id"], "answer": answer}

    asker = _asker(settings, ctx, _plain, prompts.REPAIR_EASY)
    return _answer(settings, ctx, asker, row_of, "easy", prompts.EASY_SYSTEM)


def run_hard(settings: AnswerSettings, ctx: StageContext) -> StageResult:
    """Answer the hard questions by draft, critique and revision; rows have ``reasoning`` as well."""

    def row_of(question: Row, answer: HardAnswer) -> Row:
        return {
            "question_id": question["question_id"],
            "answer": answer.answer,
            "reasoning": answer.reasoning,
        }

    asker = _asker(settings, ctx, prompts.parse_hard_answer, prompts.REPAIR_HARD)
    return _answer(settings, ctx, asker, row_of, "hard", HARD_SYSTEM)


def _plain(text: str) -> str | None:
    return text.strip() or None


def _asker(
    settings: AnswerSettings, ctx: StageContext, parse: Callable[[str], Any], repair: str
) -> Asker[Any]:
    config = teacher(ctx, settings.teacher)
    return Asker(ctx, config, settings.options(settings.mode), parse, repair, Bill())


def _answer(
    settings: AnswerSettings,
    ctx: StageContext,
    asker: Asker[Any],
    row_of: Callable[[Row, Any], Row],
    difficulty: Literal["easy", "hard"],
    system: str,
) -> StageResult:
    validated = ctx.inputs["validated"]
    questions = _of(difficulty, read_rows(validated.file(VALIDATED), QUESTION_FIELDS))
    reserve: dict[Cell, list[Row]] = {}
    for row in _of(difficulty, read_rows(validated.file(RESERVE), QUESTION_FIELDS)):
        reserve.setdefault(cell_of(row), []).append(row)
    order = {
        row["question_id"]: place
        for place, row in enumerate([*questions, *(row for rows in reserve.values() for row in rows)])
    }
    answered: list[tuple[Row, Row]] = []
    refused: list[Row] = []
    pending = questions

    def tell(done: int, total: int) -> None:
        ctx.progress.update(done, total, answered=len(answered), refused=len(refused))

    while pending:
        requests = [_request(settings, row, system) for row in pending]
        outcome = asker.ask(requests, tell)
        failed = []
        for row, answer in zip(pending, outcome, strict=True):
            if answer is None:
                failed.append(row)
            else:
                answered.append((row, row_of(row, answer)))
        refused.extend(failed)
        pending = _replacements(failed, reserve)
    answered.sort(key=lambda pair: order[pair[0]["question_id"]])
    rows = [row for _, row in answered]
    write_rows(ctx.out / (ANSWERS_EASY if difficulty == "easy" else ANSWERS_HARD), rows)
    write_rows(ctx.out / REFUSED, refused)
    usage = [reply.usage for reply in asker.bill.replies]
    facts = {
        "rows": len(rows),
        "cells": counts_by_cell(question for question, _ in answered),
        "requests": len(asker.bill.replies),
        "refused": len(refused),
        "model": asker.config.model,
        "mode": settings.mode,
        "finish_reasons": asker.bill.finish_reasons(),
        "input_tokens": sum(each.all_input_tokens for each in usage),
        "cache_write_tokens": sum(each.cache_write_tokens for each in usage),
        "cache_read_tokens": sum(each.cache_read_tokens for each in usage),
        "output_tokens": sum(each.output_tokens for each in usage),
        "cost_usd": total_cost(asker.bill.replies),
        "simulated": asker.config.simulated,
    }
    write_json(ctx.out / STATS, facts)
    return StageResult("dataset", facts, asker.bill.stats.metrics())


def _of(difficulty: str, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["difficulty"] == difficulty]


def _request(settings: AnswerSettings, row: Row, system: str) -> TeacherRequest:
    return TeacherRequest(
        messages=(Message("user", row["question"]),),
        max_tokens=settings.max_tokens,
        system=system,
        cache_system=True,
        temperature=settings.temperature,
    )


def _replacements(failed: list[Row], reserve: dict[Cell, list[Row]]) -> list[Row]:
    replacements = []
    short: dict[Cell, int] = {}
    for row in failed:
        cell = cell_of(row)
        if reserve.get(cell):
            replacements.append(reserve[cell].pop(0))
        else:
            short[cell] = short.get(cell, 0) + 1
    if short:
        account = ", ".join(f"{cell} lacks {count}" for cell, count in short.items())
        raise RunError(
            f"no usable answer after one repair request, and the reserve is used up: {account}; raise "
            "`reserve` of the validation step or name another teacher"
        )
    return replacements
