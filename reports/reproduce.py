"""What it takes to get the same verdicts again: commands, profile, software, data."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cogumi.digest import digest_of
from cogumi.errors import UsageError
from cogumi.ledger import StepRow
from cogumi.profile import GateStep, Profile, StageStep, load_profile
from cogumi.workspace import Workspace
from reports.artifacts import stored
from reports.measured import EvidenceIndex, Measured
from reports.schema import DataPart, ReproducePart


def reproduce_part(
    workspace: Workspace,
    profile: Profile,
    row: Mapping[str, Any],
    steps: Sequence[StepRow],
    index: EvidenceIndex,
) -> ReproducePart:
    """Return the commands, the profile as it was run, and the digests of what it was measured on."""
    made = dict.fromkeys(step.artifact for step in steps if step.artifact)
    measured = [
        found for digest in made for task in index.tasks(digest) if (found := index.best(digest, task))
    ]
    software = {digest_of(dict(found.stack)): dict(found.stack) for found in measured if found.stack}
    return ReproducePart(
        commands=_commands(profile, row),
        seed=profile.seed,
        software=list(software.values()),
        data=[*_benchmarks(measured), *_files(workspace, profile, steps)],
        profile=_without_credentials(row["profile"]),
    )


def _commands(profile: Profile, row: Mapping[str, Any]) -> list[str]:
    run = shlex.quote(row["name"])
    accepted = "".join(f" --accept-infeasible {shlex.quote(name)}" for name in row["accepted_infeasible"])
    gates = dict.fromkeys(step.gate for step in profile.steps if isinstance(step, GateStep))
    return [
        f"cogumi run --profile {shlex.quote(_profile_argument(row))} --run {run}{accepted}",
        *(f"cogumi gate {shlex.quote(gate)} --run {run} --json" for gate in gates),
        f"cogumi report --run {run}",
    ]


def _profile_argument(row: Mapping[str, Any]) -> str:
    """Return the shipped profile's name, or the file in which the reader saves the one of this report."""
    name = str(row["profile_name"])
    try:
        shipped = digest_of(load_profile(name).model_dump(mode="json"))
    except UsageError:
        return f"{name}.yaml"
    return name if shipped == row["profile_digest"] else f"{name}.yaml"


def _benchmarks(measured: Sequence[Measured]) -> list[DataPart]:
    tasks = {found.task: found for found in measured}
    return [
        DataPart(
            kind="benchmark",
            name=task,
            digest=found.items[0],
            detail=f"{found.n_total:,} items, protocol {found.family}, order seed "
            f"{found.protocol.get('order_seed', 'unknown')}, order {found.items[1]}",
        )
        for task, found in sorted(tasks.items())
    ]


def _files(workspace: Workspace, profile: Profile, steps: Sequence[StepRow]) -> list[DataPart]:
    published = {step.id: step.files for step in profile.steps if isinstance(step, StageStep)}
    parts: dict[str, DataPart] = {}
    for row in steps:
        artifact = stored(workspace, row.artifact)
        if row.kind != "stage" or artifact.kind != "dataset":
            continue
        for name, entry in artifact.manifest["files"].items():
            shown = published.get(row.step, {}).get(name, f"{row.step}: {name}")
            digest, size = f"sha256:{entry['sha256']}", f"{entry['bytes']:,} bytes"
            parts[shown] = DataPart(kind="file", name=shown, digest=digest, detail=f"{size}, step {row.step}")
    return list(parts.values())


def _without_credentials(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Return the profile without user, password and query in its teachers' addresses."""
    teachers = {name: dict(teacher) for name, teacher in profile.get("teachers", {}).items()}
    for teacher in teachers.values():
        address = teacher.get("base_url")
        if address and "//" in address:
            parts = urlsplit(address)
            bare = parts.netloc.rpartition("@")[2]
            teacher["base_url"] = urlunsplit((parts.scheme, bare, parts.path, "", ""))
    return {**profile, "teachers": teachers} if teachers else dict(profile)
