"""Stage ``training.acceptance``: how often a base accepts what its draft proposes, on held-out prompts.

The base answers each prompt greedily; the draft then reads prompt and answer once. Greedy speculative
decoding (Leviathan, Kalman and Matias 2023, arXiv 2211.17192) always continues from the base's own text, so
the draft's most likely token after each prefix of it is exactly what the draft would propose there. From
these matches the cycles of ``k`` drafted tokens are replayed:

- A cycle drafts k tokens, fewer only where the answer ends. Those before the first mismatch are accepted; the
  mismatch and what is drafted behind it are not. The base adds one token of its own, then the next cycle
  starts.
- ``acceptance_rate``: accepted over drafted tokens. ``match_rate``: share of all tokens at which draft and
  base agree, the alpha of the literature. At equal luck everywhere k = 5 turns a match rate of .75 into an
  acceptance rate of .46, and an acceptance rate of .75 needs a match rate of .91.
- ``sampling_acceptance``: mean of sum_x min(p(x), q(x)) along the same answers, the chance that a token which
  the draft samples at temperature 1 is accepted (the paper's beta).

Not covered: drafts of another tokenizer, whose proposals pass through text (plan 2.1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cogumi.devices import compute_device
from cogumi.errors import RunError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import Artifact, write_atomic
from pipeline.training.data import Example, is_held_out, read_examples, training_file

if TYPE_CHECKING:
    from evals.backends.loading import LoadedModel

RESULTS, PROMPTS = "results.json", "prompts.jsonl"

# Positions whose distributions are compared at a time: 128 of Llama-3.1's vocabulary are 66 MB in float32.
_ROWS = 128


class AcceptanceSettings(Settings):
    """On which prompts, and in cycles of how many drafted tokens."""

    k: int = Field(default=5, gt=0)
    """Tokens that the draft proposes at once; the plan's 5 (2.1)."""
    held_out_share: float = Field(default=0.02, gt=0, le=1)
    """The training's own share, or less; 1 for data that was never trained on."""
    prompts: int | None = Field(default=None, gt=1)
    """Ask at most this many, in the order of their ids' digests; default: all that are held out."""
    max_tokens: int = Field(default=256, gt=0)
    batch_size: int = Field(default=32, gt=0)
    """Prompts that the base answers at once."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Each bound is wrong with at most this chance."""


@dataclass(frozen=True, slots=True)
class Cycles:
    """What k drafted tokens at a time come to over one answer."""

    cycles: int
    drafted: int
    accepted: int


def cycles_of(matches: Sequence[bool], k: int) -> Cycles:
    """Replay the decoding of an answer; ``matches``: whether the draft would propose each of its tokens."""
    at = cycles = drafted = accepted = 0
    while at < len(matches):
        window = matches[at : at + k]
        hits = next((place for place, hit in enumerate(window) if not hit), len(window))
        cycles, drafted, accepted = cycles + 1, drafted + len(window), accepted + hits
        # One more token is the base's own: the correction, or what follows when all were right.
        at += hits + 1
    return Cycles(cycles, drafted, accepted)


def share_bounds(parts: Sequence[float], wholes: Sequence[float], alpha: float) -> tuple[float, float, float]:
    """Return (sum(parts) / sum(wholes), lower, upper) over independent clusters, here prompts.

    ``0 <= parts[i] <= wholes[i]``. Each bound is valid at level ``alpha`` for any number of clusters of any
    sizes: the gates' own bet on mean(X) - c * mean(Y) >= 0, a whole cluster being one draw from the
    population.
    """
    import numpy as np

    x, y = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    value = float(x.sum() / y.sum())
    lower = _lower_bound(x, y, alpha)
    upper = 1 - _lower_bound(y - x, y, alpha)
    return value, min(lower, value), max(upper, value)


def _lower_bound(parts: Any, wholes: Any, alpha: float) -> float:
    from cogumi.verdict import Verdict
    from gates.betting import RatioSample, confidence_bounds

    share = float(parts.sum() / wholes.sum())
    if share == 0:
        return 0.0
    largest = wholes.max()
    sample = RatioSample((parts / largest).clip(0, 1), wholes / largest, wholes / largest, None)
    return confidence_bounds(sample, share, (alpha, alpha), Verdict.UNDECIDED)[0]


def run(settings: AcceptanceSettings, ctx: StageContext) -> StageResult:
    """Measure input ``draft`` against input ``base`` on the held-out prompts of input ``data``."""
    from evals.backends.loading import model_tokenizer_digest

    draft, base = ctx.inputs["draft"], ctx.inputs["base"]
    questions = _held_out_questions(training_file(ctx.inputs["data"]), settings)
    size = {"draft_bytes_download": download_bytes(draft)}
    if model_tokenizer_digest(draft.path) != model_tokenizer_digest(base.path):
        why = (
            "draft and base have different tokenizers: the draft's proposals pass through text, which the "
            "measurement of speculative decoding covers (plan 2.1) and this one does not"
        )
        facts: dict[str, Any] = {"metrics": size, "unmeasured": {"acceptance_rate": why}}
        _write_results(ctx.out, facts)
        return StageResult("file", facts)
    rows, dropped = _measure(settings, ctx, questions)
    facts = {**_figures(rows, settings), "dropped_prompts": dropped}
    facts["metrics"] |= size
    _write_results(ctx.out, facts)
    write_atomic(ctx.out / PROMPTS, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return StageResult("file", facts)


def download_bytes(draft: Artifact) -> int:
    """Return the bytes of the dense model's files; an adapter in a folder of its own is merged into them."""
    return sum(int(entry["bytes"]) for name, entry in draft.manifest["files"].items() if "/" not in name)


def _held_out_questions(path: Path, settings: AcceptanceSettings) -> dict[str, Example]:
    """Return the held-out questions in the order of their ids' digests: a random sample, fixed for ever."""
    examples = read_examples(path)
    found = [each for each in examples if is_held_out(each.question_id, settings.held_out_share)]
    if len(found) < 2:
        raise RunError(
            f"{path}: {len(found)} of {len(examples)} questions are held out at held_out_share "
            f"{settings.held_out_share:g}; raise it here and in training"
        )
    found.sort(key=lambda each: hashlib.sha256(each.question_id.encode()).digest())
    return {each.question_id: each for each in found[: settings.prompts]}


def _measure(
    settings: AcceptanceSettings, ctx: StageContext, questions: Mapping[str, Example]
) -> tuple[list[dict[str, Any]], int]:
    """Return one row per prompt, and how many prompts leave no room for an answer."""

    from evals.backends.loading import load_model
    from pipeline.training.decoding import Answer, Decoding, Journal, answer_all, encode_questions

    device = compute_device()
    base, draft = (load_model(ctx.inputs[name].path, device=device) for name in ("base", "draft"))
    context = min(base.context, draft.context)
    prompts = encode_questions(base, questions)
    asked = {name: ids for name, ids in prompts.items() if len(ids) < context}
    if not asked:
        raise RunError(f"no held-out prompt leaves room for an answer in {context} tokens")
    how = Decoding(settings.max_tokens, context, settings.batch_size)
    answers: dict[str, Answer] = {}
    for batch in answer_all(base, asked, how, Journal(ctx.scratch / "answers.jsonl")):
        answers |= batch
        ctx.progress.update(len(answers), 2 * len(asked))
    journal = Journal(ctx.scratch / "compared.jsonl")
    rows = {row["question_id"]: row for row in journal.entries}
    for name, ids in asked.items():
        if name not in rows:
            answer = answers[name]
            row = _compare(base, draft, ids, answer.tokens) | {"stopped": answer.stopped}
            rows[name] = {"question_id": name, **row}
            journal.append(rows[name])
        ctx.progress.update(len(asked) + len(rows), 2 * len(asked))
    return [_with_cycles(rows[name], settings.k) for name in asked], len(prompts) - len(asked)


def _compare(
    base: LoadedModel, draft: LoadedModel, prompt: Sequence[int], answer: Sequence[int]
) -> dict[str, Any]:
    """Read prompt and answer with both models and compare what each says next, token by token."""
    import torch

    from pipeline.training.decoding import next_token_logits

    read = [*prompt, *answer[:-1]]
    p, q = (next_token_logits(each.model, read, len(answer)) for each in (base, draft))
    shared = min(p.shape[1], q.shape[1])
    overlap = 0.0
    for start in range(0, len(answer), _ROWS):
        parts = (torch.softmax(each[start : start + _ROWS].float(), dim=-1)[:, :shared] for each in (p, q))
        overlap += float(torch.minimum(*parts).sum())
    said = torch.tensor(list(answer), device=p.device)
    return {
        "matches": [int(hit) for hit in (q.argmax(dim=-1) == said).tolist()],
        "overlap": round(min(overlap, len(answer)), 6),
        # Decoded in a batch and read again alone, the base itself may waver between two tokens.
        "replayed_otherwise": int((p.argmax(dim=-1) != said).sum()),
    }


def _with_cycles(row: Mapping[str, Any], k: int) -> dict[str, Any]:
    found = cycles_of([bool(hit) for hit in row["matches"]], k)
    return {**row, "cycles": found.cycles, "drafted": found.drafted, "accepted": found.accepted}


def _figures(rows: Sequence[Mapping[str, Any]], settings: AcceptanceSettings) -> dict[str, Any]:
    lengths = [len(row["matches"]) for row in rows]
    tokens, cycles = sum(lengths), sum(row["cycles"] for row in rows)

    def told(parts: Callable[[Mapping[str, Any]], float], wholes: Sequence[int]) -> dict[str, Any]:
        value, lower, upper = share_bounds([parts(row) for row in rows], wholes, settings.alpha)
        return {
            "value": round(value, 6),
            "lower": round(lower, 6),
            "upper": round(upper, 6),
            "n": len(rows),
            "alpha": settings.alpha,
        }

    match = told(lambda row: sum(row["matches"]), lengths)
    accepted = told(lambda row: row["accepted"], [row["drafted"] for row in rows])
    per_cycle = tokens / cycles
    accepted["note"] = (
        f"k = {settings.k} on {tokens} tokens of {len(rows)} held-out prompts; "
        f"{match['value']:.3f} per token, {per_cycle:.2f} tokens a cycle"
    )
    return {
        "metrics": {"acceptance_rate": accepted},
        "match_rate": match,
        "sampling_acceptance": told(lambda row: row["overlap"], lengths),
        "tokens_per_cycle": round(per_cycle, 6),
        "k": settings.k,
        "prompts": len(rows),
        "tokens": tokens,
        "cut_answers": sum(not row["stopped"] for row in rows),
        "replayed_otherwise": sum(row["replayed_otherwise"] for row in rows),
    }


def _write_results(folder: Path, document: Mapping[str, Any]) -> None:
    write_atomic(folder / RESULTS, (json.dumps(document, indent=2) + "\n").encode())


ACCEPTANCE = Stage(
    name="training.acceptance",
    version=1,
    title="Measure what the base accepts of its draft",
    settings=AcceptanceSettings,
    run=run,
    inputs=("draft", "base", "data"),
)
