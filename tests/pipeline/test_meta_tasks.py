"""Families, tasks, and the objective that the training loop runs over them."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from micro_stages import Updates
from pydantic import ValidationError

from cogumi.errors import RunError, UsageError
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.data import Encoded, EncodedSet, Example
from pipeline.training.equal_compute import steps_for
from pipeline.training.loop import LoopConfig, Trainer
from pipeline.training.meta import MetaKind
from pipeline.training.meta_objective import MetaObjective
from pipeline.training.meta_tasks import (
    FamilySettings,
    MetaSettings,
    Task,
    Tasks,
    family_of,
    group_rows,
    held_out_families,
    trained_cells,
    without_held_out,
)
from pipeline.training.packing import StepSizes, endless_steps
from pipeline.training.world import World

CELLS = [(domain, level) for domain in ("math", "coding", "reading") for level in ("easy", "hard")]


def example(domain: str, difficulty: str | None, number: int = 0) -> Example:
    return Example(f"{domain}_{difficulty}_{number}", domain, "?", "!", None, difficulty)


EXAMPLES = [example(domain, level, number) for domain, level in CELLS for number in range(4)]


def test_families_are_cells_domains_or_named_groups() -> None:
    row = example("math", "easy")
    assert family_of(row, FamilySettings()) == "math/easy"
    assert family_of(row, FamilySettings(by="domain")) == "math"
    named = FamilySettings(by={"numbers": ("math", "coding/hard"), "texts": ("reading",)})
    found = [family_of(example(*cell), named) for cell in CELLS]
    assert found == ["numbers", "numbers", None, "numbers", "texts", "texts"]


def test_a_row_without_difficulty_is_in_no_cell() -> None:
    with pytest.raises(RunError, match=r"row math_None_0 has no 'difficulty'.*families.by: domain"):
        family_of(example("math", None), FamilySettings())
    assert family_of(example("math", None), FamilySettings(by="domain")) == "math"


@pytest.mark.parametrize("by", [{"a": ("math",), "b": ("math/easy",)}, {"a": ("math", "math")}])
def test_families_that_overlap_are_refused(by: Any) -> None:
    with pytest.raises(ValidationError, match="in two families"):
        FamilySettings(by=by)


def test_held_out_families_are_named_or_chosen_by_digest() -> None:
    named = FamilySettings(held_out=("math/hard", "coding/easy"))
    assert held_out_families(EXAMPLES, named) == ("coding/easy", "math/hard")
    shared = FamilySettings(held_out=0.34)
    chosen = held_out_families(EXAMPLES, shared)
    assert len(chosen) == 2
    assert held_out_families(EXAMPLES[::-1], shared) == chosen
    left = without_held_out(EXAMPLES, shared)
    assert set(trained_cells(left)) == {f"{d}/{level}" for d, level in CELLS} - set(chosen)
    assert trained_cells(left[:1], before=["x/easy"]) == [*trained_cells(left[:1]), "x/easy"]


def test_wrong_held_out_families_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no family 'math/eazy' \(did you mean 'math/easy'"):
        held_out_families(EXAMPLES, FamilySettings(held_out=("math/eazy",)))
    with pytest.raises(UsageError, match="no family is left"):
        held_out_families(EXAMPLES, FamilySettings(by="domain", held_out=("math", "coding", "reading")))


# Tasks ----------------------------------------------------------------------------------------------


def numbered(sizes: dict[str, int]) -> dict[str, list[str]]:
    return {name: [f"{name}{place}" for place in range(size)] for name, size in sizes.items()}


@given(st.integers(0, 500), st.integers(0, 3))
def test_a_task_is_a_fixed_draw_of_disjoint_rows_of_one_family(number: int, seed: int) -> None:
    families = numbered({"a": 9, "b": 20})
    task = Tasks(families, support=3, query=5, count=501, seed=str(seed))[number]
    assert (len(task.support), len(task.query)) == (3, 5)
    assert len({*task.support, *task.query}) == 8
    assert {*task.support, *task.query} <= set(families[task.family])
    assert task == Tasks(families, support=3, query=5, count=501, seed=str(seed))[number]


@given(st.integers(0, 40), st.integers(1, 7), st.integers(1, 11))
def test_skipping_steps_equals_reading_past_them(skip: int, per_step: int, count: int) -> None:
    tasks = Tasks(numbered({"a": 9, "b": 20}), support=2, query=2, count=count, seed="0")
    straight = tasks.endless(per_step)
    for _ in range(skip):
        next(straight)
    skipped = tasks.endless(per_step, skip=skip)
    assert [next(straight) for _ in range(4)] == [next(skipped) for _ in range(4)]


def test_every_task_comes_once_before_any_comes_again() -> None:
    tasks = Tasks(numbered({"a": 30, "b": 30}), support=2, query=2, count=12, seed="0")
    steps = tasks.endless(4)
    every = {str(tasks[number]) for number in range(12)}
    for _ in range(3):
        assert {str(task) for _ in range(3) for task in next(steps)} == every
    assert tasks.distinct(8) == 8
    assert tasks.distinct(1000) == 12


def test_tasks_that_repeat_are_counted_once() -> None:
    # Three rows, one to learn from and one to answer: six different tasks.
    assert Tasks(numbered({"a": 3}), support=1, query=1, count=500, seed="0").distinct(500) == 6


def test_small_families_are_left_out_and_counted() -> None:
    tasks = Tasks(numbered({"a": 9, "b": 3}), support=2, query=2, count=30, seed="0")
    assert tasks.left_out == {"b": 3}
    assert {tasks[number].family for number in range(30)} == {"a"}
    with pytest.raises(RunError, match=r"no family has the 10 rows of a task .* largest has 9: lower"):
        Tasks(numbered({"a": 9, "b": 3}), support=5, query=5, count=30, seed="0")


# The objective --------------------------------------------------------------------------------------


def llama(*, tied: bool = True) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tied, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def with_lora(model: Any, *targets: str) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=list(targets)))


def encoded_set() -> EncodedSet:
    """Six families of 14 rows, four of each held out; a family is a token that its rows repeat."""
    draw = torch.Generator().manual_seed(1)
    made = EncodedSet([], [], [], [], 0)
    for family, (domain, level) in enumerate(CELLS):
        for number in range(14):
            asked = torch.randint(6, 23, (3,), generator=draw).tolist()
            row = Encoded((*asked, family, family), 3)
            rows, examples = (
                (made.train, made.train_examples) if number < 10 else (made.held_out, made.held_out_examples)
            )
            rows.append(row)
            examples.append(example(domain, level, number))
    return made


SETTINGS = MetaSettings(
    tasks=20, tasks_per_step=2, support=2, query=2, inner_steps=2, inner_learning_rate=0.1, look_tasks=4
)


def objective(kind: MetaKind, model: Any, **changes: Any) -> MetaObjective:
    settings = SETTINGS.model_copy(update=changes)
    return MetaObjective(AnswerLoss(model), encoded_set(), kind, settings, seed=3)


@pytest.mark.parametrize("kind", ["reptile", "fomaml", "anil", "maml"])
def test_the_loop_lowers_the_loss_after_adaptation(kind: MetaKind, tmp_path: Path) -> None:
    model = llama(tied=kind != "anil")
    learnt = objective(kind, model)
    config = LoopConfig(
        steps=16, learning_rate=1e-2, warmup_steps=2, weight_decay=0.0, clip=1.0, seed=0, eval_every=16,
        early_stop=None,
    )  # fmt: skip
    state = Trainer(dict(model.named_parameters()), learnt, config, scratch=tmp_path).run(Updates())
    losses = [look["held_out_loss"] for look in state.looks]
    assert losses[-1] < 0.75 * losses[0]
    # Two tasks a step, rows of 5 tokens, 2 of them answered, a pass for each inner step and the query set.
    passes = 2 if kind == "reptile" else 3
    assert state.tokens == 16 * 2 * passes * 2 * 5
    assert state.supervised == state.tokens * 2 // 5
    facts = learnt.facts(state.step)
    assert (facts["objective"], facts["meta_iterations"], facts["meta_tasks"]) == (kind, 16, 20)
    assert facts["meta_families"] == sorted(f"{domain}/{level}" for domain, level in CELLS)


def test_the_same_seed_gives_the_same_gradient_and_looks_change_nothing() -> None:
    found = []
    for _ in range(2):
        model = llama()
        learnt = objective("fomaml", model)
        steps = learnt.steps(skip=3)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        assert learnt.held_out_loss() is not None
        counts = learnt.gradient(next(steps))
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
        found.append((counts, {name: parameter.grad for name, parameter in model.named_parameters()}))
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        assert gradient is not None
        assert torch.equal(gradient, found[1][1][name])


class Half(World):
    """One of two processes; their sums are made in the test."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def test_processes_share_the_tasks_of_a_step() -> None:
    whole, parts = llama(), []
    alone = objective("fomaml", whole, tasks_per_step=3)
    step = next(alone.steps(skip=0))
    counts = alone.gradient(step)
    for rank in range(2):
        model = llama()
        settings = SETTINGS.model_copy(update={"tasks_per_step": 3})
        shared = MetaObjective(AnswerLoss(model), encoded_set(), "fomaml", settings, seed=3, world=Half(rank))
        parts.append((shared.gradient(step), dict(model.named_parameters())))
    assert sum(float(part.loss) for part, _ in parts) == pytest.approx(float(counts.loss), rel=1e-6)
    assert {part.tokens for part, _ in parts} == {counts.tokens}
    for name, parameter in whole.named_parameters():
        one, other = (named[name].grad for _, named in parts)
        assert parameter.grad is not None
        assert one is not None
        assert other is not None
        assert torch.allclose(one + other, parameter.grad, atol=1e-7)


def test_anil_without_a_head_of_its_own_says_how_to_get_one() -> None:
    with pytest.raises(UsageError, match="shares its weights with the embeddings; take fomaml"):
        objective("anil", llama())
    with pytest.raises(UsageError, match=r"the head has no adapter: add lm_head to lora.targets"):
        objective("anil", with_lora(llama(tied=False), "q_proj"))
    adapted = objective("anil", with_lora(llama(tied=False), "q_proj", "lm_head"))
    counts = adapted.gradient(next(adapted.steps(skip=0)))
    assert counts.loss > 0


def test_reptile_with_one_inner_step_is_refused() -> None:
    with pytest.raises(UsageError, match="with inner_steps 1 it is plain fine-tuning"):
        objective("reptile", llama(), inner_steps=1)


def test_weights_in_parts_are_refused() -> None:
    world = World()
    world.sharded = True
    with pytest.raises(UsageError, match=r"set devices.strategy: ddp"):
        MetaObjective(AnswerLoss(llama()), encoded_set(), "fomaml", SETTINGS, seed=3, world=world)


def test_a_control_sees_as_many_tokens() -> None:
    rows, sizes = encoded_set().train, StepSizes(40, 20)
    every = endless_steps(rows, sizes, seed=4, skip=0)
    seen = [sum(len(row.ids) for entry in next(every) for row in entry) for _ in range(30)]
    for count in (1, 7, 30):
        assert steps_for(sum(seen[:count]), rows, sizes, seed=4) == count
    reached = list(accumulate(seen))
    for target in range(45, 900, 7):
        found = reached[steps_for(target, rows, sizes, seed=4) - 1]
        assert abs(found - target) == min(abs(each - target) for each in reached)
    assert steps_for(1, rows, sizes, seed=4) == 1


def test_looks_need_enough_held_out_rows() -> None:
    with pytest.raises(RunError, match=r"looks at held-out rows: .* largest has 4.*held_out_share"):
        objective("fomaml", llama(), support=3)
    without = encoded_set()
    without.held_out.clear()
    without.held_out_examples.clear()
    assert MetaObjective(AnswerLoss(llama()), without, "fomaml", SETTINGS, seed=0).held_out_loss() is None


def test_rows_and_their_examples_stay_together() -> None:
    made = encoded_set()
    groups = group_rows(made.train, made.train_examples, FamilySettings(by="domain"))
    assert {name: {row.ids[-1] for row in rows} for name, rows in groups.items()} == {
        "math": {0, 1}, "coding": {2, 3}, "reading": {4, 5},
    }  # fmt: skip
    task: Task[Encoded] = Tasks(groups, support=2, query=2, count=1, seed="0")[0]
    assert len({row.ids[-1] for row in (*task.support, *task.query)}) <= 2
