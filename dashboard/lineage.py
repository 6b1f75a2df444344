"""Where a model comes from: everything that it was made of, the first first, as the manifests tell it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cogumi.store import Artifact
from cogumi.workspace import Workspace
from reports.artifacts import stored
from reports.text import short

MOST = 64
"""Artifacts that a lineage tells of; more is no recipe that anybody reads."""
_LONGEST_RECIPE = 8
# Settings that say what a step did, in the order in which they are told.
_TELLING = {
    "method": "{}",
    "structure": "{}",
    "sparsity": "sparsity {:g}",
    "type": "{}",
    "bits": "{:g} bits",
    "bytes_at_most": "at most {:,} bytes",
    "layers": "{:,} layers",
    "rank": "rank {:,}",
    "steps": "{:,} steps",
}
# The input that a model continues; its other inputs are data, teachers and helpers.
_TRUNK = ("compressed", "model", "base", "start")
_MODELS = ("model", "gguf", "adapter", "missing")


@dataclass(frozen=True, slots=True)
class Made:
    """One artifact of a lineage: which stage made it, of what, with which settings."""

    digest: str
    name: str
    """The step of the run that made it, or the start of its digest where another run did."""
    kind: str
    """``missing`` where it is gone from the store, or its manifest cannot be read."""
    stage: str
    version: str
    inputs: Mapping[str, str]
    """What the stage called each of its inputs, to their digests."""
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    created: str
    bytes: int | None

    @property
    def label(self) -> str:
        """Its name, or that it is gone."""
        return f"{self.name} (gone)" if self.kind == "missing" else self.name


def lineage(
    workspace: Workspace, digest: str, names: Mapping[str, str], known: dict[str, Made] | None = None
) -> list[Made]:
    """Return what an artifact was made of, parents before children, itself last; ``names``: digest to step.

    No artifact stands in it twice, and there are at most ``MOST``. ``known`` keeps what was read.
    """
    known = {} if known is None else known
    found: dict[str, Made] = {}
    order: list[str] = []
    waiting: list[tuple[str, bool]] = [(digest, False)]
    while waiting:
        at, parents_done = waiting.pop()
        if parents_done:
            order.append(at)
        elif at not in found and len(found) < MOST:
            if at not in known:
                known[at] = _made(stored(workspace, at), names)
            found[at] = known[at]
            waiting.append((at, True))
            waiting += [(parent, False) for parent in reversed(list(found[at].inputs.values()))]
    return [found[one] for one in order]


def recipes(workspace: Workspace, digests: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """Return the ``recipe`` of each artifact by its digest."""
    known: dict[str, Made] = {}
    return {digest: recipe(lineage(workspace, digest, names, known)) for digest in digests}


def _made(artifact: Artifact, names: Mapping[str, str]) -> Made:
    missing = artifact.kind == "missing"
    made_by = _mapping(artifact.manifest["made_by"])
    return Made(
        digest=artifact.digest,
        name=names.get(artifact.digest, short(artifact.digest)),
        kind=artifact.kind,
        stage=str(made_by.get("stage", "")),
        version=str(made_by.get("version", "")),
        inputs={str(name): str(parent) for name, parent in _mapping(made_by.get("inputs")).items()},
        settings=_mapping(made_by.get("settings")),
        facts=_mapping(artifact.facts),
        created=str(artifact.manifest.get("created", "")),
        bytes=None if missing else artifact.bytes,
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def recipe(made: Sequence[Made]) -> str:
    """Return in one line how the last of a lineage came to be: what was done, model after model.

    ``micro 3 layers → sft full, 600 steps → gguf Q5_K_M``.
    """
    by_digest = {one.digest: one for one in made}
    steps: list[str] = []
    at: Made | None = made[-1] if made else None
    while at is not None and len(steps) < _LONGEST_RECIPE:
        steps += reversed(_steps(at))
        at = _trunk(at, by_digest)
    if at is not None:
        steps.append("…")
    return " → ".join(reversed(steps))


def _trunk(made: Made, by_digest: Mapping[str, Made]) -> Made | None:
    known = {name: by_digest[digest] for name, digest in made.inputs.items() if digest in by_digest}
    return next((known[name] for name in _TRUNK if name in known and known[name].kind in _MODELS), None)


def _steps(made: Made) -> list[str]:
    # A recipe of compression is several stages in one.
    parts = made.facts.get("recipe")
    if isinstance(parts, list) and parts and all(isinstance(part, Mapping) for part in parts):
        return [_step(str(part.get("uses", "")), part.get("settings")) for part in parts]
    return [_step(made.stage, made.settings) if made.stage else made.label]


def _step(stage: str, settings: object) -> str:
    told, figures = _mapping(settings), []
    for name, form in _TELLING.items():
        value = told.get(name)
        if isinstance(value, str):
            figures.append(value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and form != "{}":
            figures.append(form.format(value))
    return f"{stage.rpartition('.')[2]} {', '.join(figures)}".strip()
