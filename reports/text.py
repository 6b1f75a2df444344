"""How figures are written, the same in every form of a report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

UNKNOWN = "–"

# Control characters break HTML; bidirectional overrides let a name pretend to be another.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

# Measures that are shares of items, or of a reference.
_SHARES = ("ratio", "truncation_rate", "error_rate", "acceptance_rate")


def clean(text: str) -> str:
    """Replace characters that no page may hold."""
    return _UNPRINTABLE.sub("\ufffd", text)


def moment(seconds: float) -> str:
    """Return a time of the ledger as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def duration(seconds: float | None) -> str:
    """Format seconds: ``0.4 s``, ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float | None) -> str:
    """Format bytes in decimal units, as model sizes are quoted: ``540 MB``."""
    if count is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def count(number: float | None) -> str:
    """Format a large count: ``1.24 M``, ``8.03 B``; below 10,000 in full."""
    if number is None:
        return UNKNOWN
    if abs(number) < 10_000:
        return f"{number:,.0f}"
    for unit, scale in (("k", 1e3), ("M", 1e6)):
        if abs(number) < 999.5 * scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number / 1e9:.3g} B"


def share(value: float | None) -> str:
    """Format a score or a ratio with three decimals."""
    return UNKNOWN if value is None else f"{value:.3f}"


def interval(lower: float | None, upper: float | None) -> str:
    """Format bounds; an unknown one is open."""
    if lower is None and upper is None:
        return UNKNOWN
    low = share(lower) if lower is not None else "−∞"
    return f"[{low}, {share(upper) if upper is not None else '∞'}]"


def speed(tokens_per_second: float | None) -> str:
    """Format a decoding speed without its unit."""
    if tokens_per_second is None:
        return UNKNOWN
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.3g}"


def usd(amount: float | None) -> str:
    """Format dollars; an unknown price is unknown, never 0."""
    if amount is None:
        return "unknown"
    return f"${amount:,.2f}" if amount == 0 or amount >= 1 else f"${amount:.4f}"


def short(digest: str | None) -> str:
    """Return the first twelve hex digits of a digest."""
    return digest.removeprefix("sha256:")[:12] if digest else UNKNOWN


def figure(value: float | None, measure: str) -> str:
    """Format a criterion's number in the unit of its measure."""
    if value is None:
        return UNKNOWN
    if measure in _SHARES:
        return share(value)
    if measure.startswith("bytes"):
        return size(value)
    return count(value) if measure == "parameters" else f"{value:,.4g}"


def claim(criterion: Mapping[str, Any]) -> str:
    """Return what a criterion found and what it asks: ``ratio 0.410 in [0.280, 0.580], asked ≥ 0.880``."""
    measure = str(criterion["measure"])
    sign = "≥" if criterion["comparison"] == ">=" else "≤"
    asked = f"asked {sign} {figure(criterion['bar'], measure)}"
    name = measure.replace("_", " ")
    value, lower, upper = (criterion[key] for key in ("value", "lower", "upper"))
    if value is None:
        return f"{name} not known, {asked}"
    # A byte count is exact: bounds that say the same would only look like an uncertainty.
    known = lower == upper == value
    bounds = f"[{_end(lower, measure, '−∞')}, {_end(upper, measure, '∞')}]"
    return f"{name} {figure(value, measure)}{'' if known else f' in {bounds}'}, {asked}"


def _end(value: float | None, measure: str, unbounded: str) -> str:
    return unbounded if value is None else figure(value, measure)


def terms(criterion: Mapping[str, Any]) -> list[str]:
    """Return under which terms a criterion was decided: items, error rate, attempt, reference, losses."""
    found = []
    if criterion["n_total"]:
        found.append(f"n = {criterion['n_used']:,} of {criterion['n_total']:,}")
    if criterion["alpha"] is not None:
        found.append(f"alpha {criterion['alpha']:.4g}")
    if criterion["attempt"]:
        found.append(f"attempt {criterion['attempt']}")
    if criterion["reference"]:
        kind = f" ({criterion['reference_kind']})" if criterion["reference_kind"] else ""
        found.append(f"vs {criterion['reference']}{kind}")
    if criterion["truncated"] or criterion["errors"]:
        found.append(f"{criterion['truncated']} truncated, {criterion['errors']} failed answers score 0")
    return found


def scalar_text(name: str, value: object) -> str:
    """Format a metric or fact by what its name says it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if "bytes" in name:
        return size(value)
    if "seconds" in name:
        return duration(value)
    if "parameters" in name or isinstance(value, int):
        return count(value)
    return f"{value:,.4g}"
