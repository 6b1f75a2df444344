"""Whether two trained models may be compared: same start, equal compute, and nothing asked that was seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact
from pipeline.training.data import read_examples, training_file
from pipeline.training.meta_tasks import cell_of, group_rows, held_out_families

if TYPE_CHECKING:
    from pipeline.meta.few_shot import FewShotSettings

ROLES = ("model", "control")
ADAPTER = "adapter"
META_OBJECTIVES = ("reptile", "fomaml", "anil", "maml")

EQUAL = 0.05
"""Tokens seen that differ by no more than this share count as equal compute."""


def check_comparable(settings: FewShotSettings, inputs: Mapping[str, Artifact]) -> str:
    """Return what to say of an unequal comparison that is allowed, else nothing.

    Raises ``UsageError`` where the two models cannot be compared fairly, ``RunError`` where their manifests
    do not tell.
    """
    from evals.backends.loading import model_tokenizer_digest

    model, control = (inputs[role] for role in ROLES)
    if model.facts.get("objective") not in META_OBJECTIVES:
        raise UsageError(
            f"input model: artifact {model.short} was not meta-trained; train it with objective: reptile, "
            "fomaml, anil or maml"
        )
    starts = [each.manifest.get("made_by", {}).get("inputs", {}).get("model") for each in (model, control)]
    if starts[0] != starts[1]:
        raise UsageError(
            "model and control were not trained from the same start; give both trainings the same input model"
        )
    if model_tokenizer_digest(model.path) != model_tokenizer_digest(control.path):
        raise UsageError("model and control have different tokenizers: their scores cannot be paired")
    _check_adapters(inputs)
    _check_unseen(settings, inputs)
    return _check_tokens(settings, model, control)


def _check_adapters(inputs: Mapping[str, Artifact]) -> None:
    model, control = (inputs[role].path.joinpath(ADAPTER).is_dir() for role in ROLES)
    if model != control:
        raise UsageError(
            "one of model and control was trained by LoRA and the other in full; train both alike"
        )
    if model and "base" not in inputs:
        raise UsageError("model and control are LoRA adapters: give the input base, which they are for")
    if not model and "base" in inputs:
        raise UsageError("model and control were trained in full: leave the input base out")


def _check_unseen(settings: FewShotSettings, inputs: Mapping[str, Artifact]) -> None:
    examples = read_examples(training_file(inputs["data"]))
    groups = group_rows(examples, examples, settings.families)
    asked = {cell_of(row) for name in held_out_families(examples, settings.families) for row in groups[name]}
    for role in ROLES:
        seen = inputs[role].facts.get("trained_cells")
        if seen is None:
            raise RunError(
                f"input {role}: artifact {inputs[role].short} does not say what it was trained on "
                "(trained_cells); train it again"
            )
        both = sorted(asked & set(seen))
        if both:
            raise UsageError(
                f"input {role} was trained on {', '.join(both)}, which must be unseen; train it, and what it "
                "starts from, without these (meta.families.held_out, exclude_families)"
            )


def _check_tokens(settings: FewShotSettings, model: Artifact, control: Artifact) -> str:
    seen = [int(each.facts["tokens_seen"]) for each in (model, control)]
    more = max(seen) / min(seen) - 1
    if more <= EQUAL:
        return ""
    told = (
        f"the {ROLES[seen.index(max(seen))]} saw {more:.0%} more tokens, {max(seen):,} against {min(seen):,}"
    )
    if not settings.allow_unequal:
        raise UsageError(f"no equal compute: {told}; change the control's steps, or set allow_unequal: true")
    return told
