"""Recorded evidence as a gate's source, without measuring, without benchmark files and without writing.

``VerdictEvidence`` gives back exactly the items that a verdict of the ledger used, found by the protocol
digest that it names, so the engine can be asked again. ``PlanEvidence`` knows references and earlier
artifacts only, for the plan of a verdict to come.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from cogumi.digest import digest_of
from cogumi.errors import RunError
from cogumi.evidence import EvidenceFile, EvidenceKey
from cogumi.ledger import StepRow
from cogumi.profile import Profile
from evals.items import committed_order
from evals.references.answers import answers_subject
from evals.references.registry import ReferenceRow, load_all
from evals.references.scores import (
    Clusters,
    MetricValue,
    NotMeasuredError,
    PairedScores,
    ReferenceKind,
    ReferenceScores,
)
from evals.tasks import get_task, suite_task_names
from gates.models import teacher_subject
from gates.service import choose_row
from gates.spec import Human, Scope
from gates.verdicts import CriterionVerdict, GateVerdict

_MEASURED = "@measured"
"""What ends the name of a reference that a teacher of the profile stands for."""
_MOST_COMBINATIONS = 4096
_About = tuple[str, ReferenceKind, bool]
"""A reference's name, its kind, and whether it is simulated."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One measurement as it lies on disk."""

    file: EvidenceFile
    n_total: int

    def told(self, name: str) -> str:
        """Return a field of its protocol: ``family``, ``items``, ``order``, ``backend``."""
        return str(self.file.key.protocol.get(name, ""))

    @property
    def items(self) -> tuple[str, str]:
        """Digests of the items and of their order."""
        return self.told("items"), self.told("order")

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (n,) and finish reasons (n,) of the known items, in committed order."""
        table = self.file.table(["score", "finish_reason"])
        scores = np.asarray(table["score"].to_numpy(), dtype=np.float64)
        return scores, np.array(table["finish_reason"].to_pylist(), dtype=object)


def stored(evidence: Path, artifact: str, task: str) -> list[Stored]:
    """Return what is recorded of an artifact on a task under any protocol, in a stable order.

    Raises ``RunError`` naming a file that is broken.
    """
    folder = EvidenceFile(evidence, EvidenceKey(artifact, task, {})).folder.parent
    return [_stored(evidence, meta) for meta in sorted(folder.glob("*/meta.json"))]


def _stored(evidence: Path, meta: Path) -> Stored:
    try:
        document = json.loads(meta.read_text())
        key = EvidenceKey(document["artifact"], document["task"], document["protocol"])
        return Stored(EvidenceFile(evidence, key), int(document["n_total"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{meta}: broken evidence ({error}); delete its folder to measure again") from error


@dataclass(frozen=True)
class Place:
    """Where evidence, references and the run's plan are found; ``data``: the folder of benchmarks, if known.

    ``profiles``: the run's own first, then those of other runs. ``steps``: of the run, oldest first.
    """

    root: Path
    evidence: Path
    data: Path | None
    profiles: Sequence[Profile] = ()
    steps: Sequence[StepRow] = ()

    @cached_property
    def rows(self) -> dict[str, ReferenceRow]:
        """The reference registry, with the workspace's own rows."""
        return load_all(self.root)

    def teacher(self, name: str) -> tuple[str, bool]:
        """Return digest and simulatedness of what stands behind a teacher; raises ``NotMeasuredError``."""
        for profile in self.profiles:
            if name in profile.teachers:
                subject = teacher_subject(profile, name)
                return subject.digest, subject.simulated
        raise NotMeasuredError(f"no profile of this workspace's runs has a teacher {name}")

    def answers(self, row: ReferenceRow, task: str) -> list[Stored]:
        """Return where the archived answers of a per-item reference were scored on a task."""
        try:
            found = stored(self.evidence, answers_subject(row, self.data, self.root).digest, task)
        except RunError:
            # Without the folder of answers its digest is unknown, and only one file of answers is no riddle.
            found = [one for one in self.everyone(task) if one.told("backend") == "answers"]
            if len({one.file.key.artifact for one in found}) > 1:
                raise
        return [one for one in found if one.told("family") == row.family]

    def everyone(self, task: str) -> list[Stored]:
        """Return what is recorded on a task of any artifact."""
        name = EvidenceFile(self.evidence, EvidenceKey("any", task, {})).folder.parent.name
        return [_stored(self.evidence, meta) for meta in sorted(self.evidence.glob(f"*/{name}/*/meta.json"))]

    def clusters(self, items: tuple[str, str], n: int) -> Clusters | None:
        """Return the remembered clusters of items that are revealed by whole clusters; None for any others.

        Raises ``NotMeasuredError`` where they are not remembered: evidence does not hold them.
        """
        if digest_of(committed_order(items[0], n).tolist()) == items[1]:
            return None
        for path in sorted((self.root / "cache" / "items").glob("*.json")):
            try:
                known = json.loads(path.read_text())
                if (known["items"], known["order"]) == items:
                    return None if known["clusters"] is None else np.array(known["clusters"], dtype=np.int64)
            except (OSError, ValueError, KeyError, TypeError):
                continue
        raise NotMeasuredError("its items are drawn by clusters, which this workspace does not remember")


class _Recorded:
    """What no recorded evidence can answer."""

    def extend(self, suite: str, task: str, n: int) -> PairedScores:
        """Raise ``NotMeasuredError``: nothing is measured here."""
        raise NotMeasuredError("not measured: only recorded evidence is read here")

    def best_possible(self, metric: str) -> tuple[float, str] | None:
        """Return None: only bets are followed here."""
        return None

    def human(self, asked: Human, bar: float, alpha: float) -> MetricValue:
        """Raise ``NotMeasuredError``: no bet is made on ratings."""
        raise NotMeasuredError(f"not measured: study {asked.study}")

    def metric(self, metric: str, suite: str | None, alpha: float) -> MetricValue:
        """Raise ``NotMeasuredError``."""
        raise NotMeasuredError(f"not measured: {metric}")


class VerdictEvidence(_Recorded):
    """``gates.evidence.EvidenceSource`` of the items that one criterion of a recorded verdict used."""

    def __init__(self, place: Place, verdict: GateVerdict, criterion: CriterionVerdict, scope: Scope) -> None:
        self._place = place
        self._criterion = criterion
        self._by_cluster = scope == "population"
        self._used = {task.task: task.n_used for task in criterion.tasks}
        self._named = {task.task: task.reference or "" for task in criterion.tasks}
        self._mine = self._find(verdict.artifact)

    def _find(self, artifact: str) -> dict[str, Stored]:
        """Return the measurement of each task, by the protocol digest that the verdict names.

        A task of which no item was used may have no evidence; its protocol is then another artifact's.
        """
        place = self._place
        if not self._used:
            return self._find_only(artifact)
        found = {task: stored(place.evidence, artifact, task) for task in self._used}
        runtimes = dict.fromkeys(
            one.told("backend") for task, n in self._used.items() if n for one in found[task]
        )
        for runtime in runtimes:
            choices = [
                [one for one in self._candidates(found[task], task, n) if one.told("backend") == runtime]
                for task, n in self._used.items()
            ]
            for choice in itertools.islice(itertools.product(*choices), _MOST_COMBINATIONS):
                if digest_of([one.file.key.protocol_digest for one in choice]) == self._criterion.protocol:
                    return dict(zip(self._used, choice, strict=True))
        raise NotMeasuredError("the evidence that it was decided on is not in this workspace (any more)")

    def _candidates(self, own: Sequence[Stored], task: str, used: int) -> list[Stored]:
        if used:
            return list(own)
        everyone = [*own, *self._place.everyone(task)]
        return list({one.file.key.protocol_digest: one for one in reversed(everyone)}.values())

    def _find_only(self, artifact: str) -> dict[str, Stored]:
        """Return the measurement of a suite of one task, whose name the verdict does not tell."""
        digest = self._criterion.protocol or ""
        folder = EvidenceFile(self._place.evidence, EvidenceKey(artifact, "any", {})).folder.parents[1]
        for meta in sorted(folder.glob(f"*/{digest.removeprefix('sha256:')[:32]}/meta.json")):
            one = _stored(self._place.evidence, meta)
            self._used = {one.file.key.task: self._criterion.n_used}
            self._named = {one.file.key.task: self._criterion.reference or ""}
            return {one.file.key.task: one}
        raise NotMeasuredError("the evidence that it was decided on is not in this workspace (any more)")

    def tasks(self, suite: str) -> Sequence[str]:
        """Return the tasks that the verdict names, in its order."""
        return list(self._mine)

    def scores(self, suite: str, task: str) -> PairedScores:
        """Return the items that the verdict used."""
        mine, n = self._mine[task], self._used[task]
        scores, reasons = mine.columns() if n else (np.zeros(0), np.zeros(0, dtype=object))
        if len(scores) < n:
            raise RunError(f"of the {n:,} items of {task} that it used, {len(scores):,} can be read")
        items, order = mine.items
        return PairedScores(
            task=task,
            family=mine.told("family"),
            protocol_digest=mine.file.key.protocol_digest,
            items_digest=items,
            order_digest=order,
            n_total=mine.n_total,
            scores=scores[:n],
            truncated=np.asarray(reasons[:n] == "length", dtype=bool),
            errors=np.asarray(reasons[:n] == "error", dtype=bool),
            clusters=self._place.clusters(mine.items, mine.n_total) if self._by_cluster else None,
        )

    def reference(self, reference: str, suite: str, task: str) -> ReferenceScores:
        """Return the reference that the verdict names."""
        name, place = self._named[task], self._place
        row = place.rows.get(name)
        if row is not None and row.kind == "published":
            return row.published()
        if row is not None:
            return self._of_items(name, "per-item", place.answers(row, task), task, row.simulated)
        if not name.endswith(_MEASURED):
            raise NotMeasuredError(f"its reference {name} is not in the registry (any more)")
        digest, simulated = place.teacher(name.removesuffix(_MEASURED))
        return self._of_items(name, "per-item", stored(place.evidence, digest, task), task, simulated)

    def baseline(self, baseline: str, suite: str, task: str, n: int) -> ReferenceScores:
        """Return the earlier artifact's scores: of the run's step of that name, the latest that fits."""
        name, place = self._named[task], self._place
        artifacts = [step.artifact for step in place.steps if step.step == name and step.artifact]
        if not artifacts and name:
            # Outside a run it was named by its digest.
            short = name.removeprefix("sha256:")
            artifacts = [
                f"sha256:{path.name}"
                for path in sorted(place.evidence.glob("*"))
                if len(short) >= 6 and path.name.startswith(short)
            ]
        for artifact in dict.fromkeys(reversed(artifacts)):
            found = [one for one in stored(place.evidence, artifact, task) if self._same(one, task)]
            if found:
                return self._of_items(name, "baseline", found, task, False)
        raise NotMeasuredError(f"the evidence of its baseline {name} is not in this workspace (any more)")

    def _same(self, one: Stored, task: str) -> bool:
        return one.items == self._mine[task].items

    def _of_items(
        self, name: str, kind: ReferenceKind, found: Sequence[Stored], task: str, simulated: bool
    ) -> ReferenceScores:
        fitting = [one for one in found if self._same(one, task)]
        if not fitting:
            raise NotMeasuredError(
                f"the answers of its reference {name} are not in this workspace (any more)"
            )
        scores, _ = fitting[0].columns()
        return _of_scores(fitting[0], scores, (name, kind, simulated))


class PlanEvidence(_Recorded):
    """``gates.evidence.EvidenceSource`` for a plan: what references scored, as far as that is recorded."""

    def __init__(self, place: Place, profile: Profile, baseline_step: str | None, scope: Scope) -> None:
        self._place = place
        self._by_cluster = scope == "population"
        self._profile = profile
        self._baseline_step = baseline_step

    def tasks(self, suite: str) -> Sequence[str]:
        """Return the names of a suite's tasks."""
        return suite_task_names(suite, self._profile.suites)

    def scores(self, suite: str, task: str) -> PairedScores:
        """Raise ``NotMeasuredError``: a plan is about no artifact."""
        raise NotMeasuredError("not measured: no artifact was given")

    def reference(self, reference: str, suite: str, task: str) -> ReferenceScores:
        """Return what the profile's reference of that name scored on a task."""
        place, choice = self._place, self._profile.references.get(reference)
        if choice is not None and choice.teacher:
            digest, simulated = place.teacher(choice.teacher)
            name = f"{choice.teacher}{_MEASURED}"
            return self._whole(name, stored(place.evidence, digest, task), simulated)
        row = choose_row(place.rows, reference, choice.rows if choice else {}, get_task(task))
        if row.kind == "published":
            return row.published()
        return self._whole(row.id, place.answers(row, task), row.simulated)

    def baseline(self, baseline: str, suite: str, task: str, n: int) -> ReferenceScores:
        """Return what is recorded of the earlier artifact that the profile's gate names."""
        done = [s.artifact for s in self._place.steps if s.step == self._baseline_step and s.artifact]
        for artifact in dict.fromkeys(reversed(done)):
            known = _longest(stored(self._place.evidence, artifact, task))
            if known is not None:
                return self._clustered(*known, (self._baseline_step or baseline, "baseline", False))
        raise NotMeasuredError("its baseline is not measured yet")

    def _whole(self, name: str, found: Sequence[Stored], simulated: bool) -> ReferenceScores:
        known = _longest(found)
        if known is None or len(known[1]) < known[0].n_total:
            raise NotMeasuredError(f"its reference {name} is not measured yet")
        return self._clustered(*known, (name, "per-item", simulated))

    def _clustered(self, one: Stored, scores: np.ndarray, about: _About) -> ReferenceScores:
        clusters = self._place.clusters(one.items, one.n_total) if self._by_cluster else None
        return replace(_of_scores(one, scores, about), clusters=clusters)


def _longest(found: Sequence[Stored]) -> tuple[Stored, np.ndarray] | None:
    """Return the measurement with the most items, and its scores."""
    known = [(one, one.columns()[0]) for one in found]
    return max(known, key=lambda one: len(one[1]), default=None)


def _of_scores(one: Stored, scores: np.ndarray, about: _About) -> ReferenceScores:
    name, kind, simulated = about
    items, order = one.items
    return ReferenceScores(
        id=name,
        kind=kind,
        family=one.told("family"),
        score=float(scores.mean()) if len(scores) else 0.0,
        n=one.n_total,
        items=scores,
        items_digest=items,
        order_digest=order,
        simulated=simulated,
    )
