"""A large workspace for ``dashboard_load``: one run with 250 models, 500 verdicts and 5 million item rows.

Scores, prompts and outputs are made up; protocols, ledger rows and Parquet files are those of a run, and the
gates' own service decides every verdict on them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cogumi.digest import digest_of
from cogumi.evidence import EvidenceFile, EvidenceKey
from cogumi.evidence_parts import COLUMNS, schema
from cogumi.profile import Profile
from cogumi.store import Artifact
from cogumi.subjects import Subject, of_artifact
from cogumi.workspace import Workspace
from evals.measure import Measurer
from evals.tasks import MICRO, get_task
from gates.models import teacher_subject
from gates.service import GateService

RUN = "load-1"
DECIDED_ON = "ifeval"
"""The task of the gates; its items are made up, but are a task's items like any other."""
BREADTH = MICRO[:7]
LARGE = "gsm8k"
"""The task of the one large measurement, of the first model."""
NEEDLE = "Quokka"
"""A word that is in the output of one item among 20,000, and in no prompt."""
SEED = 20261123

_RECIPES, _ATTEMPTS = 10, 25
NEEDLE_EVERY = 20_000
_SENTENCES = 5_000
_LETTERS = np.array(list("etaoinshrdlucmfwypvbgk"))


@dataclass(frozen=True, slots=True)
class Size:
    """How large the workspace is: ``recipes`` times ``attempts`` models, each measured on eight tasks."""

    recipes: int = _RECIPES
    attempts: int = _ATTEMPTS
    items: int = 2_000
    """Of each task."""
    large: int = 1_000_000
    """Items of the large measurement."""

    @property
    def measurements(self) -> int:
        """All of them: eight of each model and of the reference, and the large one."""
        return 8 * (self.recipes * self.attempts + 1) + 1

    @property
    def verdicts(self) -> int:
        """Two gates for each model."""
        return 2 * self.recipes * self.attempts

    @property
    def rows(self) -> int:
        """Item rows of all measurements."""
        return (self.measurements - 1) * self.items + self.large


class Texts:
    """Made-up English-looking text, fast: sentences of a fixed stock, joined."""

    def __init__(self, seed: int) -> None:
        self._draw = np.random.default_rng(seed)
        lengths = self._draw.integers(2, 10, 2_000)
        words = np.array(["".join(self._draw.choice(_LETTERS, n)) for n in lengths])
        # About as often as words are in English (Zipf).
        weights = 1 / np.arange(3, len(words) + 3)
        drawn = self._draw.choice(words, (_SENTENCES, 12), p=weights / weights.sum())
        stock = [" ".join(row).capitalize() + "." for row in drawn]
        # Some sentences are absent: texts of different lengths.
        self._stock = pa.array([*stock, *[""] * (_SENTENCES // 4)])

    def column(self, rows: int, sentences: int) -> pa.Array:
        """Return ``rows`` texts of up to so many sentences, of about 60 characters each."""
        parts = [
            self._stock.take(pa.array(self._draw.integers(0, len(self._stock), rows)))
            for _ in range(sentences)
        ]
        return pc.binary_join_element_wise(*parts, " ")


class Builder:
    """Fills a workspace as a run does, without a model."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.size = size
        self.data = folder / "data"
        self.workspace = Workspace(folder / "workspace")
        self.workspace.create()
        self._draw = np.random.default_rng(SEED)
        self._texts = Texts(SEED)
        self.profile = Profile.model_validate(_profile(size))

    def build(self) -> None:
        """Fill it."""
        self._write_items()
        self.workspace.ledger.start_run(
            RUN, self.profile.profile, self.profile.model_dump(mode="json"), ["phase3/size"]
        )
        self._measure(teacher_subject(self.profile, "stand-in"), 0.93)
        models = [self._model(number) for number in range(self.size.recipes * self.size.attempts)]
        for number, model in enumerate(models):
            self._measure(of_artifact(model, f"model {number}"), float(self._draw.uniform(0.7, 0.97)))
        self._measure_large(models[0])
        service = GateService(self.measurer, self.profile, RUN)
        for number, model in enumerate(models):
            self._decide(service, models[0], model, number)
        self.workspace.ledger.end_run(RUN, "stopped", 1, "gate phase3 fails")
        self.workspace.ledger.close()

    @cached_property
    def measurer(self) -> Measurer:
        """The measurer of this workspace and its made-up data."""
        return Measurer(self.workspace, self.data)

    def _write_items(self) -> None:
        folder = self.data / DECIDED_ON
        folder.mkdir(parents=True, exist_ok=True)
        prompts = self._texts.column(self.size.items, 5).to_pylist()
        about = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        rows = [json.dumps({"key": key, "prompt": prompt, **about}) for key, prompt in enumerate(prompts)]
        (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")

    def _model(self, number: int) -> Artifact:
        recipe, attempt = divmod(number, self.size.attempts)
        staging = self.workspace.store.new_staging()
        (staging / "payload" / "model.gguf").write_bytes(b"GGUF" + number.to_bytes(4, "little") * 16)
        made_by = {"stage": "made.up", "version": 1, "settings": {"number": number}, "inputs": {}}
        size = int(self._draw.integers(400_000_000, 1_100_000_000))
        facts = {
            **{"parameters": 1_240_000_000, "bits_per_weight": 8 * size / 1.24e9},
            **{"bytes": size, "bytes_download": size, "bytes_resident": size + 60_000_000},
        }
        made = self.workspace.store.commit(
            staging, kind="gguf", made_by=made_by, facts=facts, created="2026-11-23T00:00:00Z"
        )
        self._step(f"model{recipe:02d}", attempt + 1, made, "stage", "")
        return made

    def _step(self, step: str, attempt: int, artifact: Artifact, kind: str, note: str) -> None:
        ledger = self.workspace.ledger
        ledger.start_step(RUN, step, attempt, digest_of([step, attempt]), kind)
        ledger.end_step(
            RUN, step, attempt, status="done", artifact=artifact.digest, note=note, metrics={"seconds": 1.0}
        )

    # Evidence -------------------------------------------------------------------------------------

    def _measure(self, subject: Subject, rate: float) -> None:
        measurement = self.measurer.measurement(subject, get_task(DECIDED_ON))
        items = measurement.items.items
        known = (pa.array([item.id for item in items]), pa.array([item.prompt for item in items]))
        self._record(measurement.file, rate, known)
        for task in BREADTH:
            self._record(self._file(subject.digest, task), rate, self._items[task])

    @cached_property
    def _items(self) -> dict[str, tuple[pa.Array, pa.Array]]:
        ids = pa.array([f"item{k:05d}" for k in range(self.size.items)])
        return {task: (ids, self._texts.column(self.size.items, 4)) for task in BREADTH}

    def _measure_large(self, model: Artifact) -> None:
        ids = pa.array([f"item{k:07d}" for k in range(self.size.large)])
        self._record(self._file(model.digest, LARGE), 0.8, (ids, self._texts.column(self.size.large, 4)))

    def _file(self, artifact: str, task: str) -> EvidenceFile:
        protocol = {
            "items": digest_of(task),
            "order": digest_of([task, "order"]),
            "order_seed": 7,
            "family": f"{task}/exact",
            "backend": "gguf",
        }
        return EvidenceFile(self.workspace.evidence, EvidenceKey(artifact, task, protocol))

    def _record(self, file: EvidenceFile, rate: float, items: tuple[pa.Array, pa.Array]) -> None:
        """Write an answer to every item at once, past the list of records that a measurement appends."""
        rows = len(items[0])
        facts = json.dumps({"stack": {"backend": "gguf"}, "machine": {"cpu": "made up"}})
        file._keep([(0, self._table(rows, rate, items), {"facts": facts})], rows)

    def _table(self, rows: int, rate: float, items: tuple[pa.Array, pa.Array]) -> pa.Table:
        draw = self._draw
        outputs = self._texts.column(rows, 6)
        position = np.arange(rows)
        marked = pa.array(position % NEEDLE_EVERY == NEEDLE_EVERY // 2)
        outputs = pc.if_else(marked, pc.binary_join_element_wise(outputs, NEEDLE, " "), outputs)
        reasons = np.where(draw.random(rows) < 0.002, "length", "stop")
        columns: dict[str, Any] = {
            "position": position.astype(np.int32),
            "item_id": items[0],
            "domain": np.array(["algebra", "geometry", "reading", "logic"])[position % 4],
            "score": _scores(draw, rows, rate),
            "finish_reason": reasons,
            "prompt_tokens": draw.integers(30, 90, rows).astype(np.int32),
            "completion_tokens": draw.integers(20, 200, rows).astype(np.int32),
            "seconds": np.round(draw.gamma(2.0, 0.3, rows), 4),
            "cost_usd": np.zeros(rows),
            "prompt": items[1],
            "output": outputs,
            "details": pa.repeat("{}", rows),
        }
        return pa.table([columns[name] for name in COLUMNS], schema=schema(list(COLUMNS)))

    # Verdicts -------------------------------------------------------------------------------------

    def _decide(self, service: GateService, base: Artifact, model: Artifact, number: int) -> None:
        recipe, attempt = divmod(number, self.size.attempts)
        subject = of_artifact(model, f"model {number}")
        for gate, criteria in _GATES.items():
            baseline = of_artifact(base, "base") if gate == "phase3" else None
            found = service.verdict(gate, subject, baseline, criteria=criteria)
            self._step(f"{gate}-{recipe:02d}", attempt + 1, model, "gate", str(found.verdict))
            self.workspace.ledger.record_verdict(RUN, found.to_json())


_GATES: dict[str, Sequence[str]] = {"phase1": ("general", "stops"), "phase3": ("size", "retention")}


def _scores(draw: np.random.Generator, rows: int, rate: float) -> npt.NDArray[np.float64]:
    return (draw.random(rows) < rate).astype(np.float64)


def _profile(size: Size) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for recipe in range(size.recipes):
        name = f"model{recipe:02d}"
        steps.append({"id": name, "plan": "1.6", "uses": "training.sft", "attempts": [{}] * size.attempts})
        steps += [
            {
                "id": f"{gate}-{recipe:02d}",
                "plan": {"phase1": "1.8", "phase3": "3.4"}[gate],
                "gate": gate,
                "artifact": name,
                **({"baseline": "model00"} if gate == "phase3" else {}),
                "criteria": list(criteria),
                "retry": name,
            }
            for gate, criteria in _GATES.items()
        ]
    return {
        "profile": "load",
        "title": "A large plan",
        "teachers": {"stand-in": {"api": "openai", "model": "gpt-4", "base_url": "local"}},
        "local_teacher": {"error_rate": 0.1},
        "references": {"gpt-4": {"teacher": "stand-in"}},
        "suites": {"general": [DECIDED_ON], "breadth": list(BREADTH), "large": [LARGE]},
        "steps": steps,
    }
