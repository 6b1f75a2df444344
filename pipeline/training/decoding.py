"""Answers of a model to many questions, as the token ids that it chose: batched, resumable, the same again.

The evaluation's backend gives texts, one batch after the other, for scoring. A draft is trained and measured
on tokens, in runs of hours: here every batch is kept as soon as it is there, and may be sampled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError
from cogumi.store import disk_error

if TYPE_CHECKING:
    import torch

    from evals.backends.loading import LoadedModel
    from pipeline.training.data import Example


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are chosen; ``temperature`` 0 is greedy."""

    max_tokens: int
    context: int
    """Longest prompt and answer together, in tokens."""
    batch_size: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """Token ids of an answer, with the one that ended it; ``stopped`` is False where a limit cut it."""

    tokens: tuple[int, ...]
    stopped: bool


class Journal:
    """Entries of JSON that survive a kill: one line each, synced; a line cut short by the kill is dropped.

    Raises ``RunError`` for a broken line that is not the last, or on a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        whole = 0
        if path.is_file():
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.endswith(b"\n"):
                        break
                    self.entries.append(self._parsed(line, number))
                    whole += len(line)
            os.truncate(path, whole)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Keep one more entry; it is on the disk when this returns."""
        try:
            with self.path.open("ab") as handle:
                handle.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise disk_error(error, self.path) from error

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise RunError(
                f"{self.path}, line {number}: not readable ({error}); delete the file and run again"
            ) from None
        return entry


def encode_questions(loaded: LoadedModel, examples: Mapping[str, Example]) -> dict[str, list[int]]:
    """Return each question's token ids, ready to answer: the very ids that training sees before an answer."""
    from pipeline.training.chat import ChatEncoder

    encoder = ChatEncoder(loaded.tokenizer, loaded.stop_ids, include_reasoning=False)
    found = {}
    for name, example in examples.items():
        encoded = encoder.encode(example)
        found[name] = list(encoded.ids[: encoded.answer_start])
    return found


def answer_all(
    loaded: LoadedModel, prompts: Mapping[str, Sequence[int]], how: Decoding, journal: Journal
) -> Iterator[dict[str, Answer]]:
    """Yield the answers to ``prompts`` (token ids by name) batch by batch, those of the journal first.

    Every prompt must leave room for a token. A batch depends on the prompts and on ``how`` alone, so that a
    run which was killed ends as an undisturbed one. Raises ``RunError`` when the memory does not suffice.
    """
    import torch

    kept = {
        name: Answer(tuple(tokens), bool(stopped))
        for entry in journal.entries
        for name, (tokens, stopped) in entry.items()
    }
    if kept:
        yield kept
    for names, room in _batches(prompts, how):
        if all(name in kept for name in names):
            continue
        try:
            answers = _answer_batch(loaded, [prompts[name] for name in names], how, room, names[0])
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"out of memory while {len(names)} questions are answered at once; lower batch_size"
            ) from error
        batch = dict(zip(names, answers, strict=True))
        journal.append({name: [answer.tokens, answer.stopped] for name, answer in batch.items()})
        yield batch


def _batches(prompts: Mapping[str, Sequence[int]], how: Decoding) -> Iterator[tuple[list[str], int]]:
    """Yield (names, tokens that an answer may have), prompts of like length together."""
    waiting: list[str] = []
    room = 0
    for name in sorted(prompts, key=lambda entry: (len(prompts[entry]), entry)):
        left = min(how.max_tokens, how.context - len(prompts[name]))
        # Where the context is what limits, only prompts of one length share a batch: none is cut for another.
        if waiting and (left != room or len(waiting) == how.batch_size):
            yield waiting, room
            waiting = []
        waiting.append(name)
        room = left
    if waiting:
        yield waiting, room


def _answer_batch(
    loaded: LoadedModel, rows: Sequence[Sequence[int]], how: Decoding, room: int, name: str
) -> list[Answer]:
    """Answer prompts together, padded on the left; the seed of a batch follows from its first name."""
    import torch
    from transformers import GenerationConfig

    from evals.backends.loading import quiet_transformers
    from pipeline.training.loop import deterministic

    model, ends = loaded.model, loaded.stop_ids
    pad, width = min(ends, default=0), max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    # What a configuration leaves open, transformers takes from the model's own: that may penalise repetition.
    model.generation_config = GenerationConfig()
    sampled = how.temperature > 0
    config = GenerationConfig(
        do_sample=sampled,
        max_new_tokens=room,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        **({"temperature": how.temperature, "top_k": 0, "top_p": 1.0} if sampled else {}),
    )
    seed = int.from_bytes(hashlib.sha256(f"{how.seed}/{name}".encode()).digest()[:7], "big")
    with deterministic(model.device, seed), torch.inference_mode(), quiet_transformers():
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return [_answer(tokens, ends) for tokens in output[:, width:].tolist()]


def _answer(tokens: Sequence[int], ends: frozenset[int]) -> Answer:
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    return Answer(tuple(tokens), False) if end is None else Answer(tuple(tokens[: end + 1]), True)


def next_token_logits(model: Any, tokens: Sequence[int], rows: int) -> torch.Tensor:
    """Return the logits (rows, vocabulary) of what follows each of the last ``rows`` tokens."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([list(tokens)], device=model.device)
        logits: torch.Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=rows).logits
    return logits[0, -rows:]
