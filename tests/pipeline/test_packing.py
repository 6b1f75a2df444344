from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from cogumi.errors import RunError
from pipeline.training import answer_loss
from pipeline.training.answer_loss import AnswerLoss, summed_cross_entropy
from pipeline.training.data import Encoded
from pipeline.training.packing import StepSizes, endless_steps, epoch_steps, filled, pack
from pipeline.training.sft_objective import SftObjective

CPU = torch.device("cpu")
ROWS = [(7, 3), (120, 20), (30, 10), (31, 1), (64, 60), (5, 4), (2, 1)]


def rows(shapes: list[tuple[int, int]]) -> list[Encoded]:
    draw = random.Random(1)
    return [Encoded(tuple(draw.randrange(500) for _ in range(n)), start) for n, start in shapes]


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        **changes,
    )
    return LlamaForCausalLM(config).double()


def alone(model: Any, row: Encoded) -> torch.Tensor:
    """The loss of one row without packing, through the model's own attention and head."""
    ids = torch.tensor([row.ids])
    logits = model(input_ids=ids).logits[0, row.answer_start - 1 : -1]
    return cross_entropy(logits, ids[0, row.answer_start :], reduction="sum")


@pytest.mark.parametrize("pad_to", [0, 301])
def test_no_row_sees_another_or_the_padding(pad_to: int) -> None:
    model = llama()
    single = [alone(model, row) for row in rows(ROWS)]
    expected = torch.autograd.grad(torch.stack(single).sum(), list(model.parameters()))
    batch = pack(rows(ROWS), CPU, pad_to=pad_to)
    loss = AnswerLoss(model)(batch)
    found = torch.autograd.grad(loss, list(model.parameters()))
    assert batch.padding == max(0, pad_to - 259)
    assert len(batch.ids) == max(259, pad_to)
    assert float(loss.detach()) == pytest.approx(sum(float(one.detach()) for one in single), rel=1e-12)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_chunks_of_the_head_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    batch = pack(rows(ROWS), CPU)

    def gradients() -> list[torch.Tensor]:
        hidden = loss.hidden(batch)
        value = summed_cross_entropy(hidden, batch.targets, loss.head)
        return [value, *torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad])]

    loss = AnswerLoss(model)
    whole = gradients()
    monkeypatch.setattr(answer_loss, "CHUNK_ELEMENTS", 500 * 7)
    for one, other in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(one, other)
    # Frozen, the head takes the other road: loss and gradient in one pass.
    model.lm_head.weight.requires_grad_(False)
    frozen = gradients()
    torch.testing.assert_close(frozen[0], whole[0])
    torch.testing.assert_close(frozen[1], whole[2])


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [({"final_logit_softcapping": 30.0}, "softcapping"), ({"sliding_window": 16}, "sliding-window")],
)
def test_a_model_that_packing_cannot_stand_for_is_refused(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(RunError, match=wanted):
        AnswerLoss(llama(**changes))


def test_the_bins_of_a_step_bound_the_memory_and_not_the_gradient() -> None:
    model = llama()
    many = rows(ROWS * 2)

    def gradient(step: list[list[Encoded]]) -> list[torch.Tensor | None]:
        model.zero_grad()
        objective = SftObjective(AnswerLoss(model), many, [], StepSizes(999, 999), seed=0, device=CPU)
        counts = objective.gradient(objective.ready(step))
        assert counts.tokens == 2 * 259
        return [parameter.grad for parameter in model.parameters()]

    for one, other in zip(gradient([many]), gradient([[row] for row in many]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


lengths = st.lists(st.integers(min_value=2, max_value=60), min_size=1, max_size=80)


@given(lengths, st.integers(min_value=60, max_value=300), st.integers(0, 5))
def test_every_epoch_holds_every_row_once(sizes: list[int], tokens: int, seed: int) -> None:
    found = [Encoded(tuple([number] * size), 1) for number, size in enumerate(sizes)]
    steps = epoch_steps(found, StepSizes(tokens, 60), seed=seed, epoch=3)
    assert sorted(row.ids[0] for step in steps for batch in step for row in batch) == list(range(len(found)))
    count, capacity = StepSizes(tokens, 60).bins(max(sizes))
    for step in steps:
        assert 1 <= len(step) <= count
        assert all(sum(len(row.ids) for row in batch) <= capacity for batch in step)


@given(lengths, st.integers(0, 30))
def test_skipping_steps_equals_reading_past_them(sizes: list[int], skip: int) -> None:
    found = [Encoded(tuple([number] * size), 1) for number, size in enumerate(sizes)]
    straight = endless_steps(found, StepSizes(100, 60), seed=1, skip=0)
    for _ in range(skip):
        next(straight)
    skipped = endless_steps(found, StepSizes(100, 60), seed=1, skip=skip)
    assert [next(straight) for _ in range(5)] == [next(skipped) for _ in range(5)]


@given(lengths)
def test_bins_of_a_look_hold_every_row_once(sizes: list[int]) -> None:
    found = [Encoded(tuple([number] * size), 1) for number, size in enumerate(sizes)]
    bins = filled(found, 64)
    assert [row for batch in bins for row in batch] == found
    assert all(sum(len(row.ids) for row in batch) <= 64 for batch in bins)


def test_a_step_mixes_lengths() -> None:
    found = [Encoded(tuple([number] * (10 + 10 * (number % 3))), 1) for number in range(300)]
    for step in epoch_steps(found, StepSizes(600, 120), seed=0, epoch=0)[:-1]:
        assert {len(row.ids) for batch in step for row in batch} == {10, 20, 30}


def test_bins_are_full_at_the_plans_mix_of_lengths() -> None:
    draw = random.Random(0)
    sizes = [
        int(draw.lognormvariate(4.3, 0.5)) if draw.random() < 0.4 else int(draw.lognormvariate(6.5, 0.35))
        for _ in range(3000)
    ]
    found = [Encoded(tuple(range(max(2, size))), 1) for size in sizes]
    steps = epoch_steps(found, StepSizes(32768, 8192), seed=0, epoch=0)
    count, capacity = StepSizes(32768, 8192).bins(max(sizes))
    seen = sum(len(row.ids) for step in steps[:-1] for batch in step for row in batch)
    assert seen / ((len(steps) - 1) * count * capacity) > 0.99
