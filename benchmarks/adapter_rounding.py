"""How much of a young adapter's effect bf16 keeps: the loss after one step, in both kinds of layers.

    python -m benchmarks.adapter_rounding --model FOLDER --data FILE [--tokens 120]

An adapter begins at zero, and after Adam's first step B is the rate times the gradient's sign. The same
adapters are then read in float32, in peft's layers under bf16 autocast, which round x W' before the adapter's
small share is added, and in the fused layers, which add both in one product and round once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_packing import packed, plain
from benchmarks.training_shapes import with_lora
from cogumi.devices import compute_device
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.fused.kernels import PLAIN, compiled
from pipeline.training.fused.loss import FusedAnswerLoss
from pipeline.training.packing import Step, StepSizes, endless_steps


def prepared(args: argparse.Namespace, dtype: str, device: torch.device) -> tuple[Any, Step]:
    """Return the model with fresh adapters in ``dtype``, and the one step of rows that is read."""
    from evals.backends.loading import load_model
    from pipeline.training.chat import ChatEncoder
    from pipeline.training.data import encode_all, read_examples

    loaded = load_model(args.model, dtype=dtype, device=str(device))
    encoder = ChatEncoder(loaded.tokenizer, loaded.stop_ids, include_reasoning=True)
    rows = encode_all(read_examples(args.data), encoder, max_length=1024, held_out_share=0.0).train
    torch.manual_seed(0)
    sizes = StepSizes(args.tokens, args.tokens)
    return with_lora(loaded.model, args.rank), next(endless_steps(rows, sizes, seed=0, skip=0))


def main() -> None:
    """Print the loss before the step, and after it in each arithmetic."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    args = parser.parse_args()
    device = torch.device(compute_device())
    model, step = prepared(args, "fp32", device)
    answers = sum(len(row.ids) - row.answer_start for entry in step for row in entry)

    def tell(what: str, loss: float) -> None:
        print(f"{what:26} {loss:.4f}", flush=True)

    model.train()
    tell("before the step, float32", plain(model, 8, device, autocast=False)(step, answers))
    trained = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    stepped = {name: -args.learning_rate * p.grad.sign() for name, p in trained.items()}

    def take(model: Any) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in stepped:
                    parameter.copy_(stepped[name])

    take(model)
    tell("after it, float32", plain(model, 8, device, autocast=False)(step, answers))
    model, step = prepared(args, "bf16", device)
    model.train()
    take(model)
    own = model.config._attn_implementation
    tell("bf16, autocast, padded", plain(model, 8, device, autocast=True)(step, answers))
    tell("bf16, autocast, packed", packed(AnswerLoss(model, autocast=True), device)(step, answers))
    model.get_base_model().set_attn_implementation(own)
    fused = FusedAnswerLoss(model, compiled() if device.type == "cuda" else PLAIN)
    tell("bf16, fused layers", packed(fused, device)(step, answers))


if __name__ == "__main__":
    main()
