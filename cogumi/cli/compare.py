"""``cogumi compare``: two models on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogumi.cli.common import (
    DataOption,
    JsonOption,
    JudgeOption,
    LimitOption,
    Place,
    ProfileOption,
    WorkspaceOption,
    echo_json,
    place,
    profile_of,
)
from cogumi.cli.gate import BackendOption
from cogumi.cli.measuring import measuring
from cogumi.evidence import Decoding
from cogumi.profile import Profile
from cogumi.units import size
from gates.comparable import differing, distinct, speeds_differ_by, stacks_changed

if TYPE_CHECKING:
    from cogumi.subjects import Subject
    from evals.measure import Measurement
    from evals.types import Task
    from gates.compare import SuiteComparison, TaskComparison
    from gates.divergence import Divergence

_HELP = """Compare two models on the same items: difference, flips, next-token divergence, size and speed.

A and B are what `cogumi eval` measures. What is missing of either is measured; differences are B - A. This is
no gate: the exit code is 0 whoever is better.

Example: cogumi compare smollm2-135m-instruct small.gguf --suite instruction --limit 20 --data ../shared/data
"""
_LOGIT_ITEMS = 8


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", help=_HELP)(compare)


def compare(
    context: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="The model to compare with.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The model that is compared.")],
    suite: Annotated[str, typer.Option("--suite", "-s", help="Suite of the profile, or a built-in one.")],
    profile: ProfileOption = None,
    backend: BackendOption = "auto",
    judge: JudgeOption = None,
    limit: LimitOption = None,
    logits: Annotated[
        int,
        typer.Option(
            "--logits", min=0, help="Compare next tokens along A's first answers to so many items; 0: not."
        ),
    ] = _LOGIT_ITEMS,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
    data: DataOption = None,
) -> None:
    """Measure what is missing, compare and print."""
    from cogumi.subjects import resolve
    from gates.models import tasks_of

    where = place(context, workspace, data)
    chosen = profile_of(where, None, profile, judge)
    tasks = tasks_of(chosen, suite, where.workspace)
    where.workspace.create()
    subjects = resolve(a, where.workspace, backend), resolve(b, where.workspace, backend)
    pairs = _measure(where, chosen, subjects, tasks, limit, logits)
    document = comparison(suite, subjects, pairs)
    if as_json:
        echo_json(document)
    else:
        _print(document)


@dataclass(frozen=True, slots=True)
class Measured:
    """Both measurements of one task, cut at the ``n`` items that both know."""

    a: Measurement
    b: Measurement
    n: int
    divergence: Divergence


def _measure(
    where: Place,
    profile: Profile,
    subjects: tuple[Subject, Subject],
    tasks: Sequence[Task],
    limit: int | None,
    logits: int,
) -> list[Measured]:
    from gates.divergence import diverge

    with measuring(where, profile) as (measurer, _):
        # One model after the other: neither waits in memory for the other's tasks.
        found = [[measurer.measurement(subject, task) for task in tasks] for subject in subjects]
        for measurement in (*found[0], *found[1]):
            measurement.extend(limit or measurement.n_total)
        pairs = []
        for one, other in zip(*found, strict=True):
            n = min(len(one.scores), len(other.scores), limit or one.n_total)
            pairs.append(Measured(one, other, n, diverge(one, other, measurer, min(logits, n))))
        return pairs


def comparison(suite: str, subjects: tuple[Subject, Subject], pairs: Sequence[Measured]) -> dict[str, Any]:
    """Return the document of a comparison: both models, every task, and the suite as a whole."""
    from gates.compare import PairedTask, compare_tasks

    compared = compare_tasks(
        [
            PairedTask(
                task=pair.a.items.task.name,
                a=pair.a.scores[: pair.n],
                b=pair.b.scores[: pair.n],
                n_total=pair.a.n_total,
                seed=int(pair.a.items.order_digest[7:23], 16),
            )
            for pair in pairs
        ]
    )
    first, second = (
        _side(subject, [getattr(pair, name) for pair in pairs])
        for subject, name in zip(subjects, "ab", strict=True)
    )
    return {
        "a": first,
        "b": second,
        "suite": suite,
        "limited": any(task.n < task.n_total for task in compared.tasks),
        **_figures(compared),
        "bytes_a": first["bytes"],
        "bytes_b": second["bytes"],
        "size_ratio": _ratio(second["bytes"], first["bytes"]),
        **_speed(pairs, first, second),
        "notes": _notes(pairs, first, second),
        "tasks": [_task_row(task, pair) for task, pair in zip(compared.tasks, pairs, strict=True)],
    }


def _figures(compared: SuiteComparison | TaskComparison) -> dict[str, Any]:
    names = ("score_a", "score_b", "difference", "lower", "upper", "alpha")
    return {name: getattr(compared, name) for name in names}


def _task_row(task: TaskComparison, pair: Measured) -> dict[str, Any]:
    ends = {
        f"{name}_{side}": int(measurement.finished_as(reason)[: pair.n].sum())
        for name, reason in (("truncated", "length"), ("errors", "error"))
        for side, measurement in (("a", pair.a), ("b", pair.b))
    }
    return {
        "task": task.task,
        "n": task.n,
        "n_total": task.n_total,
        **_figures(task),
        "test": task.test,
        "p_value": task.p_value,
        "p_holm": task.p_holm,
        "a_only": task.a_only,
        "b_only": task.b_only,
        "both": task.both,
        "neither": task.neither,
        "flips": task.flips,
        "flip_share": task.flips / task.n,
        **ends,
        "kl_mean": pair.divergence.kl_mean,
        "kl_p99": pair.divergence.kl_p99,
        "top1_agreement": pair.divergence.top1_agreement,
        "logits_items": pair.divergence.items,
        "logits_tokens": pair.divergence.tokens,
        "logits_note": pair.divergence.note,
        "protocols_match": not _protocol_differences(pair),
    }


def _side(subject: Subject, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Return what is told of one model; its origins are the machines and software that answered for it."""
    facts = subject.facts
    return {
        "label": subject.label,
        "artifact": subject.digest,
        "backend": subject.backend,
        **{name: facts.get(name) for name in ("bytes", "bytes_resident", "bytes_download")},
        "origins": distinct(origin for one in measurements for origin in one.file.origins()),
    }


def _speed(pairs: Sequence[Measured], first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    speeds = []
    for name in ("a", "b"):
        parts = (getattr(pair, name).file.decoding(pair.n) for pair in pairs)
        speeds.append(sum(parts, Decoding(0, 0, 0.0)).tokens_per_second)
    note = speeds_differ_by(first["origins"], second["origins"])
    return {
        "tokens_per_second_a": speeds[0],
        "tokens_per_second_b": speeds[1],
        "speed_ratio": None if note else _ratio(speeds[1], speeds[0]),
        "speed_note": f"not comparable: {note}" if note else None,
    }


def _protocol_differences(pair: Measured) -> list[str]:
    return differing([dict(pair.a.file.key.protocol), dict(pair.b.file.key.protocol)])


def _notes(pairs: Sequence[Measured], first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    notes = []
    differing = sorted({name for pair in pairs for name in _protocol_differences(pair)})
    if differing:
        notes.append(
            f"protocols differ in {', '.join(differing)} (A {first['backend']}, B {second['backend']}): "
            "the difference is of model and runtime together"
        )
    for name, side in (("A", first), ("B", second)):
        changed = stacks_changed(side["origins"])
        if changed:
            notes.append(f"{name} was answered under more than one stack: {', '.join(changed)}")
    if len(pairs) > 1:
        notes.append(f"single tasks are exploratory; p_holm is corrected for {len(pairs)} tasks")
    clustered = [pair.a.items.task.name for pair in pairs if any(i.cluster for i in pair.a.items.items)]
    if clustered:
        notes.append(f"items share clusters in {', '.join(clustered)}: p-values take them as independent")
    return notes


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _print(document: dict[str, Any]) -> None:
    sides = document["a"], document["b"]
    width = max(len(side["label"]) for side in sides)
    for name, side in zip("AB", sides, strict=True):
        told = [side["backend"], side["artifact"].removeprefix("sha256:")[:12], *_sizes(side)]
        typer.echo(f"{name}  {side['label']:<{width}}  {'  '.join(told)}")
    for row in document["tasks"]:
        typer.echo("")
        _print_task(row, len(document["tasks"]) > 1)
    typer.echo(f"\n{document['suite']}")
    if len(document["tasks"]) > 1:
        _line("score", f"{_scores(document)}  (mean of {len(document['tasks'])} tasks)")
    if document["size_ratio"] is not None:
        _line("size", f"B / A {document['size_ratio']:.3f}")
    _line("speed", _speed_told(document))
    for note in document["notes"]:
        _line("note", note)
    if document["limited"]:
        _line("note", "not all items: the intervals allow for those that are missing")


def _print_task(row: dict[str, Any], several: bool) -> None:
    holm = f", {row['p_holm']:.3g} after Holm" if several else ""
    typer.echo(f"{row['task']}  n={row['n']:,} of {row['n_total']:,}")
    _line("score", _scores(row))
    if row["both"] is None:
        _line("better", f"A on {row['a_only']:,}, B on {row['b_only']:,} items ({row['flip_share']:.1%})")
    else:
        _line(
            "flips",
            f"{row['flips']:,} ({row['flip_share']:.1%}): right only A {row['a_only']:,}, only B "
            f"{row['b_only']:,}; both {row['both']:,}, neither {row['neither']:,}",
        )
    _line("test", f"{row['test']}, two-sided p = {row['p_value']:.3g}{holm}")
    _line("cut off", f"A {row['truncated_a']:,}, B {row['truncated_b']:,}{_errors(row)}")
    _line("next token", _divergence(row))


def _line(name: str, text: str) -> None:
    typer.echo(f"  {name:<11} {text}")


def _scores(row: dict[str, Any]) -> str:
    return (
        f"A {row['score_a']:.3f}  B {row['score_b']:.3f}  B - A {row['difference']:+.3f} "
        f"in [{row['lower']:+.3f}, {row['upper']:+.3f}] at {1 - row['alpha']:.0%}"
    )


def _errors(row: dict[str, Any]) -> str:
    return (
        f"; errors A {row['errors_a']:,}, B {row['errors_b']:,}" if row["errors_a"] or row["errors_b"] else ""
    )


def _divergence(row: dict[str, Any]) -> str:
    if row["top1_agreement"] is None:
        return f"not compared: {row['logits_note']}"
    kl = "" if row["kl_mean"] is None else f"KL(A|B) {row['kl_mean']:.4f} nats, p99 {row['kl_p99']:.3f}; "
    along = (
        f" ({row['logits_tokens']:,} tokens of {row['logits_items']} answers)" if row["logits_items"] else ""
    )
    note = f"; {row['logits_note']}" if row["logits_note"] else ""
    return f"{kl}same top token {row['top1_agreement']:.1%}{along}{note}"


def _sizes(side: dict[str, Any]) -> list[str]:
    names = (("bytes", ""), ("bytes_resident", " resident"), ("bytes_download", " download"))
    return [f"{size(side[name])}{told}" for name, told in names if side[name] is not None]


def _speed_told(document: dict[str, Any]) -> str:
    speeds = (document["tokens_per_second_a"], document["tokens_per_second_b"])
    told = [
        f"{name} {speed:.1f}" if speed else f"{name} unknown"
        for name, speed in zip("AB", speeds, strict=True)
    ]
    ratio = document["speed_ratio"]
    end = f"; B / A {ratio:.2f}" if ratio is not None else f"; {document['speed_note'] or 'no ratio'}"
    return f"{', '.join(told)} tok/s{end}"
