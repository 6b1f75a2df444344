from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compression.ggml import dequantize, quantize
from pipeline.compression.grids import GRIDS, pack
from pipeline.compression.rounding import damp, inverse_factor, rounded, row_errors


def layer(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight matrix, and the moments of inputs that go together, as those of real layers do."""
    torch.manual_seed(0)
    mixed = torch.randn(columns, columns) / columns**0.5
    inputs = torch.randn(4 * columns, columns // 4) @ mixed[: columns // 4] + 0.1 * torch.randn(
        4 * columns, columns
    )
    return 0.05 * torch.randn(rows, columns), inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize("kind", GRIDS)
def test_packed_bytes_are_read_by_ggml_as_they_were_meant(kind: str) -> None:
    grid, rng = GRIDS[kind], np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(0, len(grid.levels), size=(7, 3 * grid.block)))
    scale = torch.from_numpy(rng.normal(size=(7, 3)).astype(np.float16).astype(np.float32))
    minimum = torch.from_numpy(rng.normal(size=(7, 3)).astype(np.float16).astype(np.float32))
    data = pack(kind, codes, scale, minimum if grid.has_minimum else None)
    wanted = torch.tensor(grid.levels)[codes] * scale.repeat_interleave(grid.block, dim=1)
    if grid.has_minimum:
        wanted = wanted + minimum.repeat_interleave(grid.block, dim=1)
    assert torch.equal(torch.from_numpy(dequantize(data, kind, codes.shape[1])), wanted)


# The least share of plain ggml's error that is taken away: 256-blocks of ggml's own quantiser can do less.
@pytest.mark.parametrize(
    ("kind", "gain"),
    [
        ("q2_0", 0.9),
        ("q4_0", 0.5),
        ("iq4_nl", 0.5),
        ("q4_1", 0.5),
        ("q5_0", 0.5),
        ("q8_0", 0.4),
        ("q4_K", 0.2),
    ],
)
def test_compensation_takes_error_away(kind: str, gain: float) -> None:
    columns = 512 if kind == "q4_K" else 128
    weight, hessian = layer(24, columns)
    done = rounded(weight, hessian, kind, passes=2)
    damped = damp(hessian, 0.01)
    plain = torch.from_numpy(
        dequantize(quantize(weight.numpy(), kind, damped.diagonal().numpy()), kind, columns)
    )
    assert torch.allclose(done.plain_errors, row_errors(weight - plain, damped))
    assert done.errors.sum() < (1 - gain) * done.plain_errors.sum()
    # What is told is what the bytes hold.
    values = torch.from_numpy(dequantize(done.data, kind, columns))
    assert torch.equal(values, done.values)
    assert torch.allclose(row_errors(weight - values, damped), done.errors, rtol=1e-3)


def test_descent_only_lowers_the_error() -> None:
    weight, hessian = layer(16, 128)
    errors = [float(rounded(weight, hessian, "q2_0", passes=passes).errors.sum()) for passes in (0, 1, 4)]
    assert errors[1] < 0.95 * errors[0]
    assert errors[2] < errors[1]


def test_no_row_is_worse_than_plain_also_for_hessians_that_say_nothing() -> None:
    weight, _ = layer(32, 64)
    for hessian in (torch.zeros(64, 64), torch.eye(64), torch.ones(64, 64)):
        done = rounded(weight, hessian, "iq4_nl")
        assert bool((done.errors <= done.plain_errors).all())
        assert bool(torch.isfinite(done.values).all())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["q2_0", "q4_0", "q4_1", "iq4_nl"]), st.floats(1e-6, 1e3))
def test_any_matrix_is_rounded_to_finite_values(seed: int, kind: str, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = size * torch.randn(5, 64, generator=generator)
    weight[0] = 0
    weight[1, :32] = weight[1, 0]
    inputs = torch.randn(8, 64, generator=generator)
    done = rounded(weight, inputs.T @ inputs, kind, passes=1)
    assert bool((done.errors <= done.plain_errors).all())
    assert torch.equal(done.values[0], torch.zeros(64))
    assert torch.equal(torch.from_numpy(dequantize(done.data, kind, 64)), done.values)


def test_inverse_factor_is_that_of_the_inverse() -> None:
    _, hessian = layer(1, 64)
    damped = damp(hessian, 0.01)
    upper = inverse_factor(damped)
    assert torch.equal(upper, upper.triu())
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(64), atol=1e-3)
