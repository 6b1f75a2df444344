"""Stage ``training.sft``: training on the merged data, in full or by LoRA; plain, distilled, meta-learnt."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cogumi.errors import UsageError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from pipeline.training.distill import DistillSettings
from pipeline.training.launch import DevicesSettings
from pipeline.training.meta_tasks import FamilySettings, MetaSettings


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685); rank 64 is the plan's (1.6)."""

    rank: int = Field(default=64, gt=0)
    alpha: float = Field(default=128, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class SftSettings(Settings):
    """What is learnt and how hard; exactly one of ``steps``, ``epochs`` and ``equal_compute`` is set."""

    method: Literal["full", "lora"] = "full"
    lora: LoraSettings | None = None
    objective: Literal["sft", "reptile", "fomaml", "anil", "maml"] = "sft"
    """sft: the next token of the answers; the others learn to learn (pipeline.training.meta)."""
    meta: MetaSettings | None = None
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    equal_compute: bool = False
    """As many steps as give the tokens that the input ``compute_of`` saw: the control of a comparison."""
    exclude_families: FamilySettings | None = None
    """Its held-out families are not trained on."""
    batch_tokens: int = Field(default=1536, gt=0)
    """Tokens of one optimizer step."""
    micro_batch_tokens: int = Field(default=512, gt=0)
    """Tokens that go through the model at once, packed: bounds the memory, not the result."""
    max_length: int | None = Field(default=None, gt=1)
    """Longest row in tokens, longer ones are left out; default: the model's context."""
    learning_rate: float = Field(gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps with a rising rate; after it half a cosine down to zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    seed_offset: int = 0
    dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16: full training keeps float32 weights under autocast; LoRA freezes a bf16 base."""
    include_reasoning: bool = False
    """Train on ``<thinking>…</thinking><answer>…</answer>`` where a row has reasoning."""
    held_out_share: float = Field(default=0.02, ge=0, lt=0.5)
    eval_every: int = Field(default=100, gt=0)
    """Steps between two looks at the held-out loss; each look is a checkpoint."""
    early_stop: int | None = Field(default=None, gt=0)
    """Looks without improvement before training stops; the best look's weights are then kept."""
    distill: DistillSettings | None = None
    """Learn also from the logits of the input ``teacher``, a model with the same tokenizer."""
    devices: DevicesSettings = DevicesSettings()
    """One device, unless more are asked for."""

    @model_validator(mode="after")
    def _consistent(self) -> SftSettings:
        if (self.steps is not None) + (self.epochs is not None) + self.equal_compute != 1:
            raise ValueError("set exactly one of steps, epochs and equal_compute")
        if (self.objective == "sft") != (self.meta is None):
            raise ValueError("the block 'meta' goes with an objective that learns to learn, and only with it")
        if self.meta is not None and self.steps is None:
            raise ValueError("meta-learning draws tasks without end: set steps, its iterations")
        if self.meta is not None and self.exclude_families is not None:
            raise ValueError("with a block 'meta' its families.held_out are left out; drop exclude_families")
        if self.meta is not None and self.distill is not None:
            raise ValueError("distill goes with objective: sft")
        if (self.method == "lora") != (self.lora is not None):
            raise ValueError("the block 'lora' goes with method: lora, and only with it")
        if self.early_stop is not None and self.held_out_share == 0:
            raise ValueError("early_stop needs a held_out_share above 0")
        return self


def run(settings: SftSettings, ctx: StageContext) -> StageResult:
    """Train the model of input ``model`` on input ``data``; the output is a dense safetensors folder."""
    from pipeline.training.data import training_file
    from pipeline.training.fit import FitJob
    from pipeline.training.fit_many import fit_on_devices

    teacher = ctx.inputs.get("teacher")
    if (teacher is None) != (settings.distill is None):
        raise UsageError("training.sft: the input 'teacher' goes with the block 'distill', and only with it")
    control_of = ctx.inputs.get("compute_of")
    if (control_of is not None) != settings.equal_compute:
        raise UsageError("training.sft: the input 'compute_of' goes with equal_compute, and only with it")
    model = ctx.inputs["model"]
    job = FitJob(
        model=model.path,
        model_digest=model.digest,
        model_facts=dict(model.facts),
        data=training_file(ctx.inputs["data"]),
        out=ctx.out,
        scratch=ctx.scratch,
        seed=ctx.seed + settings.seed_offset,
        teacher=teacher.path if teacher else None,
        tokens=int(control_of.facts["tokens_seen"]) if control_of else None,
    )
    facts, metrics = fit_on_devices(settings, job, ctx.progress)
    return StageResult("model", facts, metrics)


SFT = Stage(
    name="training.sft",
    version=2,
    title="Train on the teachers' answers",
    settings=SftSettings,
    run=run,
    inputs=("model", "data"),
    optional_inputs=("teacher", "compute_of"),
)
