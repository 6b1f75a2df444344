"""Stage ``meta.few_shot``: what meta-learning adds on unseen families, against equal-compute fine-tuning.

Both models start from the same weights, saw as many tokens, and saw none of the families that are asked here.
In every episode both adapt to the same few rows by the same number of gradient steps and are scored on the
same other rows. Episodes are drawn independently, a family and then its rows, so that the interval of the
gain needs no assumption on the scores (pipeline.meta.gain).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cogumi.devices import compute_device
from cogumi.errors import RunError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import Artifact, write_atomic
from pipeline.meta.checks import ADAPTER, ROLES, check_comparable
from pipeline.training.data import read_examples, training_file
from pipeline.training.meta_tasks import FamilySettings

if TYPE_CHECKING:
    from pipeline.meta.episodes import Draws, Measured
    from pipeline.meta.learner import Learner

RESULTS, EPISODES = "results.json", "episodes.jsonl"


class FewShotSettings(Settings):
    """How a model adapts, and how it is scored."""

    families: FamilySettings
    """The same as in both trainings; its held-out families are asked here."""
    support: int = Field(default=5, gt=0)
    query: int = Field(default=5, gt=0)
    episodes: int = Field(default=400, gt=0)
    steps: int = Field(default=2, gt=0)
    """Gradient steps of the adaptation."""
    learning_rates: tuple[float, ...] = Field(min_length=1)
    """Of the adaptation. With several, each model takes the one with its best score on a fifth of the unseen
    rows and is scored on the others: a control must not lose by a rate that suits the other model."""
    score: Literal["probability", "answers"] = "probability"
    """``answers``: greedy answers, right or wrong by the micro-domains' own checks; ``probability``: the mean
    probability of the right answer's tokens, for data without a check."""
    max_tokens: int = Field(default=48, gt=0)
    """Longest greedy answer."""
    include_reasoning: bool = False
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen base under LoRA adapters; what adapts is float32 in any case."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """The chance that the interval of the gain misses it."""
    allow_unequal: bool = False
    """Compare also where one model saw over 5 % more tokens than the other; the result then says so."""

    @model_validator(mode="after")
    def _sensible(self) -> FewShotSettings:
        if not self.families.held_out:
            raise ValueError("families.held_out: name the families, or the share of them, that are asked")
        if any(rate <= 0 for rate in self.learning_rates):
            raise ValueError("learning_rates must be above 0")
        return self


def run(settings: FewShotSettings, ctx: StageContext) -> StageResult:
    """Compare input ``model`` with input ``control`` on the held-out families of input ``data``.

    Input ``base``: the model that both adapters are for, where LoRA trained them.
    """
    import torch

    from pipeline.meta.episodes import draw_episodes, measure
    from pipeline.training.decoding import Journal
    from pipeline.training.loop import deterministic

    unequal = check_comparable(settings, ctx.inputs)
    device = compute_device()
    examples = read_examples(training_file(ctx.inputs["data"]))
    found: dict[str, Measured] = {}

    def tell(done: int, **facts: float) -> None:
        before = len(found) * settings.episodes
        ctx.progress.update(before + done, len(ROLES) * settings.episodes, **facts)

    with deterministic(torch.device(device), ctx.seed):
        learner = _learner(settings, ctx.inputs, "model", device)
        draws = draw_episodes(settings, examples, learner, ctx.seed)
        found["model"] = measure(settings, learner, draws, Journal(ctx.scratch / "model.jsonl"), tell)
        # One model after the other: two of them need not fit the memory together.
        del learner
        learner = _learner(settings, ctx.inputs, "control", device)
        found["control"] = measure(settings, learner, draws, Journal(ctx.scratch / "control.jsonl"), tell)
    facts = _facts(settings, draws, found, ctx.inputs, unequal)
    write_atomic(ctx.out / RESULTS, (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode())
    lines = [json.dumps(row, sort_keys=True) for row in _rows(draws, found)]
    write_atomic(ctx.out / EPISODES, "".join(f"{line}\n" for line in lines).encode())
    return StageResult("file", facts)


def _learner(settings: FewShotSettings, inputs: Mapping[str, Artifact], role: str, device: str) -> Learner:
    from pipeline.meta.learner import Learner

    artifact, base = inputs[role], inputs.get("base")
    head_alone = inputs["model"].facts["objective"] == "anil"
    if base is None:
        return Learner(artifact.path, None, dtype="fp32", device=device, head_alone=head_alone)
    adapter = artifact.path / ADAPTER
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    if named != base.digest:
        raise RunError(f"{adapter}: trained on {named}, not on the input base ({base.digest}); give that one")
    return Learner(base.path, adapter, dtype=settings.dtype, device=device, head_alone=head_alone)


def _facts(
    settings: FewShotSettings,
    draws: Draws,
    found: Mapping[str, Measured],
    inputs: Mapping[str, Artifact],
    unequal: str,
) -> dict[str, Any]:
    from pipeline.meta.gain import paired_gain

    means = {role: [_mean(scores) for scores in found[role].after] for role in ROLES}
    gain = paired_gain(means["model"], means["control"], settings.alpha)
    scores = {
        role: {
            "before": round(_mean([_mean(each) for each in found[role].before]), 6),
            "after": round(_mean(means[role]), 6),
        }
        for role in ROLES
    }
    trained = inputs["model"].facts
    metrics: dict[str, Any] = {name: trained[name] for name in ("meta_tasks", "meta_iterations")}
    unmeasured = {}
    if gain is None:
        unmeasured["few_shot_gain"] = "the control scores 0 in every episode: no gain can be a share of that"
    else:
        said = (
            f"{scores['model']['after']:.3f} against {scores['control']['after']:.3f} after adaptation, "
            f"{len(draws.scored.families)} unseen families, {settings.episodes} episodes of "
            f"{settings.support} + {settings.query} rows, by {settings.score}"
        )
        metrics["few_shot_gain"] = {
            "value": round(gain.value, 6),
            "lower": round(gain.lower, 6),
            "upper": None if gain.upper is None else round(gain.upper, 6),
            "n": settings.episodes,
            "alpha": settings.alpha,
            "note": f"{said}; {unequal}" if unequal else said,
        }
    return {
        "metrics": metrics,
        "unmeasured": unmeasured,
        "objective": trained["objective"],
        "scores": scores,
        "families": _by_family(draws, means),
        "families_too_small": draws.scored.left_out,
        "learning_rates": {role: found[role].learning_rate for role in ROLES},
        "tokens_seen": {role: inputs[role].facts["tokens_seen"] for role in ROLES},
        "too_long_rows": draws.too_long_rows,
    }


def _by_family(draws: Draws, means: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    families = [episode.family for episode in draws.episodes()]
    table: dict[str, dict[str, float]] = {}
    for name in draws.scored.families:
        places = [place for place, family in enumerate(families) if family == name]
        table[name] = {"episodes": len(places)}
        if places:
            table[name] |= {role: round(_mean([means[role][place] for place in places]), 6) for role in ROLES}
    return table


def _rows(draws: Draws, found: Mapping[str, Measured]) -> list[dict[str, Any]]:
    return [
        {
            "episode": number,
            "family": episode.family,
            "support": [row.example.question_id for row in episode.support],
            "query": [row.example.question_id for row in episode.query],
            **{role: found[role].after[number] for role in ROLES},
            **{f"{role}_before": found[role].before[number] for role in ROLES},
        }
        for number, episode in enumerate(draws.episodes())
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


FEW_SHOT = Stage(
    name="meta.few_shot",
    version=1,
    title="Measure what meta-learning adds on unseen tasks",
    settings=FewShotSettings,
    run=run,
    inputs=("model", "control", "data"),
    optional_inputs=("base",),
)
