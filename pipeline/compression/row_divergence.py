"""What each row lost in a compression: divergence and loss along its own answer, batch by batch on a device.

For choosing rows and for training. Both models lie in memory and compute through the trainer's own packed
forward pass, so thousands of rows take one pass of each. How far a finished file is from its source is told
by ``pipeline.compression.fidelity``, in the runtime that will run it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import log_softmax

from cogumi.errors import RunError
from pipeline.training.answer_loss import AnswerLoss, at_least_float32, chunk_size, vocabulary_of
from pipeline.training.data import Encoded
from pipeline.training.packing import PackedBatch, filled, pack


@dataclass(frozen=True, slots=True)
class RowDivergence:
    """One row, summed over its ``tokens`` answer tokens, the token that ends it included; nats."""

    kl: float
    """KL(baseline || candidate)."""
    loss: float
    """Negative log-likelihood of the answer by the candidate."""
    baseline_loss: float
    right: int
    """At how many of them the answer's own token is the candidate's likeliest."""
    tokens: int


def compared(
    candidate: AnswerLoss, baseline: AnswerLoss, rows: Sequence[Encoded], *, capacity: int
) -> Iterator[list[RowDivergence]]:
    """Yield the rows' divergences in their order, a packed batch of about ``capacity`` tokens at a time.

    Raises ``RunError`` when a row has no answer or a model's logits are not finite.
    """
    for row in rows:
        if not 0 < row.answer_start < len(row.ids):
            raise RunError("a row without a question before its answer, or without an answer")
    for batch in filled(rows, capacity):
        # As ``pack`` joins them: the longest first, equals in their order.
        order = sorted(range(len(batch)), key=lambda index: -len(batch[index].ids))
        found = _batch(candidate, baseline, [batch[index] for index in order])
        places = {index: place for place, index in enumerate(order)}
        yield [found[places[index]] for index in range(len(batch))]


@torch.no_grad()
def _batch(candidate: AnswerLoss, baseline: AnswerLoss, rows: Sequence[Encoded]) -> list[RowDivergence]:
    device = candidate.base.device
    packed = pack(rows, device)
    said, meant = _hidden(candidate, packed), _hidden(baseline, packed)
    lengths = [len(row.ids) - row.answer_start for row in rows]
    owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths)).to(device)
    sums = torch.zeros(4, len(rows), dtype=torch.float64, device=device)
    size = chunk_size(vocabulary_of(candidate.head) + vocabulary_of(baseline.head))
    for start in range(0, len(owner), size):
        part = slice(start, start + size)
        figures = _tokens(candidate, baseline, said[part], meant[part], packed.targets[part])
        sums.index_add_(1, owner[part], figures.double())
    if not bool(torch.isfinite(sums).all()):
        raise RunError("a model's logits are not finite: the compression broke it, or it was broken before")
    table = sums.tolist()
    return [
        RowDivergence(max(0.0, table[0][i]), table[1][i], table[2][i], round(table[3][i]), lengths[i])
        for i in range(len(rows))
    ]


def _hidden(model: AnswerLoss, packed: PackedBatch) -> torch.Tensor:
    with torch.autocast(packed.ids.device.type, torch.bfloat16, enabled=model.autocast):
        return model.hidden(packed)


def _tokens(
    candidate: AnswerLoss,
    baseline: AnswerLoss,
    said: torch.Tensor,
    meant: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Return (4, S): KL, the candidate's loss, the baseline's loss, and whether the candidate is right."""
    ours, theirs = (at_least_float32(model.head(x)) for model, x in ((candidate, said), (baseline, meant)))
    # Vocabularies that differ by padding are compared as far as they share entries.
    shared = min(ours.shape[1], theirs.shape[1])
    q, p = log_softmax(ours[:, :shared], dim=-1), log_softmax(theirs[:, :shared], dim=-1)
    wanted = targets.unsqueeze(1)
    kl = (p.exp() * (p - q)).sum(-1)
    right = (q.argmax(dim=-1) == targets).to(kl.dtype)
    return torch.stack([kl, -q.gather(1, wanted)[:, 0], -p.gather(1, wanted)[:, 0], right])
