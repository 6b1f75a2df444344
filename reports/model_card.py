"""A model of a run as the README.md of a model repository: the hub's YAML head, then its sections.

The fields are those of the hub's model cards (huggingface/hub-docs, modelcard.md), the headings those of its
template (huggingface_hub, modelcard_template.md). Every number is one of the report; what the model's files
state of base, licence and language comes from ``reports.origins``. What nobody states is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version

from cogumi.gpu_cost import gpu_hours
from reports import frontier, rows, text
from reports.card_head import card_head, model_name, simulated_steps, tasks_once
from reports.origins import Origin
from reports.quality import ALPHA
from reports.render_markdown import escaped, fenced, table
from reports.schema import ArtifactPart, Decision, FrontierPointPart, GatePart, Report, StepPart

_KIND_TOLD = {"model": "a model folder", "gguf": "a GGUF file", "missing": "a model that is gone"}


def render_model_card(report: Report, artifact: ArtifactPart, origin: Origin) -> str:
    """Return the document."""
    parts = (
        _summary(report, artifact, origin),
        _uses(artifact),
        _limitations(report),
        _start(artifact, origin),
        _training(report, artifact, origin),
        _evaluation(report, artifact),
        _verdicts(report, artifact),
        _sizes(artifact, origin),
        _compression(report, artifact),
        _environment(report, artifact, origin),
        _licence(report, origin),
        _reproduce(report),
    )
    body = "\n".join(line for part in parts for line in (*part, "")).rstrip() + "\n"
    return f"{card_head(report, artifact, origin)}\n{body}"


# What it is ---------------------------------------------------------------------------------------


def _summary(report: Report, artifact: ArtifactPart, origin: Origin) -> Iterator[str]:
    simulated = simulated_steps(report, origin)
    yield f"# {'SIMULATED: ' if simulated else ''}{escaped(model_name(report, artifact))}"
    yield ""
    if simulated:
        yield (
            f"A local program wrote rows that this model was trained on ({escaped(', '.join(simulated))}): a "
            "rehearsal, which teaches nothing."
        )
        yield ""
    kind = _KIND_TOLD.get(artifact.kind, artifact.kind)
    yield (
        f"{text.count(artifact.parameters)} parameters as {escaped(kind)}, made from {_began_with(origin)} "
        f"by the run {escaped(report.run.name)} ({escaped(report.run.profile_title)}). Digest "
        f"`{artifact.digest}`. Its numbers are those of the run's report."
    )
    if origin.stages:
        yield ""
        yield f"Steps that made it: {escaped(', then '.join(reversed(origin.stages)))}."


def _began_with(origin: Origin) -> str:
    if origin.base:
        at = f" (revision `{origin.revision}`)" if origin.revision else ""
        return f"`{origin.base}`{at}"
    if not origin.stages or not origin.stages[-1]:
        return "an unknown beginning"
    return "a local model" if origin.stages[-1] == "models.pretrained" else "fresh weights"


def _uses(artifact: ArtifactPart) -> Iterator[str]:
    yield "## Uses"
    yield ""
    suites = ", ".join(part.suite for part in artifact.quality)
    if suites:
        yield f"Meant for what it was measured on: {escaped(suites)}."
    else:
        yield "Nothing was measured on it: no use is supported by a number."
    yield ""
    yield "### Out-of-Scope Use"
    yield ""
    yield (
        "Everything that was not measured, other languages and longer contexts among it; and decisions about "
        "people: no harm, bias or safety was measured."
    )


def _limitations(report: Report) -> Iterator[str]:
    yield "## Bias, Risks, and Limitations"
    yield ""
    for told in report.caveats:
        yield f"- {escaped(told)}"
    yield "- Bias and safety: not measured."


def _start(artifact: ArtifactPart, origin: Origin) -> Iterator[str]:
    names = [name for name, _, _ in origin.files]
    if not names:
        return
    yield "## How to Get Started with the Model"
    yield ""
    if artifact.kind == "gguf":
        whole = next((name for name in names if name == "model.gguf"), None)
        whole = whole or next((name for name in names if name.endswith(".gguf")), names[0])
        lora = " --lora adapter.gguf" if "adapter.gguf" in names and whole != "adapter.gguf" else ""
        yield from fenced([f"llama-cli --model {whole}{lora} --temp 0"])
        return
    yield from fenced(
        (
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained(".")',
            'tokenizer = AutoTokenizer.from_pretrained(".")',
        )
    )


# How it was made ----------------------------------------------------------------------------------


def _lineage(report: Report, artifact: ArtifactPart, origin: Origin) -> list[tuple[str, StepPart]]:
    """Return the steps that made the model and all before it, in the order of the run, each content once."""
    digests = {artifact.digest, *origin.ancestors}
    found: dict[str, tuple[str, StepPart]] = {}
    for name, step in zip(rows.attempt_names(report), report.steps, strict=True):
        if step.artifact in digests and step.kind == "stage":
            found.setdefault(step.artifact, (name, step))
    return list(found.values())


def _training(report: Report, artifact: ArtifactPart, origin: Origin) -> Iterator[str]:
    yield "## Training Details"
    yield ""
    yield "### Training Data"
    yield ""
    made = {step.artifact: (name, step) for name, step in _lineage(report, artifact, origin)}
    used: dict[str, list[str]] = {}
    for data, model in origin.data:
        name = made[model][0] if model in made else text.short(model)
        used.setdefault(data, []).append(name)
    cells = []
    for data, models in used.items():
        name, step = made.get(data, (text.short(data), None))
        facts = step.facts if step else {}
        count = facts.get("rows")
        cells.append(
            (
                name,
                f"{count:,}" if isinstance(count, int) else text.UNKNOWN,
                "; ".join(dict.fromkeys(reversed(models))),
                text.short(data),
                "simulated: a local program wrote it" if facts.get("simulated") else "",
            )
        )
    if cells:
        yield from table(["Data", "Rows", "Used in", "Digest", "Note"], cells)
    else:
        yield "No data of this run."
    lineage = report.model_copy(update={"steps": [step for _, step in made.values()]})
    trainings = rows.trainings_of(lineage)
    if trainings:
        yield ""
        yield "### Training Procedure"
        yield ""
        names = {id(step.training): name for name, step in made.values()}
        header = ["Figure", *(escaped(names[id(part)]) for _, part in trainings)]
        yield from table(header, ([name, *told] for name, told in rows.training_table(lineage)))


def _compression(report: Report, artifact: ArtifactPart) -> Iterator[str]:
    points = [
        (part, point) for part in report.frontiers for point in part.points if point.number == artifact.number
    ]
    if not points:
        return
    yield "## Compression"
    yield ""
    for part, point in points:
        yield f"- {escaped(_point_told(part.baseline, point))}"


def _point_told(baseline: str, point: FrontierPointPart) -> str:
    told = (
        f"{point.recipe}: KL from {baseline} {frontier.kl_told(point.kl)} nats a token, bounds "
        f"{frontier.kl_told(point.kl_lower)} to {frontier.kl_told(point.kl_upper)}"
    )
    if point.tokens is not None and point.rows is not None:
        told += f", along {point.tokens:,} answer tokens of {point.rows:,} held-out rows"
    if point.perplexity is not None:
        told += f"; perplexity {point.perplexity:.4g}"
        told += "" if point.baseline_perplexity is None else f" (dense {point.baseline_perplexity:.4g})"
    if point.top1_agreement is not None:
        told += f"; the same most likely token at {text.percent(point.top1_agreement)}"
    return f"{told}."


# What was measured --------------------------------------------------------------------------------


def _evaluation(report: Report, artifact: ArtifactPart) -> Iterator[str]:
    yield "## Evaluation"
    yield ""
    if not artifact.quality:
        yield "Not measured."
        return
    yield (
        f"Scores are means over the tasks of a suite with their interval at error rate {ALPHA}, valid "
        "whenever measuring stopped; exact where all items are measured. Truncated and failed answers score "
        "0 and stay in the mean. The hub has verified none of them."
    )
    yield ""
    cells = [
        (
            part.suite,
            text.share(part.score),
            text.interval(part.lower, part.upper),
            f"{part.n:,} of {part.n_total:,}",
            text.share(part.ratio),
            f"{part.reference or text.UNKNOWN}{' (simulated)' if part.reference_simulated else ''}",
        )
        for part in artifact.quality
    ]
    yield from table(["Suite", "Score", "Interval", "Items", "Ratio", "to Reference"], cells)
    yield ""
    tasks = [task for task, _ in tasks_once(artifact)]
    yield from table(
        ["Task", "Score", "Interval", "Items", "Reference", "Truncated", "Failed"],
        (
            (
                task.task,
                text.share(task.score),
                text.interval(task.lower, task.upper),
                f"{task.n:,} of {task.n_total:,}",
                text.share(task.reference_score),
                task.truncated,
                task.errors,
            )
            for task in tasks
        ),
    )
    names = {task.task for task in tasks}
    data = [one for one in report.reproduce.data if one.kind == "benchmark" and one.name in names]
    if data:
        yield ""
        yield "### Testing Data"
        yield ""
        yield from table(
            ["Task", "Digest of its items", "What"], ((d.name, d.digest, d.detail) for d in data)
        )


def _decisions(report: Report, artifact: ArtifactPart) -> Iterable[tuple[GatePart, Decision]]:
    for gate in report.gates:
        yield from ((gate, one) for one in gate.decisions if one.artifact == artifact.digest)


def _verdicts(report: Report, artifact: ArtifactPart) -> Iterator[str]:
    yield "### Verdicts"
    yield ""
    found = list(_decisions(report, artifact))
    if not found:
        yield "No gate has judged this model."
    for gate, decision in found:
        title = f", {escaped(gate.title)}" if gate.title else ""
        yield f"**{decision.verdict}** – gate {escaped(gate.gate)}{title}, attempt {decision.attempt}:"
        yield ""
        yield from table(
            ["Criterion", "Verdict", "Finding", "Terms"],
            (
                (one["id"], one["verdict"], text.claim(one), "; ".join((*text.terms(one), *text.notes(one))))
                for one in decision.document["criteria"]
            ),
        )
        left_out = decision.document.get("left_out")
        if left_out:
            yield ""
            yield f"Left out by the profile: {escaped(', '.join(left_out))}."
        yield ""


# What it takes ------------------------------------------------------------------------------------


def _sizes(artifact: ArtifactPart, origin: Origin) -> Iterator[str]:
    yield "## Technical Specifications"
    yield ""
    bits = artifact.bits_per_weight
    yield from table(
        ["Download", "In memory", "Bits per weight", "Parameters", "Tokens/s of its evaluation"],
        [
            (
                _bytes_told(artifact.bytes_download),
                _bytes_told(artifact.bytes_resident),
                text.UNKNOWN if bits is None else f"{bits:.2f}",
                text.count(artifact.parameters),
                text.speed(artifact.tokens_per_second),
            )
        ],
    )
    if origin.files:
        yield ""
        yield from table(["File", "Bytes", "SHA-256"], ((n, f"{size:,}", d) for n, size, d in origin.files))


def _bytes_told(count: int | None) -> str:
    return text.UNKNOWN if count is None else f"{text.size(count)} ({count:,} bytes)"


def _environment(report: Report, artifact: ArtifactPart, origin: Origin) -> Iterator[str]:
    yield "## Environmental Impact"
    yield ""
    took = [
        (name, step, _gpu_hours(step))
        for name, step in _lineage(report, artifact, origin)
        if step.training is not None or _gpu_hours(step) is not None
    ]
    if took:
        yield from table(
            ["Training or other work on GPUs", "GPU hours", "Time", "Energy"],
            ((name, _hours_told(step, hours), *_time_and_energy(step)) for name, step, hours in took),
        )
    else:
        yield "No training of this run went into it."
    yield ""
    yield f"- This model and all that it was made from: {_recipe_told([(step, h) for _, step, h in took])}."
    gpu = report.money.gpu
    yield f"- Whole run: {escaped(text.gpu_told(gpu))}" if gpu else "- Whole run: no GPU hours."
    yield "- Carbon emitted: unknown; where the electricity came from was not recorded."


def _gpu_hours(step: StepPart) -> float | None:
    """Return the GPU hours behind a step's content, also where another run spent them."""
    return step.training.gpu_hours if step.training is not None else gpu_hours(step.metrics)


def _hours_told(step: StepPart, hours: float | None) -> str:
    if hours is not None:
        return f"{hours:.3g}"
    return "no GPU" if step.training is not None and step.training.gpus == 0 else text.UNKNOWN


def _time_and_energy(step: StepPart) -> tuple[str, str]:
    part = step.training
    if part is not None:
        return text.duration(part.seconds), text.energy(part.joules)
    joules = step.metrics.get("joules")
    return text.duration(step.seconds), text.energy(joules if isinstance(joules, int | float) else None)


def _recipe_told(took: list[tuple[StepPart, float | None]]) -> str:
    """Say what the recipe of a model took: its own steps, without attempts that came to nothing."""
    known = [hours for _, hours in took if hours is not None]
    unknown = any(_hours_told(step, hours) == text.UNKNOWN for step, hours in took)
    if not known:
        return "GPU hours unknown" if unknown else "no GPU hours"
    return f"{'at least ' if unknown else ''}{sum(known):.3g} GPU hours"


def _licence(report: Report, origin: Origin) -> Iterator[str]:
    yield "## Licence"
    yield ""
    if origin.licence:
        yield f"{escaped(origin.licence.name)}, as {escaped(origin.licence.stated_by)} states."
    else:
        yield "Unknown: no file of the model, or of those that it was made from, states one."
    asked = sorted({one.model for one in report.money.calls if not one.simulated})
    if asked and origin.data:
        yield ""
        yield (
            f"Models of providers answered for this run's data ({escaped(', '.join(asked))}): their terms "
            "may restrict what is trained on it. Read them before publishing."
        )


def _reproduce(report: Report) -> Iterator[str]:
    part = report.reproduce
    yield "## How to reproduce"
    yield ""
    yield from fenced(part.commands)
    yield ""
    yield (
        f"Profile digest `{report.run.profile_digest}`, seed {part.seed}, written by cogumi "
        f"{version('cogumi')}. `report.json` of the run holds the profile."
    )
    if part.software:
        yield ""
    for stack in part.software:
        yield f"- {escaped(', '.join(f'{name} {value}' for name, value in stack.items()))}"
