"""Packed against padded: the same adapters, rows and steps through both, their losses and their speed.

    python -m benchmarks.training_packing [--model FOLDER | --shape micro] [--data FILE] [--steps 20]

Padded is plain transformers + peft: rows of a step in batches of 8 padded to their longest, the model's own
attention, head and loss. Packed is the pipeline's loss; fused its layers for an accelerator. How far plain
training is from itself with batches of 4 is the noise that the others are held against. Sides run one after
the other from equal adapters; a second plain run tells how far the machine's speed has drifted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.training_shapes import SHAPES, padded, plan_rows, random_llama, with_lora
from cogumi.devices import compute_device
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.data import Encoded
from pipeline.training.fused.kernels import PLAIN, compiled
from pipeline.training.fused.loss import FusedAnswerLoss
from pipeline.training.packing import Step, StepSizes, endless_steps, pack

Backward = Callable[[Step, int], float]
"""Takes a step and its answer tokens, leaves the gradient of their mean loss, returns that loss."""


def plain(model: Any, size: int, device: torch.device, *, autocast: bool) -> Backward:
    """Return plain training: batches of ``size`` rows, padded to the longest."""

    def backward(step: Step, answers: int) -> float:
        rows = [row for entry in step for row in entry]
        total = 0.0
        for start in range(0, len(rows), size):
            inputs = padded(rows[start : start + size], device)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                logits = model(input_ids=inputs.ids, attention_mask=inputs.mask).logits[:, :-1]
            wanted = inputs.labels[:, 1:].flatten()
            loss = cross_entropy(logits.flatten(0, 1).float(), wanted, reduction="sum", ignore_index=-100)
            (loss / answers).backward()
            total += float(loss.detach()) / answers
        return total

    return backward


def packed(loss: AnswerLoss, device: torch.device) -> Backward:
    """Return packed training, as the pipeline does it."""

    def backward(step: Step, answers: int) -> float:
        total = 0.0
        for entry in step:
            value = loss(pack(entry, device)) / answers
            value.backward()
            total += float(value.detach())
        return total

    return backward


def train(
    model: Any, backward: Backward, steps: Sequence[Step], device: torch.device, after: Callable[[], None]
) -> dict[str, Any]:
    """Train over ``steps`` with AdamW; return the losses and the median of real tokens a second."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    losses: list[float] = []
    rates: list[float] = []
    for step in steps:
        answers = sum(len(row.ids) - row.answer_start for entry in step for row in entry)
        tokens = sum(len(row.ids) for entry in step for row in entry)
        started = time.perf_counter()
        losses.append(backward(step, answers))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after()
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(tokens / (time.perf_counter() - started))
    return {"losses": losses, "tokens_per_second": statistics.median(rates[2:] or rates)}


def prepare(args: argparse.Namespace, device: torch.device) -> tuple[Any, list[Encoded], bool]:
    """Return the model with adapters, its rows, and whether it computes in bf16."""
    if args.model is None:
        torch.manual_seed(0)
        model = random_llama(args.shape, device)
        return with_lora(model, args.rank), plan_rows(600, SHAPES[args.shape]["vocab_size"]), False
    from evals.backends.loading import load_model
    from pipeline.training.chat import ChatEncoder
    from pipeline.training.data import encode_all, read_examples

    halved = device.type == "cuda"
    loaded = load_model(args.model, dtype="bf16" if halved else "fp32", device=str(device))
    encoder = ChatEncoder(loaded.tokenizer, loaded.stop_ids, include_reasoning=True)
    encoded = encode_all(read_examples(args.data), encoder, max_length=1024, held_out_share=0.0)
    torch.manual_seed(0)
    return with_lora(loaded.model, args.rank), encoded.train, halved


def main() -> None:
    """Run every side and print one line of JSON for each, and one that compares them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="micro")
    parser.add_argument("--model", type=Path, help="a model folder or GGUF file instead of random weights")
    parser.add_argument("--data", type=Path, help="the merged training file, with --model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--step-tokens", type=int, default=4096)
    parser.add_argument("--micro-tokens", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()
    device = torch.device(compute_device())
    model, rows, halved = prepare(args, device)
    coming = endless_steps(rows, StepSizes(args.step_tokens, args.micro_tokens), seed=0, skip=0)
    steps = [next(coming) for _ in range(args.steps)]
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    own_attention = model.config._attn_implementation
    found: dict[str, dict[str, Any]] = {}

    def tell(side: str, backward: Backward, after: Callable[[], None] = lambda: None) -> None:
        found[side] = train(model, backward, steps, device, after)
        print(json.dumps({"side": side, **found[side]}), flush=True)

    def again() -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in start:
                    parameter.copy_(start[name])
        model.get_base_model().set_attn_implementation(own_attention)

    tell("padded, batches of 8", plain(model, 8, device, autocast=halved))
    again()
    tell("padded, batches of 4", plain(model, 4, device, autocast=halved))
    again()
    tell("packed", packed(AnswerLoss(model, autocast=halved), device))
    again()
    tell("padded, batches of 8, again", plain(model, 8, device, autocast=halved))
    again()
    loss = FusedAnswerLoss(model, compiled() if halved else PLAIN)
    tell("packed, fused layers", packed(loss, device), loss.refresh)
    first = found["padded, batches of 8"]
    for side, result in found.items():
        pairs = zip(result["losses"], first["losses"], strict=True)
        apart = max(abs(one - other) / other for one, other in pairs)
        ratio = result["tokens_per_second"] / first["tokens_per_second"]
        print(f"{side:30} {ratio:5.2f} times the speed, losses at most {apart:.2e} apart", flush=True)


if __name__ == "__main__":
    main()
