"""The sample that ties an adapter to its weights, and the precision that whole rows are read in."""

from __future__ import annotations

from pathlib import Path

import pytest

from cogumi.devices import compute_device
from cogumi.errors import RunError
from evals.backends.adapter_base import weights_sample
from evals.backends.loading import prefill_dtype


def changed(path: Path, at: int) -> Path:
    """Change one byte."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    return path


@pytest.mark.parametrize("size", [100, 1 << 22, (1 << 22) + 1, 9_000_000])
def test_the_first_and_last_byte_and_the_size_are_in_the_sample(tmp_path: Path, size: int) -> None:
    file = tmp_path / "w"
    file.write_bytes(bytes(size))
    found = [weights_sample([file])]
    found += [weights_sample([changed(file, at)]) for at in (0, size - 1, size // 63)]
    file.write_bytes(bytes(size + 1))
    found.append(weights_sample([file]))
    assert len(set(found)) == 5


def test_files_count_in_their_order(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    both = [tmp_path / "a", tmp_path / "b"]
    assert weights_sample(both) != weights_sample(both[::-1])
    with pytest.raises(RunError, match="gone: cannot be read"):
        weights_sample([tmp_path / "gone"])


def test_whole_rows_are_read_in_float32_on_a_cpu_alone() -> None:
    import torch

    assert [prefill_dtype(device, half="bf16") for device in ("cpu", torch.device("cpu"))] == ["fp32"] * 2
    assert prefill_dtype(torch.device("cuda", 1)) == "auto"
    assert prefill_dtype("cuda", half="bf16") == "bf16"


@pytest.mark.parametrize(("seen", "wanted"), [(True, "cuda"), (False, "cpu")])
def test_the_processor_computes_where_no_device_is_seen(
    monkeypatch: pytest.MonkeyPatch, seen: bool, wanted: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    assert compute_device() == wanted
