"""Which layers of a model can be left out: looked at on calibration rows, before anything is trained.

Block influence (Men et al. 2024, ShortGPT, arXiv 2403.03853): one minus the cosine of what goes into a layer
and what comes out of it. Spans (Gromov et al. 2024, arXiv 2403.17887): the angle over pi between what goes
into a layer and what goes into the one ``n`` later. Both are means over all tokens; the second paper takes
the last token alone, which in a chat row is always the end of a turn. Greedy: one layer after the other is
left out, each time the one without which the loss of the answers is lowest, measured anew (BlockPruner does
so with the perplexity of half blocks, arXiv 2406.10594).

Covered: the decoders that training knows, on a CPU or one GPU; the hidden states of one packed batch are in
memory, not those of all rows. Not covered: half blocks, models that no single device holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cogumi.devices import compute_device
from cogumi.errors import RunError
from cogumi.stage import Progress
from cogumi.store import write_atomic
from evals.backends.loading import load_model, prefill_dtype
from pipeline.compression.calibration_rows import calibration_answers
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.packing import PackedBatch, filled, pack

if TYPE_CHECKING:
    from cogumi.store import Artifact

# Tokens that go through the model at once.
_BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Look:
    """What is looked at: rows of ``data`` as ``model``, a folder, sees them."""

    data: Artifact
    model: Path
    samples: int
    max_length: int
    seed: int
    journal: Path
    """File that keeps what a greedy choice has measured, so that a kill loses one removal at most."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A layer that is left out, by its number in the whole model, and the loss of the answers without it."""

    layer: int
    loss: float


def chosen_layers(
    look: Look, choice: str, count: int, progress: Progress
) -> tuple[list[int], dict[str, Any]]:
    """Return which ``count`` layers stay by ``influence``, ``span`` or ``greedy``, and the facts of the look.

    Raises ``RunError`` for data that are too short, a broken model, or memory that does not suffice.
    """
    rows = calibration_answers(
        look.data, look.model, samples=look.samples, max_length=look.max_length, seed=look.seed
    )
    device = torch.device(compute_device())
    facts: dict[str, Any] = {
        "calibration_rows": len(rows),
        "calibration_tokens": sum(len(row.ids) for row in rows),
    }
    try:
        dtype = prefill_dtype(device)
        loss = AnswerLoss(load_model(look.model, dtype=dtype, device=str(device)).model)
        batches = [pack(part, device) for part in filled(rows, _BATCH_TOKENS)]
        depth = len(_decoder(loss).layers)
        if choice == "greedy":
            whole, removals = leave_out_greedily(loss, batches, depth - count, look.journal, progress)
            left_out = [removal.layer for removal in removals]
            facts["answer_loss"] = round(whole, 6)
            facts["left_out"] = [
                {"layer": removal.layer, "answer_loss": round(removal.loss, 6)} for removal in removals
            ]
        elif choice == "span":
            scores = _finite(span_distances(loss, batches, depth - count), look.model)
            first = min(range(len(scores)), key=scores.__getitem__)
            left_out = list(range(first, first + depth - count))
            facts["span_distances"] = [round(score, 6) for score in scores]
        else:
            scores = _finite(block_influence(loss, batches), look.model)
            left_out = sorted(range(depth), key=scores.__getitem__)[: depth - count]
            facts["influence"] = [round(score, 6) for score in scores]
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"{look.model}: out of memory on {device} while its layers are measured; lower max_length"
        ) from error
    return sorted(set(range(depth)) - set(left_out)), facts


def _finite(scores: list[float], model: Path) -> list[float]:
    if not all(map(math.isfinite, scores)):
        raise RunError(f"{model}: its hidden states are not finite; the weights are broken")
    return scores


def block_influence(loss: AnswerLoss, batches: Sequence[PackedBatch]) -> list[float]:
    """Return one minus the mean cosine of input and output of each layer, in [0, 2]."""
    totals: list[float] = []
    for batch in batches:
        states = _states(loss, batch)
        turned = [float((1 - _cosine(a, b)).sum()) for a, b in pairwise(states)]
        totals = [a + b for a, b in zip(totals or [0.0] * len(turned), turned, strict=True)]
    return [total / sum(batch.tokens for batch in batches) for total in totals]


def span_distances(loss: AnswerLoss, batches: Sequence[PackedBatch], span: int) -> list[float]:
    """Return the mean angle, over pi, between the inputs of layers l and l + ``span``, for every such l."""
    totals: list[float] = []
    for batch in batches:
        states = _states(loss, batch)
        pairs = zip(states, states[span:], strict=False)
        angles = [float((torch.arccos(_cosine(a, b)) / math.pi).sum()) for a, b in pairs]
        totals = [a + b for a, b in zip(totals or [0.0] * len(angles), angles, strict=True)]
    return [total / sum(batch.tokens for batch in batches) for total in totals]


def leave_out_greedily(
    loss: AnswerLoss, batches: Sequence[PackedBatch], count: int, journal: Path, progress: Progress
) -> tuple[float, list[Removal]]:
    """Leave ``count`` layers out of the model itself; return its loss before, and each removal in its order.

    Losses are means per answer token, in nats. A removal measures every layer that is left; half a pass each,
    as what comes before the layer is computed once. What ``journal`` holds is not measured again.
    """
    decoder = _decoder(loss)
    numbered = dict(enumerate(decoder.layers))
    done = _journalled(journal)
    for removal in done[1:]:
        del numbered[removal.layer]
    decoder.layers = torch.nn.ModuleList(numbered.values())
    if not done:
        done = [Removal(-1, answer_loss(loss, batches))]
    progress.update(len(done) - 1, count, unit="layers", answer_loss=round(done[-1].loss, 4))
    while len(done) <= count:
        losses = dict(zip(numbered, losses_without(loss, batches), strict=True))
        layer = min(losses, key=losses.__getitem__)
        if not all(map(math.isfinite, losses.values())):
            raise RunError("the loss of the answers is not finite; the model's weights are broken")
        del numbered[layer]
        decoder.layers = torch.nn.ModuleList(numbered.values())
        done.append(Removal(layer, losses[layer]))
        write_atomic(journal, json.dumps([asdict(removal) for removal in done]).encode())
        progress.update(len(done) - 1, count, unit="layers", answer_loss=round(done[-1].loss, 4))
    return done[0].loss, done[1:]


def _journalled(journal: Path) -> list[Removal]:
    return [Removal(**entry) for entry in json.loads(journal.read_text())] if journal.is_file() else []


def answer_loss(loss: AnswerLoss, batches: Sequence[PackedBatch]) -> float:
    """Return the mean loss per answer token; raises ``RunError`` where no answer is left in the rows."""
    tokens = sum(len(batch.targets) for batch in batches)
    if not tokens:
        raise RunError("calibration data too short: 0 answer tokens; raise max_length")
    with torch.inference_mode():
        return sum(float(loss(batch)) for batch in batches) / tokens


def losses_without(loss: AnswerLoss, batches: Sequence[PackedBatch]) -> list[float]:
    """Return the mean loss per answer token without each of the model's layers in turn."""
    decoder = _decoder(loss)
    layers = list(decoder.layers)
    totals = [0.0] * len(layers)
    try:
        for batch in batches:
            decoder.layers = torch.nn.ModuleList(layers)
            state = _states(loss, batch)[0]
            for place, layer in enumerate(layers):
                given = _Given(state)
                decoder.layers = torch.nn.ModuleList([given, *layers[place + 1 :]])
                with torch.inference_mode():
                    totals[place] += float(loss(batch))
                decoder.layers = torch.nn.ModuleList([given, layer])
                state = _states(loss, batch)[-1]
    finally:
        decoder.layers = torch.nn.ModuleList(layers)
    tokens = sum(len(batch.targets) for batch in batches)
    return [total / tokens for total in totals]


class _Given(torch.nn.Module):
    """Stands for the layers whose output is known: (1, T, width), whatever goes in."""

    def __init__(self, state: torch.Tensor) -> None:
        super().__init__()
        self._state = state.unsqueeze(0)

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        return self._state


def _decoder(loss: AnswerLoss) -> Any:
    return getattr(loss.base, loss.base.base_model_prefix)


def _states(loss: AnswerLoss, batch: PackedBatch) -> list[torch.Tensor]:
    """Return the input of every layer and the output of the last one, each (T, width)."""
    decoder = _decoder(loss)
    states: list[torch.Tensor] = []

    def keep(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        states.append(inputs[0][0])

    watched = [module.register_forward_pre_hook(keep) for module in (*decoder.layers, decoder.norm)]
    try:
        with torch.inference_mode():
            loss.hidden(batch)
    finally:
        for handle in watched:
            handle.remove()
    return states


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the cosine of each token's two states, (T,) float64."""
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).clamp(-1, 1)
