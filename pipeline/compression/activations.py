"""Second moments of what goes into each linear layer: what an importance matrix is made of.

Covered: every ``torch.nn.Linear`` of a causal language model, the output head among them; CPU and CUDA; rows
of any length, padded to a batch. Padding never counts. Not covered: experts of a mixture, which see only
some of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Tokens of one forward pass: the logits of SmolLM2 take 0.4 GB in float32, those of Llama 3 1.1 GB.
_BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class ColumnMoments:
    """What one linear layer read: ``sum_squares`` float32 (columns,), over ``tokens`` tokens."""

    sum_squares: npt.NDArray[np.float32]
    tokens: int

    @property
    def mean_squares(self) -> npt.NDArray[np.float32]:
        """Mean square of each input column, float32 (columns,): llama.cpp's importance of the column."""
        import numpy as np

        mean: npt.NDArray[np.float32] = (self.sum_squares / np.float32(max(self.tokens, 1))).astype(
            np.float32
        )
        return mean


def column_moments(model: Any, rows: Sequence[Sequence[int]], *, device: Any) -> dict[str, ColumnMoments]:
    """Run ``rows`` of token ids through a causal language model and sum the squares of layer inputs.

    Returns one entry for each linear layer by its module name (``model.layers.0.self_attn.q_proj``, and
    ``lm_head``). Sums are kept in float64 on ``device``, where the model must lie already. Rows are read
    shortest first, several in a padded batch. Raises ``RunError`` without rows and for inputs that are not
    finite.
    """
    import torch

    if not any(rows):
        raise RunError("calibration data too short: no rows")
    sums: dict[str, torch.Tensor] = {}
    # The batch under way, as the hooks read it: which positions are no padding.
    kept: list[torch.Tensor] = []

    def gather(name: str, hidden: torch.Tensor) -> None:
        counted = hidden.detach()[kept[0]].double()
        sums.setdefault(name, torch.zeros(hidden.shape[-1], dtype=torch.float64, device=hidden.device))
        sums[name] += counted.square().sum(dim=0)

    with torch.inference_mode(), _watching(model, gather), _evaluating(model):
        for batch in _batches(rows):
            width = max(len(row) for row in batch)
            # Any id will do for padding: it stands behind the row and causal attention never looks ahead.
            ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=device)
            kept[:] = [mask.bool()]
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    broken = [name for name, value in sums.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise RunError(f"calibration: the inputs of {broken[0]} are not finite; the model is broken")
    tokens = sum(len(row) for row in rows)
    return {name: ColumnMoments(value.float().cpu().numpy(), tokens) for name, value in sums.items()}


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Yield the rows, shortest first, in groups whose padded size stays within ``_BATCH_TOKENS``."""
    batch: list[Sequence[int]] = []
    for row in sorted(filter(len, rows), key=len):
        if batch and (len(batch) + 1) * len(row) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch


@contextmanager
def _watching(model: Any, gather: Any) -> Iterator[None]:
    """Call ``gather(name, input)`` before each linear layer runs."""
    import torch

    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: gather(name, inputs[0]))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Within it no dropout; afterwards the model is as it was."""
    training = bool(model.training)
    model.eval()
    try:
        yield
    finally:
        model.train(training)
