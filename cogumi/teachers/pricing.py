"""What a call costs, from the prices in the teacher's configuration; unknown is None, never 0."""

from __future__ import annotations

from cogumi.stage import TeacherConfig
from cogumi.teachers.types import TeacherRequest, Usage

# Where the price of cached input is not known the dearest one holds that any provider of the table asks, so
# that the sum errs on the safe side of a spending limit: Anthropic's write for one hour is twice the input.
_DEAREST_WRITE = 2.0


def cost_usd(config: TeacherConfig, usage: Usage, *, batch: bool) -> float | None:
    """Return the price of one answer in dollars, or None when a price is unknown.

    ``config.batch_discount`` is the share that a batch saves: 0.5 halves the price, that of cached input as
    well (platform.claude.com, batch processing). Without a price of their own, reads of a cache count as any
    other input and writes twice.
    """
    price, answered = config.input_usd_per_mtok, config.output_usd_per_mtok
    if price is None or answered is None:
        return None
    full = usage.input_tokens * price + usage.output_tokens * answered
    if usage.cache_write_tokens:
        write = config.cache_write_usd_per_mtok
        full += usage.cache_write_tokens * (_DEAREST_WRITE * price if write is None else write)
    if usage.cache_read_tokens:
        read = config.cache_read_usd_per_mtok
        full += usage.cache_read_tokens * (price if read is None else read)
    return full * (1 - config.batch_discount if batch else 1) / 1e6


def expected_usd(config: TeacherConfig, request: TeacherRequest, *, batch: bool) -> float:
    """Return the most that a request is likely to cost, before it is sent; 0 when the price is unknown.

    A token is taken as three characters and the answer as long as allowed, which both err upwards.
    """
    prompt = len(request.system) + sum(len(message.text) for message in request.messages)
    usage = Usage(input_tokens=prompt // 3 + 16, output_tokens=request.max_tokens)
    return cost_usd(config, usage, batch=batch) or 0.0
