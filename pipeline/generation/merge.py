"""Plan 1.5: one training file out of questions and answers, checked against the quotas, with its card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cogumi.digest import file_sha256
from cogumi.errors import RunError
from cogumi.stage import Settings, StageContext, StageResult
from cogumi.store import Artifact, disk_error
from evals.lint.tokens import Counts, find_tokenizer, token_counts
from pipeline.generation.answers import REFUSED
from pipeline.generation.card import PARQUET, README, STEPS, readme, token_facts
from pipeline.generation.measured import Measured, Yardstick, measure
from pipeline.generation.records import (
    ANSWERS_EASY,
    ANSWERS_HARD,
    RESERVE,
    TRAINING,
    VALIDATED,
    WRITER,
    cells_of,
    each_row,
    write_json,
    write_rows,
)
from pipeline.generation.training_file import AnswerFile, Sources, merged_rows, write_parquet
from pipeline.generation.writer import WriterSettings

if TYPE_CHECKING:
    from pipeline.generation.leaks import LeakCheck

CARD = "card.json"
_ANSWERS = {"answers_easy": "easy", "answers_hard": "hard"}
_NO_BENCHMARK = "no benchmark was named in leak_files, leak_tasks or leak_micro"
_NO_PRICE = "the price of a teacher is not known"
_COSTS = {
    "validated": "usd_validation",
    "answers_easy": "usd_answers_easy",
    "answers_hard": "usd_answers_hard",
}
"""Inputs whose cost a gate knows, by the metric's name."""


class MergeSettings(Settings):
    """Settings of the stage ``generation.merge``."""

    tokenizer: str | None = None
    """What counts tokens: a folder, a tokenizer.json, a GGUF file, or a model's name; None is an estimate."""


def run(settings: MergeSettings, ctx: StageContext) -> StageResult:
    """Write {question_id, domain, difficulty, question, answer, reasoning}, ``reasoning`` null for easy.

    The rows are written as JSONL, measured as they stand there, and only then written as Parquet and told of
    in card.json and README.md. Raises ``RunError`` when a cell is not exactly full, or a row is malformed,
    repeated or held out.
    """
    counts, counted_by = _counter(settings.tokenizer)
    validated = ctx.inputs["validated"]
    origin: dict[str, Any] = json.loads(validated.file(WRITER).read_text(encoding="utf-8"))
    quotas = cells_of(origin["quotas"])
    writer = WriterSettings.model_validate(origin["settings"])
    total = sum(quotas.values())
    file = ctx.out / TRAINING

    sources = _write(ctx)
    against = Yardstick(quotas, sources.wanted, writer.near_duplicate_threshold, _leaks(writer, ctx))
    found = measure(
        file, against, counts, lambda rows: ctx.progress.update(min(rows, total), total, unit="rows checked")
    )
    _refuse(found, against)
    write_parquet(
        file,
        ctx.out / PARQUET,
        lambda rows: ctx.progress.update(min(rows, total), total, unit="rows written"),
    )
    facts = _facts(ctx, found, against, sources, counted_by)
    write_json(ctx.out / CARD, facts)
    _write_readme(ctx, facts)
    return StageResult("dataset", facts)


def _counter(tokenizer: str | None) -> tuple[Counts, str]:
    """Return what counts tokens and its name; the name holds no path of this machine."""
    if tokenizer is None:
        return token_counts(None)
    path = find_tokenizer(tokenizer)
    counts, _ = token_counts(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    return counts, f"the tokenizer {path.name} (sha256 {file_sha256(file)[:12]})"


def _write(ctx: StageContext) -> Sources:
    validated = ctx.inputs["validated"]
    answers = {
        "easy": AnswerFile(ctx.inputs["answers_easy"].file(ANSWERS_EASY), ("question_id", "answer")),
        "hard": AnswerFile(
            ctx.inputs["answers_hard"].file(ANSWERS_HARD), ("question_id", "answer", "reasoning")
        ),
    }
    refused = {
        row["question_id"]
        for name in _ANSWERS
        for _, _, row in each_row(ctx.inputs[name].file(REFUSED), ("question_id",))
    }
    files = {validated.file(VALIDATED): True, validated.file(RESERVE): False}
    sources = Sources()
    try:
        write_rows(ctx.out / TRAINING, merged_rows(files, refused, answers, sources))
    finally:
        for file in answers.values():
            file.close()
    return sources


def _leaks(writer: WriterSettings, ctx: StageContext) -> LeakCheck | None:
    if not (writer.leak_micro or writer.leak_files or writer.leak_tasks):
        return None
    from pipeline.generation.leaks import LeakCheck

    return LeakCheck(
        micro=writer.leak_micro,
        files=writer.leak_files,
        tasks=writer.leak_tasks,
        threshold=writer.leak_threshold,
        data=ctx.data,
    )


def _refuse(found: Measured, against: Yardstick) -> None:
    """Raise ``RunError`` for what no training file may hold, naming rows and the step that mends it."""
    if found.schema_errors:
        raise RunError(
            f"merge: rows without the plan's form: {found.schema_errors} ({found.told('schema')}); make 1.2 "
            "to 1.4 again"
        )
    if found.invalid:
        raise RunError(
            f"merge: answers that cannot be used: {found.invalid} ({found.told('answer')}); make 1.3 and 1.4 "
            "again"
        )
    wrong = found.cells_off_quota(against.quotas)
    if wrong:
        raise RunError(f"merge: quotas are not met: {', '.join(wrong)}; make 1.2 to 1.4 again")
    if found.missing or found.twice or found.unknown:
        raise RunError(
            f"merge: not every question is there exactly once: {found.told('missing')}; make 1.2 to 1.4 again"
        )
    counts = {
        "duplicates": found.duplicates,
        "near_duplicates": found.near_refused,
        "leaks": found.leaks or 0,
    }
    if any(counts.values()):
        told = "; ".join(
            f"{count} {name.replace('_', ' ')} ({found.told(name)})"
            for name, count in counts.items()
            if count
        )
        raise RunError(f"merge: the training rows hold {told}; make 1.1 and 1.2 again")


def _facts(
    ctx: StageContext, found: Measured, against: Yardstick, sources: Sources, counted_by: str
) -> dict[str, Any]:
    costs = {name: ctx.inputs[name].facts["cost_usd"] for name in STEPS}
    known = [cost for cost in costs.values() if cost is not None]
    metrics = found.metrics(against.quotas)
    metrics |= {metric: costs[name] for name, metric in _COSTS.items() if costs[name] is not None}
    unmeasured = {metric: _NO_PRICE for name, metric in _COSTS.items() if costs[name] is None}
    if against.leaks is None:
        unmeasured["benchmark_leaks"] = _NO_BENCHMARK
    simulated = [name for name in STEPS if ctx.inputs[name].facts["simulated"]]
    teachers = [row for name in STEPS for row in _teachers(name, ctx.inputs[name])]
    return {
        "rows": found.rows,
        "cells": {str(cell): found.cells.get(cell, 0) for cell in against.quotas},
        "quotas": {str(cell): quota for cell, quota in against.quotas.items()},
        "duplicates": found.duplicates,
        "near_duplicates": found.near_refused,
        "leaks": found.leaks or 0,
        "metrics": metrics,
        "unmeasured": unmeasured,
        "tokens": token_facts(found, counted_by),
        "judge_scores": {
            name: {str(score): counts[score] for score in sorted(counts)}
            for name, counts in sources.score_counts.items()
        },
        "dropped": _dropped(ctx.inputs["validated"]),
        "finish_reasons": {name: ctx.inputs[name].facts["finish_reasons"] for name in STEPS},
        "refused": {name: ctx.inputs[name].facts["refused"] for name in _ANSWERS},
        "repaired": {name: ctx.inputs[name].facts["repaired"] for name in _ANSWERS},
        "cost_usd": {**costs, "total": round(math.fsum(known), 8) if len(known) == len(costs) else None},
        "models": dict(sorted(sources.models.items())),
        "models_asked": sorted({*sources.models, *(row["model"] for row in teachers)}),
        "teachers": teachers,
        "simulated": bool(simulated),
        "simulated_steps": simulated,
        "simulated_costs": {metric: name in simulated for name, metric in _COSTS.items()},
    }


def _dropped(validated: Artifact) -> dict[str, int]:
    """Return what writing and judging dropped; the writer's accounts go on through the refill of 1.2."""
    accounts: Mapping[str, Mapping[str, int]] = json.loads(
        validated.file(WRITER).read_text(encoding="utf-8")
    )["accounts"]
    dropped = {
        name: sum(account[name] for account in accounts.values())
        for name in ("duplicates", "near_duplicates", "leaks", "too_long")
    }
    return {**dropped, "judge": validated.facts["dropped"]}


def _teachers(step: str, artifact: Artifact) -> list[dict[str, str]]:
    """Return who was asked in a step, as its manifest has it."""
    asked: Mapping[str, Mapping[str, Any]] = artifact.manifest["made_by"].get("teachers", {})
    return [
        {
            "step": step,
            "teacher": name,
            "model": str(teacher["model"]),
            "api": str(teacher["api"]),
            "address": f"gguf:{teacher['gguf']}" if teacher.get("gguf") else str(teacher["base_url"] or ""),
        }
        for name, teacher in sorted(asked.items())
    ]


def _write_readme(ctx: StageContext, facts: Mapping[str, Any]) -> None:
    path = ctx.out / README
    try:
        path.write_text(readme(facts), encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path) from error
