"""The frontier of compressed models: which of them no other one beats in bytes and in divergence at once.

Bytes are exact; a divergence is measured on some rows and has bounds. So there are two questions. *Best as
measured*: nobody is as small and as near, and better in one of the two. *Behind for sure*: somebody is no
larger, and its upper bound of divergence is below this one's lower bound. What is neither is not told apart
by these rows. Equal points do not beat each other: both stay. Only divergences from the same dense model
along the same rows may be compared; ``groups`` keeps others apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Standing = Literal["best", "not told apart", "behind"]


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One compressed model: its two sizes in bytes, and its KL in nats per token with bounds."""

    name: str
    bytes_resident: int
    bytes_download: int
    kl: float
    kl_lower: float
    kl_upper: float
    group: str = ""
    """What it was measured against and along; only points of one group are compared."""

    @classmethod
    def of_facts(cls, name: str, facts: Mapping[str, Any]) -> FrontierPoint | None:
        """Return the point that an artifact's facts tell; None where they tell no sizes or no divergence."""
        told = facts.get("fidelity")
        if not isinstance(told, Mapping):
            return None
        resident, download = facts.get("bytes_resident"), facts.get("bytes_download")
        kl, lower, upper = (told.get(figure) for figure in ("kl", "kl_lower", "kl_upper"))
        if not isinstance(resident, int) or not isinstance(download, int):
            return None
        if not all(isinstance(figure, int | float) for figure in (kl, lower, upper)):
            return None
        group = f"{facts.get('baseline', '')} {facts.get('rows_digest', '')}".strip()
        return cls(name, resident, download, float(kl), float(lower), float(upper), group)  # type: ignore[arg-type]


def beats(one: FrontierPoint, other: FrontierPoint, *, surely: bool = False) -> bool:
    """Tell whether ``one`` is no larger to download and no further away, and better in one of the two.

    ``surely``: no larger, and nearer by their bounds.
    """
    if one.bytes_download > other.bytes_download:
        return False
    if surely:
        return one.kl_upper < other.kl_lower
    return one.kl <= other.kl and (one.bytes_download, one.kl) != (other.bytes_download, other.kl)


def pareto(points: Iterable[FrontierPoint]) -> list[FrontierPoint]:
    """Return the points of one group that none beats as measured, the smallest download first."""
    found = list(points)
    best = [one for one in found if not any(beats(other, one) for other in found)]
    return sorted(best, key=lambda point: (point.bytes_download, point.kl, point.name))


def standings(points: Sequence[FrontierPoint]) -> list[Standing]:
    """Return how each of the points of one group stands, in their order."""
    found: list[Standing] = []
    for one in points:
        if not any(beats(other, one) for other in points):
            found.append("best")
        elif any(beats(other, one, surely=True) for other in points):
            found.append("behind")
        else:
            found.append("not told apart")
    return found


def groups(points: Iterable[FrontierPoint]) -> dict[str, list[FrontierPoint]]:
    """Return the points by what they were measured against, in the order of the first of each group."""
    found: dict[str, list[FrontierPoint]] = {}
    for point in points:
        found.setdefault(point.group, []).append(point)
    return found
