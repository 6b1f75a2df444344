"""``cogumi plan``: feasibility, calls, cost, GPU hours and sizes, before anything is spent."""

from __future__ import annotations

from typing import Any

import typer

from cogumi.cli.columns import print_columns
from cogumi.cli.common import (
    DEFAULT_PROFILE,
    DataOption,
    JsonOption,
    Place,
    ProfileOption,
    WorkspaceOption,
    echo_json,
    place,
)
from cogumi.errors import RunError
from cogumi.gpu_cost import UNKNOWN
from cogumi.profile import GateStep, Profile, load_profile
from cogumi.verdict import Verdict

_HELP = """Say what a profile would take, and which of its targets no model or file could meet.

Exits 4 when a target is INFEASIBLE, else 0; nothing is called, trained or downloaded.

Example: cogumi plan --profile llama-3.1-8b
"""

# Dollars of a step or of all of them, in the order of the table.
_MONEY = ("usd_low", "usd", "usd_high", "usd_live")
# A shorter wait for an account's limit is not worth a line.
_TOLD_HOURS = 0.5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan", help=_HELP)(plan)


def plan(
    context: typer.Context,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
    data: DataOption = None,
) -> None:
    """Print a profile's plan."""
    where = place(context, workspace, data)
    document = plan_document(load_profile(profile or DEFAULT_PROFILE), where)
    if as_json:
        echo_json(document)
    else:
        print_plan(document)
    raise typer.Exit(Verdict.INFEASIBLE.exit_code if document["infeasible"] else 0)


def plan_document(profile: Profile, where: Place) -> dict[str, Any]:
    """Return feasibility, sizes and the estimate of every step as one JSON document."""
    from cogumi.cli.plan_sizes import size_document
    from cogumi.steps import check_stages
    from pipeline import all_stages
    from pipeline.planning import estimate_run

    stages = all_stages()
    check_stages(profile, stages)
    sizes = size_document(profile)
    gates = gate_feasibility(profile, where)
    too_small = {row["criterion"]: row["why"] for row in sizes["sizes"] if not row["feasible"]}
    for row in gates:
        if row["criterion"] in too_small:
            row |= {"feasible": False, "why": too_small[row["criterion"]]}
    infeasible = {row["criterion"]: row["why"] for row in gates if not row["feasible"]} | too_small
    for target in sizes["targets"]:
        if not target["feasible"]:
            infeasible.setdefault(target["criterion"], target["why"])
    return {
        "profile": profile.profile,
        "title": profile.title,
        "infeasible": infeasible,
        "gates": gates,
        **sizes,
        **estimate_run(profile).document(),
    }


def infeasible_targets(document: dict[str, Any]) -> dict[str, str]:
    """Return ``{GATE/CRITERION: why}`` of a plan's targets that cannot be met."""
    targets: dict[str, str] = document["infeasible"]
    return targets


def gate_feasibility(profile: Profile, where: Place) -> list[dict[str, Any]]:
    """Return each criterion of the profile's gates, with the arithmetic where no model could meet it."""
    from evals.measure import Measurer
    from gates.engine import infeasible
    from gates.service import NoAttempts, ProfileEvidence
    from gates.spec import load_gate

    measurer = Measurer(where.workspace, where.data)
    rows = []
    for name in profile.gate_names():
        spec = load_gate(name).only(_asked(profile, name))
        source = ProfileEvidence(measurer, profile, None, spec=spec)
        unchecked = ""
        try:
            reasons = infeasible(spec, source, NoAttempts())
        except RunError as error:
            reasons, unchecked = {}, f"not checked: {error}"
        for criterion in spec.criteria:
            rows.append(
                {
                    "criterion": f"{name}/{criterion.id}",
                    "bar": criterion.bar,
                    "comparison": criterion.comparison,
                    "feasible": criterion.id not in reasons,
                    "why": reasons.get(criterion.id, unchecked),
                }
            )
    return rows


def _asked(profile: Profile, gate: str) -> list[str]:
    """Return the criteria that a profile's steps ask of a gate, each of its artifact; none means all."""
    steps = [step for step in profile.steps if isinstance(step, GateStep) and step.gate == gate]
    if any(not step.criteria for step in steps):
        return []
    return list(dict.fromkeys(name for step in steps for name in step.criteria))


def print_plan(document: dict[str, Any]) -> None:
    """Print a plan for people."""
    from cogumi.cli.plan_sizes import print_sizes

    typer.echo(f"profile {document['profile']}: {document['title']}")
    if document["gates"]:
        typer.echo("\ngates")
        _print_gates(document["gates"])
    print_sizes(document)
    print_estimate(document)


def print_estimate(document: dict[str, Any]) -> None:
    """Print the steps, the totals and what they rest on: a plan's, or ``RunEstimate.document()`` of some."""
    asking = [row for row in document["steps"] if row["calls"]]
    if asking:
        _print_asking(asking, document)
    training = [row for row in document["steps"] if row["training_tokens"] or row["answer_tokens"]]
    if training:
        _print_training(training, document)
    if document["assumptions"]:
        typer.echo()
        rest = [["assumed for", "low", "expected", "high", "because"]]
        rest += [
            [row["name"], *(f"{row[case]:,g}" for case in ("low", "expected", "high")), row["source"]]
            for row in document["assumptions"]
        ]
        print_columns(rest, left=1, source=True)
    typer.echo(f"\ntotal  {_total_line(document)}")
    for told in document["unknown_prices"]:
        typer.echo(f"  {told}")
    for told in document["warnings"]:
        typer.echo(f"  warning: {told}")


def _print_asking(rows: list[dict[str, Any]], document: dict[str, Any]) -> None:
    head = (
        "steps",
        "",
        "calls",
        "tokens in",
        "of cache",
        "tokens out",
        "low",
        "expected",
        "high",
        "live",
    )
    table = [[*head, "the plan"]]
    for row in rows:
        cached = row["cache_write_tokens"] + row["cache_read_tokens"]
        counts = [f"{count:,}" for count in (row["calls"], row["input_tokens"], cached, row["output_tokens"])]
        usd = [_usd(row[key]) for key in _MONEY]
        table.append([row["plan"], row["step"], *counts, *usd, row["plan_says"]])
    if not all(row["simulated"] for row in rows):
        calls = f"{sum(row['calls'] for row in rows):,}"
        table.append(["", "total", calls, "", "", "", *(_usd(document[key]) for key in _MONEY), ""])
    typer.echo()
    # The left columns are names; figures stand under each other.
    print_columns(table, left=2)
    for row in rows:
        if row["simulated"]:
            continue
        if row["hours"] >= _TOLD_HOURS:
            typer.echo(f"  {row['step']}: {row['pace']}")
        if row["saves"]:
            typer.echo(
                f"  {row['step']}: {_saving(row['saves'])} of the {_usd(row['usd_live'])} of live calls"
            )
    if any(row["simulated"] for row in rows):
        typer.echo("  steps at the local teacher are simulated: their dollars are play money")
    typer.echo()
    prices = [["prices for a million tokens", "", "in", "out", "source"]]
    prices += [
        [
            row["teacher"],
            row["model"],
            _usd(row["input_usd_per_mtok"]),
            _usd(row["output_usd_per_mtok"]),
            row["source"],
        ]
        for row in document["prices"]
    ]
    print_columns(prices, left=2, source=True)


def _print_training(rows: list[dict[str, Any]], document: dict[str, Any]) -> None:
    """Print tokens, GPU hours and their cost, with the speed of each step and the price of an hour."""
    gpu, ends = document["gpu"], ("_low", "", "_high")
    head = ["training", "", "tokens"]
    if gpu is not None:
        head += ["GPU h low", "expected", "high", "$ low", "expected", "high"]
    table = [[*head, "the plan"]]
    for row in rows:
        cells = [row["plan"], row["step"], f"{row['training_tokens'] or row['answer_tokens']:,}"]
        if gpu is not None:
            known = bool(row["gpu_hours"])
            cells += [f"{row[f'gpu_hours{end}']:.3g}" if known else "unknown" for end in ends]
            cells += [_usd(row[f"gpu_usd{end}"]) for end in ends]
        table.append([*cells, row["plan_says"]])
    typer.echo()
    print_columns(table, left=2)
    for row in rows:
        if row["gpu_pace"]:
            typer.echo(f"  {row['step']}: {row['gpu_pace']}")
    if gpu is None:
        typer.echo("  no GPU hours: the profile names no gpu")
    else:
        price = f"{_usd(gpu['usd_per_hour'])} an hour" if gpu["usd_per_hour"] is not None else UNKNOWN
        typer.echo(f"  {gpu['name']}: {price} ({gpu['source']})")


def _print_gates(rows: list[dict[str, Any]]) -> None:
    """Print one line a gate, and one for each criterion that arithmetic rules out or could not be asked."""
    from gates.render import number

    gates: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        gates.setdefault(row["criterion"].partition("/")[0], []).append(row)
    for gate, criteria in gates.items():
        odd = [row for row in criteria if row["why"] or not row["feasible"]]
        count = f"{len(criteria)} {'criterion' if len(criteria) == 1 else 'criteria'}"
        told = "none that arithmetic rules out" if not odd else ""
        typer.echo(f"  {gate:<14} {count:<12} {told}".rstrip())
        for row in odd:
            mark = row["why"] if row["feasible"] else f"INFEASIBLE: {row['why']}"
            name = row["criterion"].partition("/")[2]
            typer.echo(f"    {name:<12} {row['comparison']} {number(row['bar'])}  {mark}")


def _usd(dollars: float | None) -> str:
    if dollars is None:
        return "unknown"
    if dollars == 0:
        return "$0"
    return f"${dollars:,.2f}" if dollars >= 0.1 else f"${dollars:.4f}"


def _saving(dollars: float) -> str:
    return f"batches save {_usd(dollars)}" if dollars > 0 else f"batches cost {_usd(-dollars)} on top"


def _total_line(document: dict[str, Any]) -> str:
    parts = [f"{document['calls']:,} calls"]
    if document["usd"] is None:
        parts.append(f"at least {_usd(document['usd_known'])}")
    else:
        told = _usd(document["usd"])
        if document["usd_high"]:
            told += f" expected, {_usd(document['usd_low'])} to {_usd(document['usd_high'])}"
        if document["saves"]:
            told += f"; {_usd(document['usd_live'])} live, without batches"
        parts.append(told)
    if document["simulated_usd"]:
        parts.append(f"{_usd(document['simulated_usd'])} simulated (nothing is paid)")
    if document["gpu_hours"]:
        hours = f"{document['gpu_hours']:.3g} GPU hours"
        cost = document["gpu_usd"]
        parts.append(f"{hours} ({_usd(cost) if cost is not None else UNKNOWN})")
    return ", ".join(parts)
