"""What each linear layer of a Llama reads and how much its outputs matter: the measure of every rounding.

``walk`` goes through a model one decoder block at a time and hands each linear layer with the second moment
of its input, H = sum of weight(token) x x^T over the weights' sum; what comes after a block is computed with
the weights that the visitor left in it, as in GPTQ. ``fisher`` tells by one backward pass what a change of
each output costs in KL divergence (nats per token): gradients of the log-probability of tokens that the model
itself draws, so that their second moment is the Fisher information. Weighting tokens by it follows
GuidedQuant (Kim et al. 2025, arXiv 2505.07004). On CPU and CUDA; ``walk`` holds the moments of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError

if TYPE_CHECKING:
    import torch

_BATCH_TOKENS = 1024
_EVEN = 0.2
"""Share of a token's weight that every token has alike: no token is left out of H."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer as a visitor sees it; ``weight`` may be changed in place."""

    name: str
    weight: torch.Tensor
    """(rows, columns), on the device of the walk."""
    hessian: torch.Tensor
    """float32 (columns, columns), on the same device."""


@dataclass(frozen=True, slots=True)
class Fisher:
    """How much each output counts, all on the CPU; tokens in the order of ``batches``."""

    outputs: dict[str, torch.Tensor]
    """By module: mean over tokens of the squared gradient of each output, float32 (rows,)."""
    tokens: dict[str, torch.Tensor]
    """By module: weight of each token in H, mean 1, float32 (tokens,)."""
    embedding: torch.Tensor
    """Second moment of the gradient by a looked-up embedding, mean over tokens (columns, columns)."""


def batches(rows: Sequence[Sequence[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ids and mask (rows, tokens) of padded batches, shortest rows first; always in the same order.

    Raises ``RunError`` without rows.
    """
    import torch

    if not any(rows):
        raise RunError("calibration data too short: no rows")
    batch: list[Sequence[int]] = []
    groups = []
    for row in sorted(filter(len, rows), key=len):
        if batch and (len(batch) + 1) * len(row) > _BATCH_TOKENS:
            groups.append(batch)
            batch = []
        batch.append(row)
    for group in [*groups, batch]:
        width = max(map(len, group))
        # Padding stands behind its row, where causal attention never looks.
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in group])
        yield ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in group]).bool()


def fisher(model: Any, rows: Sequence[Sequence[int]], *, device: Any, seed: int) -> Fisher:
    """Return what outputs and tokens of every linear layer count; one forward and backward pass of ``rows``.

    The model lies on ``device`` whole, without gradients of weights. Raises ``RunError`` for a model whose
    gradients are not finite.
    """
    import torch

    model.requires_grad_(False)
    outputs: dict[str, torch.Tensor] = {}
    weights: dict[str, list[torch.Tensor]] = {}
    kept: list[torch.Tensor] = []
    embedded = torch.zeros(())
    count = 0

    def gather(name: str, gradient: torch.Tensor) -> None:
        squares = gradient[kept[0]].float().square()
        outputs[name] = outputs.get(name, torch.zeros(())) + squares.sum(dim=0).cpu()
        weights.setdefault(name, []).append(squares.mean(dim=1).cpu())

    def watch(name: str) -> Callable[..., None]:
        def hooked(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            add_hook: Any = output.register_hook
            add_hook(lambda gradient: gather(name, gradient))

        return hooked

    def look_up(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.detach().requires_grad_()

        def second_moment(gradient: torch.Tensor) -> None:
            nonlocal embedded
            found = gradient[kept[0]].float()
            embedded = embedded + (found.T @ found).cpu()

        add_hook: Any = output.register_hook
        add_hook(second_moment)
        return output

    handles = [model.get_input_embeddings().register_forward_hook(look_up)]
    handles += [module.register_forward_hook(watch(name)) for name, module in linear_layers(model)]
    generator = torch.Generator(device=device).manual_seed(seed)
    try:
        for ids, mask in batches(rows):
            ids, mask = ids.to(device), mask.to(device)
            kept[:] = [mask]
            logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[mask].float()
            drawn = torch.multinomial(logits.detach().softmax(dim=-1), 1, generator=generator)
            (-logits.log_softmax(dim=-1).gather(1, drawn).sum()).backward()
            count += int(mask.sum())
    finally:
        for handle in handles:
            handle.remove()
    for name, value in outputs.items():
        if not bool(torch.isfinite(value).all()):
            raise RunError(f"calibration: the gradients of {name} are not finite; the model is broken")
    tokens = {name: torch.cat(parts) for name, parts in weights.items()}
    return Fisher(
        {name: value / count for name, value in outputs.items()},
        {name: _EVEN + (1 - _EVEN) * value / value.mean().clamp_min(1e-30) for name, value in tokens.items()},
        embedded / count,
    )


def linear_layers(model: Any) -> list[tuple[str, Any]]:
    """Return name and module of every linear layer, the head among them."""
    import torch

    return [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def walk(
    model: Any,
    rows: Sequence[Sequence[int]],
    visit: Callable[[int, list[Layer]], bool],
    *,
    device: Any,
    weights: dict[str, torch.Tensor] | None = None,
) -> Layer:
    """Go through the decoder blocks in order, and return the head as the last layer reads it.

    ``visit(number, layers)`` gets a block's linear layers and tells whether it changed them, in place.
    ``weights`` are those of tokens in H, by module (``Fisher.tokens``); without them all count alike.
    """
    import torch

    with torch.inference_mode():
        prepared = [_entered(model, ids, mask, device) for ids, mask in batches(rows)]
        hidden = [entry[0] for entry in prepared]
        for number, block in enumerate(model.model.layers):
            home = next(block.parameters()).device
            block.to(device)
            sums = _Sums(block, f"model.layers.{number}.", weights or {})
            after = sums.run(prepared, hidden)
            if visit(number, sums.layers()):
                after = [_through(block, state, entry) for state, entry in zip(hidden, prepared, strict=True)]
            hidden = after
            block.to(home)
        norm = model.model.norm.to(device)
        total, scale = None, 0.0
        at = 0
        for state, (_, _, mask) in zip(hidden, prepared, strict=True):
            read = norm(state.to(device))[mask].float()
            share = (weights or {}).get("lm_head")
            each = torch.ones(len(read)) if share is None else share[at : at + len(read)]
            at += len(read)
            each = each.to(device)
            part = (read * each[:, None]).T @ read
            total, scale = part if total is None else total + part, scale + float(each.sum())
        head = model.get_output_embeddings().weight
        if total is None:
            raise RunError("calibration data too short: no rows")
        return Layer("lm_head", head.detach(), total / scale)


def _entered(model: Any, ids: torch.Tensor, mask: torch.Tensor, device: Any) -> tuple[Any, Any, Any]:
    """Return what enters the first block, its other arguments, and the mask; the last two on ``device``."""
    import torch

    caught: list[tuple[Any, dict[str, Any]]] = []

    class Caught(Exception):  # noqa: N818 - carries no error: it ends the pass after the embedding
        pass

    def catch(_module: Any, inputs: Any, arguments: dict[str, Any]) -> None:
        state = inputs[0] if inputs else arguments.pop("hidden_states")
        caught.append((state, arguments))
        raise Caught

    handle = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    home = next(model.parameters()).device
    try:
        model(input_ids=ids.to(home), attention_mask=mask.long().to(home), use_cache=False)
    except Caught:
        pass
    finally:
        handle.remove()
    state, arguments = caught[0]

    def moved(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(moved, value))
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return state, {key: moved(value) for key, value in arguments.items()}, mask.to(device)


def _through(block: Any, state: torch.Tensor, entry: tuple[Any, Any, Any]) -> torch.Tensor:
    _, arguments, mask = entry
    out = block(state.to(mask.device), **arguments)
    found: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return found.to(state.device)


class _Sums:
    """Second moments of what the linear layers of one block read."""

    def __init__(self, block: Any, prefix: str, weights: dict[str, torch.Tensor]) -> None:
        self._block, self._prefix = block, prefix
        self._linear = linear_layers(block)
        self._weights = {name: weights.get(prefix + name) for name, _ in self._linear}
        self._sums: dict[str, torch.Tensor] = {}
        self._scale: dict[str, float] = {}

    def run(self, prepared: list[tuple[Any, Any, Any]], hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run all batches through the block, summing; returns what comes out."""
        out = []
        at = 0
        for state, entry in zip(hidden, prepared, strict=True):
            mask = entry[2]
            handles = [
                module.register_forward_pre_hook(
                    lambda _, inputs, name=name, at=at, mask=mask: self._add(name, inputs[0][mask], at)
                )
                for name, module in self._linear
            ]
            try:
                out.append(_through(self._block, state, entry))
            finally:
                for handle in handles:
                    handle.remove()
            at += int(mask.sum())
        return out

    def _add(self, name: str, read: torch.Tensor, at: int) -> None:
        import torch

        read = read.float()
        share = self._weights[name]
        each = torch.ones(len(read)) if share is None else share[at : at + len(read)]
        each = each.to(read.device)
        part = (read * each[:, None]).T @ read
        self._sums[name] = self._sums[name] + part if name in self._sums else part
        self._scale[name] = self._scale.get(name, 0.0) + float(each.sum())

    def layers(self) -> list[Layer]:
        """Return the linear layers with their moments; raises ``RunError`` where these are not finite."""
        import torch

        found = []
        for name, module in self._linear:
            hessian = self._sums[name] / self._scale[name]
            if not bool(torch.isfinite(hessian).all()):
                raise RunError(
                    f"calibration: inputs of {self._prefix}{name} are not finite; the model is broken"
                )
            found.append(Layer(self._prefix + name, module.weight.detach(), hessian))
        return found
