"""What our client adds to a bare asyncio loop over the same SDK: CPU a request, and the share of the bound.

Both sides ask the local teacher (real HTTP on loopback, a set latency) the same questions through the same
SDK with as many calls under way. The bare loop keeps the answers' text in a list. Ours names each request by
its digest, holds back what the spending limit does not allow, adapts to throttling, and commits every answer
to the ledger before it counts; all of that is in its CPU seconds. The bound is concurrency / latency; where
a second of CPU does not suffice for so many calls, it is the CPU and not the latency that bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.timing import machine
from cogumi.ledger import Ledger, LedgerCalls
from cogumi.profile import Teacher
from cogumi.stage import TeacherConfig
from cogumi.teachers import AskOptions, Message, TeacherRequest, ask
from cogumi.teachers.providers import http_options, open_provider
from pipeline.local_teacher import LocalTeacher, TeacherOptions

_MAX_TOKENS = 256


def questions(number: int, salt: str) -> list[TeacherRequest]:
    """Return questions that no earlier round has asked."""
    return [
        TeacherRequest((Message("user", f"What is {index} plus {salt}?"),), _MAX_TOKENS, system="Answer.")
        for index in range(number)
    ]


async def bare_loop(config: TeacherConfig, requests: list[TeacherRequest], concurrency: int) -> list[str]:
    """Ask with nothing around the SDK but a bound on the calls under way."""
    import anthropic
    import openai

    provider = open_provider(config, 120.0, 1)
    module = openai if config.api == "openai" else anthropic
    kind = openai.AsyncOpenAI if config.api == "openai" else anthropic.AsyncAnthropic
    url = f"{config.base_url}/v1" if config.api == "openai" else config.base_url
    http = module.DefaultAsyncHttpxClient(**http_options(module, url, concurrency))
    sdk: Any = kind(api_key="none", base_url=url, timeout=120.0, max_retries=0, http_client=http)
    waiting = [(index, provider.body(request)) for index, request in enumerate(requests)]
    texts = [""] * len(requests)

    async def work() -> None:
        while waiting:
            index, body = waiting.pop()
            if config.api == "openai":
                answer = await sdk.chat.completions.create(**body)
                texts[index] = answer.choices[0].message.content
            else:
                answer = await sdk.messages.create(**body)
                texts[index] = "".join(block.text for block in answer.content)

    await asyncio.gather(*(work() for _ in range(concurrency)))
    await sdk.close()
    await provider.close()
    return texts


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Return (CPU seconds of this process, elapsed seconds)."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def compare(api: str, concurrency: int, options: argparse.Namespace, folder: Path) -> None:
    """Print one row: both sides' CPU a request, their ratio, and ours against the bound."""
    number, latency = options.requests, options.latency_ms
    with LocalTeacher(TeacherOptions(state=folder / f"{api}{concurrency}", latency_ms=latency)) as local:
        teacher = Teacher(
            api=api, model="gpt-4o-mini", base_url="local", input_usd_per_mtok=1, output_usd_per_mtok=1
        )
        config = teacher.config("teacher", None, local.base_url)
        ledger = Ledger(folder / f"{api}{concurrency}")
        bare: list[tuple[float, float]] = []
        ours: list[tuple[float, float]] = []
        for repeat in range(options.repeats + 1):
            # The first round of each side warms imports and connections and is thrown away.
            size = number if repeat else 2 * concurrency
            theirs = questions(size, f"{repeat}")
            mine = questions(size, f"{repeat + 1000}")
            calls = LedgerCalls(ledger, "benchmark", "step", max_usd=1e6)
            rows = (
                measured(lambda: asyncio.run(bare_loop(config, theirs, concurrency))),  # noqa: B023
                measured(lambda: ask(calls, [(config, mine)], AskOptions(concurrency=concurrency))),  # noqa: B023
            )
            if repeat:
                bare.append(rows[0])
                ours.append(rows[1])
        answered = local.counters()["answered"]
        recorded = sum(int(row["calls"]) for row in ledger.call_totals("benchmark"))
        ledger.close()
    assert answered == 2 * recorded == 2 * (options.repeats * number + 2 * concurrency)
    _print_row(api, concurrency, number, latency, bare, ours)


def _print_row(
    api: str,
    concurrency: int,
    number: int,
    latency_ms: float,
    bare: list[tuple[float, float]],
    ours: list[tuple[float, float]],
) -> None:
    cpu_bare, cpu_ours = (1e3 * statistics.median(cpu for cpu, _ in side) / number for side in (bare, ours))
    busy = statistics.median(cpu / clock for cpu, clock in ours)
    rate_bare, rate_ours = (number / statistics.median(clock for _, clock in side) for side in (bare, ours))
    bound = concurrency / (latency_ms / 1e3)
    # What one process could send if no answer took any time.
    told = "the CPU bounds" if 1e3 / cpu_ours < bound else "the latency bounds"
    print(
        f"{api:<10} {concurrency:>4}   {cpu_bare:6.2f} ms {cpu_ours:6.2f} ms  {cpu_ours / cpu_bare:5.2f}   "
        f"{rate_bare:6.0f}/s {rate_ours:6.0f}/s  {rate_ours / bound:6.1%} of {bound:.0f}/s   "
        f"client {busy:.0%} busy: {told}",
        flush=True,
    )


def main(arguments: list[str]) -> None:
    """Print the table for both wire formats and both widths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=200.0)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[32, 64, 256])
    options = parser.parse_args(arguments)
    print(f"machine: {machine()}")
    print("format     wide    bare CPU   ours CPU  ratio      bare       ours   ours of the bound")
    with tempfile.TemporaryDirectory() as folder:
        for api in ("openai", "anthropic"):
            for concurrency in options.concurrency:
                compare(api, concurrency, options, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
