"""The models and GGUF files that a run made, with what is known of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cogumi.errors import CogumiError
from cogumi.ledger import StepRow
from cogumi.store import Artifact
from cogumi.workspace import Workspace
from reports.measured import EvidenceIndex
from reports.quality import References, Suite, suite_quality
from reports.schema import ArtifactPart
from reports.text import short

KINDS = ("model", "gguf")
"""Kinds of artifact that answer questions, and so have quality and speed."""


def stored(workspace: Workspace, digest: str | None) -> Artifact:
    """Return an artifact of the store; one that is gone comes back of kind ``missing``, without facts."""
    if digest is not None and workspace.store.has(digest):
        try:
            return workspace.store.get(digest)
        except CogumiError:
            # A broken manifest: the report names the artifact and says nothing more about it.
            return _missing(workspace, digest)
    return _missing(workspace, digest or "")


def _missing(workspace: Workspace, digest: str) -> Artifact:
    manifest = {"kind": "missing", "facts": {}, "files": {}, "made_by": {}}
    return Artifact(digest, workspace.store.objects, manifest)


def artifact_names(steps: Sequence[StepRow]) -> dict[str, str]:
    """Return ``{digest: step}`` of everything that stages made, with the attempt where there are several."""
    made = [row for row in steps if row.kind == "stage" and row.artifact]
    several = {row.step for row in made if row.attempt > 1}
    names: dict[str, str] = {}
    for row in made:
        name = f"{row.step} (attempt {row.attempt})" if row.step in several else row.step
        names.setdefault(str(row.artifact), name)
    return names


def artifact_parts(
    workspace: Workspace,
    steps: Sequence[StepRow],
    names: Mapping[str, str],
    index: EvidenceIndex,
    suites: tuple[Sequence[Suite], References],
) -> list[ArtifactPart]:
    """Return the run's models in the order in which they were made, each content once."""
    parts: list[ArtifactPart] = []
    for digest, name in names.items():
        artifact = stored(workspace, digest)
        # What is gone from the store is still worth a row where it was measured.
        if artifact.kind in KINDS or (artifact.kind == "missing" and index.tasks(digest)):
            parts.append(_part(len(parts) + 1, name, artifact, (names, index, suites)))
    return parts


def _part(
    number: int,
    name: str,
    artifact: Artifact,
    known: tuple[Mapping[str, str], EvidenceIndex, tuple[Sequence[Suite], References]],
) -> ArtifactPart:
    names, index, (suites, references) = known
    facts = artifact.facts
    # The same order of facts as gates read them in (gates.service), so that table and verdict agree.
    total = artifact.bytes or None
    listed = {task for suite in suites for task in suite.tasks}
    others = [Suite(task, (task,), None) for task in index.tasks(artifact.digest) if task not in listed]
    quality = [suite_quality(artifact.digest, suite, index, references) for suite in [*suites, *others]]
    made_by: Mapping[str, Any] = artifact.manifest["made_by"]
    inputs: Mapping[str, str] = made_by.get("inputs", {})
    return ArtifactPart(
        number=number,
        name=name,
        digest=artifact.digest,
        kind=artifact.kind,
        stage=str(made_by.get("stage", "")),
        parameters=_number(facts, "parameters", "total_parameters"),
        bytes_resident=_number(facts, "bytes_resident", "bytes") or total,
        bytes_download=_number(facts, "bytes_download", "bytes") or total,
        bits_per_weight=_number(facts, "bits_per_weight"),
        tokens_per_second=_speed(artifact.digest, index),
        quality=[part for part in quality if part is not None],
        parents=[names.get(digest, short(digest)) for digest in inputs.values()],
        settings=dict(made_by.get("settings", {})),
    )


def _speed(digest: str, index: EvidenceIndex) -> float | None:
    found = [index.best(digest, task) for task in index.tasks(digest)]
    tokens = sum(one.tokens for one in found if one)
    seconds = sum(one.seconds for one in found if one)
    return tokens / seconds if seconds else None


def _number(facts: Mapping[str, Any], *names: str) -> Any:
    """Return the first of the named facts that is a number; a fact of another shape says nothing here."""
    found = (facts.get(name) for name in names)
    return next((value for value in found if isinstance(value, int | float)), None)
