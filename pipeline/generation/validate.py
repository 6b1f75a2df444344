"""Plan 1.2: a judge scores every question; what falls below the bar is replaced until quotas are exact."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from cogumi.errors import RunError
from cogumi.stage import StageContext, StageResult
from cogumi.teachers import Message, TeacherRequest
from pipeline.generation.asking import Asker, Bill, CallSettings, Mode, shown, teacher, total_cost
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
    write_json,
    write_rows,
)
from pipeline.generation.writer import QuestionWriter, WriterSettings

_JUDGE_TOKENS = 64
"""Three scores as JSON take about 25 tokens."""
_MOST_DROPPED = 0.5
"""Share that the judge is expected to drop of replacements at most: it may have seen few of the cell."""


class ValidateSettings(CallSettings):
    """Settings of the stage ``generation.validate``."""

    judge: str
    """Teacher that scores."""
    teachers: TeacherByDomain
    """Teacher per domain that writes the replacements."""
    mode: Mode = "batch"
    min_score: int = Field(default=7, ge=1, le=10)
    """A question is kept when each of its three scores reaches this."""
    reserve: int = Field(default=0, ge=0)
    """Judged questions per cell beyond the quota; they replace those that no teacher answers well."""
    reserve_share: float = Field(default=0.0, ge=0, le=1)
    """The same as a share of the cell's quota, rounded up; the larger of the two counts."""
    max_rounds: int = Field(default=12, ge=1)

    def wanted(self, quota: int) -> int:
        """Return how many judged questions a cell of this quota gets, its reserve included."""
        # Rounded first: 0.07 * 100 is 7.000000000000001.
        return quota + max(self.reserve, math.ceil(round(self.reserve_share * quota, 6)))


@dataclass
class Judged:
    """What the judge said so far, by cell."""

    kept: dict[Cell, list[Row]]
    seen: Counter[Cell] = field(default_factory=Counter)
    dropped: Counter[Cell] = field(default_factory=Counter)
    """Questions below the bar, and those whose judgement cannot be read."""
    unreadable: int = 0
    scores: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in SCORES})

    def add(self, row: Row, scores: Mapping[str, int] | None, min_score: int) -> None:
        """Count one judgement, and keep the question if all its scores reach the bar."""
        cell = cell_of(row)
        self.seen[cell] += 1
        for name in SCORES if scores else ():
            assert scores is not None
            self.scores[name][scores[name]] += 1
        self.unreadable += scores is None
        if scores is not None and min(scores.values()) >= min_score:
            self.kept[cell].append({**row, "scores": dict(scores)})
        else:
            self.dropped[cell] += 1

    def missing(self, wanted: Mapping[Cell, int]) -> dict[Cell, int]:
        """Return how many kept questions the cells lack, full cells left out."""
        lacks = {cell: number - len(self.kept[cell]) for cell, number in wanted.items()}
        return {cell: count for cell, count in lacks.items() if count > 0}

    def dropped_share(self, cell: Cell) -> float:
        """Return which share of a cell's judged questions was dropped; 0 where none was judged."""
        return self.dropped[cell] / self.seen[cell] if self.seen[cell] else 0.0

    def mean_scores(self) -> dict[str, float | None]:
        """Return the mean of each aspect, None where no judgement could be read."""
        means: dict[str, float | None] = {}
        for name, counts in self.scores.items():
            number = counts.total()
            means[name] = (
                round(sum(score * count for score, count in counts.items()) / number, 4) if number else None
            )
        return means

    def histograms(self) -> dict[str, dict[str, int]]:
        """Return how often each aspect got each score from 1 to 10."""
        return {
            name: {str(score): counts[score] for score in range(1, 11)}
            for name, counts in self.scores.items()
        }


def run(settings: ValidateSettings, ctx: StageContext) -> StageResult:
    """Judge, drop and refill; rows gain ``scores``, quotas stay exact, spare rows go to the reserve."""
    source = ctx.inputs["questions"]
    rows = read_rows(source.file(QUESTIONS), QUESTION_FIELDS)
    origin: dict[str, Any] = json.loads(source.file(WRITER).read_text(encoding="utf-8"))
    quotas = cells_of(origin["quotas"])
    writing = Bill()
    writer = QuestionWriter(
        ctx,
        WriterSettings.model_validate(origin["settings"]),
        settings.teachers,
        settings.options("live"),
        writing,
    )
    writer.resume(origin["accounts"], rows)
    judging = _Judging(settings, ctx, {cell: settings.wanted(quota) for cell, quota in quotas.items()})
    rounds = judging.until_full(rows, writer)
    judged, bill = judging.judged, judging.asker.bill

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
        "judged": judged.seen.total(),
        "dropped": judged.dropped.total(),
        "dropped_share": {str(cell): round(judged.dropped_share(cell), 4) for cell in quotas},
        "unreadable_judgements": judged.unreadable,
        "repaired": judging.asker.repaired,
        "rounds": rounds,
        "mean_scores": judged.mean_scores(),
        "score_histograms": judged.histograms(),
        "finish_reasons": bill.finish_reasons(),
        **bill.tokens(),
        "cost_usd": total_cost(bill, writing),
        "simulated": any(ctx.teachers[name].simulated for name in names),
    }
    write_json(ctx.out / STATS, facts)
    bill.stats.add(writing.stats)
    return StageResult("dataset", facts, bill.stats.metrics())


class _Judging:
    """The rounds of judging and refilling."""

    def __init__(self, settings: ValidateSettings, ctx: StageContext, wanted: Mapping[Cell, int]) -> None:
        self._settings = settings
        self._ctx = ctx
        self._wanted = wanted
        self._below = 0
        """Judgements below the bar as they arrive, in any order: for the progress line."""
        self.judged = Judged({cell: [] for cell in wanted})
        judge = teacher(ctx, settings.judge)
        self.asker = Asker(ctx, judge, settings, settings.mode, self._read, REPAIR_JSON)

    def until_full(self, rows: Sequence[Row], writer: QuestionWriter) -> int:
        """Judge the rows and their replacements until every cell has what it wants; return the rounds.

        Raises ``RunError`` when ``max_rounds`` do not suffice, with the cells that are not full.
        """
        candidates = list(rows)
        for number in range(1, self._settings.max_rounds + 1):
            if candidates:
                self._judge(candidates, follow_up=number > 1)
            missing = self.judged.missing(self._wanted)
            if not missing:
                return number
            filled = writer.fill({cell: self._candidates(cell, count) for cell, count in missing.items()})
            candidates = [row for cell_rows in filled.values() for row in cell_rows]
        account = "; ".join(
            f"{cell} lacks {count:,}, {self.judged.dropped[cell]:,} of {self.judged.seen[cell]:,} dropped"
            for cell, count in missing.items()
        )
        raise RunError(
            f"the judge still drops too much after {self._settings.max_rounds} rounds: {account}; name "
            "another judge or teacher, or raise max_rounds (what was paid is not paid again)"
        )

    def _candidates(self, cell: Cell, missing: int) -> int:
        # As many as shall suffice after the judge's drops, and a tenth more: a batch may take hours.
        kept = 1 - min(_MOST_DROPPED, self.judged.dropped_share(cell))
        return math.ceil(round(1.1 * missing / kept, 6))

    def _judge(self, rows: Sequence[Row], *, follow_up: bool) -> None:
        requests = [
            TeacherRequest(
                messages=(Message("user", judge_prompt(row["domain"], row["difficulty"], row["question"])),),
                max_tokens=_JUDGE_TOKENS,
                system=JUDGE_SYSTEM,
                temperature=0.0,
            )
            for row in rows
        ]
        self._below = self.judged.dropped.total()
        outcome = self.asker.ask(requests, self._tell, follow_up=follow_up)
        for row, scores in zip(rows, outcome, strict=True):
            self.judged.add(row, scores, self._settings.min_score)

    def _read(self, text: str) -> dict[str, int] | None:
        scores = parse_scores(text)
        self._below += scores is not None and min(scores.values()) < self._settings.min_score
        return scores

    def _tell(self, done: int, total: int) -> None:
        full = len(self._wanted) - len(self.judged.missing(self._wanted))
        cells = f"{full}/{len(self._wanted)}" if full else ""
        facts = shown(cells=cells, dropped=self._below, repaired=self.asker.repaired)
        self._ctx.progress.update(done, total, **facts)
