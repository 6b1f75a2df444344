"""A report as Markdown (GitHub's dialect), with the same figures as the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version

from reports import confidence, frontier, rows, stage_metrics, text
from reports.quality import ALPHA
from reports.schema import ArtifactPart, CallsPart, GatePart, Report, SuitePart, TaskPart


def render_markdown(report: Report) -> str:
    """Return the document."""
    parts = [_head(report), _verdicts(report), _artifacts(report)]
    parts += [_frontier(report)] if report.frontiers else []
    parts += [_history(report)]
    parts += [_training(report)] if rows.trainings_of(report) else []
    parts += [_confidence(report)] if rows.confidences_of(report) else []
    parts += [_measured(report)] if stage_metrics.table(rows.metrics_of(report)) else []
    parts += [_steps(report), _money(report), _reproduce(report), _caveats(report)]
    return "\n".join(line for part in parts for line in (*part, "")).rstrip() + "\n"


def escaped(told: object) -> str:
    """Return text that Markdown shows as it is, on one line: no markup, no link, no table cell of its own."""
    plain = " ".join(text.clean(str(told)).split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|#~!])", r"\\\1", plain)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table; cells are escaped, the header is taken as it is."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(escaped(cell) for cell in row)} |"


def fenced(lines: Sequence[str]) -> Iterator[str]:
    """Yield lines as a block of code that none of them can close."""
    body = [text.clean(line) for line in lines]
    longest = max((len(run) for line in body for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    yield fence
    yield from body
    yield fence


def _head(report: Report) -> Iterator[str]:
    run = report.run
    yield f"# Run {escaped(run.name)}: {rows.headline(report)}"
    yield ""
    note = f": {escaped(run.note)}" if run.note else ""
    code = f" (exit {run.exit_code})" if run.exit_code is not None else ""
    yield f"{escaped(run.profile_title)}. Profile {escaped(run.profile)}, {run.status}{code}{note}."
    told = f"started {text.when(run.started)}, as of {text.when(run.as_of)}"
    yield f"Steps took {text.duration(run.seconds)}; {told}."


def _verdicts(report: Report) -> Iterator[str]:
    yield "## Verdicts"
    yield ""
    if not report.gates:
        yield "The profile of this run has no gate."
    for gate in report.gates:
        yield from _gate(gate)


def _gate(gate: GatePart) -> Iterator[str]:
    title = f": {escaped(gate.title)}" if gate.title else ""
    yield f"### {gate.verdict or 'NOT DECIDED'} – {escaped(gate.gate)}{title}"
    yield ""
    if not gate.decisions:
        yield "The run has not reached this gate."
        yield ""
        return
    last = gate.decisions[-1]
    yield f"On {escaped(last.artifact_name or 'an artifact from elsewhere')} `{text.short(last.artifact)}`."
    yield ""
    for criterion in last.document["criteria"]:
        told = "; ".join(escaped(one) for one in (*text.terms(criterion), *text.notes(criterion)))
        claim = f"{criterion['id']}: {text.claim(criterion)}"
        yield f"- **{criterion['verdict']}** {escaped(claim)}.{f' {told}' if told else ''}"
    left_out = last.document.get("left_out")
    if left_out:
        yield f"- Left out by the profile: {escaped(', '.join(left_out))}."
    yield ""


def _artifacts(report: Report) -> Iterator[str]:
    yield "## Models: quality, bytes, speed"
    yield ""
    if not report.artifacts:
        yield "This run has made no model yet."
        return
    yield (
        f"Scores are means over the tasks of a suite with their interval at error rate {ALPHA}, valid "
        "whenever measuring stopped; exact where all items are measured."
    )
    yield ""
    columns = rows.suite_columns(report)
    suites = [column.name for column in columns]
    header = ["#", "Model", "Kind", "Parameters", "Download", "In memory", "Bits per weight"]
    header += [escaped(f"{one.name} {one.ratio_to}".rstrip()) for one in columns]
    header += ["Tokens/s", "Made from"]
    yield from table(header, (_artifact_row(artifact, suites) for artifact in report.artifacts))
    tasks = list(rows.tasks_of(report))
    if tasks:
        yield ""
        header = ["Model", "Task", "Score", "Interval", "n", "Of", "Reference", "Truncated", "Failed"]
        yield from table(header, (_task_row(name, task) for name, task in tasks))


def _artifact_row(artifact: ArtifactPart, suites: Sequence[str]) -> list[object]:
    bits = artifact.bits_per_weight
    parts = {part.suite: part for part in artifact.quality}
    return [
        artifact.number,
        f"{artifact.name} ({text.short(artifact.digest)})",
        artifact.kind,
        text.count(artifact.parameters),
        text.size(artifact.bytes_download),
        text.size(artifact.bytes_resident),
        f"{bits:.2f}" if bits is not None else text.UNKNOWN,
        *(_quality(parts[suite]) if suite in parts else text.UNKNOWN for suite in suites),
        text.speed(artifact.tokens_per_second),
        ", ".join(artifact.parents) or text.UNKNOWN,
    ]


def _task_row(name: str, task: TaskPart) -> list[object]:
    return [
        name,
        task.task,
        text.share(task.score),
        text.interval(task.lower, task.upper),
        task.n,
        task.n_total,
        text.share(task.reference_score),
        task.truncated,
        task.errors,
    ]


def _quality(part: SuitePart) -> str:
    told = f"{text.share(part.score)} {text.interval(part.lower, part.upper)}, n = {part.n} of {part.n_total}"
    if len(part.tasks) < part.tasks_total:
        told += f", {len(part.tasks)} of {part.tasks_total} tasks"
    if part.ratio is not None:
        told += f", ratio {text.share(part.ratio)}"
    return told


def _history(report: Report) -> Iterator[str]:
    yield "## Every verdict"
    yield ""
    found = [
        [
            gate.gate,
            criterion["attempt"] or text.UNKNOWN,
            decision.artifact_name or text.short(decision.artifact),
            criterion["id"],
            criterion["verdict"],
            text.claim(criterion),
            "; ".join(text.terms(criterion)),
            text.when(decision.decided),
        ]
        for gate, decision, criterion in rows.history_of(report)
    ]
    if found:
        header = ["Gate", "Attempt", "Model", "Criterion", "Verdict", "Finding", "Terms", "Decided"]
        yield from table(header, found)
    else:
        yield "No gate has been decided in this run."


def _training(report: Report) -> Iterator[str]:
    trainings = rows.trainings_of(report)
    yield "## Training"
    yield ""
    header = ["Figure", *(escaped(name) for name, _ in trainings)]
    yield from table(header, ([name, *cells] for name, cells in rows.training_table(report)))
    for name, part in trainings:
        if part.looks:
            yield ""
            yield f"- {escaped(name)}: {escaped(rows.losses_told(part))}."


def _frontier(report: Report) -> Iterator[str]:
    yield "## Size against quality"
    for part in report.frontiers:
        yield ""
        yield f"{escaped(frontier.told(part))}."
        yield ""
        yield from table(frontier.HEADER, frontier.table(part))


def _confidence(report: Report) -> Iterator[str]:
    found = rows.confidences_of(report)
    yield "## Confidence"
    yield ""
    yield from table(confidence.HEADER, confidence.table(found))
    for name, part in found:
        yield ""
        yield f"- {escaped(name)}: {escaped(confidence.told(part))}."
        yield ""
        header = ["Scaling", "Answers", "Confidence", "Right", "Bounds"]
        yield from table(header, confidence.bins(part))


def _measured(report: Report) -> Iterator[str]:
    yield "## Measured by stages"
    yield ""
    yield from table(stage_metrics.HEADER, stage_metrics.table(rows.metrics_of(report)))


def _steps(report: Report) -> Iterator[str]:
    yield "## Steps"
    yield ""
    header = ["Plan", "Step", "Kind", "Attempt", "State", "Time", "Made", "Key figures"]
    found = []
    for step in report.steps:
        figures = ", ".join(f"{name} {value}" for name, value in rows.key_figures(step))
        told = "; ".join(one for one in (step.note, figures) if one)
        attempt = step.attempt or ""
        made = text.short(step.artifact)
        found.append(
            (step.plan, step.step, step.kind, attempt, step.status, text.duration(step.seconds), made, told)
        )
    yield from table(header, found)


def _money(report: Report) -> Iterator[str]:
    money = report.money
    yield "## Money"
    yield ""
    played = (
        f" Play money of the local teacher: {text.usd(money.simulated_usd)}." if money.simulated_usd else ""
    )
    unknown = (
        f" Calls of unknown price, not in the sum: {money.unpriced_calls}." if money.unpriced_calls else ""
    )
    yield f"Paid: {text.usd(money.real_usd)}.{played}{unknown}"
    if money.gpu:
        yield ""
        yield escaped(text.gpu_told(money.gpu))
    if money.calls:
        yield ""
        header = ["Step", "Model", "Provider", "Calls", "Input tokens", "Output tokens", "Cost"]
        yield from table(header, (_calls_row(row) for row in money.calls))


def _calls_row(row: CallsPart) -> list[object]:
    return [
        row.step,
        f"{row.model}{' (simulated)' if row.simulated else ''}",
        row.provider,
        f"{row.calls:,}",
        f"{row.input_tokens:,}",
        f"{row.output_tokens:,}",
        text.usd(row.cost_usd),
    ]


def _reproduce(report: Report) -> Iterator[str]:
    part = report.reproduce
    yield "## How to reproduce"
    yield ""
    yield from fenced(part.commands)
    yield ""
    yield (
        f"Profile digest `{report.run.profile_digest}`, seed {part.seed}, report written by cogumi "
        f"{version('cogumi')}. The profile as it was run stands in `report.json` under `reproduce.profile`."
    )
    if part.software:
        yield ""
        for stack in part.software:
            yield "- " + escaped(", ".join(f"{name} {value}" for name, value in stack.items()))
    if part.data:
        yield ""
        yield from table(["Data", "Digest", "What"], ((d.name, d.digest, d.detail) for d in part.data))


def _caveats(report: Report) -> Iterator[str]:
    yield "## Before you quote a number"
    yield ""
    for told in report.caveats:
        yield f"- {escaped(told)}"
    if not report.caveats:
        yield "Nothing beside what the verdicts say."
