"""A store, a ledger and a local teacher: enough of a workspace to run the generation stages one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogumi.ledger import Ledger, LedgerCalls
from cogumi.stage import Calls, StageContext, TeacherConfig
from cogumi.store import Artifact, ArtifactStore
from pipeline import all_stages
from pipeline.generation import STAGES

BY_NAME = {name.partition(".")[2]: all_stages()[name] for name in STAGES}
SOURCES = {
    "questions": "questions",
    "validated": "validate",
    "answers_easy": "answers_easy",
    "answers_hard": "answers_hard",
}
QUOTAS = {
    "math": {"easy": 12, "hard": 18},
    "reading": {"easy": 8, "hard": 12},
    "coding": {"easy": 4, "hard": 6},
}
WRITERS = {"math": "deepseek", "reading": "llama", "coding": "deepseek"}
QUICK = {"poll_seconds": 0.05, "backoff_seconds": 0.05, "timeout_seconds": 10.0, "concurrency": 8}


class Told:
    """Remembers what a stage tells of its progress."""

    def __init__(self) -> None:
        self.facts: dict[str, float | int | str] = {}
        """The latest of each."""

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        assert 0 <= done <= total
        self.facts |= facts


@dataclass
class Bench:
    """A store, a ledger and a teacher: enough of a workspace to run the stages one after another."""

    root: Path
    url: str
    calls: Calls | None = None
    data: Path | None = None
    made: dict[str, Artifact] = field(default_factory=dict)
    metrics: dict[str, Mapping[str, float]] = field(default_factory=dict)
    told: Told = field(default_factory=Told)

    def __post_init__(self) -> None:
        self.root.mkdir(exist_ok=True)
        self.store = ArtifactStore(self.root / "store")
        self.ledger = Ledger(self.root)

    def teachers(self) -> dict[str, TeacherConfig]:
        prices = {"deepseek": 0.0, "llama": 0.0, "mini": 0.15, "sonnet": 3.0}
        return {
            name: TeacherConfig(
                name=name,
                api="anthropic" if name == "sonnet" else "openai",
                model=name,
                base_url=self.url,
                key_env=None,
                input_usd_per_mtok=price,
                output_usd_per_mtok=4 * price,
                batch_discount=0.5,
                endpoint="here",
                simulated=True,
            )
            for name, price in prices.items()
        }

    def run(self, name: str, **settings: Any) -> Artifact:
        stage = BY_NAME[name]
        if name != "merge":
            settings = {**QUICK, **settings}
        staging = self.store.new_staging()
        ctx = StageContext(
            inputs={wanted: self.made[SOURCES[wanted]] for wanted in stage.inputs},
            out=staging / "payload",
            scratch=self.root / "scratch",
            seed=11,
            progress=self.told,
            calls=self.calls or LedgerCalls(self.ledger, "run", name, None),
            teachers=self.teachers(),
            data=self.data,
        )
        result = stage.run(stage.settings(**settings), ctx)
        made_by = {"stage": name, "settings": settings}
        self.made[name] = self.store.commit(
            staging, kind=result.kind, made_by=made_by, facts=result.facts, created="now"
        )
        self.metrics[name] = result.metrics
        return self.made[name]

    def run_all(self, *, reserve: int = 3, mode: str = "batch") -> Artifact:
        writer = {"questions_per_call": 6, "near_duplicate_threshold": 1.0, "leak_micro": True}
        self.run("questions", quotas=QUOTAS, teachers=WRITERS, writer=writer)
        self.run("validate", judge="mini", teachers=WRITERS, reserve=reserve, mode=mode)
        self.run("answers_easy", teacher="mini", mode=mode)
        self.run("answers_hard", teacher="sonnet", mode=mode)
        return self.run("merge")

    def rows(self, name: str, file: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.made[name].file(file).read_text().splitlines()]

    def digests(self) -> dict[str, str]:
        return {name: artifact.digest for name, artifact in self.made.items()}
