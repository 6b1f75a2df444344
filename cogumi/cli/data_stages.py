"""``cogumi data generate | validate | answer | merge``: the data steps of a profile, each alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogumi.cli.common import (
    DEFAULT_PROFILE,
    DataOption,
    JsonOption,
    MaxCostOption,
    Place,
    ProfileOption,
    RunOption,
    WorkspaceOption,
    YesOption,
    dollars,
    echo_json,
    place,
    say,
)
from cogumi.errors import UsageError
from cogumi.profile import Profile, StageStep, load_profile
from cogumi.workspace import check_run_name

if TYPE_CHECKING:
    from cogumi.runner import Outcome, Runner
    from cogumi.store import Artifact
    from pipeline.estimates import RunEstimate

_SHARED = """The step is the one that `cogumi run` knows: what is finished here is finished there, in one
workspace, run and ledger. The same command again goes on where the last process ended, however it ended."""

_GENERATE = f"""Write a profile's questions (plan 1.1): every cell exactly full, none twice, none held out.

{_SHARED}

Example: cogumi data generate --profile llama-3.1-8b --max-cost 5
"""

_VALIDATE = f"""Have a judge score the questions (plan 1.2), drop those below the bar and refill every cell.

{_SHARED}

Example: cogumi data validate --profile llama-3.1-8b --mode live
"""

_ANSWER = f"""Have the easy and the hard questions answered (plan 1.3 and 1.4).

{_SHARED}

Example: cogumi data answer --profile llama-3.1-8b --only easy
"""

_MERGE = f"""Join questions and answers to one training file with its card (plan 1.5).

{_SHARED}

Example: cogumi data merge --profile llama-3.1-8b
"""

_USES = {
    "generate": ("generation.questions",),
    "validate": ("generation.validate",),
    "answer": ("generation.answers_easy", "generation.answers_hard"),
    "merge": ("generation.merge",),
}


class Mode(StrEnum):
    """How teachers are asked: by the provider's batches, or one request for one answer."""

    batch = "batch"
    live = "live"


class Difficulty(StrEnum):
    """Which questions are answered."""

    easy = "easy"
    hard = "hard"


DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what it would take and do nothing.")]
ModeOption = Annotated[
    Mode | None,
    typer.Option(
        "--mode", help="Ask by batch or live, whatever the profile says; an open batch is left alone."
    ),
]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One of the commands with its options."""

    command: str
    named: str
    """The profile as it was named: its name, or a path."""
    profile: Profile
    run: str
    steps: tuple[StageStep, ...]
    mode: str | None = None
    max_cost: float | None = None
    yes: bool = False
    dry_run: bool = False
    as_json: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The ids of the steps."""
        return tuple(step.id for step in self.steps)


def register(group: typer.Typer) -> None:
    """Add the commands to the group ``data``."""
    group.command("generate", help=_GENERATE)(generate)
    group.command("validate", help=_VALIDATE)(validate)
    group.command("answer", help=_ANSWER)(answer)
    group.command("merge", help=_MERGE)(merge)


def generate(
    context: typer.Context,
    profile: ProfileOption = None,
    run: RunOption = None,
    max_cost: MaxCostOption = None,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
    data: DataOption = None,
) -> None:
    """Write questions."""
    where = place(context, workspace, data)
    options = {"max_cost": max_cost, "yes": yes, "dry_run": dry_run, "as_json": as_json}
    _work(where, _asked("generate", profile, run, options))


def validate(
    context: typer.Context,
    profile: ProfileOption = None,
    run: RunOption = None,
    mode: ModeOption = None,
    max_cost: MaxCostOption = None,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
    data: DataOption = None,
) -> None:
    """Judge and refill."""
    where = place(context, workspace, data)
    options = {"mode": mode, "max_cost": max_cost, "yes": yes, "dry_run": dry_run, "as_json": as_json}
    _work(where, _asked("validate", profile, run, options))


def answer(
    context: typer.Context,
    profile: ProfileOption = None,
    run: RunOption = None,
    only: Annotated[Difficulty | None, typer.Option("--only", help="The easy or the hard questions.")] = None,
    mode: ModeOption = None,
    max_cost: MaxCostOption = None,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
    data: DataOption = None,
) -> None:
    """Answer."""
    where = place(context, workspace, data)
    options = {"mode": mode, "max_cost": max_cost, "yes": yes, "dry_run": dry_run, "as_json": as_json}
    _work(where, _asked("answer", profile, run, options, only))


def merge(
    context: typer.Context,
    profile: ProfileOption = None,
    run: RunOption = None,
    max_cost: MaxCostOption = None,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
    data: DataOption = None,
) -> None:
    """Join."""
    where = place(context, workspace, data)
    options = {"max_cost": max_cost, "yes": yes, "dry_run": dry_run, "as_json": as_json}
    _work(where, _asked("merge", profile, run, options))


def _asked(
    command: str, profile: str | None, run: str | None, options: Mapping[str, Any], only: str | None = None
) -> _Asked:
    """Return the command with its steps; raises ``UsageError`` when the profile has none such."""
    named = profile or DEFAULT_PROFILE
    chosen = load_profile(named)
    steps = _steps_of(chosen, command)
    uses = [f"generation.answers_{only}"] if only else list(_USES[command])
    steps = tuple(step for step in steps if step.uses in uses)
    if not steps:
        raise UsageError(
            f"data {command}: profile {chosen.profile} has no step that uses {' or '.join(uses)}; "
            "add one to its steps, or name another --profile"
        )
    run_name = check_run_name(run or chosen.profile)
    return _Asked(command, shlex.quote(named), chosen, run_name, steps, **options)


def _steps_of(profile: Profile, command: str) -> tuple[StageStep, ...]:
    stages = (step for step in profile.steps if isinstance(step, StageStep))
    return tuple(step for step in stages if step.uses in _USES[command])


def _work(where: Place, asked: _Asked) -> None:
    from cogumi.cli.run import confirm_spending, open_runner
    from cogumi.runner import RunOptions, UnfinishedError

    if asked.dry_run:
        _print_estimate(asked)
        return
    with open_runner(where, asked.profile, asked.run, linted=False) as runner:
        try:
            before = runner.made(asked.names)
        except UnfinishedError as error:
            raise UsageError(f"data {asked.command}: {error}; {_how_to_make(asked, error.step)}") from None
        pending = [step for step in asked.steps if step.id not in before]
        if pending:
            _tell_infeasible(where, asked.profile)
            estimate = _estimate(asked, [step.id for step in pending])
            confirm_spending(f"data {asked.command}", estimate.real_usd, asked.yes, asked.max_cost)
        options = RunOptions(only=asked.names, mode=asked.mode, max_usd=asked.max_cost, data=where.data)
        outcome = runner.run(options)
        document = _document(where, asked, runner, before, outcome)
    if asked.as_json:
        echo_json(document)
    _farewell(where, asked, document)
    raise typer.Exit(outcome.exit_code)


# Before -------------------------------------------------------------------------------------------


def _how_to_make(asked: _Asked, step: StageStep) -> str:
    for command, uses in _USES.items():
        if step.uses in uses:
            return f"type `{_line(asked, command)}` first"
    return f"type `cogumi run --profile {asked.named} --run {asked.run} --until {step.id}` first"


def _line(asked: _Asked, command: str) -> str:
    """Return what to type for another command on the same run."""
    return f"cogumi data {command} --profile {asked.named} --run {asked.run}"


def _tell_infeasible(where: Place, profile: Profile) -> None:
    from cogumi.cli.plan import infeasible_targets, plan_document

    targets = infeasible_targets(plan_document(profile, where))
    if targets:
        say(
            f"note: {', '.join(targets)} cannot be met (`cogumi plan` tells why); "
            "the data serve any base model and are made all the same"
        )


def _estimate(asked: _Asked, names: Sequence[str]) -> RunEstimate:
    """Return the plan's estimate of these steps, asked as ``--mode`` says."""
    from pipeline.planning import estimate_steps

    steps = [
        step.model_copy(update={"settings": {**step.settings, "mode": asked.mode}})
        if asked.mode and isinstance(step, StageStep) and step.id in asked.names
        else step
        for step in asked.profile.steps
    ]
    return estimate_steps(asked.profile.model_copy(update={"steps": steps}), names)


def _print_estimate(asked: _Asked) -> None:
    from cogumi.cli.plan import print_estimate

    document = _estimate(asked, asked.names).document()
    if asked.as_json:
        echo_json({"profile": asked.profile.profile, **document})
    elif document["steps"]:
        print_estimate(document)
    else:
        typer.echo(f"data {asked.command} asks no teacher and costs nothing")


# After --------------------------------------------------------------------------------------------


def _document(
    where: Place, asked: _Asked, runner: Runner, before: Mapping[str, Artifact], outcome: Outcome
) -> dict[str, Any]:
    """Return what is made and what it cost as one JSON document."""
    made = runner.made(asked.names)
    real, simulated = where.workspace.ledger.spent(asked.run)
    unpriced = sum(int(row["unpriced"]) for row in where.workspace.ledger.call_totals(asked.run))
    document = {
        "run": asked.run,
        "profile": asked.profile.profile,
        "workspace": str(where.workspace.root),
        "status": outcome.status,
        "exit_code": outcome.exit_code,
        "steps": [_step_document(step, made.get(step.id), step.id in before) for step in asked.steps],
        "spent": {"usd": real, "simulated_usd": simulated, "calls_of_unknown_price": unpriced},
    }
    return {**document, "error": outcome.note} if outcome.exit_code else document


def _step_document(step: StageStep, artifact: Artifact | None, before: bool) -> dict[str, Any]:
    named = {"step": step.id, "plan": step.plan, "uses": step.uses}
    if artifact is None:
        return {**named, "state": "not finished", "artifact": None, "files": []}
    state = "finished before" if before else "made"
    files = list(step.files.values())
    return {**artifact.facts, **named, "state": state, "artifact": artifact.digest, "files": files}


def _farewell(where: Place, asked: _Asked, document: Mapping[str, Any]) -> None:
    """Say what was made, where it lies, what it cost and what to type next."""
    spent = document["spent"]
    for row in document["steps"]:
        if row["artifact"] is None:
            continue
        say(f"{row['step']}: {_facts_line(row)}")
        for file in row["files"]:
            say(f"  {where.workspace.root / file}")
    told = dollars(spent["usd"], spent["simulated_usd"])
    if spent["calls_of_unknown_price"]:
        told += f" and {spent['calls_of_unknown_price']:,} calls of unknown price"
    say(f"run {asked.run} has spent {told}")
    notes = [row.note for row in where.workspace.ledger.steps(asked.run)]
    if document["exit_code"] and document["error"] not in notes:
        # What ended a step was told with the step.
        say(f"cogumi: {document['error']}")
    if document["exit_code"] == 6:
        say("next: the same command with a higher --max-cost goes on; what is paid is not paid again")
    elif document["exit_code"]:
        say("next: mend the cause and type the same command again; what is paid is not paid again")
    else:
        say(f"next: {_next(asked)}")


def _facts_line(row: Mapping[str, Any]) -> str:
    """Return the facts of an artifact that people look at: rows, what was thrown away, how answers ended."""
    words = [f"{row['rows']:,} rows in {len(row['cells'])} cells"]
    words += [
        f"{value:,} {name.replace('_', ' ')}"
        for name, value in row.items()
        if isinstance(value, int) and not isinstance(value, bool) and value and name != "rows"
        if "token" not in name
    ]
    return ", ".join(words)


def _next(asked: _Asked) -> str:
    names = list(_USES)
    place = names.index(asked.command) + 1
    if len(asked.steps) < len(_steps_of(asked.profile, asked.command)):
        return _line(asked, asked.command)
    if place < len(names) and _steps_of(asked.profile, names[place]):
        return _line(asked, names[place])
    return f"cogumi run --profile {asked.named} --run {asked.run}"
