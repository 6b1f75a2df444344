"""GGUF: seconds of an export of a model of 135 M parameters, and our quantising beside llama.cpp's bare call.

The model has SmolLM2-135M's shape (30 layers, width 576, vocabulary 49,152) and random weights; ``--model``
takes a real folder. Export: folder to F16 file, header, vocabulary and all. Quantising: ``quantize_gguf``,
which plans, checks the disk and renames, and ``llama_model_quantize`` alone on the same file with as many
threads, in turn in one process, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.timing import machine, spread
from pipeline.compression.gguf_quantize import file_type, quantize_gguf
from pipeline.compression.gguf_write import export_gguf

_MOST_SECONDS, _MOST_RATIO = 30.0, 1.1
_LAYERS, _WIDTH, _INNER, _HEADS, _KV_HEADS, _VOCABULARY = 30, 576, 1536, 9, 3, 49_152


def random_model(folder: Path) -> Path:
    """Save a Llama of SmolLM2-135M's shape in bf16, with SmolLM2's own tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cogumi.subjects import KNOWN_MODELS, packaged_file
    from evals.backends.loading import gguf_tokenizer
    from evals.backends.tokenization import save_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_WIDTH,
        intermediate_size=_INNER,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_KV_HEADS,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(gguf_tokenizer(packaged_file(KNOWN_MODELS["smollm2-135m-instruct"])), folder)
    return folder


def bare(src: Path, out: Path, type: str) -> None:
    """Call llama.cpp's quantiser and nothing else."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type(type)
    params.nthread = len(os.sched_getaffinity(0))
    status = llama_cpp.llama_model_quantize(str(src).encode(), str(out).encode(), ctypes.byref(params))
    if status != 0:
        raise RuntimeError(f"llama_model_quantize returned {status}")


def seconds(work: Callable[[], None]) -> float:
    """Return the wall seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(arguments: list[str]) -> int:
    """Print seconds and the ratio; returns 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.gguf_export", description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of a Llama (default: random weights)")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = options.model or random_model(work / "model")
        plain, out = work / "f16.gguf", work / "out.gguf"
        before = time.process_time()
        export = [seconds(lambda: export_gguf(model, plain, dtype="f16")) for _ in range(options.rounds)]
        processor = (time.process_time() - before) / options.rounds
        print(f"{machine()}, load {os.getloadavg()[0]:.1f}, {options.rounds} rounds, {options.type}")
        print(
            f"export to F16, {plain.stat().st_size / 1e6:.0f} MB: {spread(export)}, "
            f"{processor:.1f} s of them on a processor, imports included"
        )
        ours, theirs = [], []
        quantize_gguf(plain, out, options.type)
        for _ in range(options.rounds):
            theirs.append(seconds(lambda: bare(plain, work / "bare.gguf", options.type)))
            ours.append(seconds(lambda: quantize_gguf(plain, out, options.type)))
        same = out.read_bytes() == (work / "bare.gguf").read_bytes()
    # Pair by pair, so that a load that comes and goes falls on both.
    ratio = statistics.median(mine / bare_call for mine, bare_call in zip(ours, theirs, strict=True))
    print(f"quantising: ours {spread(ours)}, bare call {spread(theirs)}, ratio {ratio:.3f}")
    print(f"the same bytes: {'yes' if same else 'no'}")
    met = statistics.median(export) < _MOST_SECONDS and ratio <= _MOST_RATIO and same
    print(f"goal (export < {_MOST_SECONDS:.0f} s, ratio <= {_MOST_RATIO}): {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
