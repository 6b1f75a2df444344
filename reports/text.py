"""How figures are written, the same in every form of a report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cogumi import units
from gates.render import claim as gate_claim
from gates.render import number
from gates.verdicts import CriterionVerdict, simulated_part

if TYPE_CHECKING:
    from reports.schema import GpuPart

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


def when(iso: str) -> str:
    """Return a time of the report for people, to the minute."""
    return f"{iso[:10]} {iso[11:16]} UTC"


def duration(seconds: float | None) -> str:
    """Format seconds, or say that they are unknown."""
    return UNKNOWN if seconds is None else units.duration(seconds)


def size(count: float | None) -> str:
    """Format bytes, or say that they are unknown."""
    return UNKNOWN if count is None else units.size(count)


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
    """Format bounds: an unknown one is open, and a score over all items is exact."""
    if lower is None and upper is None:
        return UNKNOWN
    if lower == upper:
        return "exact"
    low = share(lower) if lower is not None else "−∞"
    return f"[{low}, {share(upper) if upper is not None else '∞'}]"


def speed(tokens_per_second: float | None) -> str:
    """Format a decoding speed without its unit."""
    if tokens_per_second is None:
        return UNKNOWN
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.3g}"


def percent(value: float | None) -> str:
    """Format a share of something counted: ``61.2 %``."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def energy(joules: float | None) -> str:
    """Format energy: ``812 J``, ``12.3 kJ``, and from a tenth of one on in kWh."""
    if joules is None:
        return UNKNOWN
    if joules >= 3.6e5:
        return f"{joules / 3.6e6:.3g} kWh"
    return f"{joules / 1000:.3g} kJ" if joules >= 1000 else f"{joules:.3g} J"


def usd(amount: float | None) -> str:
    """Format dollars; an unknown price is unknown, never 0."""
    if amount is None:
        return "unknown"
    return f"${amount:,.2f}" if amount == 0 or amount >= 1 else f"${amount:.4f}"


def gpu_told(part: GpuPart) -> str:
    """Say what a run's GPU hours cost, and at what price: it stands apart from what teachers asked for."""
    told = f"GPU hours: {part.hours:.3g} on {part.name}, {usd(part.usd)}"
    if part.usd_per_hour is not None:
        told += f" at {usd(part.usd_per_hour)} an hour"
    return f"{told} ({part.source})."


def short(digest: str | None) -> str:
    """Return the first twelve hex digits of a digest."""
    return digest.removeprefix("sha256:")[:12] if digest else UNKNOWN


def is_share(measure: str) -> bool:
    """Tell whether a measure counts a share of items, or is a ratio to a reference."""
    return measure in _SHARES


def figure(value: float | None) -> str:
    """Format a criterion's number as the gate's own lines do."""
    return UNKNOWN if value is None else number(value)


def claim(criterion: Mapping[str, Any]) -> str:
    """Return what a criterion found, in the gate's own words, with sizes also as people quote them."""
    found = gate_claim(CriterionVerdict.from_json(criterion))
    if criterion["value"] is not None and str(criterion["measure"]).startswith("bytes"):
        found += f" ({size(criterion['value'])}, bar {size(criterion['bar'])})"
    return found


def terms(criterion: Mapping[str, Any]) -> list[str]:
    """Return under which terms a criterion was decided: items, error rate, attempt, reference, losses."""
    found = []
    # A number that is known without chance has no sample: "1 of 1" would say nothing.
    if criterion["n_total"] and (criterion["alpha"] is not None or criterion["n_total"] > 1):
        found.append(f"n = {criterion['n_used']:,} of {criterion['n_total']:,}")
    if criterion["alpha"] is not None:
        found.append(f"alpha {criterion['alpha']:.3g}")
    if criterion["attempt"]:
        found.append(f"attempt {criterion['attempt']}")
    if criterion["reference"]:
        kind = f" ({criterion['reference_kind']})" if criterion["reference_kind"] else ""
        found.append(f"vs {criterion['reference']}{kind}")
    if criterion["truncated"] or criterion["errors"]:
        found.append(f"{criterion['truncated']} truncated, {criterion['errors']} failed answers score 0")
    return found


def notes(criterion: Mapping[str, Any]) -> list[str]:
    """Return what else is said of a criterion: what of it is simulated, and its note."""
    return [one for one in (simulated(criterion), note(criterion)) if one]


def simulated(criterion: Mapping[str, Any]) -> str:
    """Return what of a criterion is simulated, or nothing."""
    return simulated_part(criterion["measure"]) if criterion["simulated"] else ""


def note(criterion: Mapping[str, Any]) -> str:
    """Return a criterion's note, without what ``simulated`` says already."""
    found, said = str(criterion["note"]), simulated(criterion)
    return "" if found == said else found.removeprefix(f"{said}; ") if said else found


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
