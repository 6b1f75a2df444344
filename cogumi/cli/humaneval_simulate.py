"""``cogumi humaneval simulate``: raters who are no people, through real HTTP."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogumi.cli.common import JsonOption, WorkspaceOption, echo_json
from cogumi.cli.humaneval_study import DEFAULT_STUDY, DatabaseOption, StudyArgument, find_study, opened
from cogumi.cli.progress import Line
from cogumi.errors import UsageError
from cogumi.units import duration

if TYPE_CHECKING:
    from evals.human.simulate import Simulated

_HELP = """Let simulated raters rate a study.

They go through the real app, and every row says so for ever. Their verdict is always UNDECIDED. Behaviours:
honest; careless clicks anything; straight gives one score to all; abandon stops midway; double sends every
rating twice at once; correct goes back and changes one. Refused for a study that people are invited to.
Without --url the app is started on loopback for as long as it takes.

Example: cogumi humaneval simulate trial --raters 20 --seed 1 --behaviour honest=0.9,careless=0.1
"""
_DEFAULT_MIX = "honest=0.9,careless=0.05,straight=0.02,abandon=0.02,double=0.01"


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("simulate", help=_HELP)(simulate)


def simulate(
    context: typer.Context,
    study: StudyArgument = DEFAULT_STUDY,
    raters: Annotated[
        int | None, typer.Option("--raters", min=1, max=10_000, help="How many (as the study wants).")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of what they do (drawn).")] = None,
    behaviour: Annotated[
        str, typer.Option("--behaviour", metavar="NAME=SHARE,…", help="Which share does what.")
    ] = _DEFAULT_MIX,
    true_mean: Annotated[
        float, typer.Option("--true-mean", help="Mean of honest raters over raters and tasks.")
    ] = 8.2,
    in_order: Annotated[
        bool, typer.Option("--in-order", help="They consent one by one: equal seeds, equal ratings.")
    ] = False,
    server: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="A running server of this study.")
    ] = None,
    url: DatabaseOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Invite simulated raters and let them rate."""
    from evals.human.simulate import Simulation
    from evals.human.simulate import simulate as run
    from evals.human.simulate_model import latent_mean, parse_mix
    from evals.human.simulate_server import serving
    from evals.human.store import DATABASE_URL_ENV

    mix = parse_mix(behaviour)
    latent_mean(true_mean)
    where, folder = find_study(context, workspace, study)
    chosen = secrets.randbelow(2**31) if seed is None else seed
    database = url or os.environ.get(DATABASE_URL_ENV)
    with opened(folder, url) as store:
        people = sum(one.source == "human" and not one.revoked for one in store.invites())
        if people:
            raise UsageError(
                f"study {study} has {people:,} invitations for people; one simulated rater would make its "
                "verdict UNDECIDED for ever: make a study of its own"
            )
        tokens = store.invite(raters or store.plan.raters, "simulated")
        plan = store.plan
    line = Line("simulated raters")
    with ExitStack() as stack:
        stack.callback(line.close)
        if server is None:
            logs = stack.enter_context(tempfile.TemporaryDirectory(prefix="cogumi-humaneval-"))
            process = serving(where.workspace.root, study, Path(logs) / "server.log", url=database)
            server = stack.enter_context(process)
        simulation = Simulation(server.rstrip("/"), tokens, plan, mix, chosen, true_mean, in_order)
        done = run(simulation, line.update)
    if as_json:
        echo_json({"study": study, "seed": chosen, **done.to_json()})
        return
    for told in _told(study, chosen, done):
        typer.echo(told)


def _told(study: str, seed: int, done: Simulated) -> list[str]:
    endings = ", ".join(f"{count:,} {name}" for name, count in done.endings.items())
    did = ", ".join(f"{count:,} {name}" for name, count in done.behaviours.items() if count)
    lines = [
        f"study {study}: simulated raters (seed {seed}): {endings}",
        f"  behaviour: {did}",
        f"  {done.items:,} items in {duration(done.seconds)}, {done.requests:,} requests, {done.retries:,} "
        f"sent again, {done.server_errors:,} server errors; 95 % of pages within "
        f"{done.pages_p95_ms:.0f} ms, of submissions within {done.submissions_p95_ms:.0f} ms",
        f"  {done.corrections:,} corrected, {done.replayed:,} second copies told apart",
    ]
    if done.endings.get("refused"):
        lines.append("  refused: no place was free (the study wants no more raters)")
    name = "" if study == DEFAULT_STUDY else f" {study}"
    return [*lines, f"next: cogumi humaneval close{name} --yes"]
