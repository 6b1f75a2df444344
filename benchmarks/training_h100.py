"""LoRA training of the Llama-3.1-8B shape on one accelerator: ours against plain transformers + peft.

    python -m benchmarks.training_h100 [--shape 8b] [--out FILE]

Both train rank 64 on all linear layers in bf16 with AdamW, on the same rows of the plan's mix of lengths,
with the loss on answer tokens. Plain: rows in random order, padded to the longest of the batch, adapters in
float32 under autocast as peft and Trainer(bf16=True) make them, in several batch sizes, with and without
recomputing layers. Ours: packed, fused layers, the trainer that ``cogumi run`` uses. Figures are real
tokens (no padding) a second; warm-up is not counted.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_shapes import SHAPES, padded, plan_rows, random_llama, with_lora
from cogumi.devices import compute_device
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.data import Encoded
from pipeline.training.fused.kernels import PLAIN, compiled
from pipeline.training.fused.loss import FusedAnswerLoss
from pipeline.training.loop import LoopConfig, Trainer
from pipeline.training.packing import StepSizes
from pipeline.training.sft_objective import SftObjective

STEP_TOKENS = 65536
STEP_ROWS = 64


class Silent:
    """A progress that nobody watches."""

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """Tell nothing."""


def matmul_ceiling(shape: str, device: torch.device) -> dict[str, float]:
    """Return what the bare products of one forward and backward pass without recomputation would allow."""
    dims = SHAPES[shape]
    width, inner, tokens = dims["hidden_size"], dims["intermediate_size"], 8192
    kv = width * dims["num_key_value_heads"] // dims["num_attention_heads"]
    seconds = 0.0
    for out, into in ((width + 2 * kv, width), (width, width), (2 * inner, width), (width, inner)):
        x = torch.randn(tokens, into, device=device, dtype=torch.bfloat16)
        y = torch.randn(tokens, out, device=device, dtype=torch.bfloat16)
        w = torch.randn(out, into, device=device, dtype=torch.bfloat16) * 0.02
        seconds += timed(lambda x=x, w=w: x @ w.T, 40) + timed(lambda y=y, w=w: y @ w, 40)
    total = seconds * dims["num_hidden_layers"]
    flops = 4 * tokens * dims["num_hidden_layers"] * (width * (2 * width + 2 * kv) + 3 * width * inner)
    return {"tokens_per_second": tokens / total, "tflops": flops / total / 1e12}


def timed(work: Any, times: int) -> float:
    """Return the mean seconds of a call, the device's clock."""
    for _ in range(3):
        work()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000 / times


def sync(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def plain(
    model: Any, rows: Sequence[Encoded], side: str, device: torch.device, *, warm: int, steps: int
) -> dict[str, Any]:
    """Train with transformers' own forward pass and loss on padded batches; an optimizer step per 64 rows.

    ``side``: rows of a batch, and a ``c`` behind them where layers are computed again in the backward pass.
    """
    batch = int(side.rstrip("c"))
    model.train()
    if side.endswith("c"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    else:
        model.gradient_checkpointing_disable()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    per_step = max(1, STEP_ROWS // batch)
    reset_peak(device)
    started, seen, sent, losses = 0.0, 0, 0, []
    for step in range(warm + steps):
        if step == warm:
            sync(device)
            started, seen, sent = time.perf_counter(), 0, 0
        total = 0.0
        for part in range(per_step):
            at = ((step * per_step + part) * batch) % (len(rows) - batch)
            chosen = rows[at : at + batch]
            inputs = padded(chosen, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = model(input_ids=inputs.ids, attention_mask=inputs.mask, labels=inputs.labels).loss
            (loss / per_step).backward()
            total += float(loss.detach()) / per_step
            seen += sum(len(row.ids) for row in chosen)
            sent += inputs.ids.numel()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    sync(device)
    seconds = time.perf_counter() - started
    return {
        "tokens_per_second": seen / seconds,
        "padding_share": 1 - seen / sent,
        "peak_gib": peak_gib(device),
        "last_loss": losses[-1],
    }


def ours(
    loss: AnswerLoss, rows: Sequence[Encoded], micro: int, device: torch.device, *, warm: int, steps: int
) -> dict[str, Any]:
    """Train with the trainer of the pipeline; every step is timed from the end of the last."""
    step = STEP_TOKENS if device.type == "cuda" else 2048
    sizes = StepSizes(max(1, step // micro) * micro, micro)
    pad_to = sizes.bins(1)[1] if isinstance(loss, FusedAnswerLoss) else 0
    objective = SftObjective(loss, rows, [], sizes, seed=0, device=device, pad_to=pad_to)
    stamps: list[float] = []

    def after() -> None:
        if isinstance(loss, FusedAnswerLoss):
            loss.refresh()
        sync(device)
        stamps.append(time.perf_counter())

    named = {name: p for name, p in loss.model.named_parameters() if p.requires_grad}
    config = LoopConfig(warm + steps, 1e-5, 0, 0.0, 1.0, 0, 10**6, None)
    reset_peak(device)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(named, objective, config, scratch=Path(scratch), on_step=after)
        trainer._save = lambda state: None  # type: ignore[method-assign]
        state = trainer.run(Silent())
    # The first stamp is before the first step.
    times = [b - a for a, b in zip(stamps[1 + warm :], stamps[2 + warm :], strict=False)][: steps - 1]
    tokens = state.tokens / state.step
    return {
        "tokens_per_second": tokens / statistics.mean(times),
        "spread": max(times) / min(times),
        "padding_share": state.padding / (state.tokens + state.padding),
        "supervised_share": state.supervised / state.tokens,
        "peak_gib": peak_gib(device),
        "last_loss": state.last_loss,
        "first_loss": state.first_loss,
    }


def reset_peak(device: torch.device) -> None:
    """Forget the peak of what ran before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: torch.device) -> float:
    """Return the most memory that was allocated since, in GiB."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0


def main() -> None:
    """Run every side and print one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="8b")
    parser.add_argument("--sides", default="ceiling,fused,plain,full")
    parser.add_argument("--micro", default="8192")
    parser.add_argument("--batches", default="1,2,4c,8c")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device(compute_device())
    found: list[dict[str, Any]] = []

    def tell(side: str, **figures: Any) -> None:
        found.append({"side": side, **figures})
        print(json.dumps(found[-1]), flush=True)
        if args.out:
            args.out.write_text("".join(json.dumps(entry) + "\n" for entry in found))

    tell(
        "machine",
        device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        torch=torch.__version__,
        shape=args.shape,
    )
    sides = args.sides.split(",")
    if "ceiling" in sides and device.type == "cuda":
        tell("matrix products alone", **matmul_ceiling(args.shape, device))
    model = with_lora(random_llama(args.shape, device))
    rows = plan_rows(3000, SHAPES[args.shape]["vocab_size"])
    random.Random(1).shuffle(rows)
    steps = args.steps
    if "plain" in sides:
        for batch in args.batches.split(","):
            try:
                tell(f"plain peft, batches of {batch}", **plain(model, rows, batch, device, warm=1, steps=2))
            except torch.OutOfMemoryError:
                tell(f"plain peft, batches of {batch}", out_of_memory=True)
            for parameter in model.parameters():
                parameter.grad = None
    if "full" in sides:
        even = [Encoded(tuple((row.ids * 400)[:1024]), 100) for row in rows[:256]]
        tell("plain peft, full rows of 1,024", **plain(model, even, "4", device, warm=1, steps=1))
        for parameter in model.parameters():
            parameter.grad = None
    if "packed" in sides:
        tell("packed, layers of peft", **ours(AnswerLoss(model), rows, 4096, device, warm=1, steps=3))
    if "fused" in sides:
        started = time.perf_counter()
        loss = FusedAnswerLoss(model, compiled() if device.type == "cuda" else PLAIN)
        for micro in map(int, args.micro.split(",")):
            tell(
                f"packed, fused layers, {micro} tokens at once",
                **ours(loss, rows, micro, device, warm=2, steps=steps),
            )
        tell("fused in all", seconds=time.perf_counter() - started)


if __name__ == "__main__":
    main()
