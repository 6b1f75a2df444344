"""Outer gradients against closed forms on a linear model, and against finite differences on a small Llama."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.data import Encoded
from pipeline.training.meta import (
    Episode,
    Inner,
    MetaKind,
    ParameterLoss,
    Params,
    TwiceDifferentiable,
    adapt,
    outer_gradient,
)
from pipeline.training.packing import PackedBatch, pack

KINDS: tuple[MetaKind, ...] = ("reptile", "fomaml", "anil", "maml")
Data = tuple[torch.Tensor, torch.Tensor]


def regression(seed: int, rows: int) -> Data:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, dtype=torch.float64, generator=draw)
    return x, torch.randn(rows, dtype=torch.float64, generator=draw)


def squared_error(params: Params, batch: Data) -> torch.Tensor:
    """Mean of (x·theta - y)² / 2, theta in two named parts."""
    x, y = batch
    residual = x @ torch.cat([params["body"], params["head"]]) - y
    return residual @ residual / (2 * len(y))


def slope(theta: torch.Tensor, batch: Data) -> torch.Tensor:
    x, y = batch
    return x.T @ (x @ theta - y) / len(y)


def curvature(batch: Data) -> torch.Tensor:
    return batch[0].T @ batch[0] / len(batch[1])


def closed_form(kind: MetaKind, theta: torch.Tensor, task: Episode[Data], inner: Inner) -> torch.Tensor:
    """The outer gradient by hand: every inner step is affine in theta, with the Jacobian I - a P H."""
    a, identity = inner.learning_rate, torch.eye(4, dtype=torch.float64)
    moved = (
        torch.diag(torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)) if kind == "anil" else identity
    )
    phi, jacobian = theta, identity
    for step in range(inner.steps):
        batch = task.query if kind == "reptile" and step % 2 else task.support
        phi = phi - a * moved @ slope(phi, batch)
        jacobian = (identity - a * moved @ curvature(batch)) @ jacobian
    if kind == "reptile":
        return (theta - phi) / (a * inner.steps)
    at_phi = slope(phi, task.query)
    return at_phi if kind == "fomaml" else jacobian.T @ at_phi


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_closed_form_on_a_linear_model(kind: MetaKind, steps: int) -> None:
    theta = torch.linspace(-1, 1, 4, dtype=torch.float64)
    params = {"body": theta[:2].clone(), "head": theta[2:].clone()}
    tasks = [Episode(regression(2 * k, 5), regression(2 * k + 1, 7)) for k in range(3)]
    inner = Inner(steps, 0.1)
    found, _ = outer_gradient(kind, squared_error, params, tasks, inner, head=["head"])
    wanted = torch.stack([closed_form(kind, theta, task, inner) for task in tasks]).mean(0)
    assert torch.cat([found["body"], found["head"]]) == pytest.approx(wanted, abs=1e-10)


def test_the_objectives_differ_where_they_should() -> None:
    theta = torch.linspace(-1, 1, 4, dtype=torch.float64)
    params = {"body": theta[:2].clone(), "head": theta[2:].clone()}
    task = Episode(regression(0, 5), regression(1, 7))
    found = [
        torch.cat(
            list(
                outer_gradient(kind, squared_error, params, [task], Inner(2, 0.1), head=["head"])[0].values()
            )
        )
        for kind in KINDS
    ]
    for one in range(len(KINDS)):
        for other in range(one):
            assert (found[one] - found[other]).abs().max() > 1e-3


def test_an_update_in_place_would_give_another_gradient() -> None:
    """The predecessor wrote ``.data`` and then asked for the gradient: the graph forgets the inner step."""
    x, y = regression(0, 5)
    query = regression(1, 7)
    theta = torch.linspace(-1, 1, 4, dtype=torch.float64).requires_grad_()
    support_loss = ((x @ theta - y) ** 2).mean() / 2
    (inner_slope,) = torch.autograd.grad(support_loss, theta, create_graph=True)
    theta.data -= 0.1 * inner_slope.detach()
    ((query[0] @ theta - query[1]) ** 2).mean().div(2).backward()
    start = torch.linspace(-1, 1, 4, dtype=torch.float64)
    params = {"body": start[:2].clone(), "head": start[2:].clone()}
    task = Episode((x, y), query)
    right, _ = outer_gradient("maml", squared_error, params, [task], Inner(1, 0.1))
    assert theta.grad is not None
    assert (theta.grad - torch.cat([right["body"], right["head"]])).abs().max() > 1e-2


# A Llama of two layers, in float64 ------------------------------------------------------------------


def rows(seed: int, count: int) -> list[Encoded]:
    draw = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        length = 5 + (seed + number) % 4
        made.append(Encoded(tuple(torch.randint(0, 23, (length,), generator=draw).tolist()), 3))
    return made


def episodes(count: int) -> list[Episode[PackedBatch]]:
    device = torch.device("cpu")
    return [Episode(pack(rows(10 * k, 3), device), pack(rows(10 * k + 5, 2), device)) for k in range(count)]


def llama(*, tied: bool = True, lora: tuple[str, ...] | None = None) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=23, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            # transformers' own computes in float32 whatever it is given: too coarse for finite differences.
            module.forward = MethodType(_norm, module)
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        model, LoraConfig(r=2, lora_alpha=4, target_modules=list(lora), init_lora_weights=False)
    )
    return adapted.double()


def _norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    normed: torch.Tensor = self.weight * hidden * scale
    return normed


def losses(kind: MetaKind, model: Any) -> tuple[AnswerLoss, ParameterLoss]:
    answer = AnswerLoss(model)
    if kind in ("maml", "anil"):
        return answer, ParameterLoss(TwiceDifferentiable(answer, attention=kind == "maml"))
    return answer, ParameterLoss(answer)


LLAMAS: dict[str, dict[str, Any]] = {
    "full": {"tied": False},
    "lora": {"tied": False, "lora": ("q_proj", "down_proj", "lm_head")},
    "lora below a frozen head": {"lora": ("q_proj", "down_proj")},
}


@pytest.mark.parametrize(
    ("kind", "shape"),
    # Below a frozen head there is none that ANIL could adapt.
    [("anil", "full"), ("anil", "lora"), *(("maml", shape) for shape in LLAMAS)],
)
def test_agrees_with_finite_differences_through_the_answer_loss(kind: MetaKind, shape: str) -> None:
    answer, loss = losses(kind, llama(**LLAMAS[shape]))
    head = loss.among(list(answer.head.parameters()))
    assert head or kind == "maml"
    inner, tasks = Inner(2, 0.05), episodes(2)
    found, value = outer_gradient(kind, loss, loss.params, tasks, inner, head=head)

    def objective(params: Params) -> float:
        """The exact outer objective: adapt, then look at the query set."""
        total = 0.0
        for task in tasks:
            names = head if kind == "anil" else None
            phi, _ = adapt(loss, params, [task.support] * inner.steps, inner.learning_rate, names)
            total += float(loss(phi, task.query).detach()) / len(tasks)
        return total

    assert value == pytest.approx(objective(loss.params), abs=1e-12)
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        way = {n: torch.randn(p.shape, dtype=p.dtype, generator=draw) for n, p in loss.params.items()}
        ahead, behind = (
            objective({n: p.detach() + step * way[n] for n, p in loss.params.items()})
            for step in (1e-6, -1e-6)
        )
        along = sum(float((found[name] * way[name]).sum()) for name in found)
        assert along == pytest.approx((ahead - behind) / 2e-6, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("kind", ["fomaml", "reptile"])
def test_first_order_objectives_agree_with_plain_descent_on_a_copy(kind: MetaKind) -> None:
    """The same by torch.optim.SGD on a model of its own, for each task anew."""
    inner, tasks = Inner(3, 0.2), episodes(2)
    _, loss = losses(kind, llama())
    found, _ = outer_gradient(kind, loss, loss.params, tasks, inner)
    wanted = {name: torch.zeros_like(parameter) for name, parameter in loss.params.items()}
    for task in tasks:
        copy = AnswerLoss(llama())
        named = dict(copy.named_parameters())
        start = {name: parameter.detach().clone() for name, parameter in named.items()}
        optimizer = torch.optim.SGD(named.values(), lr=inner.learning_rate)
        for step in range(inner.steps):
            batch = task.query if kind == "reptile" and step % 2 else task.support
            optimizer.zero_grad()
            (copy(batch) / len(batch.targets)).backward()
            optimizer.step()
        optimizer.zero_grad()
        (copy(task.query) / len(task.query.targets)).backward()
        for name, parameter in named.items():
            scale = inner.learning_rate * inner.steps
            part = parameter.grad if kind == "fomaml" else (start[name] - parameter.detach()) / scale
            assert part is not None
            wanted[name] += part / len(tasks)
    for name, gradient in found.items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-8, atol=1e-10), name


@pytest.mark.parametrize("kind", KINDS)
def test_no_parameter_changes_and_none_gets_a_gradient(kind: MetaKind) -> None:
    answer, loss = losses(kind, llama(tied=False))
    before = {name: parameter.detach().clone() for name, parameter in answer.named_parameters()}
    outer_gradient(
        kind, loss, loss.params, episodes(1), Inner(2, 0.2), head=loss.among(list(answer.head.parameters()))
    )
    for name, parameter in answer.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad


def test_the_fast_loss_has_no_second_derivative_through_a_frozen_head() -> None:
    """Why MAML goes through ``TwiceDifferentiable``: the fast path would be wrong, and silently."""
    tasks = episodes(1)
    answer = AnswerLoss(llama(lora=("q_proj", "down_proj")))
    fast, exact = ParameterLoss(answer), ParameterLoss(TwiceDifferentiable(answer, attention=True))
    with sdpa_kernel(SDPBackend.MATH):
        wrong, same = outer_gradient("maml", fast, fast.params, tasks, Inner(2, 0.2))
    right, value = outer_gradient("maml", exact, exact.params, tasks, Inner(2, 0.2))
    assert same == pytest.approx(value, abs=1e-12)
    apart = [float((wrong[name.removeprefix("answer.")] - right[name]).abs().max()) for name in right]
    assert max(apart) > 1e-4
