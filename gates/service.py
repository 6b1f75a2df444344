"""Deciding gates for a profile: finds subjects, references and measurements, and feeds them to the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cogumi.errors import InfeasibleError, RunError, UsageError, nearest
from cogumi.evidence import Decoding, is_measured
from cogumi.feasibility import check_size, least_bytes, mask_reason
from cogumi.profile import GateStep, MeasureStep, Profile
from cogumi.quick_book import QuickBook
from cogumi.stage import TeacherConfig
from cogumi.store import Artifact
from cogumi.subjects import Subject, judged, of_artifact
from evals.measure import Measurement, Measurer
from evals.references.answers import answers_subject
from evals.references.registry import ReferenceRow, load_all
from evals.references.scores import MetricValue, NotMeasuredError, PairedScores, ReferenceScores
from evals.tasks import MICRO, suite_task_names
from evals.types import Task
from gates.engine import decide
from gates.metrics import DATA_METRICS, EXACT, PEOPLE_METRICS, SIZES
from gates.models import tasks_of, teacher_subject
from gates.people_evidence import PLANS_STUDY, closed_study, people_count, rating
from gates.spec import GateSpec, Human, load_gate
from gates.verdicts import GateVerdict

if TYPE_CHECKING:
    from evals.human.frozen import Frozen

Teachers = Callable[[], Mapping[str, TeacherConfig]]


def no_teachers() -> Mapping[str, TeacherConfig]:
    """Stand for the teachers where none may be called: only recorded references are used."""
    raise NotMeasuredError("its reference was not measured")


class NoAttempts:
    """The book of a plan, which decides nothing: it opens no ledger and spends no attempt."""

    def number(self, gate: str, items_digest: str, artifact: str) -> int:
        """Return 1, the attempt that a plan is for."""
        return 1


class ProfileEvidence:
    """``gates.evidence.EvidenceSource`` over a workspace, for one subject under one profile."""

    def __init__(
        self,
        measurer: Measurer,
        profile: Profile,
        subject: Subject | None,
        baseline: Subject | None = None,
        teachers: Teachers = no_teachers,
        *,
        limited: bool = False,
        spec: GateSpec | None = None,
    ) -> None:
        self._limited = limited
        self._gate = spec.gate if spec is not None else ""
        self._asked = spec.criteria if spec is not None else ()
        self._by_cluster = spec is not None and spec.scope == "population"
        self._measurer = measurer
        self._profile = profile
        self._subject = subject
        self._baseline = baseline
        self._teachers = teachers
        self._open: dict[tuple[str, str], Measurement] = {}
        self._tasks: dict[str, list[Task]] = {}
        self._study = spec.study if spec is not None else None
        self._studies: dict[str, Frozen] = {}

    def _task(self, suite: str, name: str) -> Task:
        if suite not in self._tasks:
            self._tasks[suite] = tasks_of(self._profile, suite, self._measurer.workspace)
        return next(task for task in self._tasks[suite] if task.name == name)

    def _measurement(self, subject: Subject, task: Task) -> Measurement:
        if subject.backend == "data":
            raise UsageError(
                f"{subject.label} is a data set or a file, no model: it cannot be asked {task.name}"
            )
        key = (subject.digest, task.name)
        if key not in self._open:
            self._open[key] = self._measurer.measurement(subject, task, by_cluster=self._by_cluster)
        return self._open[key]

    def tasks(self, suite: str) -> Sequence[str]:
        """Return the names of a suite's tasks."""
        return suite_task_names(suite, self._profile.suites)

    def scores(self, suite: str, task: str) -> PairedScores:
        """Return what is recorded of the subject on a task."""
        if self._subject is None:
            raise NotMeasuredError("not measured: no artifact was given")
        return _paired(self._measurement(self._subject, self._task(suite, task)))

    def extend(self, suite: str, task: str, n: int) -> PairedScores:
        """Measure the subject until ``n`` items are known."""
        if self._subject is None:
            raise NotMeasuredError("not measured: no artifact was given")
        measurement = self._measurement(self._subject, self._task(suite, task))
        measurement.extend(n, whole_batches=not self._limited)
        return _paired(measurement)

    def reference(self, reference: str, suite: str, task: str) -> ReferenceScores:
        """Return what the profile's reference of that name scored on a task, scoring it first if need be."""
        wanted = self._task(suite, task)
        choice = self._profile.references.get(reference)
        if choice is not None and choice.teacher:
            return self._teacher_reference(choice.teacher, wanted)
        rows = load_all(self._measurer.workspace.root)
        row = choose_row(rows, reference, choice.rows if choice else {}, wanted)
        if row.kind == "published":
            return row.published()
        subject = answers_subject(row, self._measurer.data, self._measurer.workspace.root)
        measurement = self._measurement(subject, wanted)
        measurement.extend(measurement.n_total)
        return _reference(row.id, "per-item", measurement, simulated=row.simulated, family=row.family)

    def _teacher_reference(self, name: str, task: Task) -> ReferenceScores:
        subject = teacher_subject(self._profile, name)
        missing = NotMeasuredError(f"not measured: the reference {name}, as no artifact was given")
        evidence = self._measurer.workspace.evidence
        if (
            self._subject is None
            and task.name in MICRO
            and not is_measured(evidence, subject.digest, task.name)
        ):
            # Before its questions are written: a plan has no use for them. Other tasks may lack their data.
            raise missing
        measurement = self._measurement(subject, task)
        if measurement.file.count() < measurement.n_total:
            if self._subject is None:
                raise missing
            url = self._teachers()[name].base_url
            live = self._measurer.measurement(
                replace(subject, base_url=url), task, by_cluster=self._by_cluster
            )
            live.extend(live.n_total)
            measurement = self._open[subject.digest, task.name] = live
        return _reference(
            f"{name}@measured",
            "per-item",
            measurement,
            simulated=subject.simulated,
            family=task.family,
        )

    def baseline(self, baseline: str, suite: str, task: str, n: int) -> ReferenceScores:
        """Return the earlier artifact's scores on at least ``n`` items."""
        if self._baseline is None:
            raise NotMeasuredError(f"not measured: no baseline ({baseline}) was given")
        measurement = self._measurement(self._baseline, self._task(suite, task))
        measurement.extend(n, whole_batches=not self._limited)
        return _reference(
            self._baseline.label,
            "baseline",
            measurement,
            simulated=False,
            family=measurement.items.task.family,
        )

    def best_possible(self, metric: str) -> tuple[float, str] | None:
        """Return the least bytes that the profile's plan for a size can have, while there is no artifact."""
        if self._subject is not None:
            return None
        for criterion in self._asked:
            if criterion.threshold is not None and criterion.threshold.metric == metric:
                least = least_bytes(self._profile.models, f"{self._gate}/{criterion.id}", criterion.bar)
                if least is not None:
                    return least
        for model in self._profile.models if metric in SIZES else ():
            mask = check_size(model).mask_bytes
            if model.criterion.startswith(f"{self._gate}/") and mask is not None:
                return float(mask), mask_reason(model, mask)
        return None

    def human(self, asked: Human, bar: float, alpha: float) -> MetricValue:
        """Return what people said in a closed study; raises ``NotMeasuredError`` where none is closed.

        That is the judged artifact where it is a study itself, else the workspace's study of that name.
        """
        return rating(self._closed(asked.study), asked, bar, alpha)

    def _closed(self, study: str) -> Frozen:
        if study not in self._studies:
            folder = self._subject.path if self._subject is not None else None
            self._studies[study] = closed_study(self._measurer.workspace.root, study, folder)
        return self._studies[study]

    def metric(self, metric: str, suite: str | None, alpha: float) -> MetricValue:
        """Return a number that the artifact's manifest holds: what its stage measured, or a count of its own.

        Raises ``NotMeasuredError`` for one that it does not hold, with the reason where the stage gave one,
        and for an interval that is less sure than ``alpha`` asks.
        """
        if metric in PEOPLE_METRICS:
            try:
                return people_count(self._closed(self._study or PLANS_STUDY), metric)
            except NotMeasuredError as error:
                # Why there is none is told where the ratings are asked for.
                raise NotMeasuredError(f"not measured: {metric}") from error
        if self._subject is None:
            raise NotMeasuredError(f"not measured: {metric}")
        facts = self._subject.facts
        if metric in DATA_METRICS:
            return _data_metric(facts, metric)
        measured = facts.get("metrics", {}).get(metric)
        if measured is not None:
            return _stage_metric(metric, measured, alpha)
        if metric not in EXACT:
            raise NotMeasuredError(f"not measured: {facts.get('unmeasured', {}).get(metric, metric)}")
        value = facts.get(metric, facts.get("bytes") if metric.startswith("bytes_") else None)
        if value is None:
            raise NotMeasuredError(f"not measured: {metric}")
        return MetricValue(float(value), float(value), float(value), exact=True)


def choose_row(
    rows: Mapping[str, ReferenceRow], reference: str, chosen: Mapping[str, str], task: Task
) -> ReferenceRow:
    """Return the row of a gate's ``reference`` for a task: the profile's choice, else the one that fits.

    Raises ``UsageError`` for an unknown or ambiguous one, ``InfeasibleError`` where protocols do not match,
    ``NotMeasuredError`` where the model has no score on the task.
    """
    if task.name in chosen:
        row_id = chosen[task.name]
        if row_id not in rows:
            raise UsageError(f"no reference {row_id!r}{nearest(row_id, list(rows))}")
        if rows[row_id].family != task.family:
            raise InfeasibleError(
                f"protocols do not match: {task.name} is measured as {task.family}, "
                f"{row_id} as {rows[row_id].family}"
            )
        return rows[row_id]
    if reference in rows:
        return rows[reference]
    of_model = [row for row in rows.values() if row.model == reference]
    if not of_model:
        models = sorted({row.model for row in rows.values()})
        raise UsageError(f"no reference {reference!r}{nearest(reference, models)}")
    fitting = [row for row in of_model if row.family == task.family]
    if not fitting:
        benchmark = task.family.partition("/")[0]
        others = {row.family for row in of_model if row.family.partition("/")[0] == benchmark}
        if not others:
            raise NotMeasuredError(
                f"not measured: {reference} has no score on {task.name}; "
                "`cogumi reference measure` makes one, `cogumi reference add` takes one"
            )
        raise InfeasibleError(
            f"protocols do not match: {task.name} is measured as {task.family}, "
            f"{reference} has {', '.join(sorted(others))}"
        )
    # Answers item by item say more than a published mean.
    best = [row for row in fitting if row.kind == "per-item"] or fitting
    if len(best) > 1:
        names = " or ".join(sorted(row.id for row in best))
        raise UsageError(
            f"{reference} has {len(best)} scores on {task.name}: name one in the profile: {names}"
        )
    return best[0]


def _data_metric(facts: Mapping[str, Any], metric: str) -> MetricValue:
    """Return what the merge of a data set measured; simulated where a local teacher wrote its rows."""
    value = facts.get("metrics", {}).get(metric)
    if value is None:
        why = facts.get("unmeasured", {}).get(metric)
        raise NotMeasuredError(f"not measured: {why or metric}")
    # Dollars are play money by the step that spent them, rows are simulated as a whole.
    simulated = facts["simulated_costs"].get(metric, facts["simulated"])
    return MetricValue(float(value), float(value), float(value), exact=True, simulated=bool(simulated))


def _stage_metric(metric: str, measured: Any, alpha: float) -> MetricValue:
    """Return what a stage measured: a plain number is exact, a mapping brings its interval.

    ``{value, lower, upper, n, alpha}``, perhaps ``note`` and ``simulated``; a bound of None is infinite.
    """
    if isinstance(measured, int | float):
        return MetricValue(float(measured), float(measured), float(measured), exact=True)
    missing = sorted({"value", "lower", "upper", "n", "alpha"} - set(measured))
    if missing:
        raise RunError(
            f"the manifest's {metric} has no {', '.join(missing)}; run the stage that measured it again"
        )
    if measured["alpha"] > alpha:
        raise NotMeasuredError(
            f"not measured: the interval of {metric} is wrong with chance {measured['alpha']:g}, the gate "
            f"allows {alpha:g}; measure it again with alpha: {alpha:g}"
        )
    lower, upper = measured["lower"], measured["upper"]
    return MetricValue(
        float(measured["value"]),
        -math.inf if lower is None else float(lower),
        math.inf if upper is None else float(upper),
        exact=False,
        n=int(measured["n"]),
        note=str(measured.get("note", "")),
        simulated=bool(measured.get("simulated", False)),
    )


def _paired(measurement: Measurement) -> PairedScores:
    return PairedScores(
        task=measurement.items.task.name,
        family=measurement.items.task.family,
        protocol_digest=measurement.file.key.protocol_digest,
        items_digest=measurement.items.items_digest,
        order_digest=measurement.items.order_digest,
        clusters=measurement.items.clusters,
        n_total=measurement.n_total,
        scores=measurement.scores,
        truncated=measurement.finished_as("length"),
        errors=measurement.finished_as("error"),
    )


def _reference(
    name: str, kind: Any, measurement: Measurement, *, simulated: bool, family: str
) -> ReferenceScores:
    scores = measurement.scores
    return ReferenceScores(
        id=name,
        kind=kind,
        family=family,
        score=float(scores.mean()) if len(scores) else 0.0,
        n=measurement.n_total,
        items=scores,
        items_digest=measurement.items.items_digest,
        order_digest=measurement.items.order_digest,
        simulated=simulated,
        clusters=measurement.items.clusters,
    )


class GateService:
    """The runner's judge, and what ``cogumi gate`` and ``cogumi eval`` ask."""

    def __init__(
        self, measurer: Measurer, profile: Profile, run: str | None, teachers: Teachers = no_teachers
    ) -> None:
        self._measurer = measurer
        self._profile = profile
        self._run = run
        self._teachers = teachers

    def verdict(
        self,
        gate: str,
        subject: Subject | None,
        baseline: Subject | None,
        limit: int | None = None,
        criteria: Sequence[str] = (),
        thorough: bool = False,
    ) -> GateVerdict:
        """Decide a gate, measuring what it still needs; ``criteria``: only these, the others are left out.

        ``thorough``: also what the gate cannot pass by any more. Raises ``UsageError`` for an unknown gate or
        criterion.
        """
        whole = load_gate(gate)
        spec = whole.only(criteria)
        source = ProfileEvidence(
            self._measurer,
            self._profile,
            subject,
            baseline,
            self._teachers,
            limited=limit is not None,
            spec=spec,
        )
        asked = [criterion.id for criterion in spec.criteria]
        left_out = tuple(criterion.id for criterion in whole.criteria if criterion.id not in asked)
        verdict = decide(
            spec,
            source,
            QuickBook(self._measurer.workspace),
            artifact=subject.digest if subject else "",
            run=self._run,
            limit=limit,
            thorough=thorough,
        )
        return replace(verdict, left_out=left_out)

    def decide(self, step: GateStep, artifact: Artifact, baseline: Artifact | None) -> Mapping[str, Any]:
        """Decide a run's gate on a stored artifact."""
        earlier = of_artifact(baseline, step.baseline or "baseline") if baseline else None
        subject = judged(artifact, step.artifact)
        return self.verdict(step.gate, subject, earlier, criteria=step.criteria).to_json()

    def measure(self, artifact: Artifact, step: MeasureStep) -> Mapping[str, Any]:
        """Measure a run's artifact on a suite; the summary has the macro mean and the speed."""
        subject = of_artifact(artifact, step.measure)
        tasks = tasks_of(self._profile, step.suite, self._measurer.workspace)
        summary = measure_suite(self._measurer, subject, tasks, step.limit)
        note = f"{step.suite} {summary['score']:.3f} on {summary['items']} items"
        return {"suite": step.suite, "note": note, **summary}


def measure_suite(
    measurer: Measurer, subject: Subject, tasks: Sequence[Task], limit: int | None
) -> dict[str, Any]:
    """Measure the first ``limit`` items of each task; return the macro mean, items and decoding speed."""
    means, decoding = [], Decoding(0, 0, 0.0)
    for task in tasks:
        measurement = measurer.measurement(subject, task)
        measurement.extend(min(limit or measurement.n_total, measurement.n_total))
        means.append(float(measurement.scores.mean()))
        decoding += measurement.file.decoding()
    return {
        "score": sum(means) / len(means),
        "items": decoding.items,
        "tokens_per_second": decoding.tokens_per_second or 0.0,
    }
