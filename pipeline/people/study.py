"""Stage ``people.study``: a study with simulated raters of a model's answers to held-out questions.

Everything but the raters is what a real study has: blinding, dealing, the rating app as a process, forms over
HTTP, closing. The judged system is the model as it is shipped; the data's own answers are its reference in
pairs. Every row says ``simulated``, so no gate can pass on it. The artifact holds no moment: equal inputs
give equal bytes. A study that was killed half-way begins anew; it takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from pydantic import Field

from cogumi.errors import RunError
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import Artifact
from pipeline.training.data import Example, is_held_out, read_examples, training_file

NAME = "phase8"
SUBJECT, REFERENCE = "subject", "reference"
_NO_ANSWER = "(no answer)"


class StudySettings(Settings):
    """How many simulated raters rate how much, and what they are like."""

    raters: int = Field(default=100, gt=0)
    items: int = Field(default=20, gt=5)
    """Scored items a rater."""
    pairs: int = Field(default=0, ge=0)
    """Pairs a rater, the model's answer beside the data's own."""
    tasks: int | None = Field(default=None, gt=1)
    """Questions in the pool that items are dealt from; as many as items by default."""
    held_out_share: float = Field(default=0.02, gt=0, le=1)
    """The training's own share, or less; 1 for data that was never trained on."""
    max_tokens: int = Field(default=256, gt=0)
    behaviour: str = "honest=0.9,careless=0.1"
    true_mean: float = Field(default=8.2, ge=1.5, le=9.5)


def run(settings: StudySettings, ctx: StageContext) -> StageResult:
    """Ask input ``model`` held-out questions of input ``data``, and let simulated raters rate its answers."""
    from evals.human.frozen import write_timeless
    from evals.human.plan import make_plan, study_folder
    from evals.human.simulate import Simulation, simulate
    from evals.human.simulate_model import parse_mix
    from evals.human.simulate_server import serving
    from evals.human.store import StudyStore
    from evals.human.tasks import Wanted, tasks_from_jsonl

    mix = parse_mix(settings.behaviour)
    examples = questions(training_file(ctx.inputs["data"]), settings)
    shutil.rmtree(ctx.scratch / "workspace", ignore_errors=True)
    workspace = ctx.scratch / "workspace"
    workspace.mkdir(parents=True)
    file = workspace / "tasks.jsonl"
    _write_tasks(file, examples, _answers(ctx.inputs["model"], examples, settings.max_tokens))
    wanted = Wanted(settings.items, SUBJECT, REFERENCE, settings.pairs, len(examples), ctx.seed)
    found = tasks_from_jsonl(file, wanted)
    plan = make_plan(
        name=NAME,
        title="Rehearsal with simulated raters",
        subject=SUBJECT,
        reference=REFERENCE,
        seed=ctx.seed,
        raters=settings.raters,
        items=settings.items,
        pairs=settings.pairs,
        contact="nobody: these raters are simulated",
        scrubbed=found.replaced,
        tasks=found.tasks,
    )
    store = StudyStore.create(study_folder(workspace, NAME), plan)
    try:
        tokens = store.invite(settings.raters, "simulated")
        with serving(workspace, NAME, ctx.scratch / "server.log") as url:
            simulation = Simulation(url, tokens, plan, mix, ctx.seed, settings.true_mean, in_order=True)
            done = simulate(simulation, ctx.progress.update)
        frozen = store.close()
    finally:
        store.dispose()
    write_timeless(frozen, ctx.out)
    facts = {
        "study": NAME,
        "source": "simulated",
        "raters": settings.raters,
        "finished": done.endings.get("finished", 0),
        "tasks": len(plan.tasks),
        "items": settings.items,
        "pairs": settings.pairs,
        "ratings": frozen.table.num_rows,
        "scrubbed": found.replaced,
    }
    metrics = {"simulation_s": done.seconds, "requests_per_s": done.requests / max(done.seconds, 1e-9)}
    return StageResult("dataset", facts, metrics)


def questions(path: Path, settings: StudySettings) -> list[Example]:
    """Return the questions of the study: held out, no two the same, evenly over the domains.

    Within a domain in the order of their ids' digests: a random sample, fixed for ever. Raises ``RunError``
    where too few are held out.
    """
    wanted = settings.tasks or settings.items
    rows = [row for row in read_examples(path) if is_held_out(row.question_id, settings.held_out_share)]
    rows.sort(key=lambda row: hashlib.sha256(row.question_id.encode()).digest())
    by_domain: dict[str, list[Example]] = defaultdict(list)
    for row in {row.question: row for row in reversed(rows)}.values():
        by_domain[row.domain].append(row)
    # The dict above has turned the order round, so that the first of equal questions stays.
    decks = [deck for _, deck in sorted(by_domain.items())]
    found: list[Example] = []
    while len(found) < wanted and any(decks):
        found += [deck.pop() for deck in decks if deck]
    if len(found) < wanted:
        raise RunError(
            f"{path}: {len(found)} different questions are held out at held_out_share "
            f"{settings.held_out_share:g}, the study wants {wanted}; raise the share here and in training, "
            "generate more rows, or ask for fewer tasks"
        )
    return found[:wanted]


def _answers(model: Artifact, examples: list[Example], max_tokens: int) -> list[str]:
    from cogumi.subjects import of_artifact
    from evals.measure import open_subject
    from evals.types import Prompt

    backend: Any = open_subject(of_artifact(model, "model"))
    try:
        found: list[str] = []
        while len(found) < len(examples):
            batch = examples[len(found) : len(found) + backend.batch_size]
            answers = backend.generate([Prompt.user(row.question) for row in batch], max_tokens=max_tokens)
            found += [answer.text for answer in answers]
        return found
    finally:
        backend.close()


def _write_tasks(path: Path, examples: list[Example], answers: list[str]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for row, answer in zip(examples, answers, strict=True):
            task = {
                "task_id": row.question_id,
                "domain": row.domain,
                "prompt": row.question,
                # What says nothing is an answer too, and people rate it.
                "answers": {SUBJECT: answer if answer.strip() else _NO_ANSWER, REFERENCE: row.answer},
            }
            lines.write(json.dumps(task) + "\n")


STUDY = Stage(
    name="people.study",
    version=1,
    title="Let simulated raters rate a model's answers",
    settings=StudySettings,
    run=run,
    inputs=("model", "data"),
)
