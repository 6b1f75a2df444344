"""``cogumi eval``: measure a model on a suite, beside a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogumi.cli.common import (
    DataOption,
    JsonOption,
    ProfileOption,
    WorkspaceOption,
    echo_json,
    place,
    profile_of,
)
from cogumi.cli.gate import BackendOption
from cogumi.cli.measuring import measuring
from cogumi.units import size

if TYPE_CHECKING:
    from evals.measure import Measurement

_HELP = """Measure a model on a suite; what was measured before is not measured again.

ARTIFACT is an artifact's digest, a model or adapter folder, a .gguf file, a known or hub name, openai:MODEL
or anthropic:MODEL.

Example: cogumi eval smollm2-135m-instruct --suite instruction --limit 20 --data ../shared/data
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval", help=_HELP)(evaluate)


def evaluate(
    context: typer.Context,
    artifact: Annotated[str, typer.Argument(help="What to measure.")],
    suite: Annotated[str, typer.Option("--suite", "-s", help="Suite of the profile, or a built-in one.")],
    reference: Annotated[
        str | None, typer.Option("--reference", help="Compare with this reference, for example gpt-4.")
    ] = None,
    profile: ProfileOption = None,
    backend: BackendOption = "auto",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="First items of each task only.")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
    data: DataOption = None,
) -> None:
    """Measure and print."""
    from cogumi.subjects import resolve
    from evals.tasks import suite_tasks
    from gates.service import ProfileEvidence

    where = place(context, workspace, data)
    chosen = profile_of(where, None, profile)
    tasks = suite_tasks(suite, chosen.suites)
    where.workspace.create()
    subject = resolve(artifact, where.workspace, backend)
    rows: list[dict[str, Any]] = []
    with measuring(where, chosen) as (measurer, teachers):
        source = ProfileEvidence(measurer, chosen, subject, teachers=teachers)
        for task in tasks:
            compared = source.reference(reference, suite, task.name) if reference else None
            measurement = measurer.measurement(subject, task)
            measurement.extend(limit or measurement.n_total)
            rows.append(task_row(measurement, compared))
    scores = [row["score"] for row in rows]
    document = {
        "artifact": subject.digest,
        "label": subject.label,
        "backend": subject.backend,
        "suite": suite,
        "score": sum(scores) / len(scores),
        "limited": any(row["n"] < row["n_total"] for row in rows),
        "bytes": subject.facts.get("bytes"),
        "tasks": rows,
    }
    if as_json:
        echo_json(document)
    else:
        _print(document)


def task_row(measurement: Measurement, reference: Any) -> dict[str, Any]:
    """Return one task's figures: score with its interval, how answers ended, speed, and the reference's."""
    from gates.intervals import mean_bounds

    table = measurement.file.table(["completion_tokens", "seconds", "details"])
    scores = measurement.scores
    seconds = float(sum(table["seconds"].to_pylist()))
    tokens = int(sum(table["completion_tokens"].to_pylist()))
    lower, upper = mean_bounds(scores, measurement.n_total, alpha=0.05)
    row: dict[str, Any] = {
        "task": measurement.items.task.name,
        "n": len(scores),
        "n_total": measurement.n_total,
        "score": float(scores.mean()),
        "lower": lower,
        "upper": upper,
        "truncated": int(measurement.finished_as("length").sum()),
        "errors": int(measurement.finished_as("error").sum()),
        "completion_tokens": tokens,
        "tokens_per_second": tokens / seconds if seconds else None,
        "seconds": seconds,
        "protocol": measurement.file.key.protocol_digest,
        "stack": measurement.file.facts().get("stack", {}),
        "peak_rss_bytes": measurement.file.facts().get("peak_rss_bytes"),
        "details": _means(table["details"].to_pylist()),
    }
    if reference is not None:
        # The reference's mean over the same items where they are known one by one.
        known = reference.items
        mean = float(known[: len(scores)].mean()) if known is not None else reference.score
        row["reference"] = {
            "id": reference.id,
            "kind": reference.kind,
            "score": mean,
            "ratio": row["score"] / mean if mean else None,
            "simulated": reference.simulated,
        }
    return row


def _means(details: list[str]) -> dict[str, float]:
    import json

    sums: dict[str, float] = {}
    for text in details:
        for name, value in json.loads(text).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return {name: total / len(details) for name, total in sorted(sums.items())}


def _print(document: dict[str, Any]) -> None:
    bytes_told = f", {size(document['bytes'])}" if document["bytes"] else ""
    typer.echo(f"{document['label']} ({document['backend']}{bytes_told}) on {document['suite']}")
    for row in document["tasks"]:
        speed = f"{row['tokens_per_second']:.1f} tok/s" if row["tokens_per_second"] else "speed unknown"
        typer.echo(
            f"  {row['task']:<22} {row['score']:.3f} in [{row['lower']:.3f}, {row['upper']:.3f}]  "
            f"n={row['n']} of {row['n_total']}  truncated {row['truncated']}  errors {row['errors']}  {speed}"
        )
        if "reference" in row:
            found = row["reference"]
            told = " (simulated reference)" if found["simulated"] else ""
            ratio = f"{found['ratio']:.3f}" if found["ratio"] is not None else "undefined"
            typer.echo(f"    vs {found['id']} {found['score']:.3f}: ratio {ratio}{told}")
    if document["limited"]:
        typer.echo("  limited run: no gate can PASS on it")
