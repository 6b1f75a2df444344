"""How durations and sizes are written for people, the same on a terminal and in a report."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Format seconds: ``0.4 s``, ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Format bytes in decimal units, as model sizes are quoted: ``540 MB``."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def rate(per_second: float) -> str:
    """Format a pace: ``1,240/s``, ``8.3/s``, and by the minute where it is slow: ``12/min``."""
    if per_second >= 10:
        return f"{per_second:,.0f}/s"
    if per_second >= 1:
        return f"{per_second:.1f}/s"
    return f"{60 * per_second:.2g}/min"


def money(real: float, simulated: float) -> str:
    """Format dollars spent so far, briefly; play money is named as such: ``$3.10``, ``$0.0042 simulated``."""
    if simulated and real:
        return f"{usd(real)} + {usd(simulated)} simulated"
    return f"{usd(simulated)} simulated" if simulated else usd(real)


def usd(dollars: float) -> str:
    """Format dollars: ``$3.10``, and small sums with four decimals: ``$0.0042``."""
    return f"${dollars:,.2f}" if dollars >= 1 or dollars == 0 else f"${dollars:.4f}"
