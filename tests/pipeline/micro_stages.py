"""Running one stage in a test, without the runner around it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cogumi.digest import digest_of, tree_files
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import Artifact
from evals.micro import DIFFICULTIES, DOMAINS, solve, write_question


class Updates:
    """A progress sink that keeps what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, dict[str, Any]]] = []

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        self.seen.append((done, total, facts))


def artifact(folder: Path, kind: str) -> Artifact:
    files = tree_files(folder)
    return Artifact(digest_of(files), folder, {"kind": kind, "files": files, "facts": {}})


def run_stage(
    stage: Stage[Any],
    settings: Settings,
    folder: Path,
    inputs: Mapping[str, Artifact],
    *,
    progress: Any = None,
) -> tuple[StageResult, Artifact]:
    """Run a stage into ``folder/out``; ``folder/scratch`` survives between calls, as in the runner."""
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    ctx = StageContext(
        inputs=inputs,
        out=out,
        scratch=scratch,
        seed=7,
        progress=progress or Updates(),
        calls=None,  # type: ignore[arg-type]
        teachers={},
        data=None,
    )
    result = stage.run(settings, ctx)
    made = artifact(out, result.kind)
    return result, replace(made, manifest={**made.manifest, "facts": dict(result.facts)})


def micro_data(folder: Path, per_cell: int) -> Artifact:
    """A merged training file over the micro-domains, answered without error."""
    rng, rows = random.Random(0), []
    for domain in DOMAINS:
        for difficulty in DIFFICULTIES:
            for number in range(per_cell):
                question = write_question(domain, difficulty, rng)
                solution = solve(question)
                assert solution is not None
                rows.append(
                    {
                        "question_id": f"{domain}_{difficulty}_{number:04d}",
                        "domain": domain,
                        "difficulty": difficulty,
                        "question": question,
                        "answer": solution.answer,
                        "reasoning": None if difficulty == "easy" else solution.steps,
                    }
                )
    folder.mkdir(parents=True)
    (folder / "training_complete.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return artifact(folder, "dataset")
