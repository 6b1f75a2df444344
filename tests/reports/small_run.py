"""A small workspace, made by hand: two attempts at a base, two quantised files, gates over made-up scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import update

from cogumi.digest import digest_of
from cogumi.evidence import EvidenceFile, EvidenceKey, Record
from cogumi.ledger import LedgerCalls
from cogumi.ledger.database import writing
from cogumi.ledger.schema import steps
from cogumi.profile import Profile
from cogumi.stage import CallRecord
from cogumi.store import Artifact
from cogumi.workspace import Workspace
from gates.models import teacher_subject
from gates.verdicts import CriterionVerdict, GateVerdict

ITEMS = 60
START = 1_790_000_000.0
TASKS = ("micro/math", "micro/reading")
PROFILE: dict[str, Any] = {
    "profile": "small",
    "title": "A small plan",
    "gpu": {"name": "H100 SXM", "usd_per_hour": 2.0, "source": "test"},
    "teachers": {
        "stand-in": {"api": "openai", "model": "gpt-4", "base_url": "local"},
        "paid": {
            "api": "openai",
            "model": "big",
            "base_url": "https://user:secret@example.test/v1?key=secret",
        },
    },
    "local_teacher": {"error_rate": 0.1},
    "references": {"gpt-4": {"teacher": "stand-in"}},
    "suites": {"general": list(TASKS)},
    "steps": [
        {
            "id": "data",
            "plan": "1.5",
            "uses": "generation.merge",
            "files": {"training.jsonl": "data/phase1/training_60k_complete.jsonl"},
        },
        {
            "id": "base",
            "plan": "1.6",
            "uses": "training.sft",
            "inputs": {"data": "data"},
            "attempts": [{}, {}],
        },
        {"id": "phase1", "plan": "1.8", "gate": "phase1", "artifact": "base", "retry": "base"},
        {"id": "q8", "plan": "3.3", "uses": "compression.gguf", "inputs": {"model": "base"}},
        {"id": "q4", "plan": "3.3", "uses": "compression.gguf", "inputs": {"model": "base"}},
        {"id": "phase3", "plan": "3.3", "gate": "phase3", "artifact": "q4", "baseline": "base"},
        {"id": "later", "plan": "3.4", "uses": "compression.later", "inputs": {"model": "q4"}},
    ],
}


class Maker:
    """Fills a workspace the way a run does, without running anything."""

    def __init__(
        self, workspace: Workspace, run: str = "rehearsal-1", *, begun: bool = False, **changes: Any
    ) -> None:
        self.workspace = workspace
        self.run = run
        self.profile = Profile.model_validate({**PROFILE, **changes})
        self.clock = START
        if not begun:
            self.start()

    def start(self, accepted: Sequence[str] = ()) -> None:
        document = self.profile.model_dump(mode="json")
        self.workspace.ledger.start_run(self.run, self.profile.profile, document, accepted)

    def end(self, status: str, code: int, note: str) -> None:
        self.workspace.ledger.end_run(self.run, status, code, note)

    def artifact(
        self, kind: str, size: int, *, inputs: dict[str, str] | None = None, **facts: Any
    ) -> Artifact:
        staging = self.workspace.store.new_staging()
        name = {"gguf": "model.gguf", "model": "model.safetensors"}.get(kind, "training.jsonl")
        (staging / "payload" / name).write_bytes(b"x" * size)
        made_by = {"stage": "made.up", "version": 1, "settings": {"size": size}, "inputs": inputs or {}}
        return self.workspace.store.commit(staging, kind=kind, made_by=made_by, facts=facts, created="now")

    def step(self, step: str, attempt: int, artifact: Artifact | None, **more: Any) -> None:
        kind = more.pop("kind", "stage")
        self.workspace.ledger.start_step(self.run, step, attempt, digest_of([step, attempt]), kind)
        self.workspace.ledger.end_step(
            self.run,
            step,
            attempt,
            status=more.pop("status", "done"),
            artifact=artifact.digest if artifact else None,
            note=more.pop("note", ""),
            metrics=more,
        )
        took = float(more.get("seconds", 1.0))
        where = (steps.c.run == self.run) & (steps.c.step == step) & (steps.c.attempt == attempt)
        with writing(self.workspace.ledger.engine) as connection:
            times = {"started_at": self.clock, "finished_at": self.clock + took}
            connection.execute(update(steps).where(where).values(times))
        self.clock += took

    def evidence(self, digest: str, rate: float, n: int = ITEMS, **more: str) -> None:
        """Record made-up scores: the first ``n`` items of every task, a share of ``rate`` of them right.

        ``more``: task, family, backend.
        """
        backend = more.get("backend", "hf")
        for name in [more["task"]] if "task" in more else TASKS:
            protocol = {
                "items": digest_of(name),
                "order": digest_of([name, "order"]),
                "order_seed": 7,
                "family": more.get("family", f"{name}/exact"),
                "backend": backend,
            }
            draw = np.random.Generator(np.random.PCG64(int(digest_of([digest, name])[7:15], 16)))
            right = draw.permutation(ITEMS) < rate * ITEMS
            records = [_record(position, bool(right[position])) for position in range(n)]
            file = EvidenceFile(self.workspace.evidence, EvidenceKey(digest, name, protocol))
            file.append(records, n_total=ITEMS, facts={"stack": {"backend": backend, "torch": "2.13"}})

    def reference(self, rate: float) -> None:
        self.evidence(teacher_subject(self.profile, "stand-in").digest, rate, backend="openai")

    def verdict(
        self,
        gate: str,
        artifact: Artifact,
        *criteria: CriterionVerdict,
        attempt: int = 1,
        left_out: tuple[str, ...] = (),
    ) -> None:
        found = GateVerdict(
            gate, self.run, artifact.digest, attempt, criteria, f"Title of {gate}", left_out=left_out
        )
        self.workspace.ledger.record_verdict(self.run, found.to_json())

    def calls(self, step: str, usd: float | None, *, simulated: bool, number: int = 1) -> None:
        records = [
            CallRecord(f"{self.run}{step}{usd}{k}", "openai", "gpt-4o-mini", {}, 100, 20, usd, simulated)
            for k in range(number)
        ]
        LedgerCalls(self.workspace.ledger, self.run, step, None).record(records)


def _record(position: int, right: bool) -> Record:
    reason = "length" if position == 0 else "stop"
    score = float(right and reason == "stop")
    return Record(position, f"item{position}", "math", score, reason, 10, 20, 0.5, 0.0, "prompt", "out", {})


def criterion(name: str, verdict: str, value: float | None, bar: float, **more: Any) -> CriterionVerdict:
    given = {
        "comparison": ">=",
        "lower": None if value is None else value - 0.05,
        "upper": None if value is None else value + 0.05,
        "alpha": 0.05,
        "n_used": 40,
        "n_total": 120,
        "reference": "stand-in/general@measured",
        "reference_kind": "per-item",
        "protocol": "sha256:00",
        "note": "",
        "attempt": 1,
        "tasks": [],
        **more,
    }
    return CriterionVerdict.from_json({"id": name, "verdict": verdict, "value": value, "bar": bar, **given})


def fill(maker: Maker) -> None:
    """Play a whole run: a base that misses its gate, one that meets it, two files, an open gate."""
    data = maker.artifact("dataset", 1200, rows=12)
    maker.step("data", 1, data, seconds=0.2)
    looks = [
        {"step": 0, "held_out_loss": 6.6},
        {"step": 75, "train_loss": 3.0, "held_out_loss": 2.1},
        {"step": 150, "train_loss": 1.5, "held_out_loss": 1.1},
    ]
    facts = {
        "parameters": 1_240_000,
        "looks": looks,
        "tokens_seen": 906_000,
        "supervised_share": 0.612,
        "padding_share": 0.0,
        "rows": 4704,
        "held_out_rows": 96,
        "too_long_rows": 7,
        "trainable_parameters": 31_000,
    }
    first = maker.artifact("model", 300_000, inputs={"data": data.digest}, **facts, steps=150)
    second = maker.artifact("model", 300_400, inputs={"data": data.digest}, **facts, steps=600)
    q8 = maker.artifact(
        "gguf", 90_000, inputs={"model": second.digest}, parameters=1_240_000, bits_per_weight=8.5
    )
    q4 = maker.artifact(
        "gguf", 48_000, inputs={"model": second.digest}, parameters=1_240_000, bits_per_weight=4.8
    )
    maker.reference(0.95)
    maker.step("base", 1, first, seconds=20.0, tokens_per_second=9000.0, gpus=0.0, peak_bytes=7e8)
    maker.evidence(first.digest, 0.4, n=20)
    maker.step("phase1", 1, first, kind="gate", note="FAIL")
    maker.verdict("phase1", first, criterion("general", "FAIL", 0.41, 0.88, simulated=True))
    gpus = {"gpus": 2.0, "gpu_hours": 1.5, "model_flop_utilization": 0.41, "joules": 5.4e6}
    maker.step("base", 2, second, seconds=120.0, tokens_per_second=9100.0, **gpus)
    maker.evidence(second.digest, 0.93)
    maker.step("phase1", 2, second, kind="gate", note="PASS")
    passed = criterion("general", "PASS", 0.97, 0.88, simulated=True, attempt=2, alpha=0.0126651, truncated=2)
    maker.verdict("phase1", second, passed, attempt=2)
    for step, artifact, rate in (("q8", q8, 0.92), ("q4", q4, 0.85)):
        maker.step(step, 1, artifact, seconds=1.0)
        maker.evidence(artifact.digest, rate, backend="gguf")
    maker.step("phase3", 1, q4, kind="gate", note="UNDECIDED")
    exact = {"measure": "bytes_download", "comparison": "<=", "alpha": None, "reference": None}
    size = criterion("size", "PASS", 48_000, 540e6, **exact, lower=48_000, upper=48_000, n_used=1, n_total=1)
    task = {
        "task": "micro/math",
        "reference": "base",
        "value": 0.9,
        "lower": 0.8,
        "upper": None,
        "n_used": 20,
        "n_total": 60,
        "truncated": 1,
        "errors": 0,
    }
    open_ = criterion("retention", "UNDECIDED", 0.95, 0.98, reference_kind="baseline", tasks=[task, task])
    maker.verdict("phase3", q4, size, open_, left_out=("resident",))
    maker.calls("data", 0.0012, simulated=True, number=30)
    maker.calls("data", None, simulated=False)
    maker.end("stopped", 3, "gate phase3 says UNDECIDED on attempt 1")
