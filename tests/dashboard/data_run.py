"""A run of the data steps: rows merged by the real stage, the facts of the four before written by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogumi.store import Artifact
from cogumi.workspace import Workspace
from pipeline.generation.accounts import CellAccount
from pipeline.generation.writer import WriterSettings

# pytest's importlib mode leaves test folders off the path.
sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
sys.path.insert(0, str(Path(__file__).parents[1] / "reports"))

from merge_inputs import Merging, Row
from small_run import Maker

RUN = "data-1"
QUOTAS = {"coding": {"easy": 4, "hard": 6}, "math": {"easy": 30, "hard": 5}, "reading": {"hard": 2}}
STEPS: list[dict[str, Any]] = [
    {
        "id": "questions",
        "plan": "1.1",
        "uses": "generation.questions",
        "plan_says": "$0",
        "settings": {"quotas": QUOTAS},
    },
    {"id": "validated", "plan": "1.2", "uses": "generation.validate"},
    {"id": "answers_easy", "plan": "1.3", "uses": "generation.answers_easy"},
    {"id": "answers_hard", "plan": "1.4", "uses": "generation.answers_hard"},
    {"id": "merged", "plan": "1.5", "uses": "generation.merge"},
    {"id": "base", "plan": "1.6", "uses": "training.sft", "inputs": {"data": "merged"}},
]
ACCOUNT = CellAccount(calls=3, offered=40, accepted=30, duplicates=5, near_duplicates=1, leaks=4, surplus=2)
_STAGES = {step["id"]: step["uses"] for step in STEPS}


class DataRun(Merging):
    """The four inputs in the workspace's own store, with the facts that their stages would write."""

    def __init__(self, workspace: Workspace, simulated: tuple[str, ...]) -> None:
        super().__init__(workspace.root, QUOTAS, simulated=simulated)
        self.store = workspace.store
        self.made: dict[str, Artifact] = {}

    def _commit(self, name: str, files: Mapping[str, list[Row]], facts: Mapping[str, Any]) -> Artifact:
        staging = self.store.new_staging()
        for file, rows in files.items():
            if file == "writer.json":
                rows = [{**rows[0], "accounts": self._accounts()}]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (staging / "payload" / file).write_text(lines, encoding="utf-8")
        level = name.removeprefix("answers_")
        cells = {
            f"{domain}/{each}": quota
            for domain, levels in QUOTAS.items()
            for each, quota in levels.items()
            if level in ("questions", "validated", each)
        }
        told = {
            **facts,
            **self._facts(name),
            "cells": cells,
            "rows": sum(cells.values()),
            "finish_reasons": {"stop": 10},
            "cost_usd": self.costs[name],
            "simulated": name in self.simulated,
            "input_tokens": 1000,
            "output_tokens": 500,
        }
        settings: dict[str, Any] = {"min_score": 7, "judge": "gpt-4o-mini"} if name == "validated" else {}
        if name == "questions":
            settings = {"quotas": QUOTAS, "writer": WriterSettings().model_dump(mode="json")}
        teachers = {"writer": {"api": "openai", "model": "gpt-4o-mini", "base_url": None}}
        made_by = {"stage": _STAGES[name], "teachers": teachers, "settings": settings}
        artifact = self.store.commit(staging, kind="dataset", made_by=made_by, facts=told, created="now")
        self.made[name] = artifact
        return artifact

    def _accounts(self) -> dict[str, Any]:
        return {f"{domain}/{level}": ACCOUNT.document() for domain in QUOTAS for level in QUOTAS[domain]}

    def _facts(self, name: str) -> dict[str, Any]:
        if name == "questions":
            return {"accounts": {"coding/easy": ACCOUNT.counts()}, "refused_answers": 0}
        if name == "validated":
            scores = {"3": 4, "8": 40, "10": 7}
            return {
                "judged": 51,
                "dropped": 4,
                "dropped_share": {"coding/easy": 0.5},
                "unreadable_judgements": 1,
                "mean_scores": {"quality": 7.9},
                "score_histograms": {"quality": scores, "relevance": scores, "clarity": scores},
            }
        return {"requests": 34}


def fill(
    folder: Path,
    *,
    until: str = "merged",
    rows: dict[str, list[Row]] | None = None,
    simulated: tuple[str, ...] = (),
) -> Maker:
    """Make the run up to a step and return its maker; the merged rows come last."""
    workspace = Workspace(folder)
    maker = Maker(workspace, RUN, steps=STEPS, references={}, suites={})
    data = DataRun(workspace, simulated)
    data.made["merged"] = data.merge(rows)
    for step in _STAGES:
        if step in data.made:
            maker.step(step, 1, data.made[step], calls_asked=12.0, calls_from_ledger=3.0, seconds=2.0)
        if step == until:
            break
    maker.end("done", 0, "every step ran")
    return maker


def merged(maker: Maker) -> Artifact:
    """Return the merged artifact of a run that has one."""
    row = maker.workspace.ledger.latest_done(maker.run)["merged"]
    return maker.workspace.store.get(str(row.artifact))
