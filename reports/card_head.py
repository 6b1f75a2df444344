"""Which model a card is about, and the YAML head of its card: the hub's fields and its index of results.

The fields are those of the hub's model cards (huggingface/hub-docs, modelcard.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cogumi.errors import UsageError, nearest
from reports import rows, text
from reports.artifacts import KINDS
from reports.origins import Origin
from reports.schema import ArtifactPart, Report, TaskPart

_TASK = "text-generation"
_LIBRARIES = {"model": "transformers", "gguf": "gguf"}
_LONGEST_NAME = 96


def chosen(report: Report, named: str | None = None) -> ArtifactPart | None:
    """Return the model that the card is about: ``named``, else the one that the run ships.

    ``named`` is a name, a number in the table of models, or a digest or its beginning. A run ships the model
    that passed a gate last, else the one that a gate judged last, else the last that was measured, else the
    last that was made; None for a run without models. Raises ``UsageError`` naming the nearest model.
    """
    if named is not None:
        return _named(report, named)
    models = {part.digest: part for part in report.artifacts if part.kind in KINDS}
    judged = [one for gate in report.gates for one in gate.decisions if one.artifact in models]
    # In the order of time; of the same second, in the order of the gates.
    judged.sort(key=lambda one: one.decided)
    passed = [one for one in judged if one.verdict == "PASS"]
    if judged:
        return models[(passed or judged)[-1].artifact]
    measured = [part for part in models.values() if part.quality]
    return next(reversed(measured or list(models.values())), None)


def _named(report: Report, named: str) -> ArtifactPart:
    digest = named.removeprefix("sha256:")
    for part in report.artifacts:
        if named in (part.name, str(part.number)):
            return part
    found = [
        part
        for part in report.artifacts
        if len(digest) >= 4 and part.digest.removeprefix("sha256:").startswith(digest)
    ]
    if len(found) != 1:
        known = [part.name for part in report.artifacts]
        raise UsageError(
            f"--artifact {named!r}: "
            + (f"{len(found)} models begin so" if found else f"no model of this run{nearest(named, known)}")
        )
    return found[0]


def simulated_steps(report: Report, origin: Origin) -> list[str]:
    """Return the steps whose rows a local program wrote, of those that the model was made from."""
    names = zip(rows.attempt_names(report), report.steps, strict=True)
    simulated = [
        name for name, step in names if step.artifact in origin.ancestors and step.facts.get("simulated")
    ]
    return list(dict.fromkeys(simulated))


def card_head(report: Report, artifact: ArtifactPart, origin: Origin) -> str:
    """Return the YAML head, its lines of dashes among it."""
    import yaml

    head: dict[str, Any] = {}
    if origin.licence:
        head["license"] = line(origin.licence.id)
        if origin.licence.id == "other":
            head["license_name"] = line(origin.licence.name)
        if origin.licence.id == "other" and origin.licence.link:
            head["license_link"] = line(origin.licence.link)
    if origin.languages:
        head["language"] = [line(one) for one in origin.languages]
    if origin.base:
        head["base_model"] = origin.base
        head["base_model_relation"] = "finetune" if _trained(origin) else "quantized"
    if artifact.kind in _LIBRARIES:
        head["library_name"] = _LIBRARIES[artifact.kind]
    head |= {"pipeline_tag": _TASK, "tags": list(_tags(report, artifact, origin))}
    results = [_result(part) for part in _results(artifact)]
    if results:
        head["model-index"] = [{"name": model_name(report, artifact), "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)}---"


def line(told: object) -> str:
    """Return text as one line of characters that a page may hold; YAML quotes the rest itself."""
    return " ".join(text.clean(str(told)).split())


def model_name(report: Report, artifact: ArtifactPart) -> str:
    """Return the run and the model's name, as the model is called in the hub's index of results."""
    return line(f"{report.run.name}/{artifact.name}")[:_LONGEST_NAME]


def _trained(origin: Origin) -> bool:
    return any(stage.startswith(("training.", "meta.")) for stage in origin.stages)


def _tags(report: Report, artifact: ArtifactPart, origin: Origin) -> Iterator[str]:
    yield "cogumi"
    if artifact.kind == "gguf":
        yield "gguf"
    if any(stage.startswith("compression.") for stage in origin.stages):
        yield "compressed"
    if simulated_steps(report, origin) or any(part.reference_simulated for part in artifact.quality):
        yield "simulated"


def _results(artifact: ArtifactPart) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Yield (data set, score, what belongs to the score): each suite, then each task once."""
    for part in artifact.quality:
        # A suite of one task has that task's score.
        if part.score is None or part.tasks_total == 1:
            continue
        about: dict[str, Any] = {"lower": part.lower, "upper": part.upper, "alpha": part.alpha, "n": part.n}
        about |= {"n_total": part.n_total, "tasks": [line(task.task) for task in part.tasks]}
        if part.ratio is not None:
            about |= {"reference": line(part.reference), "ratio": part.ratio}
            about |= {"reference_simulated": part.reference_simulated}
        yield f"suite-{line(part.suite)}", part.score, about
    for task, alpha in tasks_once(artifact):
        if task.score is None:
            continue
        about = {"lower": task.lower, "upper": task.upper, "alpha": alpha, "n": task.n}
        about |= {"n_total": task.n_total, "truncated": task.truncated, "errors": task.errors}
        about |= {"protocol": task.protocol}
        if task.reference_score is not None:
            about["reference_score"] = task.reference_score
        yield line(task.task), task.score, about


def tasks_once(artifact: ArtifactPart) -> list[tuple[TaskPart, float]]:
    """Return each task once, with the error rate of its interval; that of the first suite that holds it."""
    found: dict[str, tuple[TaskPart, float]] = {}
    for part in artifact.quality:
        for task in part.tasks:
            found.setdefault(task.task, (task, part.alpha / part.tasks_total))
    return [found[name] for name in sorted(found)]


def _result(found: tuple[str, float, dict[str, Any]]) -> dict[str, Any]:
    name, value, about = found
    told = "mean over tasks" if "tasks" in about else "mean item score"
    metric = {
        "type": "score",
        "name": f"{told}, first {about['n']} of {about['n_total']} items",
        "value": value,
        # The hub's own evaluation service has not measured it.
        "verified": False,
        "args": about,
    }
    return {
        "task": {"type": _TASK, "name": "Text generation"},
        "dataset": {"type": name, "name": name},
        "metrics": [metric],
    }
