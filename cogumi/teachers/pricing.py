"""What a call costs, from the prices in the teacher's configuration; unknown is None, never 0."""

from __future__ import annotations

from cogumi.stage import TeacherConfig
from cogumi.teachers.types import TeacherRequest, Usage

# Anthropic's multipliers of the input price for its five-minute cache (docs.anthropic.com, prompt
# caching). OpenAI bills cached input at a discount that it applies by itself; we count it in full, so
# that the sum errs on the safe side of a spending limit.
CACHE_WRITE = 1.25
CACHE_READ = 0.1


def cost_usd(config: TeacherConfig, usage: Usage, *, batch: bool) -> float | None:
    """Return the price of one answer in dollars, or None when a price is unknown.

    ``config.batch_discount`` is the share that a batch saves: 0.5 halves the price.
    """
    if config.input_usd_per_mtok is None or config.output_usd_per_mtok is None:
        return None
    paid_input = usage.input_tokens + CACHE_WRITE * usage.cache_write_tokens
    paid_input += CACHE_READ * usage.cache_read_tokens
    full = paid_input * config.input_usd_per_mtok + usage.output_tokens * config.output_usd_per_mtok
    return full * (1 - config.batch_discount if batch else 1) / 1e6


def expected_usd(config: TeacherConfig, request: TeacherRequest, *, batch: bool) -> float:
    """Return the most that a request is likely to cost, before it is sent; 0 when the price is unknown.

    A token is taken as three characters and the answer as long as allowed, which both err upwards.
    """
    prompt = len(request.system) + sum(len(message.text) for message in request.messages)
    usage = Usage(input_tokens=prompt // 3 + 16, output_tokens=request.max_tokens)
    return cost_usd(config, usage, batch=batch) or 0.0
