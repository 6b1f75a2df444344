"""Names of what the local teacher can be told to do wrong, for its own options and for profiles."""

from __future__ import annotations

from typing import Literal, get_args

StatusFault = Literal["402", "403", "429", "500", "529"]
"""Answered with this HTTP status."""
WireFault = Literal["drop", "stall", "garbage"]
"""The connection breaks, is held, or brings half of its JSON with status 200."""
ContentFault = Literal["truncated", "refusal", "wrong_count", "duplicate", "near_duplicate", "empty"]
"""A paid answer that is of no use."""
BatchFault = Literal["batch_error", "batch_expire"]
Fault = Literal[StatusFault, WireFault, ContentFault, BatchFault]

STATUS_FAULTS: tuple[str, ...] = get_args(StatusFault)
TRANSPORT_FAULTS: tuple[str, ...] = (*STATUS_FAULTS, *get_args(WireFault))
CONTENT_FAULTS: tuple[str, ...] = get_args(ContentFault)
FAULTS: tuple[str, ...] = (*TRANSPORT_FAULTS, *CONTENT_FAULTS, *get_args(BatchFault))
