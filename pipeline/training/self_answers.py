"""Stage ``training.self_answers``: the tuned base answers the training questions itself.

A draft that learns these answers learns what its base will say (sequence-level distillation, Kim and Rush
2016, arXiv 1606.07947); it is text, so the draft's tokenizer may be another. Every question keeps its id, and
so its side of the held-out split. An answer that ran into the token limit is left out and counted: a draft
that learns those learns not to stop.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cogumi.devices import compute_device
from cogumi.errors import RunError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import disk_error
from pipeline.training.data import Example, read_examples, training_file

if TYPE_CHECKING:
    from evals.backends.loading import LoadedModel
    from pipeline.training.decoding import Answer

OUTPUT = "training_self_answers.jsonl"


class SelfAnswersSettings(Settings):
    """How the base answers; greedily unless ``temperature`` is above 0."""

    max_tokens: int = Field(default=512, gt=0)
    """Longest answer in tokens, its end token counted."""
    temperature: float = Field(default=0.0, ge=0)
    seed_offset: int = 0
    """Added to the run's seed; it matters to a temperature above 0 only."""
    batch_size: int = Field(default=32, gt=0)
    """Questions that are answered at once: bounds the memory of the KV cache."""
    most_cut: float = Field(default=0.5, ge=0, le=1)
    """Largest share of answers that may run into the limit before the base counts as not trained to stop."""


def run(settings: SelfAnswersSettings, ctx: StageContext) -> StageResult:
    """Answer the questions of input ``data`` with input ``model``; the output is a data set of that form."""

    from evals.backends.loading import load_model
    from pipeline.training.decoding import Decoding, Journal, answer_all, encode_questions

    examples = _unique(read_examples(training_file(ctx.inputs["data"])))
    loaded = load_model(ctx.inputs["model"].path, device=compute_device())
    how = Decoding(
        max_tokens=settings.max_tokens,
        context=loaded.context,
        batch_size=settings.batch_size,
        temperature=settings.temperature,
        seed=ctx.seed + settings.seed_offset,
    )
    encoded = encode_questions(loaded, examples)
    prompts = {name: ids for name, ids in encoded.items() if len(ids) < loaded.context}
    if not prompts:
        raise RunError(f"no question leaves room for an answer in the base's {loaded.context} tokens")
    answers: dict[str, Answer] = {}
    started, fresh = time.perf_counter(), 0
    journal = Journal(ctx.scratch / "answers.jsonl")
    resumed = bool(journal.entries)
    for batch in answer_all(loaded, prompts, how, journal):
        answers.update(batch)
        # What a run before this one answered took none of this one's time.
        fresh += 0 if resumed else sum(len(answer.tokens) for answer in batch.values())
        resumed = False
        cut = sum(not answer.stopped for answer in answers.values())
        pace = round(fresh / (time.perf_counter() - started))
        ctx.progress.update(len(answers), len(prompts), cut=cut, tok_s=pace)
        # As soon as the rest cannot change it: this takes hours.
        if cut > settings.most_cut * len(prompts):
            raise RunError(_does_not_stop(cut, len(answers), settings))
    seconds = time.perf_counter() - started
    facts = _write(ctx.out / OUTPUT, examples, answers, loaded)
    facts |= {"dropped_rows": len(examples) - len(prompts), "max_tokens": how.max_tokens}
    return StageResult("dataset", facts, {"seconds": seconds, "tokens_per_second": fresh / seconds})


def _unique(examples: Sequence[Example]) -> dict[str, Example]:
    found = {example.question_id: example for example in examples}
    if len(found) < len(examples):
        counts = Counter(example.question_id for example in examples)
        twice = next(name for name, count in counts.items() if count > 1)
        raise RunError(f"question_id {twice} comes twice in the data; run `cogumi data merge` again")
    return found


def _does_not_stop(cut: int, answered: int, settings: SelfAnswersSettings) -> str:
    return (
        f"the base does not stop: {cut} of {answered} answers ran into max_tokens {settings.max_tokens}, "
        f"more than most_cut {settings.most_cut:g} of all questions; train the base until it ends its "
        "turns, or raise max_tokens"
    )


def _write(
    path: Path, examples: Mapping[str, Example], answers: Mapping[str, Answer], loaded: LoadedModel
) -> dict[str, Any]:
    """Write the answers that stand, in the order of the questions; return what was counted."""
    from evals.backends.hf_stopping import decode
    from pipeline.training.chat import ChatEncoder

    encoder = ChatEncoder(loaded.tokenizer, loaded.stop_ids, include_reasoning=False)
    counts = {"rows": 0, "cut_rows": 0, "empty_rows": 0, "other_tokens_rows": 0, "answer_tokens": 0}

    def rows() -> Iterator[dict[str, Any]]:
        for name, example in examples.items():
            answer = answers.get(name)
            if answer is None:
                continue
            if not answer.stopped:
                counts["cut_rows"] += 1
                continue
            text = decode(loaded.tokenizer, list(answer.tokens))
            if not text.strip():
                counts["empty_rows"] += 1
                continue
            # Training sees the text's own tokens, which need not be those that the base chose.
            seen = encoder.encode(replace(example, answer=text, reasoning=None))
            counts["other_tokens_rows"] += seen.ids[seen.answer_start :] != answer.tokens
            counts["rows"] += 1
            counts["answer_tokens"] += len(answer.tokens)
            yield {
                "question_id": name,
                "domain": example.domain,
                "difficulty": example.difficulty,
                "question": example.question,
                # The whole of what the base said: its reasoning, where it was trained on any, is part of it.
                "answer": text,
            }

    try:
        with path.open("w", encoding="utf-8", newline="\n") as handle:
            for row in rows():
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise disk_error(error, path) from error
    if not counts["rows"]:
        raise RunError(
            f"none of {len(answers)} answers can be trained on: {counts['cut_rows']} were cut, "
            f"{counts['empty_rows']} are empty; train the base longer, or raise max_tokens"
        )
    return {**counts, "cut_share": round(counts["cut_rows"] / len(answers), 6)}


SELF_ANSWERS = Stage(
    name="training.self_answers",
    version=1,
    title="Let the base answer the training questions",
    settings=SelfAnswersSettings,
    run=run,
    inputs=("model", "data"),
)
