"""``python -m benchmarks [NAME…]``: run all benchmarks, or those named."""

from __future__ import annotations

import importlib
import sys

NAMES = (
    "cold_gate",
    "dashboard_load",
    "data_60k",
    "eval_overhead",
    "gate_simulation",
    "gguf_export",
    "gguf_likelihood",
    "hf_overhead",
    "human_coverage",
    "human_load",
    "near_duplicates",
    "rehearsal",
    "teacher_client",
    "verdict_100k",
)


def main(names: list[str]) -> int:
    """Run benchmarks by name; returns 2 for an unknown one."""
    for name in names:
        if name not in NAMES:
            print(f"no benchmark {name!r} (known: {', '.join(NAMES)})", file=sys.stderr)
            return 2
    for name in names or NAMES:
        print(f"\n== {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main([])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
