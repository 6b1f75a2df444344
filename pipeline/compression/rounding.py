"""Rounding that compensates: weights on ggml's grids so that a layer's *output* changes least.

The error of a row is ``(w - q) H (w - q)``, H the second moment of the layer's input. Blocks of a row are
rounded in order, and the error of each is spread over the columns still free through the inverse of H (OBQ,
in the Cholesky form of GPTQ: Frantar et al. 2022, arXiv 2210.17323). In the simple formats each block tries
several scales, every column inside it compensates too, and passes of coordinate descent over codes and scales
follow (as QuantEase, Behdin et al. 2023, arXiv 2309.01885). The others keep ggml's own quantiser for each
block. The better of this and of plain ggml is kept, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.compression.ggml import block_columns, canonical, dequantize, quantize
from pipeline.compression.grids import GRIDS, Grid, pack

if TYPE_CHECKING:
    import torch

    from pipeline.compression.ggml import Bytes

DAMPING = 0.01
PASSES = 4
_FIRST = {
    True: (0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 1.0),
    False: (0.70, 0.78, 0.84, 0.90, 0.95, 1.0, 1.06),
}
"""Scales tried at first, as shares of that at which the largest weight just fits: few levels (True), more."""
_NEAR = (0.85, 0.94, 1.0, 1.08)
"""Shares of the best of these that are tried with compensation inside the block."""
_VALUES = 1 << 21
"""Weights that are worked on at once: bounds the memory beside the matrix."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """A matrix on a grid."""

    data: Bytes
    """uint8 (rows, row bytes)."""
    values: torch.Tensor
    """What ``data`` stands for, float32 (rows, columns)."""
    errors: torch.Tensor
    """Error of each row, float32 (rows,)."""
    plain_errors: torch.Tensor
    """Error of each row as ggml alone rounds it, with H's diagonal as importance."""


@dataclass(slots=True)
class _State:
    """Rows under work, columns first: codes (columns, rows) as floats, scale and minimum (blocks, rows).

    Each step works on one column of all rows, which so lies in one piece.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor


def rounded(
    weight: torch.Tensor, hessian: torch.Tensor, kind: str, *, damping: float = DAMPING, passes: int = PASSES
) -> Rounded:
    """Round ``weight`` float32 (rows, columns) to ggml's type ``kind`` under ``hessian`` (columns, columns).

    ``damping`` is added to the diagonal as a share of its mean. Works on the device of ``weight``. Raises
    ``RunError`` for rows that are no whole blocks and for weights that are not finite.
    """
    import torch

    name = canonical(kind)
    damped = damp(hessian, damping)
    importance = damped.diagonal().cpu().numpy()
    data = quantize(weight.cpu().numpy(), name, importance)
    plain = torch.from_numpy(dequantize(data, name, weight.shape[1])).to(weight.device)
    plain_errors = row_errors(weight - plain, damped)
    if name in ("f32", "f16", "bf16"):
        return Rounded(data, plain, plain_errors, plain_errors)
    upper = inverse_factor(damped)
    step = max(1, _VALUES // weight.shape[1])
    errors = plain_errors.clone()
    for begin in range(0, len(weight), step):
        part = slice(begin, begin + step)
        if name in GRIDS:
            bytes_, values = _on_grid(weight[part], damped, upper, GRIDS[name], passes)
        else:
            bytes_, values = _by_blocks(weight[part], damped, upper, name)
        found = row_errors(weight[part] - values, damped)
        better = found < plain_errors[part]
        data[part][better.cpu().numpy()] = bytes_[better.cpu().numpy()]
        plain[part][better] = values[better]
        errors[part][better] = found[better]
    return Rounded(data, plain, errors, plain_errors)


def damp(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return H with ``damping`` times its mean diagonal added to the diagonal, in float32."""
    found = hessian.float().clone()
    # Not zero even for a layer that reads nothing: all of its columns then count alike.
    mean = found.diagonal().mean().clamp_min(1e-12)
    found.diagonal().add_(damping * mean)
    return found


def row_errors(difference: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Return ``e H e`` of each row of ``difference`` (rows, columns)."""
    found: torch.Tensor = ((difference @ hessian) * difference).sum(dim=1).clamp_min(0)
    return found


def inverse_factor(damped: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular U with ``inverse(H) = U^T U``; more damping where H is near singular."""
    import torch

    wide = damped.double()
    for _ in range(8):
        lower, failed = torch.linalg.cholesky_ex(wide)
        if not int(failed):
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not int(failed):
                found: torch.Tensor = upper.float()
                return found
        wide = (
            wide + torch.eye(len(wide), device=wide.device, dtype=wide.dtype) * wide.diagonal().mean() * 0.01
        )
    raise ArithmeticError("the second moments of a layer's input cannot be factored")


# ggml's own quantiser, block after block -----------------------------------------------------------------


def _by_blocks(
    weight: torch.Tensor, hessian: torch.Tensor, upper: torch.Tensor, kind: str
) -> tuple[Bytes, torch.Tensor]:
    import numpy as np
    import torch

    block = block_columns(kind)
    left, values = weight.clone(), torch.empty_like(weight)
    packed = []
    for begin in range(0, weight.shape[1], block):
        inside = slice(begin, begin + block)
        own = upper[inside, inside]
        # What an error inside the block costs once the columns behind it have compensated: inverse of U^T U.
        conditional = torch.cholesky_inverse(own, upper=True).diagonal()
        packed.append(quantize(left[:, inside].cpu().numpy(), kind, conditional.cpu().numpy()))
        values[:, inside] = torch.from_numpy(dequantize(packed[-1], kind, block)).to(weight.device)
        difference = left[:, inside] - values[:, inside]
        scaled = torch.linalg.solve_triangular(own, difference, upper=True, left=False)
        left[:, begin + block :] -= scaled @ upper[inside, begin + block :]
    return np.concatenate(packed, axis=1), values


# Simple formats ------------------------------------------------------------------------------------------


def _on_grid(
    weight: torch.Tensor, hessian: torch.Tensor, upper: torch.Tensor, grid: Grid, passes: int
) -> tuple[Bytes, torch.Tensor]:
    columns_first = weight.T.contiguous()
    state = _first_pass(columns_first, upper, grid)
    for _ in range(passes):
        _descend(columns_first, hessian, grid, state)
    minimum = state.minimum.T if grid.has_minimum else None
    return pack(grid.kind, state.codes.T, state.scale.T, minimum), _values(grid, state).T


def _first_pass(weight: torch.Tensor, upper: torch.Tensor, grid: Grid) -> _State:
    import torch

    columns, rows = weight.shape
    block = grid.block
    left = weight.clone()
    state = _State(
        torch.empty_like(weight),
        torch.empty(columns // block, rows, device=weight.device),
        torch.zeros(columns // block, rows, device=weight.device),
    )
    row = torch.arange(rows, device=weight.device)
    for index, begin in enumerate(range(0, columns, block)):
        inside = slice(begin, begin + block)
        own, target = upper[inside, inside], left[inside]
        scales, minima = _candidates(target, own.diagonal().square().reciprocal(), grid)
        codes, scaled = _compensated(target, own, scales, minima, grid)
        best = scaled.square().sum(dim=0).argmin(dim=0)
        state.codes[inside] = codes[:, best, row]
        state.scale[index], state.minimum[index] = scales[best, row], minima[best, row]
        left[begin + block :] -= upper[inside, begin + block :].T @ scaled[:, best, row]
    return state


def _candidates(
    target: torch.Tensor, importance: torch.Tensor, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scales and minima to try for a block (columns, rows), each (candidates, rows), float16 values.

    They lie about the best of a wider choice, found without compensation.
    """
    import torch

    bottom, top = grid.levels[0], grid.levels[-1]
    low, high = target.amin(dim=0), target.amax(dim=0)
    middle = (high + low) / 2
    if grid.has_minimum:
        reach = [(high - low) / (top - bottom)]
    else:
        # Both signs: most grids have one level more on one side.
        reach = [torch.maximum(high / top, low / bottom), torch.minimum(low / top, high / bottom)]

    def minimum_of(scale: torch.Tensor) -> torch.Tensor:
        return _half(middle - scale * (top + bottom) / 2) if grid.has_minimum else torch.zeros_like(scale)

    best_scale, best_cost = torch.zeros_like(low), torch.full_like(low, torch.inf)
    for share in _FIRST[len(grid.levels) <= 4]:
        for full in reach:
            scale = _half(share * full)
            error = target - _nearest(target, scale, minimum_of(scale), grid)[1]
            cost = importance @ error.square_()
            best_scale = torch.where(cost < best_cost, scale, best_scale)
            best_cost = torch.minimum(cost, best_cost)
    tried = _half(torch.tensor(_NEAR, device=target.device)[:, None] * best_scale)
    return tried, minimum_of(tried)


def _compensated(
    target: torch.Tensor, own: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round the columns of a block in order, each spreading its error; both (columns, candidates, rows).

    Returns codes, and errors over the diagonal of U: what the columns behind the block still have to take.
    """
    import torch

    columns, rows = target.shape
    left = target[:, None].expand(columns, len(scales), rows).contiguous()
    flat = left.view(columns, -1)
    codes, scaled = torch.empty_like(left), torch.empty_like(left)
    for column in range(columns):
        codes[column], value = _nearest(left[column], scales, minima, grid)
        torch.div(left[column] - value, own[column, column], out=scaled[column])
        if column + 1 < columns:
            flat[column + 1 :].addr_(own[column, column + 1 :], scaled[column].view(-1), alpha=-1)
    return codes, scaled


def _descend(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, state: _State) -> None:
    """One pass over the blocks: the best scale for the codes, then each code with all others held."""
    error = _values(grid, state) - weight
    block = grid.block
    for index, begin in enumerate(range(0, len(weight), block)):
        inside = slice(begin, begin + block)
        own, codes = hessian[inside, inside], state.codes[inside]
        # Half the gradient of the error by the values of this block.
        gradient = hessian[inside] @ error
        before = error[inside] + weight[inside]
        scale, minimum = _refit(gradient, own, codes, state.scale[index], state.minimum[index], grid)
        current = scale * _level(codes, grid) + minimum
        gradient += own @ (current - before)
        for column in range(block):
            wanted = current[column] - gradient[column] / own[column, column]
            codes[column], value = _nearest(wanted, scale, minimum, grid)
            if column + 1 < block:
                gradient[column + 1 :].addr_(own[column, column + 1 :], value - current[column])
            current[column] = value
        state.scale[index], state.minimum[index] = scale, minimum
        error[inside] = current - weight[inside]


def _refit(
    gradient: torch.Tensor,
    own: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor,
    grid: Grid,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and minimum of least error for the codes of a block, all others held."""
    import torch

    level = _level(codes, grid)
    curved = own @ level
    slope, curve = (gradient * level).sum(dim=0), (curved * level).sum(dim=0)
    if not grid.has_minimum:
        return _half(scale - slope / curve.clamp_min(1e-20)), minimum
    ones, cross, flat = gradient.sum(dim=0), curved.sum(dim=0), own.sum()
    determinant = curve * flat - cross.square()
    # A block whose codes are all the same tells scale and minimum not apart: leave both.
    safe = determinant > 1e-6 * curve * flat
    divisor = torch.where(safe, determinant, torch.ones_like(determinant))
    by_scale = torch.where(safe, (slope * flat - ones * cross) / divisor, torch.zeros_like(slope))
    by_minimum = torch.where(safe, (ones * curve - slope * cross) / divisor, torch.zeros_like(slope))
    return _half(scale - by_scale), _half(minimum - by_minimum)


def _nearest(
    wanted: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return code and value nearest to ``wanted``; scale and minimum broadcast to its shape."""
    import torch

    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    position = ((wanted - minimum) if grid.has_minimum else wanted) / safe
    if grid.step is not None:
        position -= grid.levels[0]
        code = position.div_(grid.step).round_().clamp_(0, len(grid.levels) - 1)
    else:
        levels = torch.tensor(grid.levels, device=wanted.device)
        code = torch.bucketize(position, (levels[1:] + levels[:-1]) / 2).to(wanted.dtype)
    value = scale * _level(code, grid)
    return code, value + minimum if grid.has_minimum else value


def _level(code: torch.Tensor, grid: Grid) -> torch.Tensor:
    import torch

    if grid.step is not None:
        return code * grid.step + grid.levels[0]
    return torch.tensor(grid.levels, device=code.device)[code.long()]


def _values(grid: Grid, state: _State) -> torch.Tensor:
    """Return the values, (columns, rows)."""
    scale = state.scale.repeat_interleave(grid.block, dim=0)
    return scale * _level(state.codes, grid) + state.minimum.repeat_interleave(grid.block, dim=0)


def _half(values: torch.Tensor) -> torch.Tensor:
    """Round to float16, within its range: what a block stores."""
    import torch

    return values.clamp(-65504, 65504).to(torch.float16).to(torch.float32)
