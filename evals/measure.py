"""Measuring: items in the order committed before the first answer, kept before they are counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from cogumi.digest import digest_of
from cogumi.errors import RunError, UsageError
from cogumi.evidence import EvidenceFile, EvidenceKey, Record
from cogumi.machine import machine
from cogumi.subjects import Subject
from cogumi.workspace import Workspace
from evals.items import ItemSet
from evals.types import Backend, Generation, Item, ItemScore, PartlyAnsweredError, Task
from evals.unscored import Unscored

# Answers wait at most so long for their fsync; a kill loses no more than these, and they are asked again.
_KEEP_EVERY_S = 2.0

Tell = Callable[[str, int, int], None]
"""Called with (task name, items done, items wanted) after each chunk."""


class Measurement:
    """What is known of one subject on one task; grows in committed order when asked to."""

    def __init__(self, subject: Subject, items: ItemSet, measurer: Measurer) -> None:
        self.subject = subject
        self.items = items
        self._measurer = measurer
        key = EvidenceKey(subject.digest, items.task.name, items.protocol(subject.backend))
        self.file = EvidenceFile(measurer.workspace.evidence, key)

    @property
    def n_total(self) -> int:
        """How many items the task has."""
        return self.items.n

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        table = self.file.table(["score", "finish_reason"])
        return {name: np.array(table[name].to_pylist()) for name in ("score", "finish_reason")}

    @property
    def scores(self) -> np.ndarray:
        """Item scores measured so far, in committed order."""
        return self._columns["score"].astype(np.float64)

    def finished_as(self, reason: str) -> np.ndarray:
        """Tell for each measured item whether its answer ended so (``stop``, ``length`` or ``error``)."""
        return np.asarray(self._columns["finish_reason"] == reason, dtype=bool)

    def extend(self, wanted: int, *, whole_batches: bool = False) -> None:
        """Measure until ``wanted`` items (at most all) are known; raises ``RunError`` when that fails.

        ``whole_batches`` rounds up: a batch takes hardly longer full than with one prompt in it.
        """
        wanted = min(wanted, self.n_total)
        known = len(self.scores)
        if known >= wanted:
            return
        if whole_batches:
            size = self._measurer.backend(self.subject).batch_size
            wanted = min(self.n_total, -(-wanted // size) * size)
        self._measure_alone("", 0, wanted)

    def measure_block(self, start: int, stop: int) -> None:
        """Measure what is not yet known of positions ``start`` to ``stop`` (exclusive), as a shard does.

        Blocks of one task may be measured at the same time; each has a lock of its own. Raises ``RunError``
        when that fails.
        """
        if self.file.missing(start, stop):
            self._measure_alone(f"-{start}-{stop}", start, stop)

    def _measure_alone(self, suffix: str, start: int, stop: int) -> None:
        name = f"evidence-{digest_of([self.file.key.artifact, self.file.key.protocol_digest])[7:23]}{suffix}"
        with self._measurer.workspace.lock(name):
            try:
                self._measure(start, stop)
            finally:
                self._forget()

    def _measure(self, start: int, stop: int) -> None:
        """Answer the unknown items from ``start`` to ``stop``; what was answered is kept also on failure."""
        self.items.task.prepare()
        backend = self._measurer.backend(self.subject)
        done = start
        # Asked anew after each keeping: another process may have measured some of them meanwhile.
        while runs := self.file.missing(done, stop):
            done = self._measure_run(backend, runs[0], (start, stop))

    def _measure_run(self, backend: Backend, run: tuple[int, int], block: tuple[int, int]) -> int:
        """Answer the items of a run until it is time to keep them; return where the next ones begin."""
        done, end = run
        pending: list[Record] = []
        kept_at = time.monotonic()
        try:
            while done < end and (not pending or time.monotonic() - kept_at <= _KEEP_EVERY_S):
                chunk = self.items.items[done : min(end, done + backend.batch_size)]
                pending += self._answer(backend, chunk, done)
                done += len(chunk)
                self._measurer.tell(self.items.task.name, done - block[0], block[1] - block[0])
        finally:
            if pending:
                self._keep(backend, pending)
        return done

    def _keep(self, backend: Backend, records: Sequence[Record]) -> None:
        facts = {"stack": backend.stack, "machine": machine(), "peak_rss_bytes": peak_rss_bytes()}
        self.file.append(records, n_total=self.n_total, facts=facts)

    def _forget(self) -> None:
        self.__dict__.pop("_columns", None)

    def _answer(self, backend: Backend, chunk: Sequence[Item], start: int) -> list[Record]:
        task = self.items.task
        if task.style == "likelihood":
            answers, scores = _choose(task, chunk, backend)
        elif task.style == "tools":
            answers, scores = task.call_tools(self.subject, chunk)
        else:
            answers, scores = self._generate(backend, chunk, start)
        return [
            _record(item, answer, score, start + offset)
            for offset, (item, answer, score) in enumerate(zip(chunk, answers, scores, strict=True))
        ]

    def _generate(
        self, backend: Backend, chunk: Sequence[Item], start: int
    ) -> tuple[list[Generation], list[ItemScore]]:
        """Answer and score a chunk; answers that could not be scored (a judge was away) wait on disk."""
        task = self.items.task
        waiting = Unscored(self.file.folder)
        known = waiting.read()
        unasked = [item for item in chunk if item.id not in known]
        try:
            fresh = backend.generate([task.ask(item) for item in unasked], max_tokens=task.max_tokens)
        except PartlyAnsweredError as error:
            paid = {unasked[index].id: answer for index, answer in error.answers.items()}
            waiting.write(start, {item.id: known[item.id] for item in chunk if item.id in known} | paid)
            raise
        if len(fresh) != len(unasked):
            raise RunError(f"{self.subject.label}: {len(fresh)} answers to {len(unasked)} prompts")
        answered = known | {item.id: answer for item, answer in zip(unasked, fresh, strict=True)}
        answers = [answered[item.id] for item in chunk]
        try:
            scores = _scores(task, chunk, answers)
        except RunError:
            waiting.write(start, {item.id: answer for item, answer in zip(chunk, answers, strict=True)})
            raise
        if known:
            waiting.drop({item.id for item in chunk})
        return answers, scores


def _scores(task: Task, chunk: Sequence[Item], answers: Sequence[Generation]) -> list[ItemScore]:
    # A truncated or failed answer is wrong, and is counted and shown; it is never left out.
    complete = [
        (item, answer.text)
        for item, answer in zip(chunk, answers, strict=True)
        if answer.finish_reason == "stop"
    ]
    scored = iter(task.score_all(complete))
    return [next(scored) if answer.finish_reason == "stop" else ItemScore(0.0) for answer in answers]


def _choose(task: Task, chunk: Sequence[Item], backend: Backend) -> tuple[list[Generation], list[ItemScore]]:
    """Score the likelihoods of every item's choices; the output told is the likeliest continuation."""
    found = iter(backend.loglikelihood([pair for item in chunk for pair in item.choices]))
    answers, scores = [], []
    for item in chunk:
        mine = [next(found) for _ in item.choices]
        likeliest = max(range(len(mine)), key=lambda index: mine[index].logprob)
        answers.append(
            Generation(
                item.choices[likeliest][1],
                "stop",
                sum(one.context_tokens for one in mine),
                sum(one.tokens for one in mine),
                sum(one.seconds for one in mine),
            )
        )
        scores.append(task.score_likelihoods(item, mine))
    return answers, scores


def _record(item: Item, answer: Generation, scored: ItemScore, position: int) -> Record:
    return Record(
        position=position,
        item_id=item.id,
        domain=item.domain,
        score=scored.score,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        seconds=answer.seconds,
        cost_usd=answer.cost_usd + scored.cost_usd,
        prompt=item.prompt,
        output=answer.text,
        details=scored.details,
    )


class Measurer:
    """Opens measurements of a workspace; keeps at most two models in memory, as a comparison needs."""

    def __init__(self, workspace: Workspace, data: Path | None, tell: Tell | None = None) -> None:
        self.workspace = workspace
        self.data = data
        self.tell: Tell = tell or (lambda task, done, wanted: None)
        self._items: dict[tuple[str, bool], ItemSet] = {}
        self._loaded: dict[str, Backend] = {}

    def items(self, task: Task, *, by_cluster: bool = False) -> ItemSet:
        """Return a task's items in committed order, loaded once."""
        key = (task.name, by_cluster)
        if key not in self._items:
            memory = self.workspace.root / "cache" / "items"
            self._items[key] = ItemSet.load(task, self.data, by_cluster=by_cluster, memory=memory)
        return self._items[key]

    def measurement(self, subject: Subject, task: Task, *, by_cluster: bool = False) -> Measurement:
        """Return the measurement of a subject on a task, whether or not anything is known yet."""
        return Measurement(subject, self.items(task, by_cluster=by_cluster), self)

    def backend(self, subject: Subject) -> Backend:
        """Return the subject's loaded model; of three, the one that was used longest ago is closed."""
        identity = f"{subject.digest}/{subject.backend}"
        found = self._loaded.pop(identity, None)
        if found is None:
            if len(self._loaded) > 1:
                self._loaded.pop(next(iter(self._loaded))).close()
            found = open_subject(subject)
        self._loaded[identity] = found
        return found

    def keep(self, subject: Subject, backend: Backend) -> None:
        """Use an already opened backend for a subject."""
        self._loaded[f"{subject.digest}/{subject.backend}"] = backend

    def close(self) -> None:
        """Free the models in memory."""
        while self._loaded:
            self._loaded.popitem()[1].close()


def open_subject(subject: Subject) -> Backend:
    """Load a subject's model; raises ``RunError`` when its file is broken or a package is missing."""
    if subject.backend == "openai" or subject.backend == "anthropic":
        from evals.backends.api import APIBackend

        return APIBackend(subject)
    if subject.backend == "answers":
        from evals.references.answers import RecordedAnswers

        return RecordedAnswers(subject)
    if subject.path is None or subject.backend == "data":
        raise UsageError(f"{subject.label}: there is no model to load, only recorded evidence")
    from evals.backends import open_backend

    return open_backend(subject.path, backend=subject.backend, base=subject.base)


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
