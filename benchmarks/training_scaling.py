"""Training on several devices against one, in one run: real tokens a second, and the loss of every step.

    python -m benchmarks.training_scaling --devices 1,2 --shape 8b [--strategy fsdp] [--out FILE]

Random weights and rows of the plan's mix of lengths: nothing is fetched. LoRA of rank 64 in bf16 as the plan
has it (1.6), ``micro`` all weights in float32. Every number of devices sees the same steps, so their losses
must be the same within noise; warm-up is not counted. Without accelerators the processes share the processor.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.training_shapes import SHAPES, plan_rows, random_llama, with_lora
from cogumi.stage import Progress
from pipeline.training.launch import DevicesSettings, train_together
from pipeline.training.world import World


class Told:
    """A progress on standard output."""

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """Print a line."""
        print(f"  {done}/{total} {facts}", flush=True)


class Watched:
    """An objective that notes the loss and the tokens of each step."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.losses: list[float] = []
        self.tokens: list[int] = []

    def steps(self, *, skip: int) -> Iterator[Any]:
        """Yield the steps."""
        return iter(self._inner.steps(skip=skip))

    def gradient(self, step: Any) -> Any:
        """Take the gradient of a step."""
        counts = self._inner.gradient(step)
        self.losses.append(float(counts.loss))
        self.tokens.append(counts.tokens)
        return counts

    def held_out_loss(self) -> None:
        """Return None: only steps are timed."""


def measure(arguments: Any, progress: Progress, world: World) -> dict[str, Any]:
    """Train as the arguments say, one of the processes; return the times, tokens and losses of the steps."""
    import torch

    from pipeline.training.answer_loss import AnswerLoss
    from pipeline.training.fused.kernels import compiled
    from pipeline.training.fused.loss import FusedAnswerLoss
    from pipeline.training.loop import LoopConfig, Trainer
    from pipeline.training.packing import StepSizes
    from pipeline.training.sft_objective import SftObjective

    shape, micro, steps = arguments["shape"], arguments["micro"], arguments["steps"]
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    model = random_llama(shape, device)
    if shape != "micro":
        torch.manual_seed(1)
        model = with_lora(model)
    # As the training stage has it: fused layers hold the model's weights in matrices of their own, which
    # cannot be shared out.
    fused = shape != "micro" and device.type == "cuda" and not world.sharded
    loss = FusedAnswerLoss(model, compiled()) if fused else AnswerLoss(model)
    world.spread(loss)
    sizes = StepSizes(arguments["batch"], micro)
    longest = min(2048, micro)
    rows = plan_rows(arguments["rows"], SHAPES[shape]["vocab_size"], longest=longest)
    inner = SftObjective(
        loss, rows, [], sizes, seed=0, device=device, pad_to=micro if fused else 0, world=world
    )
    objective = Watched(inner)
    stamps: list[float] = []

    def after() -> None:
        if isinstance(loss, FusedAnswerLoss):
            loss.refresh()
        if device.type == "cuda":
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())

    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    config = LoopConfig(steps, arguments["rate"], 0, 0.0, 1.0, 0, 10**6, None)
    with tempfile.TemporaryDirectory() as scratch:
        Trainer(named, objective, config, scratch=Path(scratch), world=world, on_step=after).run(progress)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "fused": fused,
        # The first stamp is before the first step.
        "seconds": [end - start for start, end in pairwise(stamps)],
        "tokens": objective.tokens,
        "losses": objective.losses,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure each number of devices in turn and print rates, ratios and the distance of the loss curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="1,2", help="numbers of devices, the first is compared with")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="micro")
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm", type=int, default=3, help="first steps that are not timed")
    parser.add_argument("--micro", type=int, help="tokens that go through the model at once")
    parser.add_argument("--bins", type=int, default=4, help="such parts in a step")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    micro = args.micro or (2048 if args.shape == "micro" else 8192)
    task = {
        "shape": args.shape,
        "micro": micro,
        "batch": args.bins * micro,
        "steps": args.steps,
        "rate": args.rate,
        "rows": max(500, args.bins * micro * args.steps // 300),
    }
    found: dict[int, dict[str, Any]] = {}
    for count in map(int, args.devices.split(",")):
        where = DevicesSettings(count=count, strategy=args.strategy)
        with tempfile.TemporaryDirectory() as logs:
            found[count] = train_together(
                "benchmarks.training_scaling:measure", task, where, Told(), logs=Path(logs)
            )
        print(json.dumps(_row(count, found, args.warm)), flush=True)
    if args.out:
        rows = [{**_row(count, found, args.warm), **found[count]} for count in found]
        args.out.write_text(json.dumps({"shape": args.shape, "strategy": args.strategy, "rows": rows}) + "\n")


def _row(count: int, found: dict[int, dict[str, Any]], warm: int) -> dict[str, Any]:
    """Say one number of devices in figures, beside the first."""
    one, this = next(iter(found.values())), found[count]
    rate, base = _rate(this, warm), _rate(one, warm)
    apart = [abs(a - b) for a, b in zip(one["losses"], this["losses"], strict=True)]
    return {
        "devices": count,
        "device": this["device"],
        "fused": this["fused"],
        "tokens_per_second": round(rate, 1),
        "times_the_first": round(rate / base, 3),
        "slowest_step": round(max(this["seconds"][warm:]) / statistics.median(this["seconds"][warm:]), 2),
        "peak_gib": this["peak_gib"],
        "first_loss": this["losses"][0],
        "last_loss": this["losses"][-1],
        "losses_apart_at_most": max(apart),
    }


def _rate(found: dict[str, Any], warm: int) -> float:
    return float(sum(found["tokens"][warm:]) / sum(found["seconds"][warm:]))


if __name__ == "__main__":
    main()
