"""The part of ``cogumi plan`` that is arithmetic: sizes, targets, tiers and speeds of a profile's models."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from cogumi.cli.columns import print_columns
from cogumi.errors import UsageError, nearest
from cogumi.units import size

if TYPE_CHECKING:
    from cogumi.profile import Profile
    from gates.spec import Criterion

# The criterion whose tiers are told of every model.
_TIERS = "phase3-tiers/size"


def size_document(profile: Profile) -> dict[str, Any]:
    """Return ``sizes``, ``targets``, ``tiers``, ``speeds`` and ``ceilings`` as JSON.

    Raises ``UsageError`` where a target names a criterion that no gate has, or one that is not about bytes.
    """
    from cogumi.feasibility import check_size, check_targets, check_tiers
    from cogumi.speed_check import ceiling, check_speeds
    from gates.spec import load_gate

    models = profile.models
    tiered = _criterion(_TIERS, "").threshold
    tiers = (tiered.tiers if tiered is not None else None) or {}
    asked = {
        f"{name}/{one.id}": (one.threshold.metric, one.bar)
        for name in profile.gate_names()
        for one in load_gate(name).criteria
        if one.threshold is not None
    }
    return {
        "sizes": [asdict(check_size(model)) for model in models],
        "targets": [asdict(one) for one in check_targets(models, _bars(profile))],
        "tiers": [asdict(one) for model in models for one in check_tiers(model, tiers)],
        "speeds": [asdict(one) for one in check_speeds(models, asked)],
        "ceilings": [asdict(ceiling(model)) for model in models if model.serving is not None],
    }


def _bars(profile: Profile) -> dict[str, float]:
    """Return the bytes of every size target: of the gate, or of the profile where it names them."""
    found: dict[str, float] = {}
    for model in profile.models:
        if model.criterion and model.download_bytes_at_most is not None:
            found[model.criterion] = float(model.download_bytes_at_most)
        for target in model.targets:
            if target.criterion not in found:
                found[target.criterion] = _byte_bar(target.criterion, model.name)
    return found


def _byte_bar(criterion: str, model: str) -> float:
    found = _criterion(criterion, f"models.{model}: ")
    if found.threshold is None or "bytes" not in found.threshold.metric or found.comparison != "<=":
        raise UsageError(f"models.{model}: {criterion} does not limit bytes")
    return found.bar


def _criterion(name: str, where: str) -> Criterion:
    from gates.spec import load_gate

    gate, _, wanted = name.partition("/")
    criteria = {one.id: one for one in load_gate(gate).criteria}
    if wanted not in criteria:
        raise UsageError(f"{where}gate {gate} has no criterion {wanted!r}{nearest(wanted, list(criteria))}")
    return criteria[wanted]


# For people ---------------------------------------------------------------------------------------


def print_sizes(document: dict[str, Any]) -> None:
    """Print the sizes of a plan: models, targets, tiers and speeds."""
    if not document["sizes"]:
        return
    typer.echo("\nsizes")
    for row in document["sizes"]:
        target = size(row["target_bytes"]) if row["target_bytes"] else "no target"
        mark = row["why"] if row["feasible"] else f"INFEASIBLE: {row['why']}"
        line = f"  {row['model']:<28} {row['parameters'] / 1e6:>9.1f} M weights  {target:<10} {mark}"
        typer.echo(line.rstrip())
        four, half = (size(row[name]) for name in ("embedding_bytes_4", "embedding_bytes_4_5"))
        fixed = f"    embedding and head {four} at 4 bits, {half} at 4.5"
        if row["cache_bytes_per_token"] is not None:
            fixed += f"; {size(row['cache_bytes_per_token'])} of keys and values a token of context"
        typer.echo(fixed)
    _print_targets(document["targets"])
    _print_tiers(document["tiers"])
    _print_speeds(document)


def _print_targets(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    table = [["sizes that gates ask for", "", "at most", "bits a weight", "lost", "the plan's recipe"]]
    for row in rows:
        mark = "" if row["feasible"] else "INFEASIBLE: "
        figures = [size(row["target_bytes"]), f"{row['bits_per_weight']:.2f}", _share(row["energy_lost"])]
        table.append([row["criterion"], "", *figures, f"{mark}{row['why'] or 'names no bits'}"])
    typer.echo()
    print_columns(table, left=2, source=True)
    typer.echo("  lost: share of Gaussian weights' energy that any code of so many bits loses at least")


def _share(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.0095 else "< 1 %"


def _print_tiers(rows: list[dict[str, Any]]) -> None:
    table = [["tiers", "", "at most", "bits a weight", "largest format that fits"]]
    for row in rows:
        fits = "none" if row["format"] is None else f"{row['format']}, {size(row['format_bytes'])}"
        told = f"{fits}; {row['note']}" if row["note"] else fits
        bits = f"{row['bits_per_weight']:.2f}"
        table.append([row["model"], row["tier"], size(row["tier_bytes"]), bits, told])
    typer.echo()
    print_columns(table, left=2, source=True)


def _print_speeds(document: dict[str, Any]) -> None:
    table = [["speeds that gates ask for", "", "at least", "at best", "why"]]
    for row in document["speeds"]:
        mark = "" if row["reached"] else "not with the plan's means: "
        table.append([row["criterion"], "", f"{row['bar']:g}", f"{row['best']:.3g}", f"{mark}{row['why']}"])
    if document["speeds"]:
        typer.echo()
        print_columns(table, left=2, source=True)
    for row in document["ceilings"]:
        cards = ", ".join(f"{card} {speed:,.0f}" for card, speed in row["tokens_per_second"].items())
        typer.echo(f"  tokens a second at best, {row['model']} in {row['format']}: {cards}")
