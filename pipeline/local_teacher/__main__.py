"""``python -m pipeline.local_teacher``: a teacher that costs nothing and whose errors are known."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cogumi.errors import CogumiError
from cogumi.teacher_faults import FAULTS
from pipeline.local_teacher.options import TeacherOptions, parse_rates


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to end; return the process's exit code."""
    given = _parser().parse_args(arguments)
    try:
        options = TeacherOptions(
            state=given.state,
            error_rate=given.error_rate,
            error_rates=parse_rates(given.error_rates),
            judge_reject_rate=given.judge_reject_rate,
            malformed_rate=given.malformed_rate,
            seed=given.seed,
            latency_ms=given.latency_ms,
            batch_delay=given.batch_delay,
            faults=parse_rates(given.faults),
            stall_seconds=given.stall_seconds,
            retry_after_seconds=given.retry_after_seconds,
            models=tuple(filter(None, given.models.split(","))),
            require_key=given.require_key,
            varied=given.varied,
            gguf=given.gguf,
            context=given.context,
        )
        from pipeline.local_teacher.server import serve

        serve(options, host=given.host, port=given.port, stop_with_stdin=given.stop_with_stdin)
    except CogumiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.local_teacher",
        description="A teacher on loopback that speaks the OpenAI and Anthropic wire formats.",
        epilog="example: python -m pipeline.local_teacher --port 8900 --state teacher --faults 429=0.1",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the address is printed")
    parser.add_argument("--state", type=Path, required=True, help="folder for files, batches and the log")
    parser.add_argument("--error-rate", type=float, default=0.05, help="share of wrong answers")
    parser.add_argument("--error-rates", default="", help="per domain: coding=0.08,math=0.02")
    parser.add_argument("--judge-reject-rate", type=float, default=0.05, help="share scored below 7")
    parser.add_argument("--malformed-rate", type=float, default=0.02, help="share that breaks its form once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="time that each answer takes")
    parser.add_argument("--batch-delay", type=float, default=0.0, help="seconds before a batch is worked on")
    parser.add_argument("--faults", default="", help=f"name=probability,...: {', '.join(FAULTS)}")
    parser.add_argument("--stall-seconds", type=float, default=30.0, help="length of the stall fault")
    parser.add_argument("--retry-after-seconds", type=float, default=1.0, help="what the 429 fault asks")
    parser.add_argument("--models", default="", help="the only models that exist; default: any name")
    parser.add_argument("--require-key", default=None, help="refuse every other API key with 401")
    parser.add_argument("--varied", action="store_true", help="put a scene before each written question")
    parser.add_argument(
        "--gguf", default=None, metavar="FILE_OR_NAME", help="a real model that answers instead"
    )
    parser.add_argument("--context", type=int, default=8192, help="tokens of prompt and answer for --gguf")
    parser.add_argument("--stop-with-stdin", action="store_true", help="end when standard input ends")
    return parser


if __name__ == "__main__":
    sys.exit(main())
