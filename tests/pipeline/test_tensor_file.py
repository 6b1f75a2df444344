from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import masked, save
from hypothesis import given, settings
from hypothesis import strategies as st

from cogumi.errors import RunError
from pipeline.compression.package import compress
from pipeline.compression.tensor_file import decode, encoded, entropy, mask_cost, stored_tensors


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("sparsity", [0.0, 0.65, 1.0])
def test_a_checkpoint_returns_byte_by_byte(tmp_path: Path, dtype: str, sparsity: float) -> None:
    import torch

    values = masked(64, 96, sparsity)
    values[0, :8] = -0.0  # not the bits of zero
    path = tmp_path / "model.safetensors"
    raw = save(path, values, dtype, steps=torch.arange(5), none=torch.zeros(0))
    stream = b"".join(encoded(path))
    assert b"".join(decode(io.BytesIO(stream).read, len(raw))) == raw
    if sparsity == 0.65:
        # Values of the kept weights and one bit for each weight, and headers.
        assert len(stream) < 0.35 * len(raw) + values.size / 8 + 2000


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.integers(0, 2**16 - 1) | st.just(0), min_size=1, max_size=200),
    dtype=st.sampled_from(["BF16", "F16", "F32", "I8"]),
)
def test_every_bit_pattern_returns(
    words: list[int], dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    body = np.array(words * (2 if dtype == "F32" else 1), dtype="<u2").tobytes()
    size = {"BF16": 2, "F16": 2, "F32": 4, "I8": 1}[dtype]
    entry = {"dtype": dtype, "shape": [len(body) // size], "data_offsets": [0, len(body)]}
    header = json.dumps({"x": entry}).encode()
    raw = len(header).to_bytes(8, "little") + header + body
    path = tmp_path_factory.mktemp("bits") / "x.safetensors"
    path.write_bytes(raw)
    assert b"".join(decode(io.BytesIO(b"".join(encoded(path))).read, len(raw))) == raw


@pytest.mark.parametrize("sparsity", [0.5, 0.65, 0.8])
def test_the_mask_of_a_pruned_model_is_stored_near_its_entropy(tmp_path: Path, sparsity: float) -> None:
    path = tmp_path / "model.safetensors"
    save(path, masked(1024, 1024, sparsity), "bfloat16")
    cost = mask_cost(path, 19)
    assert cost is not None
    assert cost.entropy == pytest.approx(entropy(sparsity), rel=0.01)
    assert cost.bits_per_weight == pytest.approx(cost.entropy, rel=0.03)


def test_two_of_four_is_coded_below_an_index_of_two_bits_for_each_kept_weight(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    groups = rng.normal(0, 0.02, (1 << 18, 4))
    np.put_along_axis(groups, rng.random(groups.shape).argsort(1)[:, :2], 0, axis=1)
    path = tmp_path / "model.safetensors"
    save(path, groups.reshape(1024, 1024), "bfloat16")
    cost = mask_cost(path, 19)
    assert cost is not None
    # log2(6) / 4 bits; the index would take 2 kept weights of 4 at 2 bits, one bit a weight.
    assert cost.bits_per_weight == pytest.approx(np.log2(6) / 4, rel=0.03)


def test_a_dense_bf16_checkpoint_gains_more_than_by_zstd_alone(tmp_path: Path) -> None:
    path, stored, alone = tmp_path / "m.safetensors", tmp_path / "stored", tmp_path / "alone"
    raw = save(path, masked(512, 512, 0.0), "bfloat16")
    compress(encoded(path), stored, 19)
    compress([raw], alone, 19)
    assert stored.stat().st_size < 0.9 * alone.stat().st_size < len(raw)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"x",
        lambda raw: raw[:4],
        lambda raw: (1 << 60).to_bytes(8, "little") + raw[8:],
        lambda raw: raw.replace(b'"data_offsets":[0,', b'"data_offsets":[2,'),
        lambda raw: b"\x04\0\0\0\0\0\0\0[1]\n",
    ],
)
def test_a_broken_checkpoint_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(spoil(save(path, masked(8, 8, 0.0), "bfloat16")))
    with pytest.raises(RunError, match=r"model\.safetensors"):
        stored_tensors(path)
