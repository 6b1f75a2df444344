"""Plan 1.3 and 1.4: answers to the easy and to the hard questions.

A question whose answer stays unusable after one repair request is refused; the next question of its
cell's reserve takes its place, so that quotas stay exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field

from cogumi.errors import RunError
from cogumi.stage import StageContext, StageResult
from cogumi.teachers import Message, TeacherRequest
from evals.lint.duplicates import tokens_of
from pipeline.generation import prompts
from pipeline.generation.asking import Asker, CallSettings, Mode, shown, teacher, total_cost
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
    write_json,
    write_rows,
)

REFUSED = "refused.jsonl"


class AnswerSettings(CallSettings):
    """Settings of the stages ``generation.answers_easy`` and ``generation.answers_hard``."""

    teacher: str
    mode: Mode = "batch"
    max_tokens: int = Field(default=1024, ge=1)
    """An answer that reaches this is cut short, and never kept."""
    temperature: float | None = Field(default=None, ge=0)


def run_easy(settings: AnswerSettings, ctx: StageContext) -> StageResult:
    """Answer the easy questions directly; rows are {question_id, answer}."""

    def row_of(question: Row, answer: str) -> Row | None:
        if _repeats(question, answer):
            return None
        return {"question_id": question["question_id"], "answer": answer}

    asker = _asker(settings, ctx, _plain, prompts.REPAIR_EASY)
    return _Answering(settings, ctx, asker, row_of, "easy", prompts.EASY_SYSTEM).run()


def run_hard(settings: AnswerSettings, ctx: StageContext) -> StageResult:
    """Answer the hard questions by draft, critique and revision; rows have ``reasoning`` as well."""

    def row_of(question: Row, answer: HardAnswer) -> Row | None:
        if _repeats(question, answer.answer):
            return None
        return {
            "question_id": question["question_id"],
            "answer": answer.answer,
            "reasoning": answer.reasoning,
        }

    asker = _asker(settings, ctx, prompts.parse_hard_answer, prompts.REPAIR_HARD)
    return _Answering(settings, ctx, asker, row_of, "hard", HARD_SYSTEM).run()


def _plain(text: str) -> str | None:
    return text.strip() or None


def _repeats(question: Row, answer: str) -> bool:
    """Tell whether an answer is nothing but its question again."""
    return tokens_of(answer) == tokens_of(question["question"])


def _asker(
    settings: AnswerSettings, ctx: StageContext, parse: Callable[[str], Any], repair: str
) -> Asker[Any]:
    return Asker(ctx, teacher(ctx, settings.teacher), settings, settings.mode, parse, repair)


class _Answering:
    """One walk over a difficulty's questions, its refused ones replaced from the reserve."""

    def __init__(
        self,
        settings: AnswerSettings,
        ctx: StageContext,
        asker: Asker[Any],
        row_of: Callable[[Row, Any], Row | None],
        difficulty: Literal["easy", "hard"],
        system: str,
    ) -> None:
        self._settings = settings
        self._ctx = ctx
        self._asker = asker
        self._row_of = row_of
        self._difficulty = difficulty
        self._system = system
        self._answered: dict[str, Row] = {}
        """By the question's id."""
        self._refused: list[Row] = []
        self._lacks: Counter[Cell] = Counter()
        """Refused questions for which the reserve has no other."""

    def run(self) -> StageResult:
        """Answer, write and account; raises ``RunError`` when the reserve of a cell does not suffice."""
        validated = self._ctx.inputs["validated"]
        questions = self._of(read_rows(validated.file(VALIDATED), QUESTION_FIELDS))
        spare = self._of(read_rows(validated.file(RESERVE), QUESTION_FIELDS))
        reserve: dict[Cell, list[Row]] = {}
        for row in spare:
            reserve.setdefault(cell_of(row), []).append(row)
        pending, follow_up = questions, False
        while pending:
            failed = self._ask(pending, follow_up=follow_up)
            self._refused.extend(failed)
            pending, follow_up = self._replacements(failed, reserve), True
        if self._lacks:
            raise self._used_up()
        return self._written([row for row in [*questions, *spare] if row["question_id"] in self._answered])

    def _of(self, rows: list[Row]) -> list[Row]:
        return [row for row in rows if row["difficulty"] == self._difficulty]

    def _ask(self, rows: Sequence[Row], *, follow_up: bool) -> list[Row]:
        """Ask for answers and return the rows that have no usable one."""
        requests = [
            TeacherRequest(
                messages=(Message("user", row["question"]),),
                max_tokens=self._settings.max_tokens,
                system=self._system,
                cache_system=True,
                temperature=self._settings.temperature,
            )
            for row in rows
        ]
        failed = []
        outcome = self._asker.ask(requests, self._tell, follow_up=follow_up)
        for row, answer in zip(rows, outcome, strict=True):
            made = None if answer is None else self._row_of(row, answer)
            if made is None:
                failed.append(row)
            else:
                self._answered[row["question_id"]] = made
        return failed

    def _replacements(self, failed: Sequence[Row], reserve: dict[Cell, list[Row]]) -> list[Row]:
        replacements = []
        for row in failed:
            cell = cell_of(row)
            if reserve.get(cell):
                replacements.append(reserve[cell].pop(0))
            else:
                self._lacks[cell] += 1
        return replacements

    def _used_up(self) -> RunError:
        account = ", ".join(f"{cell} lacks {count:,}" for cell, count in self._lacks.items())
        return RunError(
            f"no usable answer after one repair request, and the reserve is used up: {account}; raise "
            "`reserve_share` of the validation step (the run then pays only for the new questions and "
            "their answers) or name another teacher"
        )

    def _tell(self, done: int, total: int) -> None:
        facts = shown(refused=len(self._refused), repaired=self._asker.repaired)
        self._ctx.progress.update(done, total, **facts)

    def _written(self, questions: Sequence[Row]) -> StageResult:
        rows = (self._answered[row["question_id"]] for row in questions)
        write_rows(self._ctx.out / (ANSWERS_EASY if self._difficulty == "easy" else ANSWERS_HARD), rows)
        write_rows(self._ctx.out / REFUSED, self._refused)
        bill, config = self._asker.bill, self._asker.config
        facts = {
            "rows": len(questions),
            "cells": counts_by_cell(questions),
            "requests": bill.replies,
            "refused": len(self._refused),
            "repaired": self._asker.repaired,
            "model": config.model,
            "mode": self._settings.mode,
            "finish_reasons": bill.finish_reasons(),
            **bill.tokens(),
            "cost_usd": total_cost(bill),
            "simulated": config.simulated,
        }
        write_json(self._ctx.out / STATS, facts)
        return StageResult("dataset", facts, bill.stats.metrics())
