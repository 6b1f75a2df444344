"""What a reader must know before quoting a number of the report."""

from __future__ import annotations

from collections.abc import Iterator

from gates.metrics import DATA_METRICS
from gates.verdicts import SIMULATED_RATERS, simulated_part
from reports.artifacts import KINDS
from reports.measured import EvidenceIndex
from reports.schema import Report
from reports.text import usd, when


def caveats(report: Report, index: EvidenceIndex) -> list[str]:
    """Return the warnings that apply to this run, the gravest first."""
    return [*_state(report), *_gates(report), *_money(report), *_measurements(report, index)]


def _state(report: Report) -> Iterator[str]:
    run = report.run
    if run.status == "running":
        yield f"The run has not ended (as of {when(run.as_of)}): figures below are what is known so far."
    elif run.status != "done":
        yield f"The run {run.status}: {run.note}."
    for name in run.accepted_infeasible:
        yield f"{name} cannot be met by any model; the run went on because --accept-infeasible named it."
    reused = sorted({step.step for step in report.steps if step.note.startswith("the same work was done")})
    if reused:
        yield (
            f"Finished work of another run was used for {', '.join(reused)}: its time and money stand there."
        )


def _gates(report: Report) -> Iterator[str]:
    simulated = sorted(
        {
            f"{gate.gate}/{criterion['id']} ({criterion['reference']})"
            for gate in report.gates
            for decision in gate.decisions
            for criterion in decision.document["criteria"]
            if simulated_part(criterion["measure"]) == "simulated reference" and criterion["simulated"]
        }
    )
    rated = sorted(
        {
            gate.gate
            for gate in report.gates
            for decision in gate.decisions
            for criterion in decision.document["criteria"]
            if simulated_part(criterion["measure"]) == SIMULATED_RATERS and criterion["simulated"]
        }
    )
    if rated:
        yield (
            f"Simulated raters: programs rated what {', '.join(rated)} judges. That rehearses the study and "
            "says nothing about what people would think."
        )
    rehearsed = sorted(
        {
            gate.gate
            for gate in report.gates
            for decision in gate.decisions
            for criterion in decision.document["criteria"]
            if criterion["simulated"] and criterion["measure"] in DATA_METRICS
        }
    )
    if rehearsed:
        yield (
            f"Simulated data: a local program wrote rows that {', '.join(rehearsed)} judges; they teach "
            "nothing, and their costs are play money."
        )
    if simulated:
        yield (
            f"Simulated reference: a local program with a set error rate stands for the real model in "
            f"{', '.join(simulated)}. Such a verdict rehearses the method and says nothing about that model."
        )
    for gate in report.gates:
        if not gate.decisions:
            yield f"Gate {gate.gate} was not decided: the run never reached it."
        elif gate.decisions[-1].attempt > 1:
            yield (
                f"Gate {gate.gate} was judged on attempt {gate.decisions[-1].attempt} with the same items: "
                "each attempt has a smaller alpha, so that all attempts together keep the gate's error rate."
            )


def _money(report: Report) -> Iterator[str]:
    money = report.money
    if money.simulated_usd:
        yield (
            f"{usd(money.simulated_usd)} is play money: what a local teacher's calls would have cost at the "
            "profile's prices. Nothing was paid for them."
        )
    if money.unpriced_calls:
        yield f"Calls without a known price, in no sum: {money.unpriced_calls:,}."


def _measurements(report: Report, index: EvidenceIndex) -> Iterator[str]:
    models = [artifact for artifact in report.artifacts if artifact.kind in KINDS]
    if not any(artifact.quality for artifact in report.artifacts):
        yield "No model was measured: this report has no quality and no speed."
        return
    limited = sorted(
        {
            f"{artifact.name} on {part.suite} (n = {part.n:,} of {part.n_total:,})"
            for artifact in report.artifacts
            for part in artifact.quality
            if part.n < part.n_total or len(part.tasks) < part.tasks_total
        }
    )
    if limited:
        yield (
            f"Measured in part: {', '.join(limited)}. A gate stops as soon as its verdict is certain; the "
            "interval says what the rest could change."
        )
    yield (
        "Tokens per second are of one machine while it ran this evaluation, its batches and whatever else it "
        "did: compare them within this report only."
    )
    for artifact in models:
        twice = [task for task in index.tasks(artifact.digest) if len(index.all(artifact.digest, task)) > 1]
        if twice:
            yield (
                f"{artifact.name} was measured under several protocols on {', '.join(twice)}: the one with "
                "the most items is shown."
            )
    for artifact in report.artifacts:
        if artifact.kind == "missing":
            yield f"{artifact.name} ({artifact.digest}) is no longer in the store: its sizes are not known."
