"""Distillation as a profile asks for it: settings, and whether two models can be compared token by token.

The loss itself is in ``pipeline.training.distill_loss``, which needs torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from cogumi.errors import RunError
from cogumi.stage import Settings


class DistillSettings(Settings):
    """Loss = (1 - weight) * cross-entropy + weight * temperature² * divergence from the teacher."""

    weight: float = Field(default=0.5, gt=0, le=1)
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits of both; above 1 it shows more of what the teacher holds unlikely."""
    kind: Literal["forward", "reverse"] = "forward"
    """forward: KL(teacher ‖ student), which covers all that the teacher may say; reverse: KL(student ‖
    teacher), which keeps to what it says most (arXiv 2306.08543)."""


def check_same_tokenizer(student: Path, teacher: Path) -> None:
    """Raise ``RunError`` unless both model folders read the same ids as the same text."""
    from evals.backends.loading import model_tokenizer_digest

    if model_tokenizer_digest(student) != model_tokenizer_digest(teacher):
        raise RunError(
            "distill: the teacher's tokenizer is not the student's; leave `distill` and the input `teacher` "
            "out and train on the base's own answers instead (stage training.self_answers)"
        )
