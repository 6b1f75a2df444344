"""Where a model comes from, and what its own files state: base model, licence, languages, files.

Nothing is guessed: a licence is the one that a file of the model states, or of a model that it was
made from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cogumi.errors import CogumiError
from cogumi.store import Artifact
from cogumi.subjects import KNOWN_MODELS
from cogumi.workspace import Workspace
from reports.artifacts import stored

_PRETRAINED = "models.pretrained"
_LONGEST = 64
_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")
# As models.pretrained tells where a model came from.
_SOURCE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*) at revision (\w+)", re.ASCII)
_TOLD_BYTES = 65_536
"""A licence names itself, and a card has its head, well within these."""

# Licences by the hub's ids (hub-docs, "Licenses"), and what their texts begin with.
_TEXTS = (
    ("llama3.3", "llama 3.3 community license agreement"),
    ("llama3.2", "llama 3.2 community license agreement"),
    ("llama3.1", "llama 3.1 community license agreement"),
    ("llama3", "meta llama 3 community license agreement"),
    ("gemma", "gemma terms of use"),
    ("apache-2.0", "apache license version 2.0"),
    ("mit", "permission is hereby granted, free of charge, to any person obtaining a copy"),
)


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence as a file states it."""

    id: str
    """The hub's id; ``other`` for one that the hub does not know."""
    name: str
    """What the file calls it; the id itself where that is known."""
    link: str
    """File of the model that holds it, or nothing."""
    stated_by: str
    """Which file of which model states it."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one model of a run comes from."""

    ancestors: tuple[str, ...]
    """Digests of all that it was made from, directly or not; the nearest first, without itself."""
    data: tuple[tuple[str, str], ...]
    """(digest of a data set, digest of the model that was made with it), the nearest model first."""
    stages: tuple[str, ...]
    """Stages of the model and of the models before it, the last one first."""
    base: str | None
    """OWNER/NAME of the hub that it began with; None for a local or a fresh model."""
    revision: str | None
    licence: Licence | None
    languages: tuple[str, ...]
    files: tuple[tuple[str, int, str], ...]
    """(name, bytes, SHA-256) of its files; empty where it is no longer in the store."""


def origin_of(workspace: Workspace, digest: str) -> Origin:
    """Return where a model comes from; what is gone from the store says nothing, and is no error."""
    model = stored(workspace, digest)
    ancestors = {one.digest: one for one in _ancestors(workspace, model)}
    chain = list(_chain(workspace, model))
    licences = (licence_of(one) for one in chain)
    data = [
        (parent, one.digest)
        for one in (model, *ancestors.values())
        if one.kind in ("model", "gguf")
        for parent in _inputs(one).values()
        if parent in ancestors and ancestors[parent].kind == "dataset"
    ]
    languages = [_languages(one) for one in [*chain, *ancestors.values()]]
    base, revision = _base(chain)
    return Origin(
        ancestors=tuple(ancestors),
        data=tuple(data),
        stages=tuple(_stage(one) for one in chain),
        base=base,
        revision=revision,
        licence=next((found for found in licences if found), None),
        languages=next((found for found in languages if found), ()),
        files=tuple(
            (name, int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in sorted(model.manifest["files"].items())
        ),
    )


def licence_of(artifact: Artifact) -> Licence | None:
    """Return the licence that a model's own files state: its card, a LICENSE file or a GGUF's header."""
    files = artifact.manifest["files"]
    head = _card_head(artifact)
    if isinstance(head.get("license"), str):
        name, link = (str(head.get(key) or "") for key in ("license_name", "license_link"))
        return Licence(head["license"], name or head["license"], link, f"README.md of {artifact.short}")
    for name in sorted(name for name in files if name.upper().startswith("LICENSE")):
        if told := _read(artifact, name).strip():
            known = _known(told)
            called = known or " ".join(told.split("\n", 1)[0].split())[:80]
            return Licence(known or "other", called, name, f"{name} of {artifact.short}")
    for name in sorted(name for name in files if name.endswith(".gguf") and "/" not in name):
        if stated := _gguf_licence(artifact, name):
            known = stated.lower() if _ID.fullmatch(stated.lower()) else "other"
            return Licence(known, stated, "", f"general.license in {name} of {artifact.short}")
    return None


def _known(told: str) -> str | None:
    flat = " ".join(told.lower().split()[:120])
    plain = flat.replace(",", "")
    return next((name for name, words in _TEXTS if words in flat or words in plain), None)


def _gguf_licence(artifact: Artifact, name: str) -> str | None:
    from evals.backends.gguf_header import read_header

    try:
        told = read_header(artifact.file(name)).metadata.get("general.license")
    except CogumiError:
        # A file that is gone or cut short states nothing.
        return None
    return told if isinstance(told, str) and told else None


def _languages(artifact: Artifact) -> tuple[str, ...]:
    told = _card_head(artifact).get("language")
    listed = told if isinstance(told, list) else [told]
    return tuple(one for one in listed if isinstance(one, str) and one)


def _card_head(artifact: Artifact) -> Mapping[str, Any]:
    """Return the YAML head of an artifact's card, or nothing."""
    import yaml

    if "README.md" not in artifact.manifest["files"]:
        return {}
    parts = _read(artifact, "README.md").split("---\n", 2)
    if len(parts) != 3 or parts[0].strip():
        return {}
    try:
        head = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        # Somebody else's card: it states nothing that we could read.
        return {}
    return head if isinstance(head, dict) else {}


def _read(artifact: Artifact, name: str) -> str:
    """Return the beginning of a file; nothing where it is gone."""
    try:
        with artifact.file(name).open("rb") as file:
            return file.read(_TOLD_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:
        return ""


# Lineage ------------------------------------------------------------------------------------------


def _stage(artifact: Artifact) -> str:
    return str(artifact.manifest["made_by"].get("stage", ""))


def _inputs(artifact: Artifact) -> Mapping[str, str]:
    inputs: Mapping[str, str] = artifact.manifest["made_by"].get("inputs", {})
    return inputs


def _ancestors(workspace: Workspace, model: Artifact) -> Iterator[Artifact]:
    seen, waiting = {model.digest}, [model]
    while waiting:
        for digest in _inputs(waiting.pop(0)).values():
            if digest not in seen:
                seen.add(digest)
                found = stored(workspace, digest)
                waiting.append(found)
                yield found


def _chain(workspace: Workspace, model: Artifact) -> Iterator[Artifact]:
    """Yield the model, the one whose weights it began with, and so on back to the first."""
    for _ in range(_LONGEST):
        yield model
        parent = _inputs(model).get("compressed") or _inputs(model).get("model")
        if parent is None:
            return
        model = stored(workspace, parent)


def _base(chain: list[Artifact]) -> tuple[str | None, str | None]:
    first = chain[-1]
    if _stage(first) != _PRETRAINED:
        return None, None
    told = _SOURCE.fullmatch(str(first.facts.get("source", "")))
    if told:
        return told[1], told[2]
    named = str(first.manifest["made_by"].get("settings", {}).get("model", ""))
    known = KNOWN_MODELS.get(named.lower())
    # A local folder is no name that a stranger could look up.
    return (known.hub if known else None), None
