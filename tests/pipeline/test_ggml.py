from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogumi.errors import RunError, UsageError
from evals.backends.gguf_header import kind_sizes
from pipeline.compression.ggml import (
    TYPES,
    bits_per_weight,
    block_bytes,
    block_columns,
    canonical,
    dequantize,
    fits,
    needs_importance,
    number_of,
    quantize,
    row_bytes,
)

# Share of the squared values of normal noise that each type loses when ggml rounds it, to within a half: what
# these sizes can do; q2_0 and the ternary types scale by the largest weight and lose half.
LOST = {
    "q8_0": 3e-5,
    "q6_K": 3e-4,
    "q5_1": 1.1e-3,
    "q4_0": 6.4e-3,
    "iq4_nl": 5.5e-3,
    "q3_K": 2.1e-2,
    "q2_0": 0.49,
}


def noise(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


# ggml builds a table before the first block of these; that of iq1_s takes many seconds.
TABLES = ("iq1_s", "iq1_m", "iq2_xs", "iq2_s")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in TABLES)) for kind in TYPES]
)
def test_every_type_goes_there_and_back(kind: str) -> None:
    values = noise(3, 512)
    data = quantize(values, kind, np.ones(512, np.float32))
    assert data.shape == (3, row_bytes(kind, 512))
    assert bits_per_weight(kind) == 8 * data.shape[1] / 512
    back = dequantize(data, kind, 512)
    # One bit a weight keeps the signs alone, 64 % of the squares.
    assert ((values - back) ** 2).sum() < 0.7 * (values**2).sum()
    # A row does not depend on the others.
    assert (quantize(values[1:2], kind, np.ones(512, np.float32)) == data[1:2]).all()


@pytest.mark.parametrize(("kind", "lost"), LOST.items())
def test_errors_are_those_of_the_type(kind: str, lost: float) -> None:
    values = noise(64, 512)
    found = ((values - dequantize(quantize(values, kind), kind, 512)) ** 2).sum() / (values**2).sum()
    assert lost / 1.5 < found < lost * 1.5


def test_sizes_are_those_of_the_format() -> None:
    assert (block_columns("q2_0"), block_bytes("q2_0")) == (64, 18)
    assert (block_columns("Q4_K"), block_bytes("q4_k")) == (256, 144)
    assert bits_per_weight("iq4_nl") == 4.5
    assert canonical("IQ4_NL") == "iq4_nl"
    assert kind_sizes(42)[0] == "q2_0"
    assert fits("q4_0", 576)
    assert not fits("q4_K", 576)


def test_names_are_the_librarys_own_and_numbers_those_of_the_format() -> None:
    import gguf

    assert [kind_sizes(number_of(kind))[0] for kind in TYPES] == list(TYPES)
    theirs = gguf.GGMLQuantizationType.__members__
    # The package does not know every type that the library has.
    known = [kind for kind in TYPES if kind.upper() in theirs]
    assert len(known) >= 25
    assert {kind: number_of(kind) for kind in known} == {kind: theirs[kind.upper()] for kind in known}


def test_importance_is_needed_and_used() -> None:
    assert needs_importance("iq2_xxs")
    assert not needs_importance("q4_0")
    values, importance = noise(16, 256), np.ones(256, np.float32)
    importance[:16] = 100
    with pytest.raises(RunError, match="iq2_xxs needs an importance matrix"):
        quantize(values, "iq2_xxs")
    flat = dequantize(quantize(values, "q4_0", np.ones(256, np.float32)), "q4_0", 256) - values
    weighted = dequantize(quantize(values, "q4_0", importance), "q4_0", 256) - values
    assert (weighted[:, :16] ** 2).sum() < (flat[:, :16] ** 2).sum()


def test_what_ggml_would_end_the_process_for_is_one_line() -> None:
    values = noise(2, 64)
    with pytest.raises(RunError, match="rows of 64 weights take no q4_K, whose blocks hold 256"):
        quantize(values, "q4_K")
    values[1, 3] = np.nan
    with pytest.raises(RunError, match="q4_0 hold NaN"):
        quantize(values, "q4_0")
    with pytest.raises(RunError, match="an importance of 64 values"):
        quantize(noise(2, 64), "q4_0", np.ones(32, np.float32))
    with pytest.raises(RunError, match="7 bytes are not a row of 64 weights in q2_0"):
        dequantize(np.zeros((2, 7), np.uint8), "q2_0", 64)
    with pytest.raises(UsageError, match=r"unknown ggml type 'q4_x' \(did you mean"):
        canonical("q4_x")
    with pytest.raises(RunError, match="tensor type 99 is unknown"):
        kind_sizes(99)


def test_many_rows_are_the_same_on_many_threads() -> None:
    values = noise(1024, 512)
    whole = quantize(values, "q4_0")
    assert (whole[500:504] == quantize(values[500:504], "q4_0")).all()
    assert (dequantize(whole, "q4_0", 512)[700:] == dequantize(whole[700:], "q4_0", 512)).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=32, max_size=32))
def test_q8_is_within_half_a_step(row: list[float]) -> None:
    values = np.array([row], np.float32)
    back = dequantize(quantize(values, "q8_0"), "q8_0", 32)
    # The scale is kept in float16: 11 bits.
    largest = np.abs(values).max()
    assert np.abs(values - back).max() <= largest / 127 * 0.5 + largest / 1024 + 1e-5
