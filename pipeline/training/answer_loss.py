"""The loss of training: cross-entropy of the answer tokens of a packed batch, chunk by chunk.

A vocabulary of 128,256 entries makes the logits of 8,192 tokens 4.2 GB in float32, their gradient as much.
Only the positions that predict an answer token go through the head, and only some of them at once: where the
head is frozen each chunk's gradient is taken with its loss (as Liger's fused linear cross-entropy does,
arXiv 2410.10989), else the chunk is computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear, pad
from torch.utils.checkpoint import checkpoint

from cogumi.errors import RunError
from pipeline.training.attention import PACKED, Rows, register
from pipeline.training.packing import PackedBatch

# Logits at once, in elements: 1,024 positions of Llama-3.1's vocabulary, 501 MiB in float32.
CHUNK_ELEMENTS = 1 << 27
_TILE = 128

# Settings of a configuration that change the logits after the head (Gemma 2, Cohere, Granite).
_AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class AnswerLoss(torch.nn.Module):
    """A causal language model of transformers, plain or with peft's adapters, as its answer loss.

    ``autocast``: compute in bf16 where the weights are float32. Raises ``RunError`` for a model whose
    attention or head this cannot stand for.
    """

    def __init__(self, model: Any, *, autocast: bool = False) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = base.config.get_text_config()
        for key in _AFTER_HEAD:
            if getattr(config, key, None) not in (None, 1.0):
                raise RunError(f"{config.model_type}: its head has {key}, which training does not know")
        if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
            raise RunError(f"{config.model_type}: sliding-window attention, which training does not know")
        self.config = config
        register()
        base.set_attn_implementation(PACKED)

    @property
    def base(self) -> Any:
        """The model of transformers; adapters sit inside its layers."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def head(self) -> Any:
        """The layer from hidden states to logits."""
        return self.base.get_output_embeddings()

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """Return the last hidden states (S, width) at the positions that predict an answer token."""
        decoder = getattr(self.base, self.base.base_model_prefix)
        rows = Rows(batch.lengths, batch.ids.device)
        found = decoder(
            input_ids=batch.ids.unsqueeze(0),
            position_ids=batch.positions.unsqueeze(0),
            use_cache=False,
            rows=rows,
        )
        states: torch.Tensor = found.last_hidden_state[0]
        return states.index_select(0, batch.predicting)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Return the summed cross-entropy of the batch's answer tokens, a float32 scalar."""
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=self.autocast):
            hidden = self.hidden(batch)
            return summed_cross_entropy(hidden, batch.targets, self.head)


def softmax_loss(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed cross-entropy of logits (S, V) and its gradient (S, V), in the logits' precision.

    Positions whose target is negative count for nothing.
    """
    x = at_least_float32(logits)
    lse = torch.logsumexp(x, dim=-1, keepdim=True)
    wanted = targets.unsqueeze(1)
    hit = torch.arange(x.shape[-1], device=x.device) == wanted
    loss = torch.where(wanted >= 0, lse - torch.where(hit, x, 0).sum(-1, keepdim=True), 0).sum()
    grad = torch.where(wanted >= 0, torch.exp(x - lse) - hit.to(x.dtype), 0)
    return loss, grad.to(logits.dtype)


SoftmaxLoss = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def summed_cross_entropy(
    hidden: torch.Tensor, targets: torch.Tensor, head: Any, kernel: SoftmaxLoss = softmax_loss
) -> torch.Tensor:
    """Return the summed cross-entropy of ``head(hidden)`` against ``targets``: (S, width), (S,) -> ()."""
    if frozen_linear(head) and hidden.requires_grad and not torch.is_autocast_enabled(hidden.device.type):
        total: torch.Tensor = _FrozenHeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden, targets, head.weight, kernel
        )
        return total

    def loss(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return cross_entropy(at_least_float32(head(states)), wanted, reduction="sum")

    return over_chunks(loss, hidden, targets, vocabulary=vocabulary_of(head))


def chunk_size(vocabulary: int) -> int:
    """Return how many positions go through a head of this width at once, in whole tiles where many fit."""
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return size if size < _TILE else size // _TILE * _TILE


def over_chunks(
    loss: Callable[..., torch.Tensor], hidden: torch.Tensor, *others: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """Return the sum of ``loss`` over chunks of rows, each computed again in its backward pass."""
    size = chunk_size(vocabulary)
    if len(hidden) <= size:
        return loss(hidden, *others)
    total = torch.zeros((), device=hidden.device)
    for start in range(0, len(hidden), size):
        parts = [states[start : start + size] for states in (hidden, *others)]
        total = total + checkpoint(loss, *parts, use_reentrant=False)
    return total


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Return logits in float32, or as they are in float64: half precision is too coarse for a softmax."""
    return logits if logits.dtype == torch.float64 else logits.float()


def frozen_linear(head: torch.nn.Module) -> bool:
    """Tell whether a head is one plain matrix that is not trained."""
    if type(head) is not torch.nn.Linear:
        return False
    return getattr(head, "bias", None) is None and not head.weight.requires_grad


def vocabulary_of(head: Any) -> int:
    """Return how many logits a head gives, adapters or not."""
    return int(head.out_features)


class _FrozenHeadLoss(torch.autograd.Function):
    """Cross-entropy through a frozen matrix, its gradient taken with it: no chunk outlives its turn."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, kernel: SoftmaxLoss
    ) -> torch.Tensor:
        rows = len(hidden)
        if hidden.is_cuda:
            # In whole tiles: every new number of rows would cost a search for the best product.
            spare = -len(hidden) % _TILE
            hidden, targets = pad(hidden, (0, 0, 0, spare)), pad(targets, (0, spare), value=-1)
        grad = torch.empty_like(hidden)
        total = torch.zeros((), device=hidden.device)
        size = chunk_size(len(weight))
        for start in range(0, len(hidden), size):
            states, wanted = hidden[start : start + size], targets[start : start + size]
            loss, slope = kernel(linear(states, weight), wanted)
            total = total + loss
            torch.mm(slope, weight, out=grad[start : start + size])
        ctx.save_for_backward(grad)
        ctx.rows = rows
        return total

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = ctx.saved_tensors[0][: ctx.rows]
        return grad * outer.to(grad.dtype), None, None, None
