"""Rows on which a compression looks at a model: our own training data, as the model sees it.

Covered: rows in the model's chat template with their answers, in an order that only the seed decides, none
of them held out from training. Not covered: texts from elsewhere.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from cogumi.errors import RunError
from cogumi.subjects import read_json_object
from pipeline.training.data import Encoded, is_held_out, read_examples, training_file

if TYPE_CHECKING:
    from cogumi.store import Artifact
    from pipeline.training.chat import ChatEncoder

HELD_OUT_SHARE = 0.1
"""Rows that are never used: the largest share that a profile holds out, and so all of any smaller share."""


def calibration_rows(
    data: Artifact,
    model: Path,
    *,
    samples: int,
    max_length: int,
    seed: int,
    min_tokens: int = 0,
) -> list[list[int]]:
    """Return the token ids of ``samples`` training rows, prompt and answer, each at most ``max_length`` long.

    A longer row, also than the model's context, is cut: what a causal model sees of its beginning is the
    same. Raises ``RunError`` "calibration data too short" with the numbers where there are fewer rows than
    ``samples`` or fewer tokens than ``min_tokens``.
    """
    found = calibration_answers(
        data, model, samples=samples, max_length=max_length, seed=seed, min_tokens=min_tokens
    )
    return [list(row.ids) for row in found]


def calibration_answers(
    data: Artifact,
    model: Path,
    *,
    samples: int,
    max_length: int,
    seed: int,
    min_tokens: int = 0,
) -> list[Encoded]:
    """Return the rows of ``calibration_rows``, each with where its answer starts, or its end if it is cut."""
    path = training_file(data)
    rows = [row for row in read_examples(path) if not is_held_out(row.question_id, HELD_OUT_SHARE)]
    if len(rows) < samples:
        raise RunError(
            f"{path}: calibration data too short: {len(rows)} rows that were not held out, {samples} asked "
            "for; ask for fewer samples or generate more rows"
        )
    encoder = chat_encoder(model)
    context = read_json_object(model / "config.json").get("max_position_embeddings")
    max_length = min(max_length, int(context or max_length))
    chosen = random.Random(seed).sample(range(len(rows)), samples)
    whole = [encoder.encode(rows[index]) for index in chosen]
    found = [Encoded(row.ids[:max_length], min(row.answer_start, max_length)) for row in whole]
    tokens = sum(len(row.ids) for row in found)
    if tokens < min_tokens:
        raise RunError(
            f"{path}: calibration data too short: {tokens} tokens in {samples} rows, at least {min_tokens} "
            "wanted; ask for more samples"
        )
    return found


def chat_encoder(model: Path, *, include_reasoning: bool = False) -> ChatEncoder:
    """Return the encoder of a model's folder without loading its weights; ``RunError`` for a broken one."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    from evals.backends.loading import quiet_transformers, stop_ids
    from evals.backends.tokenization import first_line
    from pipeline.training.chat import ChatEncoder

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
            configs = [AutoConfig.from_pretrained(model, local_files_only=True)]
            if (model / "generation_config.json").is_file():
                configs.append(GenerationConfig.from_pretrained(model, local_files_only=True))
    except Exception as error:
        # transformers raises a dozen unrelated classes for a broken file.
        raise RunError(
            f"{model}: its tokenizer or configuration cannot be read ({first_line(error)})"
        ) from error
    return ChatEncoder(tokenizer, stop_ids(tokenizer, *configs), include_reasoning=include_reasoning)
