"""The simple block formats of ggml as grids: levels, a scale of each block, and how the bytes are laid out.

Covered: q1_0, q2_0, q4_0, q4_1, q5_0, q5_1, q8_0, iq4_nl. A weight is ``scale * level[code] (+ minimum)``,
scale and minimum in float16. Not covered: the K- and I-quants, whose scales or codes are shared in more ways;
these go through ggml's own quantiser. Layouts: ``block_q*`` of ggml-common.h; the tests hold them to ggml's
own dequantiser, bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.compression.ggml import block_columns, canonical

if TYPE_CHECKING:
    import torch

    from pipeline.compression.ggml import Bytes


@dataclass(frozen=True, slots=True)
class Grid:
    """One format: what a code stands for, and whether a block has a minimum beside its scale."""

    kind: str
    levels: tuple[float, ...]
    """Ascending; the code is the position."""
    has_minimum: bool = False

    @property
    def block(self) -> int:
        """Weights of one block."""
        return block_columns(self.kind)

    @property
    def step(self) -> float | None:
        """Distance of neighbouring levels, None where it is not the same everywhere."""
        steps = {high - low for low, high in zip(self.levels, self.levels[1:], strict=False)}
        return steps.pop() if len(steps) == 1 else None


def _range(low: int, high: int) -> tuple[float, ...]:
    return tuple(float(value) for value in range(low, high + 1))


GRIDS = {
    grid.kind: grid
    for grid in (
        Grid("q1_0", (-1.0, 1.0)),
        Grid("q2_0", _range(-1, 2)),
        Grid("q4_0", _range(-8, 7)),
        Grid("q4_1", _range(0, 15), has_minimum=True),
        Grid("q5_0", _range(-16, 15)),
        Grid("q5_1", _range(0, 31), has_minimum=True),
        Grid("q8_0", _range(-128, 127)),
        # kvalues_iq4nl of ggml-common.h.
        Grid(
            "iq4_nl",
            tuple(map(float, (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))),
        ),
    )
}
"""The grids by ggml's name of the type."""


def pack(kind: str, codes: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None) -> Bytes:
    """Return the bytes of rows, uint8 (rows, row bytes).

    ``codes`` integer (rows, columns), ``scale`` and ``minimum`` (rows, blocks), already values of float16.
    """
    import numpy as np

    name = canonical(kind)
    rows, blocks = scale.shape
    values = codes.reshape(rows, blocks, -1).cpu().numpy().astype(np.uint8)
    parts = [_half(scale)]
    if minimum is not None:
        parts.append(_half(minimum))
    if name == "q8_0":
        # Codes count from -128; bytes are two's complement.
        parts.append(values ^ np.uint8(0x80))
    elif name in ("q1_0", "q2_0"):
        bits = 1 if name == "q1_0" else 2
        per_byte = 8 // bits
        shifts = (np.arange(per_byte) * bits).astype(np.uint8)
        grouped = values.reshape(rows, blocks, -1, per_byte) << shifts
        parts.append(np.bitwise_or.reduce(grouped, axis=-1).astype(np.uint8))
    else:
        if name in ("q5_0", "q5_1"):
            parts.append(np.packbits(values >> 4, axis=-1, bitorder="little"))
        # Byte j holds weight j in its low half and weight j + 16 in its high half.
        low, high = values[..., :16] & 15, values[..., 16:] & 15
        parts.append((low | (high << np.uint8(4))).astype(np.uint8))
    packed: Bytes = np.concatenate(parts, axis=-1).reshape(rows, -1)
    return packed


def _half(values: torch.Tensor) -> Bytes:
    import numpy as np

    halves: Bytes = np.ascontiguousarray(values.cpu().numpy().astype("<f2"))[..., None].view(np.uint8)
    return halves
