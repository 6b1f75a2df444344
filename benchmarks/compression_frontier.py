"""Bytes against KL divergence and perplexity: llama.cpp's types, AWQ, GPTQ, pruning, depth cuts, and ours.

    python -m benchmarks.compression_frontier --model FOLDER --data FILE --work DIR [--only q4,ours]
        [--rows 240] [--samples 128] [--recovery-steps 200] [--passes 4]

``--model`` is a tuned and merged model in safetensors: the packaged SmolLM2 lies on a Q4_1 grid already, and
4-bit types would look lossless on it. ``--data`` is the merged training file: 6 % of its rows, which no
method sees, are what everything is measured on. All sides go through one harness
(``pipeline.compression.fidelity``), files of GGUF in llama.cpp, folders in torch. What is finished is kept in
``--work`` and not made again; each line of ``results.jsonl`` is a finished side. Bytes are those of all files
that a user needs; a folder's tokenizer is among them, a GGUF file holds its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cogumi.digest import digest_of, tree_files
from cogumi.stage import StageContext
from cogumi.store import Artifact
from cogumi.subjects import of_artifact
from pipeline.compression.fidelity import fidelity
from pipeline.compression.parts import RecipePart, run_part
from pipeline.training.data import encode_all, is_held_out, read_examples

SHARE = 0.06
"""Of the data, kept from every method."""
LLAMA_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "IQ4_XS", "IQ3_XXS", "Q2_K")
SIZES_MB = (60, 65, 70, 75, 80, 85, 90)
"""Of ours; where a size is below what the smallest types give, the side says so and is left out."""


@dataclass(frozen=True, slots=True)
class Side:
    """One way to make a model small: its parts, the last of which is measured."""

    name: str
    family: str
    parts: tuple[RecipePart, ...]
    note: str = ""


def part(id: str, uses: str, inputs: dict[str, str], **settings: Any) -> RecipePart:
    """Return a part of a side."""
    return RecipePart(id=id, uses=uses, inputs=inputs, settings=settings)


def sides(samples: int, recovery_steps: int, passes: int) -> Iterator[Side]:
    """Yield every side, from what a user would take to ours."""
    both = {"model": "model", "data": "data"}
    for kind in LLAMA_TYPES:
        yield Side(kind, "llama.cpp", (part("gguf", "compression.gguf", {"model": "model"}, type=kind),))
        weighted = {"type": kind, "importance": True, "samples": samples}
        yield Side(f"{kind} imatrix", "llama.cpp", (part("gguf", "compression.gguf", both, **weighted),))
    yield Side("AWQ W4A16", "AWQ", (part("awq", "compression.awq", both, samples=samples),))
    folded = part("folded", "compression.awq", both, samples=samples, folded=True)
    yield Side(
        "AWQ folded, Q4_0",
        "AWQ",
        (folded, part("gguf", "compression.gguf", {"model": "folded"}, type="Q4_0")),
    )
    for bits in (4, 3, 2):
        gptq = part("gptq", "compression.gptq", both, bits=bits, samples=samples)
        yield Side(f"GPTQ {bits} bits", "GPTQ", (gptq,), "embedding at 8 bits counted")
    pruned = part("pruned", "compression.prune", both, sparsity=0.65, owl={}, samples=samples)
    yield Side(
        "SparseGPT 65 %", "pruning", (pruned, part("packed", "compression.package", {"model": "pruned"}))
    )
    recovered = part(
        "recovered",
        "compression.recover",
        {"model": "model", "compressed": "pruned", "data": "data"},
        **recovery(recovery_steps),
    )
    yield Side(
        "SparseGPT 65 %, recovered",
        "pruning",
        (pruned, recovered, part("packed", "compression.package", {"model": "recovered"})),
    )
    for layers in (26, 22, 18):
        cut = part("cut", "models.depth_cut", both, layers=layers, choice="influence")
        small = part("gguf", "compression.gguf", {"model": "cut"}, type="Q8_0")
        yield Side(f"{layers} of 30 layers, Q8_0", "depth cut", (cut, small))
    for megabytes in SIZES_MB:
        # The adapter is paid for out of the same bytes.
        size = int(megabytes * 1e6)
        grid = part("grid", "compression.grid", both, bytes_at_most=size, samples=samples, passes=passes)
        yield Side(f"ours {megabytes} MB", "ours", (grid,))
        less = part(
            "grid", "compression.grid", both, bytes_at_most=size - 2_700_000, samples=samples, passes=passes
        )
        healed = part(
            "recovered",
            "compression.recover",
            {"model": "model", "compressed": "grid", "data": "data"},
            **recovery(recovery_steps),
        )
        yield Side(f"ours {megabytes} MB, recovered", "ours, recovered", (less, healed))


def recovery(steps: int) -> dict[str, Any]:
    """Return the settings of a recovery whose adapter is 2.6 MB on SmolLM2."""
    return {
        "rank": 8,
        "adapter_dtype": "q8_0",
        "steps": steps,
        "learning_rate": 5e-4,
        "batch_tokens": 2048,
        "micro_batch_tokens": 2048,
        "max_length": 1024,
        "eval_every": max(steps, 1),
    }


def measured_bytes(artifact: Artifact) -> dict[str, int]:
    """Return resident and download bytes of a side."""
    facts = artifact.facts
    packed = facts.get("bytes_packed_8bit")
    if packed is not None:
        return {"bytes_resident": int(packed), "bytes_download": int(packed)}
    return {name: int(facts.get(name, artifact.bytes)) for name in ("bytes_resident", "bytes_download")}


class Silent:
    """A progress sink that shows nothing: a side's line is its report."""

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """Take a report."""


def split(data: Path, work: Path) -> tuple[Artifact, Path]:
    """Write the rows that methods may see and those that they are measured on, as files of their own."""
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    seen, unseen = work / "seen", work / "unseen"
    for folder in (seen, unseen):
        folder.mkdir(parents=True, exist_ok=True)
    held = [is_held_out(json.loads(line)["question_id"], SHARE) for line in lines]
    for folder, wanted in ((seen, False), (unseen, True)):
        rows = [line for line, out in zip(lines, held, strict=True) if out is wanted]
        (folder / "training.jsonl").write_text("".join(rows), encoding="utf-8")
    return stored(seen, "dataset"), unseen / "training.jsonl"


def stored(folder: Path, kind: str) -> Artifact:
    """Return a folder as an artifact outside any store."""
    files = tree_files(folder)
    return Artifact(digest_of(files), folder, {"kind": kind, "files": files, "facts": {}})


def main() -> None:
    """Make and measure every side that is not finished, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="", help="comma-separated beginnings of sides' names, any case")
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--samples", type=int, default=128, help="calibration rows of every method")
    parser.add_argument("--recovery-steps", type=int, default=200)
    parser.add_argument("--passes", type=int, default=4, help="of coordinate descent, in ours")
    args = parser.parse_args()
    from pipeline.compression.calibration_rows import chat_encoder

    data, unseen = split(args.data, args.work)
    model = stored(args.model, "model")
    encoder = chat_encoder(args.model)
    rows = encode_all(read_examples(unseen), encoder, max_length=1024, held_out_share=0.0).train[: args.rows]
    results = args.work / "results.jsonl"
    done = (
        {json.loads(line)["side"] for line in results.read_text().splitlines()} if results.exists() else set()
    )
    wanted = [name.strip().lower() for name in args.only.split(",") if name.strip()]
    for side in sides(args.samples, args.recovery_steps, args.passes):
        if side.name in done or (wanted and not any(side.name.lower().startswith(name) for name in wanted)):
            continue
        ctx = StageContext(
            inputs={},
            out=args.work,
            scratch=args.work / "parts",
            seed=0,
            progress=Silent(),
            calls=None,  # type: ignore[arg-type]
            teachers={},
            data=None,
        )
        started = time.perf_counter()
        made = {"model": model, "data": data}
        for each in side.parts:
            made[each.id], _ = run_part(each, made, ctx)
        seconds = time.perf_counter() - started
        last = made[side.parts[-1].id]
        found = fidelity(of_artifact(last, side.name), args.model, rows, scratch=args.work / "dense")
        line = {
            "side": side.name,
            "family": side.family,
            "note": side.note,
            **measured_bytes(last),
            **asdict(found),
            "seconds": round(seconds, 1),
        }
        with results.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    table(results)


def table(results: Path) -> None:
    """Print the finished sides, the smallest first."""
    lines = sorted(map(json.loads, results.read_text().splitlines()), key=lambda line: line["bytes_resident"])
    heads = ("resident MB", "download MB", "KL", "from", "to", "ppl", "top-1")
    print("{:32} {:>11} {:>11} {:>8} {:>8} {:>8} {:>7} {:>6}".format("side", *heads))
    for line in lines:
        print(
            f"{line['side']:32} {line['bytes_resident'] / 1e6:11.1f} {line['bytes_download'] / 1e6:11.1f} "
            f"{line['kl']:8.4f} {line['kl_lower']:8.4f} {line['kl_upper']:8.4f} {line['perplexity']:7.3f} "
            f"{line['top1_agreement']:6.3f}"
        )


if __name__ == "__main__":
    main()
