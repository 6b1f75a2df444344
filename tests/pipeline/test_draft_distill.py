"""The loss of distillation against its definition, written out in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from micro_stages import micro_data, run_stage
from pydantic import ValidationError

from cogumi.errors import RunError
from pipeline.training import answer_loss
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.data import Encoded
from pipeline.training.distill import DistillSettings, check_same_tokenizer
from pipeline.training.distill_loss import DistillLoss
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings
from pipeline.training.packing import pack

ROWS = [Encoded(tuple(range(3, 15)), 5), Encoded(tuple(range(20, 29)), 2), Encoded((7, 9, 11), 2)]


def model(vocabulary: int, layers: int, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).double()


def by_definition(student: Any, teacher: Any, settings: DistillSettings) -> torch.Tensor:
    """Row by row, position by position, through the models' own attention: no packing, no chunk."""
    total = torch.zeros((), dtype=torch.float64)
    for row in ROWS:
        ids = torch.tensor([row.ids])
        said = student(input_ids=ids, use_cache=False).logits[0]
        meant = teacher(input_ids=ids, use_cache=False).logits[0].detach()
        shared = min(said.shape[1], meant.shape[1])
        for place in range(row.answer_start, len(row.ids)):
            plain = -torch.log_softmax(said[place - 1], 0)[row.ids[place]]
            p = torch.softmax(said[place - 1][:shared] / settings.temperature, 0)
            q = torch.softmax(meant[place - 1][:shared] / settings.temperature, 0)
            a, b = (q, p) if settings.kind == "forward" else (p, q)
            divergence = (a * (a / b).log()).sum() * settings.temperature**2
            total = total + (1 - settings.weight) * plain + settings.weight * divergence
    return total


@pytest.mark.parametrize("kind", ["forward", "reverse"])
@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.3, 2.5), (1.0, 0.7)])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("vocabularies", [(40, 40), (40, 33), (33, 40)])
def test_value_and_gradient_are_those_of_the_definition(
    kind: Any,
    weight: float,
    temperature: float,
    chunked: bool,
    vocabularies: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if chunked:
        # Two positions at a time.
        monkeypatch.setattr(answer_loss, "CHUNK_ELEMENTS", 2 * sum(vocabularies))
    settings = DistillSettings(weight=weight, temperature=temperature, kind=kind)
    plain = [model(vocabularies[0], 1, 0), model(vocabularies[1], 2, 1)]
    wanted = by_definition(*plain, settings)
    wanted.backward()
    student, teacher = model(vocabularies[0], 1, 0), model(vocabularies[1], 2, 1)
    loss = DistillLoss(AnswerLoss(student), AnswerLoss(teacher), settings)
    found = loss(pack(ROWS, torch.device("cpu")))
    found.backward()
    assert found.dtype == torch.float64
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    for name, parameter in plain[0].named_parameters():
        ours = dict(student.named_parameters())[name].grad
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-9, atol=1e-12)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    student, teacher = model(40, 1, 0), model(40, 1, 0)
    loss = DistillLoss(AnswerLoss(student), AnswerLoss(teacher), DistillSettings(weight=1.0))
    found = loss(pack(ROWS, torch.device("cpu")))
    found.backward()
    assert float(found.detach()) == pytest.approx(0.0, abs=1e-12)
    assert all(float(p.grad.abs().max()) < 1e-12 for p in student.parameters())


def test_the_teacher_is_frozen_and_belongs_to_nobody() -> None:
    teacher = AnswerLoss(model(40, 1, 1))
    loss = DistillLoss(AnswerLoss(model(40, 1, 0)), teacher, DistillSettings())
    loss.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    mine = {id(parameter) for parameter in loss.parameters()}
    assert not mine & {id(parameter) for parameter in teacher.parameters()}
    assert len(loss.state_dict()) == len(loss.student.state_dict())


def test_a_frozen_head_gives_the_adapters_the_same_gradient() -> None:
    wanted, frozen = model(40, 1, 0), model(40, 1, 0)
    frozen.lm_head.weight.requires_grad_(False)
    batch = pack(ROWS, torch.device("cpu"))
    for each in (wanted, frozen):
        DistillLoss(AnswerLoss(each), AnswerLoss(model(40, 2, 1)), DistillSettings())(batch).backward()
    assert frozen.lm_head.weight.grad is None
    for left, right in zip(wanted.model.parameters(), frozen.model.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bad", [{"weight": 0}, {"weight": 1.5}, {"temperature": 0}, {"kind": "both"}])
def test_settings_are_strict(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DistillSettings(**bad)


def test_other_tokenizers_are_sent_to_the_bases_own_answers(tmp_path: Path) -> None:
    data = micro_data(tmp_path / "data", per_cell=2)
    shape = MicroModelSettings(
        hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=32, vocab_size=400
    )
    base = run_stage(MICRO_MODEL, shape, tmp_path / "base", {"data": data})[1]
    shared = run_stage(MICRO_MODEL, shape, tmp_path / "same", {"data": data, "tokenizer_from": base})[1]
    other = shape.model_copy(update={"vocab_size": 350})
    apart = run_stage(MICRO_MODEL, other, tmp_path / "other", {"data": data})[1]
    check_same_tokenizer(shared.path, base.path)
    with pytest.raises(RunError, match=r"leave `distill`.*out.*training.self_answers") as told:
        check_same_tokenizer(apart.path, base.path)
    assert "\n" not in str(told.value)
