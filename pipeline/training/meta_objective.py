"""Meta-learning as an objective of the training loop: each step is the outer gradient of a few tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from cogumi.errors import RunError, UsageError
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.data import Encoded, EncodedSet
from pipeline.training.meta import (
    Episode,
    Inner,
    MetaKind,
    ParameterLoss,
    TwiceDifferentiable,
    adapt,
    inner_batches,
    outer_gradient,
)
from pipeline.training.meta_tasks import MetaSettings, Task, Tasks, group_rows
from pipeline.training.objective import StepCounts
from pipeline.training.packing import PackedBatch, pack
from pipeline.training.world import ALONE, World


class MetaObjective:
    """Reptile, first-order MAML, ANIL or MAML over the families of a data set.

    ``encoded``: rows of the families that are trained on (``without_held_out`` before ``encode_all``).
    Raises ``UsageError`` where a model or its precision cannot do what is asked, ``RunError`` when no family
    has enough rows.
    """

    def __init__(
        self,
        loss: AnswerLoss,
        encoded: EncodedSet,
        kind: MetaKind,
        settings: MetaSettings,
        *,
        seed: int,
        world: World = ALONE,
    ) -> None:
        self._answer = loss
        self._kind: MetaKind = kind
        self._settings = settings
        self._inner = Inner(settings.inner_steps, settings.inner_learning_rate)
        self._world = world
        twice = kind in ("maml", "anil")
        module = TwiceDifferentiable(loss, attention=kind == "maml") if twice else loss
        self._loss = ParameterLoss(module)
        self._device = next(iter(self._loss.params.values())).device
        self._head = head_of(loss, self._loss) if kind == "anil" else None
        self._check()
        sizes: dict[str, Any] = {"support": settings.support, "query": settings.query}
        train = group_rows(encoded.train, encoded.train_examples, settings.families)
        self._tasks = Tasks(train, **sizes, count=settings.tasks, seed=f"{seed}/train")
        self._looks: list[Task[Encoded]] = []
        if encoded.held_out:
            held_out = group_rows(encoded.held_out, encoded.held_out_examples, settings.families)
            try:
                looks = Tasks(held_out, **sizes, count=settings.look_tasks, seed=f"{seed}/looks")
            except RunError as error:
                raise RunError(f"looks at held-out rows: {error}; or change held_out_share") from None
            self._looks = [looks[number] for number in range(looks.count)]

    def _check(self) -> None:
        if self._world.sharded:
            raise UsageError(
                f"objective {self._kind}: each task moves all weights its own way: they cannot lie in parts "
                "on many devices; set devices.strategy: ddp"
            )
        if self._kind == "reptile" and self._settings.inner_steps < 2:
            raise UsageError("objective reptile: with inner_steps 1 it is plain fine-tuning; set 2 or more")
        # In half precision a GPU attends through a kernel whose gradient has none of its own.
        weight = next(iter(self._answer.base.parameters()))
        halved = self._answer.autocast or weight.dtype in (torch.bfloat16, torch.float16)
        if self._kind == "maml" and self._device.type == "cuda" and halved:
            raise UsageError(
                "objective maml: attention in half precision has first derivatives only; set dtype: fp32, or "
                "take fomaml or anil"
            )

    def steps(self, *, skip: int) -> Iterator[list[Task[Encoded]]]:
        """Yield the tasks of each step from number ``skip`` on."""
        return self._tasks.endless(self._settings.tasks_per_step, skip=skip)

    def gradient(self, step: Sequence[Task[Encoded]]) -> StepCounts:
        """Leave the mean outer gradient of the step's tasks in ``.grad``.

        Tokens are counted as often as they go through the model, inner steps included.
        """
        self._answer.train()
        mine = self._world.mine(step)
        gradient, value = outer_gradient(
            self._kind,
            self._loss,
            self._loss.params,
            [self._episode(task) for task in mine],
            self._inner,
            head=self._head or (),
        )
        share = len(mine) / len(step)
        for name, parameter in self._loss.params.items():
            parameter.grad = (gradient[name] * share).to(parameter.dtype)
        passes = [rows for task in step for rows in self._passes(task)]
        tokens = sum(len(row.ids) for rows in passes for row in rows)
        supervised = sum(len(row.ids) - row.answer_start for rows in passes for row in rows)
        loss = torch.tensor(self._world.total([value * share])[0])
        return StepCounts(loss, tokens, supervised, 0)

    def held_out_loss(self) -> float | None:
        """Return the mean query loss after adaptation to unseen rows of the families that are trained on."""
        if not self._looks:
            return None
        self._answer.eval()
        names = self._head or list(self._loss.params)
        total = 0.0
        for task in self._world.mine(self._looks):
            episode = self._episode(task)
            # Support rows alone, whatever the objective: at its use a model has no query set to learn from.
            batches = [episode.support] * self._inner.steps
            adapted, _ = adapt(self._loss, self._loss.params, batches, self._inner.learning_rate, names)
            with torch.no_grad():
                total += float(self._loss(adapted, episode.query))
        return self._world.total([total])[0] / len(self._looks)

    def facts(self, steps: int) -> dict[str, Any]:
        """Return what ``steps`` steps of it were, for the manifest of the trained model."""
        settings = self._settings
        return {
            "objective": self._kind,
            "meta_iterations": steps,
            "meta_tasks": self._tasks.distinct(steps * settings.tasks_per_step),
            "meta_families": self._tasks.families,
            "meta_families_too_small": self._tasks.left_out,
        }

    def _passes(self, task: Task[Encoded]) -> list[tuple[Encoded, ...]]:
        """Return the rows of every pass through the model that a task costs."""
        inner = inner_batches(self._kind, Episode(task.support, task.query), self._inner.steps)
        return inner if self._kind == "reptile" else [*inner, task.query]

    def _episode(self, task: Task[Encoded]) -> Episode[PackedBatch]:
        return Episode(pack(task.support, self._device), pack(task.query, self._device))


def head_of(answer: AnswerLoss, loss: ParameterLoss) -> list[str]:
    """Return the names of the head's trained parameters, which ANIL adapts.

    Raises ``UsageError`` when there is nothing of the head alone to adapt, with the mend.
    """
    if answer.config.tie_word_embeddings:
        raise UsageError(
            "objective anil adapts the head alone, but this model's head shares its weights with the "
            "embeddings; take fomaml, maml or reptile"
        )
    names = loss.among(list(answer.head.parameters()))
    if not names:
        raise UsageError(
            "objective anil adapts the head, and the head has no adapter: add lm_head to lora.targets "
            "(all-linear leaves the head out)"
        )
    return names
