"""The closed-form correction against its definition, and against what it claims to be better than."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cogumi.errors import RunError
from pipeline.compression.eora import correction, fill_adapters, output_error
from pipeline.training.data import Encoded
from pipeline.training.fit import with_adapters
from pipeline.training.sft import LoraSettings

ROWS = [Encoded(tuple((7 * start + 3 * step) % 60 for step in range(24)), 24) for start in range(1, 12)]


def problem(outputs: int, inputs: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight error and the moment of inputs whose directions differ in strength by a thousand."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(0, -3, inputs, dtype=torch.float64) @ mix
    error = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    return error, x.T @ x / tokens


def plain(error: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, v = torch.linalg.svd(error, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


@pytest.mark.parametrize(("outputs", "inputs"), [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("tokens", [400, 8])
def test_no_correction_of_its_rank_leaves_less_output_error(outputs: int, inputs: int, tokens: int) -> None:
    error, moment = problem(outputs, inputs, tokens, seed=outputs)
    whole = output_error(error, moment)
    last = whole
    for rank in range(1, 13):
        a, b = correction(error, moment, rank)
        assert (a.shape, b.shape) == ((rank, inputs), (outputs, rank))
        left = output_error(error - b @ a, moment)
        assert left <= output_error(error - plain(error, rank), moment) + 1e-9 * whole
        assert left <= last + 1e-9 * whole
        last = left
    assert last <= (1e-9 if min(outputs, inputs) == 12 or tokens == 8 else 0.2) * whole


def test_it_beats_the_plain_decomposition_clearly_where_inputs_differ() -> None:
    error, moment = problem(16, 24, 400, seed=1)
    a, b = correction(error, moment, 4)
    assert output_error(error - b @ a, moment) < 0.5 * output_error(error - plain(error, 4), moment)


@pytest.mark.parametrize(("outputs", "inputs"), [(10, 16), (16, 10)])
def test_it_is_the_back_projected_decomposition_of_the_paper(outputs: int, inputs: int) -> None:
    error, moment = problem(outputs, inputs, 300, seed=3)
    values, vectors = torch.linalg.eigh(moment)
    root = vectors * values.sqrt()
    u, s, v = torch.linalg.svd(error @ root, full_matrices=False)
    wanted = (u[:, :3] * s[:3]) @ (v[:3] @ torch.linalg.inv(root))
    a, b = correction(error, moment, 3)
    # As far as the damping of the moment lets them.
    torch.testing.assert_close(b @ a, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("outputs", "inputs"), [(10, 16), (16, 10)])
def test_full_rank_restores_the_layer(outputs: int, inputs: int) -> None:
    error, moment = problem(outputs, inputs, 300, seed=5)
    a, b = correction(error, moment, 24)
    torch.testing.assert_close(b @ a, error, rtol=0, atol=1e-5)
    assert not a[10:].any()
    assert not b[:, 10:].any()


# A whole model ------------------------------------------------------------------------------------


def llama(inner: int = 48, layers: int = 2) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def pruned(model: Any) -> Any:
    """Zero the smaller two thirds of every linear layer inside the decoder."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                bound = weight.abs().flatten().kthvalue(weight.numel() * 2 // 3).values
                weight[weight.abs() <= bound] = 0
    return model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eora") / "model"
    llama().save_pretrained(folder)
    return folder


def filled(original: Path, rank: int) -> tuple[Any, dict[str, Any]]:
    model = with_adapters(pruned(llama()), LoraSettings(rank=rank, alpha=rank), 0)
    told: list[tuple[int, int]] = []
    done = fill_adapters(model, original, ROWS, capacity=64, tell=lambda at, of: told.append((at, of)))
    assert told == [(1, 2), (2, 2)]
    return model, done


def states(model: Any) -> torch.Tensor:
    from pipeline.training.answer_loss import AnswerLoss
    from pipeline.training.packing import pack

    rows = [Encoded(row.ids, 1) for row in ROWS]
    with torch.no_grad():
        return AnswerLoss(model).hidden(pack(rows, torch.device("cpu")))


def test_every_layer_is_corrected_and_full_rank_restores_the_model(original: Path) -> None:
    wanted, broken = states(llama()), states(pruned(llama()))
    errors = []
    for rank in (2, 8, 48):
        model, done = filled(original, rank)
        assert len(done) == 14
        assert all(each.after < each.before for each in done.values())
        errors.append(float((states(model) - wanted).square().mean()))
    assert float((broken - wanted).square().mean()) > errors[0] > errors[1] > errors[2]
    torch.testing.assert_close(states(model), wanted, rtol=1e-3, atol=1e-3)


def test_a_model_that_it_was_not_made_from_is_refused_in_one_line(tmp_path: Path) -> None:
    llama(inner=64).save_pretrained(tmp_path / "wider")
    with pytest.raises(RunError, match="name the model that it was compressed from") as told:
        filled(tmp_path / "wider", 2)
    assert "\n" not in str(told.value)
    llama(layers=3).save_pretrained(tmp_path / "deeper")
    with pytest.raises(RunError, match=r"3 layers, the compressed model has 2; .* start: zero"):
        filled(tmp_path / "deeper", 2)


def test_weights_with_folded_scales_are_not_compared(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight.mul_(1.1)
        model.model.layers[1].mlp.gate_proj.weight.div_(1.1)
        model.model.layers[1].mlp.up_proj.weight.div_(1.1)
    torch.testing.assert_close(states(model), states(llama()))
    model.save_pretrained(tmp_path / "scaled")
    with pytest.raises(RunError, match=r"^model\.layers\.1\.post_attention_layernorm.*folded: true"):
        filled(tmp_path / "scaled", 2)


def test_weights_that_are_no_numbers_are_told_with_their_layer(original: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = torch.nan
    adapted = with_adapters(model, LoraSettings(rank=2, alpha=2), 0)
    with pytest.raises(RunError, match=r"^model\.layers\.1\.mlp\.up_proj: .*not finite"):
        fill_adapters(adapted, original, ROWS, capacity=64, tell=lambda at, of: None)


def test_a_folder_without_the_tensor_is_told(original: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(original, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"no tensor model\.layers\.0\.self_attn\.q_proj\.weight"):
        filled(tmp_path / "model", 2)
