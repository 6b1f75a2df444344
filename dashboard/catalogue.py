"""Which measurements a workspace holds, and what people call the models behind them. Reads no item."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogumi.errors import CogumiError, UsageError
from cogumi.evidence import EvidenceFile, EvidenceKey
from cogumi.profile import Profile, parse_profile
from cogumi.workspace import find_data
from dashboard.recorded import Place, Stored
from dashboard.view import Kept, View
from gates.models import teacher_subject
from reports.artifacts import artifact_names
from reports.quality import Suite, suites_of
from reports.text import short


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All measurements, by artifact and task; ``broken``: one line for each that cannot be read."""

    found: Mapping[tuple[str, str], tuple[Stored, ...]]
    broken: tuple[str, ...]

    def artifacts(self) -> list[str]:
        """Return the digests of all that was measured."""
        return list(dict.fromkeys(artifact for artifact, _ in self.found))

    def tasks(self, artifact: str) -> list[str]:
        """Return the tasks on which an artifact was measured."""
        return sorted(task for owner, task in self.found if owner == artifact)

    def of(self, artifact: str, task: str) -> tuple[Stored, ...]:
        """Return the measurements of an artifact on a task, one for each protocol."""
        return self.found.get((artifact, task), ())

    def alike(self, one: Stored) -> list[Stored]:
        """Return the other measurements of the same items, in the same order and protocol family."""
        task = one.file.key.task
        return [
            other
            for (_, name), group in self.found.items()
            if name == task
            for other in group
            if other is not one and not mismatch(one, other)
        ]


def mismatch(one: Stored, other: Stored) -> str:
    """Say why two measurements of a task cannot be paired item by item, or return nothing."""
    for name, told in (("family", "protocol families differ"), ("items", "items differ")):
        if one.told(name) != other.told(name):
            values = f" ({one.told(name)}, {other.told(name)})" if name == "family" else ""
            return f"{told}{values}"
    if one.told("order") != other.told("order") or one.n_total != other.n_total:
        return "the order of the items differs"
    return ""


_CATALOGUES: Kept[Catalogue] = Kept(2)


def catalogue(view: View) -> Catalogue:
    """Return what is measured in the view's workspace, listed once for a state of its evidence."""
    workspace = view.workspace
    state = (str(workspace.root), workspace.evidence_state)
    return _CATALOGUES.get(state, lambda: _list(workspace.evidence))


def _list(evidence: Path) -> Catalogue:
    found: dict[tuple[str, str], list[Stored]] = {}
    broken = []
    for meta in sorted(evidence.glob("*/*/*/meta.json")):
        try:
            one = _stored(evidence, meta)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            told = f"{type(error).__name__}: {error}"[:120]
            broken.append(f"{meta}: broken evidence ({told}); delete its folder to measure again")
            continue
        found.setdefault((one.file.key.artifact, one.file.key.task), []).append(one)
    return Catalogue({key: tuple(group) for key, group in found.items()}, tuple(broken))


def _stored(evidence: Path, meta: Path) -> Stored:
    document: dict[str, Any] = json.loads(meta.read_text())
    artifact, task, protocol = document["artifact"], document["task"], document["protocol"]
    if not (isinstance(artifact, str) and isinstance(task, str) and isinstance(protocol, dict)):
        raise ValueError("artifact, task or protocol is of another kind")
    file = EvidenceFile(evidence, EvidenceKey(artifact, task, protocol))
    if file.folder != meta.parent:
        raise ValueError("it tells of another artifact, task or protocol than its folder")
    return Stored(file, int(document["n_total"]))


def file_state(file: EvidenceFile) -> tuple[object, ...]:
    """Return a value that changes with the files of a measurement; what is gone meanwhile counts as 0."""
    state: list[object] = [str(file.folder)]
    for path in sorted(file.folder.glob("*.parquet")):
        try:
            told = path.stat()
        except FileNotFoundError:
            continue
        state.append((path.name, told.st_size, told.st_mtime_ns))
    return tuple(state)


# Names --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Names:
    """What models are called, by digest: ``models`` by the run's steps, ``references`` by its profile."""

    models: Mapping[str, str]
    references: Mapping[str, str]
    suites: tuple[Suite, ...]
    """The suites of its profile."""

    def of(self, digest: str) -> str:
        """Return the name of a model, else the start of its digest."""
        return self.models.get(digest) or self.references.get(digest) or short(digest)

    def ordered(self, digests: Sequence[str]) -> list[str]:
        """Return digests in the order made, then the references, then what another run measured."""
        known = [*self.models, *self.references]
        return [one for one in known if one in digests] + [one for one in digests if one not in known]

    def labels(self, digests: Sequence[str]) -> dict[str, str]:
        """Return ``{digest: name}`` in the order of ``ordered``; no two names are the same."""
        names = {digest: self.of(digest) for digest in self.ordered(digests)}
        told = list(names.values())
        return {
            digest: f"{name} ({short(digest)})" if told.count(name) > 1 else name
            for digest, name in names.items()
        }


_NAMES: Kept[Names] = Kept(8)


def names(view: View) -> Names:
    """Return what the models of the view's run are called."""
    workspace = view.workspace
    state = (str(workspace.root), view.run, workspace.ledger.state(), workspace.evidence_state)
    return _NAMES.get(state, lambda: _names(view))


def _names(view: View) -> Names:
    if view.run is None:
        return Names({}, {}, ())
    models = artifact_names(view.workspace.ledger.steps(view.run))
    row = view.workspace.ledger.run(view.run)
    try:
        profile = parse_profile(row["profile"], f"of run {view.run}") if row is not None else None
    except CogumiError:
        # A profile that this version cannot read: its models still have their steps' names.
        profile = None
    if profile is None:
        return Names(models, {}, ())
    return Names(models, _references(view, profile), tuple(suites_of(profile)))


def _references(view: View, profile: Profile) -> dict[str, str]:
    """Return the names of what stands behind a profile's references item by item."""
    try:
        data = find_data(None)
    except UsageError:
        data = None
    place = Place(view.workspace.root, view.workspace.evidence, data)
    told: dict[str, str] = {}
    for name, choice in profile.references.items():
        if choice.teacher:
            simulated = ", simulated" if profile.teachers[choice.teacher].base_url == "local" else ""
            digest = teacher_subject(profile, choice.teacher).digest
            told.setdefault(digest, f"{name} (teacher {choice.teacher}{simulated})")
        for task, row_id in choice.rows.items():
            row = place.rows.get(row_id)
            if row is None or row.kind != "per-item":
                continue
            try:
                answers = place.answers(row, task)
            except CogumiError:
                continue
            for one in answers:
                simulated = " (simulated)" if row.simulated else ""
                told.setdefault(one.file.key.artifact, f"{row.id}{simulated}")
    return told
