"""``cogumi humaneval create``: tasks, blinding, design and power, before anybody is asked."""

from __future__ import annotations

import math
import os
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogumi.cli.common import (
    JsonOption,
    Place,
    ProfileOption,
    WorkspaceOption,
    echo_json,
    place,
    profile_of,
    say,
)
from cogumi.cli.humaneval_study import DEFAULT_STUDY, DatabaseOption, StudyArgument, closed_study, link
from cogumi.errors import UsageError, nearest

if TYPE_CHECKING:
    from evals.human.design import Balance
    from evals.human.plan import StudyPlan
    from evals.human.tasks import TaskSet, Wanted
    from gates.human_power import PowerRow, Sds

_HELP = """Make a study of answers that people rate.

Answers are blinded and dealt to raters, and the admin token is printed once. Tasks come from a JSONL file
(task_id, domain, prompt, answers by system, maybe bad_answer), or from what `cogumi eval` recorded of an
artifact on a suite. Names of models and makers in answers are replaced by "the assistant". --plan makes
nothing: it prints what a study of this size can decide.

\b
Example: cogumi humaneval create --plan
         cogumi humaneval create pilot --tasks tasks.jsonl --raters 10 --contact study@example.org
"""


class Estimand(StrEnum):
    """What the mean is a mean over."""

    POPULATION = "population"
    THESE = "these"


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("create", help=_HELP)(create)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the tasks are taken from."""

    tasks: Path | None
    suite: str | None
    artifact: str | None
    profile: str | None


@dataclass(frozen=True, slots=True)
class _Size:
    """How many raters are planned, and after which pilot."""

    raters: int
    pilot: str | None


def create(
    context: typer.Context,
    study: StudyArgument = DEFAULT_STUDY,
    tasks: Annotated[
        Path | None, typer.Option("--tasks", help="JSONL file: task_id, domain, prompt, answers by system.")
    ] = None,
    suite: Annotated[str | None, typer.Option("--suite", "-s", help="Suite whose recorded answers.")] = None,
    artifact: Annotated[
        str | None, typer.Option("--artifact", "-a", help="Model whose recorded answers are rated.")
    ] = None,
    profile: ProfileOption = None,
    subject: Annotated[
        str | None, typer.Option("--subject", metavar="SYS", help="System that is judged (the only one).")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="SYS", help="Other system of pairs; with --suite a model."),
    ] = None,
    pairs: Annotated[int, typer.Option("--pairs", min=0, help="Pairs a rater, after the items.")] = 0,
    raters: Annotated[int, typer.Option("--raters", min=1, help="Raters wanted (slots).")] = 100,
    items: Annotated[int, typer.Option("--items", min=1, help="Scored items a rater.")] = 20,
    pool: Annotated[
        int | None, typer.Option("--pool", min=1, metavar="N", help="Draw so many tasks, evenly by domain.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of drawing and dealing (drawn and stored).")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="What raters read above all pages.")] = None,
    contact: Annotated[
        str | None, typer.Option("--contact", help="Whom raters can write to; the consent text names it.")
    ] = None,
    lease_hours: Annotated[
        float, typer.Option("--lease-hours", help="Unused so long, a slot goes to another rater.")
    ] = 48,
    estimand: Annotated[
        Estimand, typer.Option("--estimand", help="Mean over tasks like these, or over these alone.")
    ] = Estimand.POPULATION,
    pilot: Annotated[
        str | None,
        typer.Option("--pilot", metavar="STUDY", help="Closed pilot to take spread and pace from."),
    ] = None,
    url: DatabaseOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what such a study decides; make none.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Make the study, or plan it."""
    from evals.human.plan import check_study_name, make_plan
    from evals.human.store import DATABASE_URL_ENV
    from evals.human.tasks import Wanted

    check_study_name(study)
    where = place(context, workspace)
    source = _Source(tasks, suite, artifact, profile)
    chosen_seed = secrets.randbelow(2**31) if seed is None else seed
    wanted = Wanted(items, subject, reference, pairs, pool, chosen_seed)
    if plan:
        _plan(where, source, wanted, _Size(raters, pilot), as_json)
        return
    if contact is None:
        raise UsageError("--contact is missing: whom raters can write to, as the consent text must say")
    found = _tasks(where, source, wanted)
    designed = make_plan(
        name=study,
        title=title or "Rating answers",
        subject=found.subject,
        reference=_reference(reference, found),
        seed=chosen_seed,
        raters=raters,
        items=items,
        pairs=pairs,
        lease_hours=lease_hours,
        contact=contact,
        estimand="these tasks" if estimand is Estimand.THESE else "population",
        scrubbed=found.replaced,
        pilot_p10_seconds=_pilot_pace(where, pilot) if pilot else None,
        tasks=found.tasks,
        database="postgresql" if url or os.environ.get(DATABASE_URL_ENV) else "sqlite",
    )
    _make(where, designed, found, url, as_json)


# Tasks --------------------------------------------------------------------------------------------


def _tasks(where: Place, source: _Source, wanted: Wanted) -> TaskSet:
    """Return the blinded tasks; raises ``UsageError`` unless exactly one source is named."""
    from evals.human.tasks import tasks_from_evidence, tasks_from_jsonl

    if (source.tasks is None) == (source.suite is None):
        raise UsageError("name where the tasks come from: --tasks FILE, or --suite S with --artifact A")
    if source.tasks is not None:
        if source.artifact is not None:
            raise UsageError("--artifact goes with --suite; a tasks file has the answers itself")
        return tasks_from_jsonl(source.tasks, wanted)
    if source.artifact is None or source.suite is None:
        raise UsageError("--suite needs --artifact: whose recorded answers are rated")
    from cogumi.subjects import resolve
    from evals.tasks import suite_task_names

    profile = profile_of(where, None, source.profile)
    names = suite_task_names(source.suite, profile.suites)
    judged = resolve(source.artifact, where.workspace)
    systems = {wanted.subject or judged.label: judged.digest}
    if wanted.reference is not None:
        systems[wanted.reference] = resolve(wanted.reference, where.workspace).digest
    subject = next(iter(systems))
    return tasks_from_evidence(where.workspace, systems, names, replace(wanted, subject=subject))


def _reference(named: str | None, found: TaskSet) -> str | None:
    if named is not None and named not in found.systems:
        hint = nearest(named, list(found.systems))
        raise UsageError(f"--reference {named!r}: no task has its answer{hint}")
    return named


# Planning -----------------------------------------------------------------------------------------


def _plan(where: Place, source: _Source, wanted: Wanted, size: _Size, as_json: bool) -> None:
    """Print what a study of this size can decide, for its own tasks and for a pool."""
    from gates.human_power import POOLS, SDS, power_table, recommendation, sds_of

    if size.raters < 2 or wanted.items < 2:
        raise UsageError("--plan: with one rater or one item there is no interval; plan two at least")
    known = wanted.pool
    if source.tasks is not None or source.suite is not None:
        known = len(_tasks(where, source, wanted).tasks)
    own = known or wanted.items
    pools = sorted({own, *POOLS})
    sds: tuple[Sds, ...] = SDS
    if size.pilot is not None:
        from gates.people_rows import Rows

        frozen = closed_study(where, size.pilot)
        sds = (sds_of(Rows.of(frozen), frozen.plan.subject),)
        if not all(map(math.isfinite, (sds[0].rater, sds[0].task, sds[0].residual))):
            raise UsageError(
                f"--pilot {size.pilot}: too few complete ratings to tell how raters and tasks differ"
            )
    rows = power_table(pools, size.raters, sds, items=wanted.items)
    advice = recommendation(own, size.raters, items=wanted.items)
    if as_json:
        document = {"raters": size.raters, "items": wanted.items, "tasks": own, "pilot": size.pilot}
        echo_json(document | {"rows": [row.to_json() for row in rows], "recommendation": advice})
        return
    for line in _power_lines(rows, size, wanted.items):
        typer.echo(line)
    typer.echo(advice)


def _power_lines(rows: Sequence[PowerRow], size: _Size, items: int) -> list[str]:
    means = list(rows[0].power)
    spread = f"of the pilot {size.pilot}" if size.pilot else "assumed, low to high"
    return [
        f"{size.raters:,} raters × {items} items; chance of PASS (lower bound above 8) by true mean; spread "
        f"of raters and tasks {spread}:",
        "spread   tasks  standard error" + "".join(f"{mean:>7.1f}" for mean in means),
        *(
            f"{row.case:<7}{row.tasks:>7}{row.se:>16.2f}"
            + "".join(f"{row.power[mean]:>7.2f}" for mean in means)
            for row in rows
        ),
    ]


def _pilot_pace(where: Place, name: str) -> float | None:
    """Return the tenth percentile of a closed pilot's seconds an item; None where no time is known."""
    from gates.people_rows import Rows
    from gates.people_tables import tables

    frozen = closed_study(where, name)
    times = tables(Rows.of(frozen), frozen.plan, 0.05).times
    return times.p10 if times is not None and times.p10 > 0 else None


# Making -------------------------------------------------------------------------------------------


def _make(where: Place, plan: StudyPlan, found: TaskSet, url: str | None, as_json: bool) -> None:
    from evals.human.design import balance, deal
    from evals.human.plan import study_folder
    from evals.human.store import StudyStore

    folder = study_folder(where.workspace.root, plan.name)
    even = balance(deal(plan))
    where.workspace.create()
    store = StudyStore.create(folder, plan, url)
    try:
        token = store.new_admin_token()
    finally:
        store.dispose()
    if as_json:
        echo_json(_document(plan, found, even, folder, token))
        return
    _tell(plan, found, even, folder)
    typer.echo(f"admin token (shown once): {token}")
    _tell_next(plan.name)


def _document(plan: StudyPlan, found: TaskSet, even: Balance, folder: Path, token: str) -> dict[str, Any]:
    return {
        "study": plan.name,
        "folder": str(folder),
        "plan_digest": plan.digest,
        "seed": plan.seed,
        "subject": plan.subject,
        "reference": plan.reference,
        "tasks": len(plan.tasks),
        "raters": plan.raters,
        "items": plan.items,
        "pages": plan.length,
        "database": plan.database,
        "scrubbed": dict(found.scrubbed),
        "balance": asdict(even),
        "admin_token": token,
    }


def _tell(plan: StudyPlan, found: TaskSet, even: Balance, folder: Path) -> None:
    typer.echo(f"study {plan.name}: {folder} ({plan.database}, plan {plan.digest[:19]}, seed {plan.seed})")
    typer.echo(
        f"  {plan.raters:,} raters × {plan.items} items of {len(plan.tasks):,} tasks, judged: "
        f"{plan.subject}; {plan.length} pages a rater with {plan.practice} practice, {plan.planted} planted, "
        f"{plan.repeats} repeated, {plan.pairs} pairs"
    )
    typer.echo(
        f"  design: {_range(even.ratings_per_task)} ratings a task, {_range(even.ratings_per_position)} at "
        f"one position, one task after another {_range(even.followings)} times"
        + (f", subject left and right {_range(even.pairs_left)}" if plan.pairs else "")
    )
    if found.scrubbed:
        names = ", ".join(f"{name} {count}" for name, count in sorted(found.scrubbed.items()))
        typer.echo(f"  blinded: {found.replaced} names replaced ({names})")
    else:
        typer.echo("  blinded: no name of a model or maker was found in the answers")
    if len(plan.tasks) <= plan.items and plan.estimand == "population":
        say(
            f"every rater sees the same {plan.items} tasks, which limits what the mean can show; more tasks "
            "dealt from a pool cost no rater (`cogumi humaneval create --plan`)"
        )


def _range(pair: tuple[int, int]) -> str:
    low, high = pair
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _tell_next(study: str) -> None:
    name = "" if study == DEFAULT_STUDY else f" {shlex.quote(study)}"
    typer.echo("next:")
    typer.echo(f"  cogumi humaneval invite{name} --count 100 --url https://rate.example.org --out links.txt")
    typer.echo(f"  cogumi humaneval serve{name} --public-url https://rate.example.org")
    typer.echo(f"  {link('https://rate.example.org', 'ADMINTOKEN').replace('/join', '/admin')}: progress")
