"""A closed-form start for a recovery adapter: the best correction of given rank for the inputs that occur.

EoRA (Liu et al., arXiv 2410.21271): for a layer with weight W, compressed to V, and the second moment H =
E[x xᵀ] of its inputs, the adapter B A of rank r that minimises E‖(W - V - B A) x‖² is the truncated SVD of
(W - V) H^½, taken back through H^-½. That product equals U Uᵀ (W - V), U being the r leading left singular
vectors: so it is computed, without any inverse, and at full rank it is W - V itself. Layers are corrected
from the first to the last, each for the inputs that it gets from the corrected layers before.

Memory: the compressed model, the hidden states of the calibration rows, and the moments of one decoder
layer. Covered: decoders of transformers whose layers lie under ``model.layers``, with peft's LoRA on their
linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogumi.errors import RunError
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.attention import Rows
from pipeline.training.data import Encoded
from pipeline.training.packing import filled, pack

# Added to the moment, as a share of its mean diagonal: decides among directions that no input has shown.
_DAMPING = 1e-6
_ADAPTER = "default"
# Share of a norm's largest weight by which storing it in half precision may change it.
_ROUNDING = 0.01
# Layers that read what another reads: one moment serves them all.
_SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


@dataclass(frozen=True, slots=True)
class Corrected:
    """One layer: mean squared output error over the calibration tokens, before and after its correction."""

    before: float
    after: float


def correction(error: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) that leave the least output error: ``error`` is W - V (out, in).

    ``moment`` is E[x xᵀ] (in, in). Computed in float64, where the arguments lie; A and B share the singular
    values evenly, and are zero beyond min(out, in).
    """
    delta, h = error.double(), moment.double()
    outputs, inputs = delta.shape
    h = h + _DAMPING * h.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny) * _eye(h)
    taken = min(rank, outputs, inputs)
    if outputs <= inputs:
        leading = torch.linalg.eigh(delta @ h @ delta.T)[1][:, -taken:]
    else:
        # From the smaller side: the left singular vectors of D C are those of D H^½ for any C with C Cᵀ = H.
        shown = delta @ torch.linalg.cholesky(h)
        leading = torch.linalg.qr(shown @ torch.linalg.eigh(shown.T @ shown)[1][:, -taken:])[0]
    left, values, right = torch.linalg.svd(leading.T @ delta, full_matrices=False)
    root = values.sqrt()
    a, b = delta.new_zeros(rank, inputs), delta.new_zeros(outputs, rank)
    a[:taken] = root[:, None] * right
    b[:, :taken] = leading @ (left * root)
    return a, b


def output_error(error: Tensor, moment: Tensor) -> float:
    """Return E‖D x‖² for the weight error D (out, in) and the moment E[x xᵀ] (in, in)."""
    delta = error.double()
    return float(((delta @ moment.double()) * delta).sum())


def fill_adapters(
    model: Any,
    original: Path,
    rows: Sequence[Encoded],
    *,
    capacity: int,
    tell: Callable[[int, int], None],
) -> dict[str, Corrected]:
    """Set the adapters of a peft model, whose base is the compressed one, to the closed-form correction.

    ``original`` is the folder of the uncompressed model; ``rows`` go through in packed batches of about
    ``capacity`` tokens. Returns what became of each layer, by its module's name. Raises ``RunError`` when the
    two models differ in shape, or weights or inputs are not finite.
    """
    loss = AnswerLoss(model)
    loss.eval()
    weights = Weights(original)
    check_comparable(loss.base, weights, original)
    names = {id(module): name for name, module in loss.base.named_modules() if hasattr(module, "lora_A")}
    done: dict[str, Corrected] = {}
    with torch.no_grad():
        batches = _first_inputs(loss, rows, capacity)
        layers = loss.base.get_decoder().layers
        for number, layer in enumerate(layers, start=1):
            adapted = {names[id(module)]: module for module in layer.modules() if id(module) in names}
            with _moments(adapted) as moments:
                for hidden, rest in batches:
                    layer(hidden, **rest)
            tokens = sum(hidden.shape[1] for hidden, _ in batches)
            for name, module in adapted.items():
                moment = moments[_source(name)] / tokens
                done[name] = _correct(name, module, weights, moment)
            batches = [(_states(layer(hidden, **rest)), rest) for hidden, rest in batches]
            tell(number, len(layers))
    return done


def check_comparable(base: Any, weights: Weights, original: Path) -> None:
    """Raise ``RunError`` unless the weights of a compressed model stand for the original's, one by one.

    They do not where layers were left out, or where scales were folded into neighbouring weights, as AWQ
    does: the norms, which no compression here touches otherwise, then differ.
    """
    wanted, found = weights.layers(), len(base.get_decoder().layers)
    if wanted != found:
        raise RunError(
            f"{original}: {wanted} layers, the compressed model has {found}; its layers cannot be compared "
            "one by one: set start: zero"
        )
    held = {name.replace(".base_layer.", "."): values for name, values in base.named_parameters()}
    for name, values in held.items():
        shape = weights.shapes.get(name, values.shape)
        if tuple(shape) != tuple(values.shape):
            raise RunError(
                f"{original}: {name} is {tuple(shape)}, the compressed model's is {tuple(values.shape)}; "
                "name the model that it was compressed from, or set start: zero"
            )
    for name in (name for name, values in held.items() if values.ndim == 1 and name in weights.shapes):
        norm = weights.read(name).to(held[name].device).float()
        if (norm - held[name]).abs().max() > _ROUNDING * norm.abs().max():
            raise RunError(
                f"{name}: the compressed model's is another than in {original}, so its weights are scaled; "
                "name the model with the same scales (compression.awq with folded: true), or set start: zero"
            )


def _correct(name: str, module: Any, weights: Weights, moment: Tensor) -> Corrected:
    held = module.base_layer.weight
    wanted = weights.read(f"{name}.weight").to(held.device)
    error = wanted.double() - held.double()
    if not bool(torch.isfinite(error).all()) or not bool(torch.isfinite(moment).all()):
        raise RunError(f"{name}: weights or inputs that are not finite; the compression broke the model")
    down, up = module.lora_A[_ADAPTER].weight, module.lora_B[_ADAPTER].weight
    a, b = correction(error, moment, down.shape[0])
    # peft multiplies by alpha / rank.
    down.copy_(a)
    up.copy_(b / module.scaling[_ADAPTER])
    return Corrected(output_error(error, moment), output_error(error - b @ a, moment))


class Weights:
    """The tensors of a model's folder, read one at a time."""

    def __init__(self, folder: Path) -> None:
        from evals.backends.loading import tensor_shapes

        self._folder = folder
        self._places: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            found = tensor_shapes(file)
            self.shapes |= found
            self._places |= dict.fromkeys(found, file)

    def layers(self) -> int:
        """Return how many decoder layers the folder has."""
        return len({name.split(".")[2] for name in self._places if name.startswith("model.layers.")})

    def read(self, name: str) -> Tensor:
        """Return one tensor; raises ``RunError`` when the folder has none so named."""
        from safetensors import safe_open

        if name not in self._places:
            raise RunError(
                f"{self._folder}: no tensor {name}; name the uncompressed model that the compressed one was "
                "made from"
            )
        with safe_open(self._places[name], framework="pt") as tensors:
            found: Tensor = tensors.get_tensor(name)
        return found


class _ReachedError(Exception):
    """Ends a forward pass at the first layer."""


Batch = tuple[Tensor, Mapping[str, Any]]
"""Hidden states (1, T, width) that a decoder layer gets, and the other arguments of its call."""


def _first_inputs(loss: AnswerLoss, rows: Sequence[Encoded], capacity: int) -> list[Batch]:
    """Return what the first decoder layer is called with, a packed batch at a time."""
    decoder, device = loss.base.get_decoder(), loss.base.device
    found: list[Batch] = []

    def keep(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        named = dict(named)
        hidden = arguments[0] if arguments else named.pop("hidden_states")
        found.append((hidden, named))
        raise _ReachedError

    handle = decoder.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for batch in filled(sorted(rows, key=lambda row: len(row.ids)), capacity):
            packed = pack(batch, device)
            try:
                decoder(
                    input_ids=packed.ids.unsqueeze(0),
                    position_ids=packed.positions.unsqueeze(0),
                    use_cache=False,
                    rows=Rows(packed.lengths, device),
                )
            except _ReachedError:
                continue
    finally:
        handle.remove()
    if not found:
        raise RunError("calibration data too short: no rows to start the adapter from")
    return found


def _states(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _source(name: str) -> str:
    """Return the layer whose input is this layer's too."""
    path, _, last = name.rpartition(".")
    return f"{path}.{_SAME_INPUT.get(last, last)}"


@contextmanager
def _moments(adapted: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Sum x xᵀ of the layers' inputs inside the block: float64 (in, in), one for those that share it."""
    sums: dict[str, Tensor] = {}
    handles = []

    def adder(name: str) -> Callable[..., None]:
        def add(module: Any, arguments: tuple[Any, ...]) -> None:
            x = arguments[0].flatten(0, -2).float()
            product = (x.T @ x).double()
            sums[name] = sums[name] + product if name in sums else product

        return add

    for name in sorted({_source(name) for name in adapted}):
        handles.append(adapted[name].register_forward_pre_hook(adder(name)))
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _eye(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)
