"""``cogumi run``: walk the steps of a profile, stage by stage, gate by gate."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogumi.cli.common import (
    DEFAULT_PROFILE,
    DataOption,
    MaxCostOption,
    Place,
    ProfileOption,
    WorkspaceOption,
    YesOption,
    dollars,
    place,
    say,
)
from cogumi.cli.progress import RunReporter
from cogumi.cli.teachers import TeacherPool
from cogumi.cli.tensorboard import TensorBoardLog
from cogumi.errors import InfeasibleError, UsageError, nearest
from cogumi.profile import GateStep, MeasureStep, Profile, load_profile
from cogumi.units import duration
from cogumi.workspace import check_run_name

if TYPE_CHECKING:
    from cogumi.runner import Outcome, Runner
    from cogumi.stage import Stage
    from cogumi.store import Artifact
    from evals.measure import Measurer

_HELP = """Run a profile: build, measure, decide, and try harder where a gate says no.

Running the same command again goes on where the last process ended, however it ended. Exits 0 when every step
ran and no gate stopped it, else with the code of the gate that did.

\b
Example: cogumi run                          (the rehearsal: offline, no key, under 10 minutes)
         cogumi run --until merged --max-cost 5
         cogumi run --until training         (its last step that trains; or training.sft, or plan 1.6)
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run", help=_HELP)(run)


def run(
    context: typer.Context,
    profile: ProfileOption = None,
    name: Annotated[
        str | None, typer.Option("--run", "-r", help="Name of the run; the profile's name without.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="STEP", help="End after this step, stage (training) or plan number."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="STEP", help="Begin at this step, stage or number; earlier are done."),
    ] = None,
    max_cost: MaxCostOption = None,
    yes: YesOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and do nothing.")] = False,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept-infeasible", metavar="GATE/CRITERION", help="Run although it cannot be met."),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option("--tensorboard", metavar="DIR", help="Log every number of a step's progress there."),
    ] = None,
    workspace: WorkspaceOption = None,
    data: DataOption = None,
) -> None:
    """Run a profile."""
    from cogumi.cli.plan import infeasible_targets, plan_document, print_plan
    from cogumi.runner import RunOptions
    from pipeline.planning import estimate_run

    where = place(context, workspace, data)
    chosen = load_profile(profile or DEFAULT_PROFILE)
    run_name = check_run_name(name or chosen.profile)
    if not chosen.steps:
        gates = "cogumi gate PHASE --profile"
        raise UsageError(f"profile {chosen.profile} has no steps to run; it is for {gates} {chosen.profile}")
    document = plan_document(chosen, where)
    if dry_run:
        print_plan(document)
        return
    _check_feasible(infeasible_targets(document), accept or [])
    confirm_spending("this run", estimate_run(chosen).real_usd, yes, max_cost)
    options = RunOptions(until=until, start=start, max_usd=max_cost, data=where.data)
    log = TensorBoardLog(tensorboard) if tensorboard is not None else None
    with open_runner(where, chosen, run_name, log=log) as runner:
        outcome = runner.run(options, accept or [])
    _farewell(where, run_name, chosen, outcome)
    raise typer.Exit(outcome.exit_code)


def _check_feasible(targets: dict[str, str], accepted: list[str]) -> None:
    for name in accepted:
        if name not in targets:
            known = list(targets)
            hint = nearest(name, known) if known else " (this profile has no infeasible target)"
            raise UsageError(f"--accept-infeasible {name}: no such infeasible target{hint}")
    for name, why in targets.items():
        if name not in accepted:
            raise InfeasibleError(
                f"{name} cannot be met: {why}; --accept-infeasible {name} runs all the same"
            )


def confirm_spending(what: str, usd: float | None, yes: bool, max_cost: float | None) -> None:
    """Ask before real money is spent on ``what``; without a terminal, ``--yes`` must say so.

    ``usd`` is None where a price is unknown. Raises ``UsageError`` without a terminal to ask on.
    """
    if usd == 0 or yes:
        return
    told = f"about ${usd:.2f}" if usd is not None else "an amount that is not known (no price is set)"
    limit = f", at most ${max_cost:.2f}" if max_cost is not None else ""
    if not sys.stdin.isatty():
        raise UsageError(f"{what} spends {told}{limit} with providers: add --yes to agree")
    typer.confirm(
        f"{what[0].upper()}{what[1:]} spends {told}{limit} with providers. Go on?", abort=True, err=True
    )


@contextmanager
def open_runner(
    where: Place, profile: Profile, name: str, *, linted: bool = True, log: TensorBoardLog | None = None
) -> Iterator[Runner]:
    """Give the runner of a profile with its judge, its teachers and its reporter on standard error.

    With ``linted`` the profile's benchmarks are linted now, and training data before it is trained on;
    ``log`` keeps the numbers of every progress.
    """
    from cogumi.runner import Runner
    from evals.measure import Measurer
    from gates.service import GateService
    from pipeline import all_stages

    where.workspace.create()
    reporter = RunReporter(log)
    measurer = Measurer(where.workspace, where.data, reporter.tell)
    stages = _linted(profile, measurer, all_stages()) if linted else all_stages()
    with TeacherPool(where.workspace, profile) as teachers:
        judge = GateService(measurer, profile, name, teachers)
        try:
            yield Runner(where.workspace, profile, name, stages, judge, reporter, teachers)
        finally:
            measurer.close()


def _linted(profile: Profile, measurer: Measurer, stages: Mapping[str, Stage[Any]]) -> dict[str, Stage[Any]]:
    """Lint the benchmarks of the profile now, and have every stage lint what it trains on, once."""
    from evals.lint.spending import check_benchmarks, check_training, checked_stage
    from gates.models import tasks_of
    from gates.spec import load_gate
    from pipeline.training.data import training_file

    suites = [step.suite for step in profile.steps if isinstance(step, MeasureStep)]
    for step in profile.steps:
        if isinstance(step, GateStep):
            criteria = load_gate(step.gate).only(step.criteria).criteria
            suites += [criterion.suite for criterion in criteria if criterion.suite]
    tasks = [task for suite in dict.fromkeys(suites) for task in tasks_of(profile, suite, measurer.workspace)]
    benchmarks = check_benchmarks(tasks, lambda task: measurer.items(task).items, say)
    clean: set[str] = set()

    def check(data: Artifact) -> None:
        if data.digest not in clean:
            check_training(training_file(data), benchmarks)
            clean.add(data.digest)

    return {name: checked_stage(stage, check) for name, stage in stages.items()}


def _farewell(where: Place, name: str, profile: Profile, outcome: Outcome) -> None:
    """Say what passed, what did not, where the report is and what to type next."""
    from cogumi.cli.report import write_report

    ledger = where.workspace.ledger
    say()
    say(f"run {name} ({profile.title}): {outcome.status}, {outcome.note}")
    _say_verdicts(where, name, profile)
    seconds = sum((row.finished_at or row.started_at) - row.started_at for row in ledger.steps(name))
    say(f"  time {duration(seconds)}, spent {dollars(*ledger.spent(name))}")
    report = write_report(where.workspace, name, where.workspace.root / "reports" / name)
    say(f"  report: {report}")
    gate = next((step.gate for step in reversed(profile.steps) if isinstance(step, GateStep)), None)
    if outcome.exit_code == 0 and gate is not None:
        say(f"  next: cogumi gate {gate} --run {name} explains the last verdict; cogumi status --run {name}")
    elif outcome.exit_code in (1, 3) and gate is not None:
        say(f"  next: cogumi gate {gate} --run {name} --plan says what a verdict takes")
    elif outcome.exit_code in (5, 6):
        say("  next: mend the cause and run the same command again; nothing finished is done twice")


def _say_verdicts(where: Place, name: str, profile: Profile) -> None:
    latest = {str(row["gate"]): row for row in where.workspace.ledger.verdicts(name)}
    for step in profile.steps:
        if isinstance(step, GateStep):
            row = latest.get(step.gate)
            told = f"{row['verdict']} on attempt {row['attempt']}" if row else "not decided"
            if row and row["document"].get("only_simulated_raters"):
                told += ", as its raters are simulated: told, not counted"
            say(f"  gate {step.gate}: {told}")
