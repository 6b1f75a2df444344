"""LoRA layers with a common input as one matrix, so that adapters ride along in the large products.

With W (O, I) the frozen weights of the layers stacked, A (R, I) and B (O, R, block-diagonal, times the
scaling) their adapters, the matrix

    M = [ W  B ]        y = [x, x A'] [W, B]'        dx = [dy, dy B] [W; A]
        [ A  0 ]

makes of y = x W' + (x A') B' one product whose inner dimension is R longer, and of its backward pass another:
no pass over y or dx for the adapters' part. W occupies M alone: the layers' weights are views of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

ADAPTER = "default"
"""peft's name of the one adapter of a model."""


class AdaptedProduct:
    """Layers of peft (``lora.Linear``) with one input, as one product; parameters stay peft's, in float32."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = list(layers)
        weights = [layer.base_layer.weight for layer in self.layers]
        self.a = [layer.lora_A[ADAPTER].weight for layer in self.layers]
        self.b = [layer.lora_B[ADAPTER].weight for layer in self.layers]
        self.scaling = [float(layer.scaling[ADAPTER]) for layer in self.layers]
        self.inner = int(weights[0].shape[1])
        self.outs = [int(weight.shape[0]) for weight in weights]
        self.ranks = [int(a.shape[0]) for a in self.a]
        self.outer, self.rank = sum(self.outs), sum(self.ranks)
        self.matrix = weights[0].new_zeros(self.outer + self.rank, self.inner + self.rank)
        start = 0
        for layer, size in zip(self.layers, self.outs, strict=True):
            place = self.matrix[start : start + size, : self.inner]
            place.copy_(layer.base_layer.weight.data)
            layer.base_layer.weight.data = place
            start += size

    def places(self) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """Return (part of the matrix, adapter, factor) for every A and B: what a step makes stale."""
        found: list[tuple[torch.Tensor, torch.Tensor, float]] = []
        row, rank = 0, 0
        for a, b, scale in zip(self.a, self.b, self.scaling, strict=True):
            below = self.matrix[self.outer + rank : self.outer + rank + len(a), : self.inner]
            beside = self.matrix[row : row + len(b), self.inner + rank : self.inner + rank + len(a)]
            found += [(below, a, 1.0), (beside, b, scale)]
            row, rank = row + len(b), rank + len(a)
        return found

    def release(self) -> None:
        """Give every layer its weight back as a tensor of its own; the product is of no use afterwards."""
        for layer in self.layers:
            layer.base_layer.weight.data = layer.base_layer.weight.data.clone(
                memory_format=torch.contiguous_format
            )
        del self.matrix

    def room(self, tokens: int, width: int) -> torch.Tensor:
        """Return a matrix (tokens, width + R), to be filled."""
        kind = self.matrix
        return torch.empty(tokens, width + self.rank, dtype=kind.dtype, device=kind.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return y (T, O) of ``x`` (T, I + R), whose left part is the input and whose right is filled here.

        For inputs narrower than their outputs: x A' is one pass over the input.
        """
        torch.mm(x[:, : self.inner], self.matrix[self.outer :, : self.inner].T, out=x[:, self.inner :])
        y: torch.Tensor = x @ self.matrix[: self.outer].T
        return y

    def forward_wide(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return y (T, O) and x A' (T, R) of x (T, I), for inputs wider than their outputs.

        x A' comes out of the large product, as further columns; B costs a pass over y.
        """
        found = x @ self.matrix[:, : self.inner].T
        y, narrow = found[:, : self.outer], found[:, self.outer :]
        y.addmm_(narrow, self.matrix[: self.outer, self.inner :].T)
        return y, narrow

    def backward(self, dy: torch.Tensor) -> torch.Tensor:
        """Return dx (T, I) of ``dy`` (T, O + R): left the gradient, the right part is filled here.

        The mirror of ``forward``: for gradients narrower than what they give.
        """
        self.narrow_gradient(dy)
        dx: torch.Tensor = dy @ self.matrix[:, : self.inner]
        return dx

    def backward_wide(self, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return dx (T, I) and dy B (T, R) of dy (T, O): the mirror of ``forward_wide``."""
        found = dy @ self.matrix[: self.outer]
        dx, narrow = found[:, : self.inner], found[:, self.inner :]
        dx.addmm_(narrow, self.matrix[self.outer :, : self.inner])
        return dx, narrow

    def narrow_gradient(self, dy: torch.Tensor) -> None:
        """Fill the right part of ``dy`` (T, O + R) with dy B."""
        torch.mm(dy[:, : self.outer], self.matrix[: self.outer, self.inner :], out=dy[:, self.outer :])

    def adapter_gradients(
        self, dy: torch.Tensor, narrow_dy: torch.Tensor, x: torch.Tensor, narrow: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the gradients of A and B of each layer in turn.

        dy (T, O), narrow_dy (T, R) = dy B, x (T, I) the input, narrow (T, R) = x A'.
        """
        # Of the two ways to write this product the one whose result is tall is twice as fast on an H100.
        da = _product(x.T, narrow_dy, self.a[0].dtype).T
        grads: list[torch.Tensor] = []
        row, rank = 0, 0
        for a, b, scale in zip(self.a, self.b, self.scaling, strict=True):
            db = _product(dy[:, row : row + len(b)].T, narrow[:, rank : rank + len(a)], b.dtype)
            grads += [da[rank : rank + len(a)], db.mul_(scale)]
            row, rank = row + len(b), rank + len(a)
        return grads

    @property
    def parameters(self) -> list[torch.Tensor]:
        """A and B of each layer in turn, in the order of ``adapter_gradients``."""
        return [parameter for pair in zip(self.a, self.b, strict=True) for parameter in pair]


def _product(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x @ y in the adapters' precision, in which the products are summed anyway."""
    if x.is_cuda and x.dtype != dtype:
        return torch.mm(x, y, out_dtype=dtype)
    return (x @ y).to(dtype)
