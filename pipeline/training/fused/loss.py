"""The fused layers as an answer loss: when they stand for a model's, how they are put in and taken out."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.training.answer_loss import AnswerLoss, summed_cross_entropy
from pipeline.training.attention import Rows
from pipeline.training.fused.adapted import ADAPTER, AdaptedProduct
from pipeline.training.fused.kernels import PLAIN, Kernels
from pipeline.training.fused.stack import FusedLayer, Place, Shape, Stack, StackFunction
from pipeline.training.packing import PackedBatch

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def why_not_fused(model: Any) -> str | None:
    """Return why the fused layers cannot stand for a model's, or None when they can."""
    if not hasattr(model, "get_base_model"):
        return "it has no adapters"
    base = model.get_base_model()
    if base.config.model_type != "llama" or base.config.hidden_act != "silu":
        return f"it is no Llama but {base.config.model_type} with {base.config.hidden_act}"
    for layer in base.model.layers:
        for part in _linears(layer):
            why = _why_not(part)
            if why:
                return why
    adapted = 2 * len(_ATTENTION + _MLP) * len(base.model.layers)
    if sum(parameter.requires_grad for parameter in model.parameters()) != adapted:
        return "more is trained than the adapters of its layers"
    return None


def _linears(layer: Any) -> list[Any]:
    attention = [getattr(layer.self_attn, name) for name in _ATTENTION]
    return attention + [getattr(layer.mlp, name) for name in _MLP]


def _why_not(part: Any) -> str | None:
    if list(getattr(part, "lora_A", {})) != [ADAPTER]:
        return "not every linear layer has one adapter"
    if part.base_layer.bias is not None or getattr(part.lora_B[ADAPTER], "bias", None) is not None:
        return "a linear layer has a bias"
    if not isinstance(part.lora_dropout[ADAPTER], torch.nn.Identity):
        return "its adapters have dropout"
    if part.use_dora.get(ADAPTER):
        return "its adapters are DoRA"
    return None


class FusedAnswerLoss(AnswerLoss):
    """``AnswerLoss`` of a Llama with LoRA adapters on all linear layers, through fused layers.

    The model's own weights become views of the fused matrices until ``release``; ``refresh`` must be called
    whenever the adapters have changed.
    """

    def __init__(self, model: Any, kernels: Kernels = PLAIN) -> None:
        super().__init__(model)
        config = self.config
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = Shape(config.num_attention_heads, config.num_key_value_heads, dim, config.rms_norm_eps)
        self._stack = Stack([_fused(layer) for layer in self.base.model.layers], shape, kernels)
        places = [
            place for layer in self._stack.layers for product in layer.products for place in product.places()
        ]
        self._places = [place[0] for place in places]
        self._adapters = [place[1] for place in places]
        scaled = [(place[0], place[2]) for place in places if place[2] != 1.0]
        self._scaled = [place for place, _ in scaled]
        self._scales = [scale for _, scale in scaled]
        self.refresh()

    def refresh(self) -> None:
        """Take the adapters over as they are now."""
        # All at once: a model has hundreds of adapters, and a call costs more than its copy.
        with torch.no_grad():
            torch._foreach_copy_(self._places, self._adapters)
            if self._scaled:
                torch._foreach_mul_(self._scaled, self._scales)

    def release(self) -> None:
        """Give the model its weights back; this loss is of no use afterwards."""
        for layer in self._stack.layers:
            for product in layer.products:
                product.release()
        self._stack.layers.clear()
        self._places.clear()
        self._scaled.clear()

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """Return the last hidden states (S, width) at the positions that predict an answer token."""
        decoder = self.base.model
        with torch.no_grad():
            h = decoder.embed_tokens(batch.ids)
            wide = h if h.dtype == torch.float64 else h.float()
            cos, sin = decoder.rotary_emb(wide, position_ids=batch.positions.unsqueeze(0))
        # The rotation is the same in both halves of a head.
        half = self._stack.shape.head_dim // 2
        place = Place(
            cos[0, :, :half].contiguous(),
            sin[0, :, :half].contiguous(),
            Rows(batch.lengths, batch.ids.device),
            # Within the function autograd is off in any case.
            keep=torch.is_grad_enabled(),
        )
        after = StackFunction.apply(  # type: ignore[no-untyped-call]
            self._stack, h, place, *self._stack.parameters
        )
        normed: torch.Tensor = decoder.norm(after.index_select(0, batch.predicting))
        return normed

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Return the summed cross-entropy of the batch's answer tokens, a float32 scalar."""
        kernel = self._stack.kernels.softmax_loss
        return summed_cross_entropy(self.hidden(batch), batch.targets, self.head, kernel)


def _fused(layer: Any) -> FusedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return FusedLayer(
        qkv=AdaptedProduct([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=AdaptedProduct([attention.o_proj]),
        gate_up=AdaptedProduct([mlp.gate_proj, mlp.up_proj]),
        down=AdaptedProduct([mlp.down_proj]),
        norm1=layer.input_layernorm.weight,
        norm2=layer.post_attention_layernorm.weight,
    )
