"""Few-shot episodes: drawn once for both models, then scored model by model, each kept as soon as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cogumi.errors import RunError, UsageError
from evals.micro import solve
from evals.sandbox import NO_SANDBOX, available
from pipeline.meta.learner import Learner, Row
from pipeline.training.data import Example, is_held_out
from pipeline.training.decoding import Journal
from pipeline.training.meta_tasks import Task, Tasks, group_rows, held_out_families

if TYPE_CHECKING:
    from pipeline.meta.few_shot import FewShotSettings

# With several learning rates: the share of the unseen rows that each model's own is chosen on, and the draws.
_TUNING_SHARE = 0.2
_TUNING_EPISODES = 32

# Rows that are scored at once before adaptation.
_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Draws:
    """The episodes that are scored, and those on which a learning rate is chosen, if any."""

    scored: Tasks[Row]
    tuning: Tasks[Row] | None
    too_long_rows: int
    """Rows of the held-out families that are longer than the context, left out."""

    def episodes(self) -> list[Task[Row]]:
        """Return the episodes that are scored, in order."""
        return [self.scored[number] for number in range(self.scored.count)]


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's scores of the query rows, (episodes, query), before and after adaptation."""

    learning_rate: float
    before: list[list[float]]
    after: list[list[float]]


def draw_episodes(
    settings: FewShotSettings, examples: Sequence[Example], learner: Learner, seed: int
) -> Draws:
    """Encode the rows of the held-out families as ``learner`` reads them and draw the episodes.

    Raises ``UsageError`` where answers cannot be checked, ``RunError`` where a family has too few rows.
    """
    groups = group_rows(examples, examples, settings.families)
    groups = {name: groups[name] for name in held_out_families(examples, settings.families)}
    if settings.score == "answers":
        _check_answerable([row for rows in groups.values() for row in rows])
    encode = learner.encoder(include_reasoning=settings.include_reasoning).encode
    rows = {name: [Row(example, encode(example)) for example in group] for name, group in groups.items()}
    fitting = {
        name: [row for row in group if len(row.encoded.ids) <= learner.context]
        for name, group in rows.items()
    }
    too_long = sum(len(rows[name]) - len(fitting[name]) for name in rows)
    sizes: dict[str, Any] = {"support": settings.support, "query": settings.query}
    tuning = None
    if len(settings.learning_rates) > 1:
        apart = {name: [row for row in group if _for_tuning(row)] for name, group in fitting.items()}
        tuning = Tasks(apart, **sizes, count=_TUNING_EPISODES, seed=f"{seed}/tuning")
        fitting = {name: [row for row in group if not _for_tuning(row)] for name, group in fitting.items()}
    return Draws(Tasks(fitting, **sizes, count=settings.episodes, seed=f"{seed}/few-shot"), tuning, too_long)


def measure(
    settings: FewShotSettings,
    learner: Learner,
    draws: Draws,
    journal: Journal,
    progress: Callable[..., None],
) -> Measured:
    """Adapt to every episode and score it; what ``journal`` holds already is not done again.

    ``progress`` is called with the number of episodes done and the mean ``score`` so far. Raises ``RunError``
    when the memory does not suffice.
    """
    try:
        kept = {key: value for entry in journal.entries for key, value in entry.items()}
        if "learning_rate" not in kept:
            kept["learning_rate"] = _choose_rate(settings, learner, draws)
            journal.append({"learning_rate": kept["learning_rate"]})
        episodes = draws.episodes()
        if "before" not in kept:
            kept["before"] = _before(settings, learner, episodes)
            journal.append({"before": kept["before"]})
        after: list[list[float]] = []
        total = 0.0
        for number, episode in enumerate(episodes):
            if str(number) not in kept:
                adapted = learner.adapted(episode.support, settings.steps, kept["learning_rate"])
                scores = learner.scores(adapted, episode.query, settings.score, settings.max_tokens)
                kept[str(number)] = _rounded(scores)
                journal.append({str(number): kept[str(number)]})
            after.append(kept[str(number)])
            total += sum(after[-1]) / len(after[-1])
            progress(number + 1, score=round(total / len(after), 4))
    except torch.OutOfMemoryError as error:
        raise RunError("out of memory in a few-shot episode: lower support or query") from error
    return Measured(kept["learning_rate"], kept["before"], after)


def _choose_rate(settings: FewShotSettings, learner: Learner, draws: Draws) -> float:
    if draws.tuning is None:
        return settings.learning_rates[0]
    episodes = [draws.tuning[number] for number in range(draws.tuning.count)]

    def worth(rate: float) -> tuple[float, float]:
        """Mean score; among equals, as where no answer is right yet, the lower loss."""
        scores: list[float] = []
        loss = 0.0
        for episode in episodes:
            adapted = learner.adapted(episode.support, settings.steps, rate)
            loss += learner.loss(adapted, episode.query)
            if not math.isfinite(loss):
                return -1.0, -math.inf
            scores += learner.scores(adapted, episode.query, settings.score, settings.max_tokens)
        return sum(scores) / len(scores), -loss

    return max(settings.learning_rates, key=worth)


def _before(settings: FewShotSettings, learner: Learner, episodes: Sequence[Task[Row]]) -> list[list[float]]:
    """Score every query row without adaptation, each once however many episodes ask it."""
    rows = {row.example.question_id: row for episode in episodes for row in episode.query}
    ordered = sorted(rows.values(), key=lambda row: (len(row.encoded.ids), row.example.question_id))
    scores: dict[str, float] = {}
    for start in range(0, len(ordered), _AT_ONCE):
        part = ordered[start : start + _AT_ONCE]
        found = learner.scores(learner.own, part, settings.score, settings.max_tokens)
        scores |= {row.example.question_id: score for row, score in zip(part, _rounded(found), strict=True)}
    return [[scores[row.example.question_id] for row in episode.query] for episode in episodes]


def _rounded(scores: Sequence[float]) -> list[float]:
    return [round(score, 6) for score in scores]


def _for_tuning(row: Row) -> bool:
    # Another digest than the held-out split's, which the data of a training may have been cut by.
    return is_held_out(f"tuning/{row.example.question_id}", _TUNING_SHARE)


def _check_answerable(examples: Sequence[Example]) -> None:
    for example in examples:
        solution = solve(example.question)
        if solution is None:
            raise UsageError(
                f"score: answers, but the answer to {example.question_id} has no check: it is no "
                "micro-domain question; set score: probability"
            )
        if solution.domain == "coding" and not available():
            raise RunError(NO_SANDBOX)
