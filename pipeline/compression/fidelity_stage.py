"""Stage ``compression.fidelity``: a compressed model against the dense one, on held-out answers of our data.

What is measured stands in ``pipeline.compression.fidelity``. Retention of a task's score is another question,
which a suite answers (``retention`` criteria of a gate): no figure here stands for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cogumi.digest import digest_of
from cogumi.errors import RunError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import Artifact, write_atomic
from pipeline.training.data import Encoded, is_held_out, read_examples, training_file

if TYPE_CHECKING:
    from pipeline.compression.fidelity import RowFidelity
    from pipeline.training.data import Example

RESULTS, ROWS = "results.json", "rows.jsonl"


class FidelitySettings(Settings):
    """Along how many held-out answers, and how sure the bounds are."""

    rows: int = Field(default=128, gt=1)
    """Compare along at most this many, in the order of their ids' digests."""
    held_out_share: float = Field(default=0.02, gt=0, le=1)
    """The training's own share, or less; 1 for data that was never trained on."""
    max_length: int = Field(default=2048, gt=1)
    """Longest row in tokens, or the model's context if that is less; longer ones are left out and counted."""
    include_reasoning: bool = False
    """As the training had it."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Each bound is wrong with about this chance."""


def run(settings: FidelitySettings, ctx: StageContext) -> StageResult:
    """Compare input ``model`` with input ``baseline``, the dense model, on the held-out rows of ``data``."""
    from cogumi.subjects import of_artifact
    from pipeline.compression.fidelity import row_fidelities

    baseline = ctx.inputs["baseline"]
    if baseline.kind != "model":
        raise RunError(f"baseline: a {baseline.kind}; name the dense model that the compression started from")
    names, rows, too_long = held_out_rows(ctx.inputs["data"], baseline.path, settings)
    candidate = of_artifact(ctx.inputs["model"], "model")
    found: list[RowFidelity] = []
    for row in row_fidelities(candidate, baseline.path, rows, scratch=ctx.scratch):
        found.append(row)
        kl = sum(each.kl for each in found) / sum(each.tokens for each in found)
        ctx.progress.update(len(found), len(rows), kl=round(kl, 6))
    facts = {
        **_of(ctx.inputs["model"]),
        "baseline": baseline.digest,
        "rows_digest": digest_of([row.ids for row in rows]),
        **figures(found, settings.alpha),
        "too_long_rows": too_long,
    }
    _write(ctx.out, facts, [{"question_id": n, **asdict(row)} for n, row in zip(names, found, strict=True)])
    return StageResult("file", facts)


def held_out_rows(
    data: Artifact, model: Path, settings: FidelitySettings
) -> tuple[list[str], list[Encoded], int]:
    """Return ids and token ids of the held-out rows, and how many were too long.

    Their order is that of their ids' digests: a random sample, fixed for ever. Raises ``RunError`` where
    fewer than two fit.
    """
    from pipeline.compression.calibration_rows import chat_encoder

    path = training_file(data)
    examples = [e for e in read_examples(path) if is_held_out(e.question_id, settings.held_out_share)]
    examples.sort(key=_order)
    longest = min(settings.max_length, _context(model, settings.max_length))
    encoder = chat_encoder(model, include_reasoning=settings.include_reasoning)
    names: list[str] = []
    rows: list[Encoded] = []
    too_long = 0
    for example in examples:
        if len(rows) == settings.rows:
            break
        encoded = encoder.encode(example)
        if len(encoded.ids) > longest:
            too_long += 1
            continue
        names.append(example.question_id)
        rows.append(encoded)
    if len(rows) < 2:
        raise RunError(
            f"{path}: {len(rows)} held-out rows of at most {longest} tokens at held_out_share "
            f"{settings.held_out_share:g} ({too_long} are longer); raise one of the two"
        )
    return names, rows, too_long


def _context(model: Path, otherwise: int) -> int:
    from cogumi.subjects import read_json_object

    found = read_json_object(model / "config.json").get("max_position_embeddings")
    return found if isinstance(found, int) else otherwise


def _order(example: Example) -> bytes:
    return hashlib.sha256(example.question_id.encode()).digest()


def figures(rows: Sequence[RowFidelity], alpha: float) -> dict[str, Any]:
    """Return the facts of a comparison: ``metrics`` with bounds as gates read them, and ``fidelity``."""
    from pipeline.compression.fidelity import mean_bounds, perplexity, summarise
    from pipeline.training.acceptance import share_bounds

    found = summarise(rows, alpha)
    tokens = [row.tokens for row in rows]
    loss = mean_bounds([row.loss for row in rows], tokens, alpha)
    same = share_bounds([row.same for row in rows], tokens, alpha)
    note = f"on {found.tokens} answer tokens of {found.rows} held-out rows; rows are the draws"

    def told(value: float, lower: float, upper: float) -> dict[str, Any]:
        bounds = {"value": round(value, 8), "lower": round(lower, 8), "upper": round(upper, 8)}
        return {**bounds, "n": found.rows, "alpha": alpha, "note": note}

    return {
        "metrics": {
            "kl": told(found.kl, found.kl_lower, found.kl_upper),
            "answer_perplexity": told(found.perplexity, *(perplexity(bound) for bound in loss)),
            "top1_agreement": told(*same),
        },
        "fidelity": {
            "alpha": alpha,
            **{
                name: round(value, 8) if isinstance(value, float) else value
                for name, value in asdict(found).items()
            },
        },
    }


def _of(model: Artifact) -> dict[str, Any]:
    """Return which model was measured, and its sizes, so that a table of results needs nothing else."""
    facts = model.facts
    sizes = {name: int(facts.get(name, model.bytes)) for name in ("bytes_resident", "bytes_download")}
    bits = facts.get("bits_per_weight", facts.get("metrics", {}).get("bits_per_weight"))
    return {"model": model.digest, **sizes, **({} if bits is None else {"bits_per_weight": bits})}


def _write(folder: Path, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(folder / RESULTS, (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode())
    write_atomic(folder / ROWS, "".join(json.dumps(row) + "\n" for row in rows).encode())


FIDELITY = Stage(
    name="compression.fidelity",
    version=2,
    title="Measure what the compression changed",
    settings=FidelitySettings,
    run=run,
    inputs=("model", "baseline", "data"),
)
