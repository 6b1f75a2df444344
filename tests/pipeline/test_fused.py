from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.data import Encoded
from pipeline.training.fused import stack
from pipeline.training.fused.loss import FusedAnswerLoss, why_not_fused
from pipeline.training.packing import pack

ROWS = [(7, 3), (50, 20), (30, 10), (31, 1), (5, 4)]


def adapted(dtype: torch.dtype = torch.float64, std: float = 0.2, **changes: Any) -> Any:
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48}
    shape = {name: changes.pop(name, size) for name, size in shape.items()}
    config = LlamaConfig(
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        **shape,
    )
    lora: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", **changes}
    model = get_peft_model(LlamaForCausalLM(config).to(dtype), LoraConfig(task_type="CAUSAL_LM", **lora))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            # B starts at zero: then A's gradient is zero whatever the code does.
            torch.nn.init.normal_(parameter.data, std=std)
            parameter.data = parameter.data.to(dtype)
    return model


def batch(pad_to: int = 0) -> Any:
    draw = random.Random(1)
    rows = [Encoded(tuple(draw.randrange(300) for _ in range(n)), start) for n, start in ROWS]
    return pack(rows, torch.device("cpu"), pad_to=pad_to)


def gradients(loss: AnswerLoss, pad_to: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    loss.model.zero_grad()
    value = loss(batch(pad_to))
    value.backward()
    named = loss.model.named_parameters()
    return float(value.detach()), {
        name: parameter.grad.clone() for name, parameter in named if parameter.requires_grad
    }


def norm(self: Any, states: torch.Tensor) -> torch.Tensor:
    """RMS norm in the precision of its input; that of transformers goes through float32."""
    scale = torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * states * scale


@pytest.mark.parametrize("pad_to", [0, 160])
def test_fused_layers_give_the_loss_and_gradients_of_peft(
    pad_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    model = adapted()
    assert why_not_fused(model) is None
    expected_loss, expected = gradients(AnswerLoss(model))
    fused = FusedAnswerLoss(model)
    found_loss, found = gradients(fused, pad_to)
    assert found_loss == pytest.approx(expected_loss, rel=1e-12)
    assert found.keys() == expected.keys()
    assert len(found) == 2 * 7 * 3
    for name, grad in found.items():
        assert grad.abs().max() > 1e-6
        torch.testing.assert_close(grad, expected[name], rtol=1e-9, atol=1e-11)


def test_fused_layers_follow_the_adapters_and_give_the_weights_back() -> None:
    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = FusedAnswerLoss(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(1.5)
    stale = float(fused(batch()).detach())
    fused.refresh()
    fresh = float(fused(batch()).detach())
    fused.release()
    assert fresh == pytest.approx(float(AnswerLoss(model)(batch()).detach()), rel=1e-7)
    assert fresh != pytest.approx(stale, rel=1e-6)
    for name, tensor in model.state_dict().items():
        assert tensor.is_contiguous()
        assert torch.equal(tensor, before[name] * (1.5 if "lora_" in name else 1))
    storages = [tensor.untyped_storage().data_ptr() for name, tensor in model.state_dict().items()]
    assert len(set(storages)) == len(storages)


def test_a_look_keeps_nothing_for_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = FusedAnswerLoss(adapted())
    seen: list[int] = []
    forward = stack.StackFunction.forward

    def watched(ctx: Any, *inputs: Any) -> Any:
        found = forward(ctx, *inputs)
        seen.append(len(ctx.kept))
        return found

    monkeypatch.setattr(stack.StackFunction, "forward", staticmethod(watched))
    with torch.no_grad():
        looked = float(fused(batch()))
    assert looked == pytest.approx(float(fused(batch()).detach()), rel=1e-12)
    assert seen == [0, 3]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, "not every linear layer"),
        ({"lora_dropout": 0.1}, "dropout"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "more is trained"),
    ],
)
def test_what_the_fused_layers_cannot_do_is_told(changes: dict[str, Any], why: str) -> None:
    assert why in (why_not_fused(adapted(**changes)) or "")


@pytest.mark.gpu
def test_compiled_layers_on_a_gpu_are_as_near_to_float32_as_those_of_peft() -> None:
    from pipeline.training.fused.kernels import compiled

    model = adapted(torch.float32, 0.05, hidden_size=256, intermediate_size=512, vocab_size=3000, r=16)
    draw = random.Random(2)
    rows = [Encoded(tuple(draw.randrange(3000) for _ in range(n)), n // 3) for n in (400, 37, 120, 5, 260)]

    def gradient(loss: AnswerLoss, device: str) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda" and type(loss) is AnswerLoss):
            value = loss(pack(rows, torch.device(device), pad_to=1024))
        value.backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        return float(value.detach()), torch.cat(grads).cpu()

    exact, wanted = gradient(AnswerLoss(model), "cpu")
    model = model.to("cuda")
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    _, of_peft = gradient(AnswerLoss(model), "cuda")
    found, mine = gradient(FusedAnswerLoss(model, compiled()), "cuda")
    errors = [float((one - wanted).norm() / wanted.norm()) for one in (mine, of_peft)]
    assert found == pytest.approx(exact, rel=5e-3)
    assert errors[0] < 1.5 * errors[1], errors
    assert errors[1] < 0.2, errors


@pytest.mark.gpu
def test_compiled_layers_take_bins_of_many_lengths() -> None:
    from pipeline.training.fused.kernels import compiled

    model = adapted(torch.float32, 0.05, hidden_size=256, intermediate_size=512, vocab_size=3000, r=16).to(
        "cuda"
    )
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    loss = FusedAnswerLoss(model, compiled())
    for length in range(64, 64 + 12):
        row = Encoded(tuple(range(length)), length // 2)
        loss(pack([row], torch.device("cuda"))).backward()
