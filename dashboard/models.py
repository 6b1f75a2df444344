"""The models of a run with their sizes, speed and quality, also where some of the evidence cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cogumi.errors import CogumiError
from cogumi.profile import Profile, parse_profile
from cogumi.workspace import Workspace
from dashboard.lineage import recipes
from dashboard.view import Kept, View
from reports.artifacts import artifact_names, artifact_parts
from reports.frontier import frontier_parts
from reports.measured import EvidenceIndex, Measured
from reports.quality import References, reference_parts, suites_of
from reports.schema import ArtifactPart, FrontierPart, ReferencePart


@dataclass(frozen=True, slots=True)
class Models:
    """What the report says of a run's models; made once, and shared by all who look."""

    profile: Profile
    names: Mapping[str, str]
    """Digest to step, of all that the run made."""
    artifacts: tuple[ArtifactPart, ...]
    references: tuple[ReferencePart, ...]
    frontiers: tuple[FrontierPart, ...]
    recipes: Mapping[str, str]
    """How each model came to be, in one line, by its digest."""
    index: ReadableIndex
    broken: str = ""
    """Why there is no report of this run, where there is none."""

    @property
    def problems(self) -> list[str]:
        """What could not be read so far, one line each; the rest stands."""
        # What broke the report need not be evidence.
        return list(self.index.problems) or [self.broken] * bool(self.broken)

    def artifact(self, digest: str) -> ArtifactPart | None:
        """Return the model of a digest, if the run made it."""
        return next((part for part in self.artifacts if part.digest == digest), None)


def models_of(view: View) -> Models:
    """Return the models of the view's run; unreadable evidence is told in ``problems``.

    Raises ``UsageError`` without a run, ``RunError`` on an unreadable ledger.
    """
    workspace = view.workspace
    state = (str(workspace.root), view.run, workspace.ledger.state(), workspace.evidence_state)
    return _KEPT.get(state, lambda: _models(view))


_KEPT: Kept[Models] = Kept(2)


def _models(view: View) -> Models:
    ledger, run = view.workspace.ledger, view.run or ""
    names = artifact_names(ledger.steps(run))
    row = ledger.run(run)
    try:
        report = view.report()
    except CogumiError as error:
        profile = parse_profile(row["profile"] if row is not None else {}, f"of run {run}")
        return _readable(view, profile, names, str(error))
    profile = parse_profile(report.reproduce.profile, f"of run {run}")
    return Models(
        profile=profile,
        names=names,
        artifacts=tuple(report.artifacts),
        references=tuple(report.references),
        frontiers=tuple(report.frontiers),
        recipes=recipes(view.workspace, [part.digest for part in report.artifacts], names),
        index=ReadableIndex(view.workspace),
    )


def _readable(view: View, profile: Profile, names: Mapping[str, str], why: str) -> Models:
    """Return what the report would say without the evidence that cannot be read."""
    workspace = view.workspace
    index = ReadableIndex(workspace)
    suites = suites_of(profile)
    references = References(workspace, profile, index)
    artifacts = artifact_parts(
        workspace, workspace.ledger.steps(view.run or ""), names, index, (suites, references)
    )
    return Models(
        profile=profile,
        names=names,
        artifacts=tuple(artifacts),
        references=tuple(reference_parts(suites, references)),
        frontiers=tuple(frontier_parts(workspace, names, artifacts)),
        recipes=recipes(workspace, [part.digest for part in artifacts], names),
        index=index,
        broken=why,
    )


class ReadableIndex(EvidenceIndex):
    """The evidence that can be read; ``problems`` says in one line each what cannot."""

    def __init__(self, workspace: Workspace) -> None:
        self.problems: list[str] = []
        super().__init__(workspace, self.problems)

    def all(self, artifact: str, task: str) -> list[Measured]:
        """Return what is recorded under every protocol; nothing where a file of it cannot be read."""
        try:
            return super().all(artifact, task)
        except (CogumiError, OSError, ValueError, KeyError, TypeError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            if said not in self.problems:
                self.problems.append(said)
            return []
