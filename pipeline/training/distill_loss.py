"""The loss of distillation: cross-entropy of the answer tokens, mixed with the divergence from a teacher's
logits.

Source: Hinton, Vinyals and Dean 2015, arXiv 1503.02531. The whole vocabulary counts, not the likeliest tokens
only; both heads run over the same few positions at a time, so that logits never need more memory than in
plain training.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from pipeline.training.answer_loss import AnswerLoss, at_least_float32, over_chunks, vocabulary_of
from pipeline.training.distill import DistillSettings
from pipeline.training.packing import PackedBatch


class DistillLoss(torch.nn.Module):
    """Two models of one tokenizer as a function to the student's loss; only the student is trained.

    ``student`` remains at hand for a look at its cross-entropy alone. The teacher is frozen, in evaluation
    mode, and no submodule: neither an optimizer nor a checkpoint sees its weights. Vocabularies that differ
    by padding are compared as far as they share entries.
    """

    def __init__(self, student: AnswerLoss, teacher: AnswerLoss, settings: DistillSettings) -> None:
        super().__init__()
        self.student = student
        self._settings = settings
        # In a tuple, so that torch does not register it.
        self._teacher = (teacher.requires_grad_(False).eval(),)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Return the loss summed over the batch's answer tokens, a float32 scalar (float64 as the model)."""
        (teacher,) = self._teacher
        device = batch.ids.device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=teacher.autocast):
            taught = teacher.hidden(batch)
        with torch.autocast(device, torch.bfloat16, enabled=self.student.autocast):
            hidden = self.student.hidden(batch)
            vocabulary = vocabulary_of(self.student.head) + vocabulary_of(teacher.head)
            return over_chunks(self._loss, hidden, taught, batch.targets, vocabulary=vocabulary)

    def _loss(self, hidden: torch.Tensor, taught: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of some positions: hidden states (S, width) of each model, targets (S,) -> ()."""
        settings, (teacher,) = self._settings, self._teacher
        logits = at_least_float32(self.student.head(hidden))
        with torch.no_grad(), torch.autocast(hidden.device.type, torch.bfloat16, enabled=teacher.autocast):
            wanted = at_least_float32(teacher.head(taught))
        shared = min(logits.shape[1], wanted.shape[1])
        said = log_softmax(logits[:, :shared] / settings.temperature, dim=-1)
        meant = log_softmax(wanted[:, :shared] / settings.temperature, dim=-1)
        # kl_div(a, b) is KL(b ‖ a).
        pair = (said, meant) if settings.kind == "forward" else (meant, said)
        divergence = kl_div(*pair, reduction="sum", log_target=True) * settings.temperature**2
        if settings.weight == 1:
            return divergence
        plain = cross_entropy(logits, targets, reduction="sum")
        return (1 - settings.weight) * plain + settings.weight * divergence
