"""Stage ``compression.hardest``: the training rows on which a compressed model lost most, for its recovery.

Plan 3.4, "the hardest 5K". Every training row is read by the uncompressed and by the compressed model
along its own answer; the rows with the largest mean divergence, or the largest rise of the loss, are
written in the form of the merged file, with some rows at random beside them so that the rest is not
forgotten. Held-out rows are never chosen: they stand in a file of their own, for looks and for the gain. A
GGUF file is read as the dense weights that it stands for: llama.cpp's 8-bit activations are not part of the
choice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cogumi.errors import RunError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import disk_error
from pipeline.training.data import Encoded, Example, is_held_out, read_examples, training_file

if TYPE_CHECKING:
    from pipeline.compression.row_divergence import RowDivergence

OUTPUT = "training_hardest.jsonl"
HELD_OUT = "held_out.jsonl"
"""Held-out rows, taken along for looks: nothing is trained on them."""


class HardestSettings(Settings):
    """How many rows, and what makes one hard."""

    k: int = Field(default=5000, gt=0)
    """Hardest rows; fewer where there are fewer."""
    score: Literal["kl", "loss"] = "kl"
    """Per answer token, in nats. kl: KL(uncompressed || compressed); loss: how much the loss has risen."""
    replay: float = Field(default=0.2, ge=0, lt=1)
    """Share of the written rows that are drawn at random from all others."""
    candidates: int | None = Field(default=None, gt=0)
    """Rows that are read, drawn at random; default: all."""
    held_out_share: float = Field(default=0.02, ge=0, lt=0.5)
    """As the trainings have it: these rows are never chosen."""
    max_length: int | None = Field(default=None, gt=1)
    """Longest row in tokens, longer ones are left out; default: the model's context."""
    batch_tokens: int = Field(default=4096, gt=0)
    """Tokens that go through a model at once."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    seed_offset: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the data: its line as it stands, what it says, and its token ids."""

    line: str
    example: Example
    ids: Encoded


def run(settings: HardestSettings, ctx: StageContext) -> StageResult:
    """Read the rows of input ``data`` with inputs ``model`` and ``compressed``; write the hardest."""
    from pipeline.compression.calibration_rows import chat_encoder

    path = training_file(ctx.inputs["data"])
    lines, examples = _lines(path), read_examples(path)
    drawn = random.Random(f"hardest/{ctx.seed + settings.seed_offset}")
    held_out, rows = [], []
    for line, example in zip(lines, examples, strict=True):
        if is_held_out(example.question_id, settings.held_out_share):
            held_out.append(line)
        else:
            rows.append((line, example))
    if settings.candidates is not None and settings.candidates < len(rows):
        chosen = sorted(drawn.sample(range(len(rows)), settings.candidates))
        rows = [rows[index] for index in chosen]
    encoder = chat_encoder(ctx.inputs["model"].path)
    encoded = [Row(line, example, encoder.encode(example)) for line, example in rows]
    longest = _longest(settings, ctx)
    fitting = [row for row in encoded if len(row.ids.ids) <= longest]
    if not fitting:
        raise RunError(
            f"{path}: no rows left to choose from: {len(held_out)} are held out, {len(encoded)} longer than "
            f"{longest} tokens"
        )
    found = _divergences(settings, ctx, [row.ids for row in fitting])
    scores = [_score(each, settings.score) for each in found]
    hardest, replayed = choose(scores, settings.k, settings.replay, drawn)
    written = [fitting[index] for index in sorted([*hardest, *replayed])]
    _write(ctx.out / OUTPUT, (row.line for row in written))
    _write(ctx.out / HELD_OUT, held_out)
    facts = {
        "rows": len(written),
        "hardest_rows": len(hardest),
        "replayed_rows": len(replayed),
        "candidates": len(fitting),
        "too_long_rows": len(encoded) - len(fitting),
        "held_out_rows": len(held_out),
        "held_out_chosen": sum(
            is_held_out(row.example.question_id, settings.held_out_share) for row in written
        ),
        "score": settings.score,
        "scores": _distribution(scores),
        "hardest_scores": _distribution([scores[index] for index in hardest]),
        "kl_per_token": round(sum(each.kl for each in found) / sum(each.tokens for each in found), 6),
        "cells": dict(sorted(Counter(_cell(row.example) for row in written).items())),
    }
    return StageResult("dataset", facts)


def choose(
    scores: Sequence[float], k: int, replay: float, drawn: random.Random
) -> tuple[list[int], list[int]]:
    """Return the indices of the ``k`` largest scores, and of rows drawn at random from the rest.

    The latter are the share ``replay`` of both together, or all that there are. Of equal scores the first row
    comes first.
    """
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    hardest, others = order[:k], sorted(order[k:])
    wanted = round(len(hardest) * replay / (1 - replay))
    return hardest, drawn.sample(others, min(wanted, len(others)))


def _score(row: RowDivergence, score: str) -> float:
    return (row.kl if score == "kl" else row.loss - row.baseline_loss) / row.tokens


def _longest(settings: HardestSettings, ctx: StageContext) -> int:
    from cogumi.subjects import read_json_object

    context = int(read_json_object(ctx.inputs["model"].path / "config.json")["max_position_embeddings"])
    return min(settings.max_length or context, context)


def _divergences(
    settings: HardestSettings, ctx: StageContext, rows: Sequence[Encoded]
) -> list[RowDivergence]:
    """Read all rows with both models; what a run before this one has read is not read again."""
    from pipeline.compression.adapter_training import load_pair, torch_dtype
    from pipeline.compression.dense_view import dense_view
    from pipeline.compression.row_divergence import RowDivergence, compared
    from pipeline.training.decoding import Journal
    from pipeline.training.loop import deterministic

    journal = Journal(ctx.scratch / "rows.jsonl")
    found = [RowDivergence(**entry) for line in journal.entries for entry in line["rows"]]
    if len(found) == len(rows):
        return found
    model, compressed = ctx.inputs["model"], ctx.inputs["compressed"]
    view = dense_view(compressed, model, ctx.scratch, dtype=torch_dtype(settings.dtype))
    candidate, baseline, device = load_pair(view, model.path, settings.dtype)
    with deterministic(device, ctx.seed):
        for batch in compared(candidate, baseline, rows[len(found) :], capacity=settings.batch_tokens):
            found += batch
            journal.append({"rows": [_entry(each) for each in batch]})
            ctx.progress.update(len(found), len(rows), unit="rows")
    return found


def _entry(row: RowDivergence) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(row)


def _lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        # What is not text is told by the reader of the rows, with its line.
        return [line.rstrip("\n") for line in lines]


def _write(path: Path, lines: Iterator[str] | Sequence[str]) -> None:
    try:
        with path.open("w", encoding="utf-8") as out:
            out.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise disk_error(error, path) from error


def _cell(example: Example) -> str:
    return f"{example.domain}/{example.difficulty}" if example.difficulty else example.domain


def _distribution(scores: Sequence[float]) -> dict[str, float]:
    """Return mean and quantiles of scores in nats per token."""
    import numpy as np

    values = np.asarray(scores)
    quantiles = {f"p{share:02d}": float(np.percentile(values, share)) for share in (10, 50, 90, 99)}
    return {name: round(value, 6) for name, value in {"mean": float(values.mean()), **quantiles}.items()}


HARDEST = Stage(
    name="compression.hardest",
    version=1,
    title="Choose the rows that compression hurt most",
    settings=HardestSettings,
    run=run,
    inputs=("model", "compressed", "data"),
)
