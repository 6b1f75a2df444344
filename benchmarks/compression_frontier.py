"""Bytes against KL divergence and perplexity: llama.cpp's types, AWQ, GPTQ, pruning, depth cuts, and ours.

    python -m benchmarks.compression_frontier --model FOLDER --data FILE --work DIR [--only q4,ours]
        [--costs DIR] [--prepare [--share I/N]] [--sizes 72.2,75] [--rows 240] [--samples 128]
        [--recovery-steps 200] [--passes 4]

``--model`` is a tuned and merged model in safetensors: the packaged SmolLM2 lies on a Q4_1 grid already, and
4-bit types would look lossless on it. ``--data`` is the merged training file: 6 % of its rows, which no
method sees, are what everything is measured on. All sides go through one harness
(``pipeline.compression.fidelity``), files of GGUF in llama.cpp, folders in torch. What is finished is kept in
``--work`` and not made again; each line of ``results.jsonl`` is a finished side, ``artifact`` in it where its
files lie below ``--work``. A side that cannot be made here prints one line and is left out. Bytes are those
of all files that a user needs; a folder's tokenizer is among them, a GGUF file holds its own.

What our sizes share (how much each output counts, what each type costs) is measured once, in ``--costs``
(default: ``--work``), which several processes may name: the first measures, the others wait. ``--prepare``
does that and no more.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cogumi.digest import digest_of, tree_files
from cogumi.errors import CogumiError, UsageError
from cogumi.stage import StageContext
from cogumi.store import Artifact
from cogumi.subjects import of_artifact
from pipeline.compression.fidelity import fidelity
from pipeline.compression.grid import GRID, GridSettings, measure
from pipeline.compression.grid_work import COSTS, FISHER
from pipeline.compression.parts import RESULT, RecipePart, part_folder, run_part
from pipeline.training.data import encode_all, is_held_out, read_examples

if TYPE_CHECKING:
    from pipeline.compression.gguf_adapter import AdapterType
    from pipeline.training.data import Encoded

SHARE = 0.06
"""Of the data, kept from every method."""
LLAMA_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "IQ4_XS", "IQ3_XXS", "Q2_K")
SIZES_MB = (60.0, 65.0, 70.0, 72.2, 75.0, 80.0, 85.0, 90.0)
"""Of ours on SmolLM2-135M; at 72.2 GPTQ with 3 bits stands beside it."""
RANK = 8
ADAPTER_TYPE: Literal["q8_0"] = "q8_0"
"""Of the adapter of a recovered side, which is paid for out of the side's bytes."""


@dataclass(frozen=True, slots=True)
class Side:
    """One way to make a model small: its parts, the last of which is measured."""

    name: str
    family: str
    parts: tuple[RecipePart, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much every method may look at and try."""

    samples: int
    """Calibration rows."""
    recovery_steps: int
    passes: int
    """Of coordinate descent, in ours."""


def part(id: str, uses: str, inputs: dict[str, str], **settings: Any) -> RecipePart:
    """Return a part of a side."""
    return RecipePart(id=id, uses=uses, inputs=inputs, settings=settings)


def sides(effort: Effort, sizes_mb: Sequence[float], adapter: int) -> Iterator[Side]:
    """Yield every side, from what a user would take to ours; ``adapter``: bytes of a recovery's adapter."""
    both = {"model": "model", "data": "data"}
    samples = effort.samples
    for kind in LLAMA_TYPES:
        yield Side(kind, "llama.cpp", (part("gguf", "compression.gguf", {"model": "model"}, type=kind),))
        weighted = {"type": kind, "importance": True, "samples": samples}
        yield Side(
            f"{kind} imatrix", "llama.cpp imatrix", (part("gguf", "compression.gguf", both, **weighted),)
        )
    yield Side("AWQ W4A16", "AWQ", (part("awq", "compression.awq", both, samples=samples),))
    folded = part("folded", "compression.awq", both, samples=samples, folded=True)
    small = part("gguf", "compression.gguf", {"model": "folded"}, type="Q4_0")
    yield Side("AWQ folded, Q4_0", "AWQ", (folded, small))
    for bits in (4, 3, 2):
        gptq = part("gptq", "compression.gptq", both, bits=bits, samples=samples)
        yield Side(f"GPTQ {bits} bits", "GPTQ", (gptq,), "embedding at 8 bits counted")
    pruned = part("pruned", "compression.prune", both, sparsity=0.65, owl={}, samples=samples)
    packed = part("packed", "compression.package", {"model": "pruned"})
    yield Side("SparseGPT 65 %", "pruning", (pruned, packed))
    packed = part("packed", "compression.package", {"model": "recovered"})
    yield Side("SparseGPT 65 %, recovered", "pruning", (pruned, recovered_from("pruned", effort), packed))
    for layers in (26, 22, 18):
        cut = part("cut", "models.depth_cut", both, layers=layers, choice="influence")
        small = part("gguf", "compression.gguf", {"model": "cut"}, type="Q8_0")
        yield Side(f"{layers} of 30 layers, Q8_0", "depth cut", (cut, small))
    for megabytes in sizes_mb:
        size = round(megabytes * 1e6)
        yield Side(f"ours {megabytes:g} MB", "ours", (grid_of(size, effort),))
        # Where the adapter alone is larger, the grid says that nothing is so small.
        less = grid_of(max(1, size - adapter), effort)
        name = f"ours {megabytes:g} MB, recovered"
        yield Side(name, "ours, recovered", (less, recovered_from("grid", effort)))


def grid_of(size: int, effort: Effort) -> RecipePart:
    """Return the part that rounds into ``size`` bytes."""
    inputs = {"model": "model", "data": "data"}
    told = {"bytes_at_most": size, "samples": effort.samples, "passes": effort.passes}
    return part("grid", GRID.name, inputs, **told)


def recovered_from(compressed: str, effort: Effort) -> RecipePart:
    """Return the part that trains an adapter beside what the part ``compressed`` leaves."""
    return part(
        "recovered",
        "compression.recover",
        {"model": "model", "compressed": compressed, "data": "data"},
        rank=RANK,
        adapter_dtype=ADAPTER_TYPE if compressed == "grid" else "f16",
        calibration_samples=effort.samples,
        steps=effort.recovery_steps,
        learning_rate=5e-4,
        batch_tokens=2048,
        micro_batch_tokens=2048,
        max_length=1024,
        eval_every=max(effort.recovery_steps, 1),
    )


def adapter_bytes(model: Path, rank: int, dtype: AdapterType) -> int:
    """Return the bytes of a GGUF adapter on every linear layer of a Llama: one of zeros is written.

    Its bytes depend on the model's shapes alone. Raises ``RunError`` for a model that is not exported.
    """
    import torch
    from safetensors.torch import save_file

    from pipeline.compression.dense import hf_name
    from pipeline.compression.gguf_adapter import CONFIG, WEIGHTS, export_adapter
    from pipeline.compression.gguf_write import llama_config, tensor_shapes

    config = llama_config(model)
    factors = {}
    for name, shape in tensor_shapes(config).items():
        if name.startswith("blk.") and len(shape) == 2:
            module = f"base_model.model.{hf_name(name)}"
            factors[f"{module}.lora_A.weight"] = torch.zeros(rank, shape[1])
            factors[f"{module}.lora_B.weight"] = torch.zeros(shape[0], rank)
    with tempfile.TemporaryDirectory(prefix="cogumi-adapter-") as name:
        folder = Path(name)
        save_file(factors, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
        # It tells the file that it stands beside by a digest, which is equally long for any file.
        out, beside = folder / "adapter.gguf", folder / WEIGHTS
        return export_adapter(folder, config, out, dtype=dtype, beside=beside).bytes


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


# What our sizes share ---------------------------------------------------------------------------------


def shared_costs(
    settings: GridSettings, ctx: StageContext, costs: Path, share: tuple[int, int] = (0, 1)
) -> Path:
    """Return the folder below ``costs`` with what all sizes share, measured unless it is there.

    Another process that measures the same is waited for, but for one with a ``share`` of the blocks.
    """
    chosen = settings.model_dump(mode="json", include={"samples", "max_length", "damping", "kinds"})
    inputs = {name: artifact.digest for name, artifact in ctx.inputs.items()}
    key = digest_of([GRID.name, GRID.version, chosen, inputs, ctx.seed])
    folder = costs / f"costs-{key[7:23]}"
    if all((folder / name).is_file() for name in (FISHER, COSTS)):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / ("lock" if share[1] == 1 else f"lock-{share[0]}")):
        if not (folder / COSTS).is_file():
            measure(settings, replace(ctx, scratch=folder), share)
    return folder


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock file; it frees itself when the process ends."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def lend(each: RecipePart, made: dict[str, Artifact], ctx: StageContext, costs: Path) -> None:
    """Put what all sizes share where a part that rounds looks for its own earlier work."""
    folder = part_folder(each, made, ctx)
    if (folder / RESULT).is_file():
        return
    inputs = {name: made[source] for name, source in each.inputs.items()}
    found = shared_costs(GridSettings.model_validate(each.settings), replace(ctx, inputs=inputs), costs)
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    for name in (FISHER, COSTS):
        partial = folder / f".{name}.partial"
        shutil.copyfile(found / name, partial)
        partial.replace(folder / "scratch" / name)


# Running ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bench:
    """What every side is made from and measured on."""

    model: Artifact
    data: Artifact
    rows: Sequence[Encoded]
    work: Path
    costs: Path

    def context(self) -> StageContext:
        """Return what a part gets: it finds what is finished again."""
        return StageContext(
            inputs={},
            out=self.work,
            scratch=self.work / "parts",
            seed=0,
            progress=Silent(),
            calls=None,  # type: ignore[arg-type]
            teachers={},
            data=None,
        )

    def run(self, side: Side) -> dict[str, Any]:
        """Make a side, measure it and return its line."""
        ctx = self.context()
        started = time.perf_counter()
        made = {"model": self.model, "data": self.data}
        for each in side.parts:
            if each.uses == GRID.name:
                lend(each, made, ctx, self.costs)
            made[each.id], _ = run_part(each, made, ctx)
        seconds = time.perf_counter() - started
        last = made[side.parts[-1].id]
        found = fidelity(
            of_artifact(last, side.name), self.model.path, self.rows, scratch=self.work / "dense"
        )
        return {
            "side": side.name,
            "family": side.family,
            "note": side.note,
            **measured_bytes(last),
            **asdict(found),
            "seconds": round(seconds, 1),
            "artifact": str(last.path.relative_to(self.work)),
        }


def finished(work: Path) -> list[dict[str, Any]]:
    """Return the lines of the finished sides below a working folder."""
    results = work / "results.jsonl"
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def attempted(bench: Bench, side: Side) -> dict[str, Any] | None:
    """Return a side's line; None, with the reason on standard error, for one that could not be made."""
    try:
        return bench.run(side)
    except CogumiError as error:
        print(f"{side.name}: left out: {error}", file=sys.stderr, flush=True)
    except Exception:
        # Whatever a library raises, the sides after it are worth their machine's time.
        print(f"{side.name}: left out:", file=sys.stderr)
        traceback.print_exc()
    return None


def sizes(text: str) -> tuple[float, ...]:
    """Read sizes in MB from a command line; raises ``UsageError`` for what is no positive number."""
    try:
        found = tuple(float(each) for each in text.split(",") if each.strip())
    except ValueError:
        found = ()
    if not found or min(found) <= 0:
        raise UsageError(f"--sizes: sizes in MB with commas between them are expected, not {text!r}")
    return found


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a call."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.compression_frontier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="", help="comma-separated beginnings of sides' names, any case")
    parser.add_argument("--costs", type=Path, help="folder of what our sizes share; default: --work")
    parser.add_argument("--prepare", action="store_true", help="measure what our sizes share, and stop")
    parser.add_argument(
        "--share", type=share_of, default=(0, 1), metavar="I/N", help="with --prepare: every N-th block only"
    )
    parser.add_argument("--sizes", default=",".join(f"{size:g}" for size in SIZES_MB), help="of ours, in MB")
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--samples", type=int, default=128, help="calibration rows of every method")
    parser.add_argument("--recovery-steps", type=int, default=200)
    parser.add_argument("--passes", type=int, default=4, help="of coordinate descent, in ours")
    return parser.parse_args(arguments)


def share_of(text: str) -> tuple[int, int]:
    """Read ``I/N``, the first of N being 0; raises ``ValueError`` for another form."""
    first, every = map(int, text.split("/"))
    if not 0 <= first < every:
        raise ValueError(text)
    return first, every


def main(arguments: Sequence[str] | None = None) -> int:
    """Make and measure every side that is not finished, then print the table; returns an exit code."""
    try:
        return run(parsed(arguments))
    except CogumiError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def run(args: argparse.Namespace) -> int:
    """Do what the options say; returns 1 when a side was left out."""
    from pipeline.compression.calibration_rows import chat_encoder

    effort = Effort(args.samples, args.recovery_steps, args.passes)
    data, unseen = split(args.data, args.work)
    model, costs = stored(args.model, "model"), args.costs or args.work
    examples = read_examples(unseen)
    encoded = encode_all(examples, chat_encoder(args.model), max_length=1024, held_out_share=0.0)
    bench = Bench(model, data, encoded.train[: args.rows], args.work, costs)
    if args.prepare:
        settings = GridSettings.model_validate(grid_of(1, effort).settings)
        inputs = {"model": model, "data": data}
        print(shared_costs(settings, replace(bench.context(), inputs=inputs), costs, args.share))
        return 0
    done = {line["side"] for line in finished(args.work)}
    wanted = tuple(name.strip().lower() for name in args.only.split(",") if name.strip())
    adapter = adapter_bytes(args.model, RANK, ADAPTER_TYPE)
    left_out = 0
    for side in sides(effort, sizes(args.sizes), adapter):
        if side.name in done or (wanted and not side.name.lower().startswith(wanted)):
            continue
        line = attempted(bench, side)
        if line is None:
            left_out += 1
            continue
        with (args.work / "results.jsonl").open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    table(finished(args.work))
    return 1 if left_out else 0


def table(lines: Sequence[dict[str, Any]]) -> None:
    """Print the finished sides, the smallest first."""
    heads = ("resident MB", "download MB", "KL", "from", "to", "ppl", "top-1")
    print("{:32} {:>11} {:>11} {:>8} {:>8} {:>8} {:>7} {:>6}".format("side", *heads))
    for line in sorted(lines, key=lambda line: line["bytes_resident"]):
        print(
            f"{line['side']:32} {line['bytes_resident'] / 1e6:11.1f} {line['bytes_download'] / 1e6:11.1f} "
            f"{line['kl']:8.4f} {line['kl_lower']:8.4f} {line['kl_upper']:8.4f} {line['perplexity']:7.3f} "
            f"{line['top1_agreement']:6.3f}"
        )


if __name__ == "__main__":
    sys.exit(main())
