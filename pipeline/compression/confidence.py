"""Stage ``compression.confidence``: is a model's confidence in an answer the chance that it is right?

The model answers held-out questions of our data greedily, as it is shipped (adapter included). Confidence is
exp of the mean log-probability of the answer's tokens, the end of its turn among them; it is read once more
along the finished answer, where a greedy token is the most likely one. An answer is right by the check of its
micro-domain, else where it is the data's own answer but for case, spacing and closing punctuation; long
answers have no such check and are left out.

Temperature and Platt's scaling are fitted on the other folds and judged on this one (``gates.calibration``),
so that all items judge and none judges what it was fitted on; what is shipped is fitted on all of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cogumi.errors import RunError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import write_atomic
from pipeline.training.data import Example, is_held_out, read_examples, training_file

if TYPE_CHECKING:
    from evals.types import Generation, LogitBackend
    from gates.calibration import FloatArray

CALIBRATION, ANSWERS = "calibration.json", "answers.jsonl"

_DEFINITION = "exp of the mean log-probability of the answer's tokens, the end of its turn among them"

# Fewer in a fold and two parameters fit noise.
_FEWEST_IN_FOLD = 10

# The form of plan 1.4.
_TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)


class ConfidenceSettings(Settings):
    """Which questions are asked, and how confidence is scaled and judged."""

    method: Literal["temperature", "platt"] = "platt"
    """What is shipped and judged by the gate; the other one is told beside it. Chosen before the items are
    seen: the better of two on the same items would look better than it is."""
    held_out_share: float = Field(default=0.02, gt=0, le=1)
    """The training's own share, or less; 1 for data that was never trained on."""
    items: int | None = Field(default=None, gt=1)
    """Ask at most this many, in the order of their ids' digests; default: all that are held out."""
    max_tokens: int = Field(default=256, gt=0)
    longest_answer: int = Field(default=8, gt=0)
    """Words of the longest answer that a right one must repeat; it does not bind where there is a check."""
    folds: int = Field(default=2, gt=1)
    bins: int = Field(default=10, gt=1)
    """Of equal mass."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Each bound is wrong with at most this chance."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One answered question."""

    question_id: str
    answer: str
    logprob: float
    """Mean over the answer's tokens, in nats."""
    tokens: int
    correct: bool
    """False for an answer that the limit cut off, as everywhere."""
    stopped: bool


def run(settings: ConfidenceSettings, ctx: StageContext) -> StageResult:
    """Ask input ``model``, a folder or GGUF with its adapter, the held-out questions of input ``data``."""
    from cogumi.subjects import of_artifact
    from evals.measure import open_subject

    subject = of_artifact(ctx.inputs["model"], "model")
    path = training_file(ctx.inputs["data"])
    examples, unchecked = checkable(path, settings)
    backend: Any = open_subject(subject)
    try:
        asked: list[Asked] = []
        for batch in _ask(backend, examples, settings, ctx.scratch):
            asked += batch
            right = sum(one.correct for one in asked)
            ctx.progress.update(len(asked), len(examples), right=round(right / max(len(asked), 1), 3))
    finally:
        backend.close()
    examples_of = {example.question_id: example for example in examples}
    facts = calibrate(settings, asked, [examples_of[one.question_id].question for one in asked], ctx.seed)
    facts |= {"unchecked_rows": unchecked, "no_room_rows": len(examples) - len(asked)}
    fitted_on = {"model": subject.digest, "data": ctx.inputs["data"].digest, "items": len(asked)}
    shipped = {
        "method": settings.method,
        "temperature": facts["temperature"],
        "platt": facts["platt"],
        "confidence": _DEFINITION,
        "fitted_on": fitted_on,
    }
    write_atomic(ctx.out / CALIBRATION, (json.dumps(shipped, indent=2) + "\n").encode())
    lines = [json.dumps(_row(one)) for one in asked]
    write_atomic(ctx.out / ANSWERS, "".join(f"{line}\n" for line in lines).encode())
    return StageResult("file", facts)


def checkable(path: Path, settings: ConfidenceSettings) -> tuple[list[Example], int]:
    """Return the held-out rows whose answers can be checked, and how many more cannot.

    In the order of their ids' digests: a random sample, fixed for ever. Raises ``RunError`` where too few are
    left, or a micro-domain's check wants a sandbox that is not there.
    """
    from evals.micro import solve
    from evals.sandbox import NO_SANDBOX, available

    found, unchecked = [], 0
    rows = [row for row in read_examples(path) if is_held_out(row.question_id, settings.held_out_share)]
    for row in rows:
        solution = solve(row.question)
        if solution is None and len(row.answer.split()) > settings.longest_answer:
            unchecked += 1
            continue
        if solution is not None and solution.domain == "coding" and not available():
            raise RunError(NO_SANDBOX)
        found.append(row)
    if len(found) < settings.folds * _FEWEST_IN_FOLD:
        raise RunError(
            f"{path}: {len(found)} held-out questions have an answer that can be checked, "
            f"{settings.folds * _FEWEST_IN_FOLD} are needed for {settings.folds} folds ({len(rows)} are held "
            f"out at held_out_share {settings.held_out_share:g}, {unchecked} of them have long answers); "
            "raise held_out_share here and in training, or generate more rows"
        )
    found.sort(key=lambda row: hashlib.sha256(row.question_id.encode()).digest())
    return found[: settings.items], unchecked


def is_right(example: Example, answer: str) -> bool:
    """Tell whether a model's answer is right; of ``<thinking>…</thinking><answer>…</answer>`` the latter."""
    from evals.micro import normalise, solve, verify

    tagged = _TAGGED.search(answer)
    said = tagged[1] if tagged else answer
    if solve(example.question) is not None:
        return verify(example.question, said.strip())
    return normalise(said) == normalise(example.answer)


# Asking -------------------------------------------------------------------------------------------


def _ask(
    backend: LogitBackend, examples: Sequence[Example], settings: ConfidenceSettings, scratch: Path
) -> Iterator[list[Asked]]:
    """Yield the answers batch by batch, those that survived a kill first; each is kept before it counts."""
    from evals.types import Prompt
    from pipeline.training.decoding import Journal

    journal = Journal(scratch / "asked.jsonl")
    for entry in journal.entries:
        yield [Asked(**row) for row in entry["asked"]]
    done = sum(entry["questions"] for entry in journal.entries)
    while done < len(examples):
        batch = examples[done : done + backend.batch_size]
        answers = backend.generate(
            [Prompt.user(row.question) for row in batch], max_tokens=settings.max_tokens
        )
        found = [
            _read(backend, row, answer)
            for row, answer in zip(batch, answers, strict=True)
            if answer.finish_reason != "error"
        ]
        journal.append({"questions": len(batch), "asked": [asdict(one) for one in found]})
        done += len(batch)
        yield found


def _read(backend: LogitBackend, example: Example, answer: Generation) -> Asked:
    """Read an answer once more with the model's own eyes: how sure was it of each token?"""
    from evals.types import Prompt

    stopped = answer.finish_reason == "stop"
    logprobs = backend.answer_logprobs(Prompt.user(example.question), answer.text)
    # The last row is of what follows the answer: the end of the turn, unless the limit cut it off.
    most_likely = logprobs.max(axis=1)[: None if stopped or len(logprobs) == 1 else -1]
    return Asked(
        example.question_id,
        answer.text,
        min(0.0, round(float(most_likely.mean(dtype="float64")), 8)),
        len(most_likely),
        stopped and is_right(example, answer.text),
        stopped,
    )


def _row(one: Asked) -> dict[str, Any]:
    return {**asdict(one), "confidence": round(math.exp(one.logprob), 8)}


# Judging ------------------------------------------------------------------------------------------


def calibrate(
    settings: ConfidenceSettings, asked: Sequence[Asked], questions: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return the facts: both scalings as fitted on all items, and the errors before and after, by folds.

    ``questions``: the text of each item; equal ones stay in one fold and count as one. Raises ``RunError``
    where a fold would be empty.
    """
    import numpy as np

    from evals.micro import normalise
    from gates.calibration import TEMPERATURES, cross_fitted, fit_platt, fit_temperature

    clusters = [normalise(question) for question in questions]
    places = _folds(clusters, settings.folds, seed)
    if len(places) < settings.folds:
        raise RunError(
            f"{len(places)} different questions were answered, {settings.folds} folds need one each at "
            "least; ask more, or questions that leave room for an answer"
        )
    fold = np.array([places[name] for name in clusters], dtype=np.int64)
    confidence = np.exp(np.array([one.logprob for one in asked], dtype=np.float64))
    correct = np.array([one.correct for one in asked], dtype=np.float64)
    scaled = {
        "none": confidence,
        "temperature": cross_fitted(confidence, correct, fold, fit_temperature),
        "platt": cross_fitted(confidence, correct, fold, fit_platt),
    }
    told = {name: _judged(values, correct, clusters, settings, seed) for name, values in scaled.items()}
    temperature, platt = fit_temperature(confidence, correct), fit_platt(confidence, correct)
    low, high = TEMPERATURES
    found = {
        "method": settings.method,
        "temperature": round(min(max(1 / temperature.slope, low), high), 6),
        "platt": [round(platt.slope, 6), round(platt.intercept, 6)],
        "items": len(asked),
        "accuracy": round(float(correct.mean()), 6),
        "mean_confidence": round(float(confidence.mean()), 6),
        "cut_answers": sum(not one.stopped for one in asked),
        "folds": settings.folds,
        "calibration": told,
    }
    ece, before = told[settings.method]["ece"], told["none"]["ece"]["value"]
    note = (
        f"{settings.method} scaling, {len(asked)} held-out answers, fitted and judged on different ones "
        f"({settings.folds} folds); {before:.3f} before"
    )
    n = {"n": len(asked), "alpha": settings.alpha, "note": note}
    return {"metrics": {"ece": {name: ece[name] for name in ("value", "lower", "upper")} | n}, **found}


def _folds(names: Sequence[str], folds: int, seed: int) -> dict[str, int]:
    """Return the fold of each name: folds of like size, drawn by the names' digests."""
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}/fold/{name}".encode()).digest())
    return {name: place % folds for place, name in enumerate(ordered)}


def _judged(
    confidence: FloatArray,
    correct: FloatArray,
    clusters: Sequence[str],
    settings: ConfidenceSettings,
    seed: int,
) -> dict[str, Any]:
    from gates.calibration import auroc, bin_of, brier, ece_interval, log_loss, reliability

    mass, width = (bin_of(confidence, settings.bins, "mass"), bin_of(confidence, settings.bins, "width"))
    ranked = auroc(confidence, correct)

    def told(bins: Any) -> dict[str, float]:
        found = ece_interval(confidence, correct, bins, alpha=settings.alpha, seed=seed, clusters=clusters)
        return _rounded(asdict(found))

    return {
        "ece": told(mass),
        "ece_equal_width": told(width),
        "brier": round(brier(confidence, correct), 6),
        "log_loss": round(log_loss(confidence, correct), 6),
        "auroc": None if ranked is None else round(ranked, 6),
        "reliability": [
            _rounded(asdict(one)) for one in reliability(confidence, correct, mass, settings.alpha)
        ],
    }


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}


CONFIDENCE = Stage(
    name="compression.confidence",
    version=1,
    title="Calibrate the confidence of a model's answers",
    settings=ConfidenceSettings,
    run=run,
    inputs=("model", "data"),
)
