"""``cogumi gate``: is the claim true?"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cogumi.cli.common import (
    DataOption,
    JsonOption,
    JudgeOption,
    Place,
    ProfileOption,
    RunOption,
    WorkspaceOption,
    echo_json,
    latest_run,
    place,
    profile_of,
    say,
)
from cogumi.cli.measuring import measuring
from cogumi.errors import UsageError, nearest
from cogumi.profile import GateStep, Profile, StageStep
from cogumi.quick_book import QuickBook
from cogumi.store import write_atomic

if TYPE_CHECKING:
    from cogumi.subjects import Subject
    from gates.spec import GateSpec
    from gates.verdicts import GateVerdict

BackendOption = Annotated[
    Literal["auto", "hf", "gguf", "vllm"],
    typer.Option("--backend", help="Runtime: transformers or llama.cpp for a GGUF file, vLLM for a folder."),
]


_MERGE = "generation.merge"
"""The stage whose artifact is the training data."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("gate", help=_HELP)(gate)


_HELP = """Decide a quality gate: PASS, FAIL, UNDECIDED or INFEASIBLE, with numbers and an exit code.

Recorded evidence is used as it is; what is missing is measured, item by item in an order fixed beforehand,
until the verdict is certain.

Example: cogumi gate phase1 --profile smollm2 --artifact smollm2-135m-instruct --data ../shared/data
"""


def gate(
    context: typer.Context,
    phase: Annotated[
        str, typer.Argument(help="Name of the gate, for example phase1, or path of a gate file (.yaml).")
    ],
    run: RunOption = None,
    artifact: Annotated[
        str | None, typer.Option("--artifact", "-a", help="Judge this model instead of a run's.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="Earlier artifact for retention criteria.")
    ] = None,
    profile: ProfileOption = None,
    backend: BackendOption = "auto",
    judge: JudgeOption = None,
    step: Annotated[
        str | None, typer.Option("--step", help="Judge a run by this step, where its profile has several.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Measure at most so many items; can never PASS.")
    ] = None,
    thorough: Annotated[
        bool, typer.Option("--all", help="Decide every criterion, also when the gate cannot pass any more.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say how many items a verdict will need, and stop.")
    ] = False,
    as_json: JsonOption = False,
    junit: Annotated[Path | None, typer.Option("--junit", help="Also write JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Also write Markdown.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write an HTML page.")] = None,
    workspace: WorkspaceOption = None,
    data: DataOption = None,
) -> None:
    """Decide a gate and exit with its code."""
    from cogumi.subjects import resolve
    from gates.spec import load_gate

    spec = load_gate(phase)
    where = place(context, workspace, data)
    if run is not None and artifact is not None:
        raise UsageError("give --run or --artifact, not both")
    if step is not None and (artifact is not None or plan):
        raise UsageError(f"--step judges a run; leave out {'--plan' if plan else '--artifact'}")
    if run is None and artifact is None and (profile is None or step is not None):
        run = latest_run(where)
    chosen = profile_of(where, run, profile, judge)
    for target in (junit, markdown, html):
        if target is not None and not target.absolute().parent.is_dir():
            raise UsageError(f"no such folder {target.parent} to write {target.name} into")
    if plan:
        _plan(spec, chosen, where, as_json)
        return
    judging = _judging(where, chosen, spec, run, step)
    subject = _named(where, artifact, backend) if artifact else judging.subject
    earlier = resolve(baseline, where.workspace, backend) if baseline else judging.baseline
    verdict = _decide(where, chosen, phase, judging, (subject, earlier), limit, thorough)
    _write(verdict, as_json, junit, markdown, html)
    raise typer.Exit(verdict.exit_code)


@dataclass(frozen=True, slots=True)
class _Judging:
    """What of a run is judged; all None where none is."""

    run: str | None = None
    step: GateStep | None = None
    of: tuple[str, ...] = ()
    """Ids of all steps of the profile that decide this gate."""
    subject: Subject | None = None
    baseline: Subject | None = None


def _judging(where: Place, profile: Profile, spec: GateSpec, run: str | None, wanted: str | None) -> _Judging:
    from cogumi.subjects import judged, of_artifact

    if run is None:
        return _Judging()
    latest = where.workspace.ledger.latest_done(run)
    steps = profile.gate_steps(spec.gate)
    step = _step_judged(profile, spec, steps, latest, wanted)
    name = step.artifact if step is not None else _merge_step(profile) if spec.about_data else None
    if name is None:
        return _Judging(run)
    made, compared = latest.get(name), latest.get(step.baseline or "") if step is not None else None
    subject = earlier = None
    if made is not None and made.artifact:
        subject = judged(where.workspace.store.get(made.artifact), name)
    if step is not None and compared is not None and compared.artifact:
        earlier = of_artifact(where.workspace.store.get(compared.artifact), step.baseline or "")
    return _Judging(run, step, tuple(each.id for each in steps), subject, earlier)


def _step_judged(
    profile: Profile, spec: GateSpec, steps: list[GateStep], latest: Container[str], wanted: str | None
) -> GateStep | None:
    """Return the step that is named; else the last that the run decided, or whose artifact it has; the first.

    ``latest`` has the steps that the run finished.
    """
    if wanted is not None:
        found = next((step for step in steps if step.id == wanted), None)
        if found is None:
            ids = [step.id for step in steps]
            raise UsageError(
                f"profile {profile.profile} has no step {wanted!r} of gate {spec.gate}{nearest(wanted, ids)}"
            )
        return found
    decided = [step for step in steps if step.id in latest]
    ready = [step for step in steps if step.artifact in latest]
    known = decided or ready or steps[:1]
    return known[-1] if known else None


def _named(where: Place, artifact: str, backend: Literal["auto", "hf", "gguf", "vllm"]) -> Subject:
    from cogumi.subjects import judged, resolve, stored

    found = stored(artifact, where.workspace)
    return judged(found, artifact) if found else resolve(artifact, where.workspace, backend)


def _merge_step(profile: Profile) -> str | None:
    """Return the step that merges the profile's data set, which a gate on data judges; None without one."""
    merging = [step for step in profile.steps if isinstance(step, StageStep) and step.uses == _MERGE]
    return merging[-1].id if merging else None


def _decide(
    where: Place,
    profile: Profile,
    phase: str,
    judging: _Judging,
    models: tuple[Subject | None, Subject | None],
    limit: int | None,
    thorough: bool,
) -> GateVerdict:
    from gates.service import GateService

    with measuring(where, profile) as (measurer, teachers):
        service = GateService(measurer, profile, judging.run, teachers)
        # A run is judged by what its profile asks for, any other model by the whole gate.
        asked = judging.step.criteria if judging.step is not None else ()
        verdict = service.verdict(phase, *models, limit, asked, thorough)
    # What a limited look says is not what the run is remembered by.
    if models[0] is not None and limit is None:
        QuickBook(where.workspace).record_verdict(judging.run or "", verdict.to_json())
    if judging.step is None or len(judging.of) == 1:
        return verdict
    told = f"step {judging.step.id}, one of {', '.join(judging.of)}"
    return replace(verdict, title=f"{verdict.title}; {told}" if verdict.title else told)


def _write(
    verdict: GateVerdict, as_json: bool, junit: Path | None, markdown: Path | None, html: Path | None
) -> None:
    from gates import page, render

    targets = ((junit, render.junit), (markdown, render.markdown), (html, page.html))
    for target, renderer in targets:
        if target is not None:
            write_atomic(target.absolute(), renderer(verdict).encode())
            say(f"written: {target}")
    if as_json:
        echo_json(verdict.to_json())
    else:
        typer.echo(render.text(verdict))


def _plan(spec: GateSpec, profile: Profile, where: Place, as_json: bool) -> None:
    from dataclasses import asdict

    from evals.measure import Measurer
    from gates import power
    from gates.service import NoAttempts, ProfileEvidence

    source = ProfileEvidence(Measurer(where.workspace, where.data), profile, None, spec=spec)
    rows, unplanned = power.plan_gate(spec, source, NoAttempts())
    if as_json:
        echo_json({"gate": spec.gate, "rows": [asdict(row) for row in rows], "unplanned": unplanned})
        return
    typer.echo(f"{spec.gate}: items until a verdict, by simulation, for models of these true ratios")
    for row in rows:
        typer.echo(
            f"  {row.criterion:<12} ratio {row.ratio:.2f} (bar {row.bar:g}): PASS {row.passes:>4.0%}, "
            f"FAIL {row.fails:>4.0%}, median {row.median_items:,} of {row.n_total:,} items, "
            f"nine in ten within {row.p90_items:,}"
        )
    for criterion, why in unplanned.items():
        typer.echo(f"  {criterion:<12} no plan: {why}")
