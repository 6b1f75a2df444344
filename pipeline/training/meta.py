"""Outer gradients of meta-learning: MAML, first-order MAML, ANIL and Reptile, with functional inner updates.

theta are the parameters, L_S and L_Q a task's mean loss on its support and query set, a the inner rate, and
phi_0 = theta, phi_(i+1) = phi_i - a dL_S/dphi(phi_i) up to phi_K. The outer gradient of a task is

    maml     d/dtheta L_Q(phi_K(theta)), second derivatives included   Finn et al. 2017, arXiv 1703.03400
    fomaml   dL_Q/dphi at phi_K                                        the same, section 5.2
    anil     as maml, but the inner loop moves the head alone          Raghu et al. 2020, arXiv 1909.09157
    reptile  (theta - phi_K) / (a K)                                   Nichol et al. 2018, arXiv 1803.02999

Reptile has no query set: its inner steps take the support and the query set in turn, because with one
minibatch only it would be plain gradient descent (Nichol et al., section 5.1). An inner update makes new
tensors and never writes into a parameter: one that is written before the backward pass moves the point at
which the outer gradient is taken (tests/pipeline/test_meta_gradients.py shows by how much).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from pipeline.training.answer_loss import AnswerLoss, at_least_float32
from pipeline.training.packing import PackedBatch

MetaKind = Literal["reptile", "fomaml", "anil", "maml"]
Params = Mapping[str, torch.Tensor]
Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True)
class Inner:
    """The inner loop: plain gradient descent."""

    steps: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Episode(Generic[Batch]):
    """One task as the model sees it: what it adapts on, and what it is then judged by."""

    support: Batch
    query: Batch


def inner_batches(kind: MetaKind, episode: Episode[Batch], steps: int) -> list[Batch]:
    """Return what each inner step sees: the support set, or with Reptile both sets in turn."""
    if kind == "reptile":
        return [(episode.support, episode.query)[step % 2] for step in range(steps)]
    return [episode.support] * steps


def outer_gradient(
    kind: MetaKind,
    loss: Callable[[Params, Batch], torch.Tensor],
    params: Params,
    tasks: Sequence[Episode[Batch]],
    inner: Inner,
    *,
    head: Collection[str] = (),
) -> tuple[dict[str, torch.Tensor], float]:
    """Return the mean outer gradient of the tasks by parameter, and the mean loss after adaptation.

    ``loss(params, batch)`` is a mean over the batch and depends on ``params`` alone; ``head``: the names that
    ANIL adapts. Tasks are taken one after the other; only MAML and ANIL hold a graph across inner steps.
    Gradients are in at least float32. The loss is that of the query set, with Reptile that of the last inner
    step. No parameter is written.
    """
    total = {
        name: torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
        for name, value in params.items()
    }
    mean = 0.0
    for episode in tasks:
        if kind in ("maml", "anil"):
            gradient, value = _through(loss, params, episode, inner, head if kind == "anil" else params)
        else:
            gradient, value = _first_order(kind, loss, params, episode, inner)
        for name, part in gradient.items():
            total[name] += part / len(tasks)
        mean += value / len(tasks)
    return total, mean


def adapt(
    loss: Callable[[Params, Batch], torch.Tensor],
    params: Params,
    batches: Sequence[Batch],
    learning_rate: float,
    names: Collection[str] | None = None,
) -> tuple[dict[str, torch.Tensor], float]:
    """Return the parameters after one step of gradient descent per batch, and the last step's loss.

    ``names``: only these are adapted. The result has no history; ``params`` are not written.
    """
    current = {name: value.detach() for name, value in params.items()}
    moving = list(current if names is None else names)
    value = torch.zeros(())
    for batch in batches:
        # detach() makes a new tensor over the same numbers, so a parameter's own flag stays as it is.
        leaves = {name: current[name].detach().requires_grad_() for name in moving}
        value = loss({**current, **leaves}, batch)
        slopes = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        for (name, leaf), slope in zip(leaves.items(), slopes, strict=True):
            current[name] = leaf.detach() - learning_rate * slope
    return current, float(value.detach())


def _first_order(
    kind: MetaKind,
    loss: Callable[[Params, Batch], torch.Tensor],
    params: Params,
    episode: Episode[Batch],
    inner: Inner,
) -> tuple[dict[str, torch.Tensor], float]:
    batches = inner_batches(kind, episode, inner.steps)
    adapted, last = adapt(loss, params, batches, inner.learning_rate)
    if kind == "reptile":
        scale = inner.learning_rate * inner.steps
        return {name: (params[name].detach() - phi) / scale for name, phi in adapted.items()}, last
    leaves = {name: phi.requires_grad_() for name, phi in adapted.items()}
    value = loss(leaves, episode.query)
    slopes = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, slopes, strict=True)), float(value.detach())


def _through(
    loss: Callable[[Params, Batch], torch.Tensor],
    params: Params,
    episode: Episode[Batch],
    inner: Inner,
    adapted: Collection[str],
) -> tuple[dict[str, torch.Tensor], float]:
    start = {name: value.detach().requires_grad_() for name, value in params.items()}
    current: dict[str, torch.Tensor] = dict(start)
    for _ in range(inner.steps):
        value = loss(current, episode.support)
        moving = {name: current[name] for name in adapted}
        slopes = torch.autograd.grad(value, list(moving.values()), create_graph=True, materialize_grads=True)
        for (name, before), slope in zip(moving.items(), slopes, strict=True):
            current[name] = before - inner.learning_rate * slope
    value = loss(current, episode.query)
    gradient = torch.autograd.grad(value, list(start.values()), materialize_grads=True)
    return dict(zip(start, gradient, strict=True)), float(value.detach())


class TwiceDifferentiable(torch.nn.Module):
    """An answer loss that can be differentiated again: the fast one takes its gradient with its value.

    ``attention``: also through the attention product, whose fused kernels have first derivatives only.
    """

    def __init__(self, answer: AnswerLoss, *, attention: bool) -> None:
        super().__init__()
        self.answer = answer
        self._attention = attention

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Return the summed cross-entropy of the batch's answer tokens; all their logits are held at once."""
        answer = self.answer
        kernels = [SDPBackend.MATH] if self._attention else [*_KERNELS]
        with (
            sdpa_kernel(kernels),
            torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=answer.autocast),
        ):
            hidden = answer.hidden(batch)
            logits = at_least_float32(answer.head(hidden))
            return cross_entropy(logits, batch.targets, reduction="sum")


_KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


class ParameterLoss:
    """The mean answer loss of a packed batch as a function of the trainable parameters, by name."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self.params: dict[str, torch.nn.Parameter] = {
            name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
        }

    def __call__(self, params: Params, batch: PackedBatch) -> torch.Tensor:
        """Return the loss per answer token with ``params`` in the place of the module's own."""
        total: torch.Tensor = torch.func.functional_call(self._module, dict(params), (batch,))
        return total / len(batch.targets)

    def among(self, parameters: Collection[Any]) -> list[str]:
        """Return the names of those of these parameters that are trained."""
        wanted = {id(parameter) for parameter in parameters}
        return [name for name, parameter in self.params.items() if id(parameter) in wanted]
