"""What a report says is what ledger, store and evidence hold: no figure of its own, nothing left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_run import ITEMS, TASKS, Maker, criterion

from cogumi.errors import RunError, UsageError
from cogumi.evidence import EvidenceFile, list_evidence
from evals.references.registry import load_all
from gates.intervals import mean_bounds
from reports.model import build_report
from reports.schema import ArtifactPart, Report


def files_of(maker: Maker, artifact: ArtifactPart) -> list[EvidenceFile]:
    return [file for file in list_evidence(maker.workspace.evidence) if file.key.artifact == artifact.digest]


def named(report: Report, name: str) -> ArtifactPart:
    return next(one for one in report.artifacts if one.name == name)


def test_gates_stand_in_the_profiles_order_with_their_whole_history(filled: Maker) -> None:
    report = build_report(filled.workspace, filled.run)
    assert [(gate.gate, gate.verdict) for gate in report.gates] == [
        ("phase1", "PASS"),
        ("phase3", "UNDECIDED"),
    ]
    told = [(one.verdict, one.attempt, one.artifact_name) for one in report.gates[0].decisions]
    assert told == [("FAIL", 1, "base (attempt 1)"), ("PASS", 2, "base (attempt 2)")]
    recorded = [row["document"] for row in filled.workspace.ledger.verdicts(filled.run)]
    assert [one.document for gate in report.gates for one in gate.decisions] == recorded


@pytest.mark.parametrize("name", ["base (attempt 1)", "base (attempt 2)", "q8", "q4"])
def test_quality_is_the_recorded_scores(filled: Maker, name: str) -> None:
    artifact = named(build_report(filled.workspace, filled.run), name)
    scores = [file.scores() for file in files_of(filled, artifact)]
    assert len(scores) == len(TASKS)
    (part,) = artifact.quality
    assert part.score == pytest.approx(np.mean([one.mean() for one in scores]))
    # Both tasks' intervals hold at once: each has half of the error rate.
    bounds = [mean_bounds(one, ITEMS, part.alpha / 2) for one in scores]
    assert (part.lower, part.upper) == pytest.approx(tuple(np.mean(bounds, axis=0)))
    assert (part.n, part.n_total) == (sum(map(len, scores)), 2 * ITEMS)
    assert [task.truncated for task in part.tasks] == [1, 1]
    # 20 tokens in 0.5 s, item by item.
    assert artifact.tokens_per_second == pytest.approx(40.0)


def test_the_ratio_is_over_the_same_items(filled: Maker) -> None:
    report = build_report(filled.workspace, filled.run)
    (part,) = named(report, "base (attempt 1)").quality
    stand_in = [f for f in list_evidence(filled.workspace.evidence) if f.key.protocol["backend"] == "openai"]
    first = [file.scores()[:20].mean() for file in stand_in]
    assert [task.reference_score for task in part.tasks] == pytest.approx(first)
    assert part.score is not None
    assert part.ratio == pytest.approx(part.score / np.mean(first))
    assert (part.reference, part.reference_simulated) == ("gpt-4 (teacher stand-in)", True)
    (whole,) = report.references
    assert whole.score == pytest.approx(np.mean([file.scores().mean() for file in stand_in]))


def test_no_ratio_to_a_reference_on_other_items(maker: Maker) -> None:
    model = maker.artifact("model", 10)
    maker.step("base", 1, model)
    maker.evidence(model.digest, 0.5)
    (part,) = build_report(maker.workspace, maker.run).artifacts[0].quality
    assert (part.ratio, part.reference) == (None, None)
    # Fewer items of the reference than of the model cannot be paired either.
    maker.reference(0.9)
    for file in list_evidence(maker.workspace.evidence):
        if file.key.protocol["backend"] == "openai":
            (file.folder / "items.parquet").unlink()
    assert build_report(maker.workspace, maker.run).artifacts[0].quality[0].ratio is None


def test_a_suite_with_an_unmeasured_task_has_no_mean(maker: Maker) -> None:
    model = maker.artifact("model", 10)
    maker.step("base", 1, model)
    maker.evidence(model.digest, 0.5, task=TASKS[0])
    report = build_report(maker.workspace, maker.run)
    (part,) = report.artifacts[0].quality
    assert (part.score, part.lower, len(part.tasks), part.tasks_total) == (None, None, 1, 2)
    assert any("Measured in part: base on general" in told for told in report.caveats)


def test_a_task_outside_every_suite_is_shown_by_itself(maker: Maker) -> None:
    model = maker.artifact("model", 10)
    maker.step("base", 1, model)
    maker.evidence(model.digest, 0.5, task="ifeval")
    (part,) = build_report(maker.workspace, maker.run).artifacts[0].quality
    assert (part.suite, part.n) == ("ifeval", ITEMS)


def test_a_published_reference_counts_only_within_its_protocol(tmp_path: Path, maker: Maker) -> None:
    rows = load_all()
    row = next(one for one in rows.values() if one.kind == "published")
    changes = {"references": {"gpt-4": {"rows": {"made-up": row.id}}}, "suites": {"general": ["made-up"]}}
    other = Maker(maker.workspace, "published", **changes)
    model = other.artifact("model", 10)
    other.step("base", 1, model)
    other.evidence(model.digest, 0.5, task="made-up")
    (part,) = build_report(other.workspace, other.run).artifacts[0].quality
    assert part.ratio is None  # measured as made-up/exact, published as something else
    again = other.artifact("model", 11)
    other.step("base", 2, again)
    other.evidence(again.digest, 0.5, task="made-up", family=row.family)
    (part,) = named(build_report(other.workspace, other.run), "base (attempt 2)").quality
    assert row.score
    assert part.score is not None
    assert part.ratio == pytest.approx(part.score / row.score)
    assert not part.reference_simulated


def test_archived_answers_are_a_reference_where_no_other_could_be_meant(maker: Maker) -> None:
    row = load_all()["gpt-4/ifeval@2023-11-07"]
    changes = {"references": {"gpt-4": {"rows": {"ifeval": row.id}}}, "suites": {"general": ["ifeval"]}}
    other = Maker(maker.workspace, "archived", **changes)
    model = other.artifact("model", 10)
    other.step("base", 1, model)
    other.evidence(model.digest, 0.4, task="ifeval", family=row.family)
    other.evidence("sha256:answers", 0.8, task="ifeval", family=row.family, backend="answers")
    (part,) = build_report(other.workspace, other.run).artifacts[0].quality
    assert part.tasks[0].reference_score == pytest.approx(0.8, abs=1 / ITEMS)
    other.evidence("sha256:others", 0.1, task="ifeval", family=row.family, backend="answers")
    (part,) = build_report(other.workspace, other.run).artifacts[0].quality
    assert part.ratio is None


def test_sizes_lineage_and_numbers(filled: Maker) -> None:
    report = build_report(filled.workspace, filled.run)
    assert [one.number for one in report.artifacts] == [1, 2, 3, 4]
    q4 = named(report, "q4")
    assert (q4.kind, q4.bytes_download, q4.parameters, q4.bits_per_weight) == ("gguf", 48_000, 1_240_000, 4.8)
    assert q4.parents == ["base (attempt 2)"]
    assert named(report, "base (attempt 1)").parents == ["data"]


def test_steps_tell_time_figures_and_what_waits(filled: Maker) -> None:
    report = build_report(filled.workspace, filled.run)
    told = [(step.step, step.attempt, step.status) for step in report.steps]
    assert told[1:5] == [
        ("base", 1, "done"),
        ("phase1", 1, "done"),
        ("base", 2, "done"),
        ("phase1", 2, "done"),
    ]
    assert told[-1] == ("later", 0, "waiting")
    assert report.steps[3].seconds == pytest.approx(120.0)
    assert report.steps[3].metrics["tokens_per_second"] == 9100.0
    assert report.run.seconds == pytest.approx(0.2 + 20 + 1 + 120 + 1 + 1 + 1 + 1)


def test_money_keeps_real_played_and_unknown_apart(filled: Maker) -> None:
    money = build_report(filled.workspace, filled.run).money
    assert (money.real_usd, money.unpriced_calls) == (0.0, 1)
    assert money.simulated_usd == pytest.approx(0.036)
    assert [(row.simulated, row.calls, row.cost_usd) for row in money.calls] == [
        (False, 1, None),
        (True, 30, pytest.approx(0.036)),
    ]


def test_what_is_needed_to_reproduce(filled: Maker) -> None:
    part = build_report(filled.workspace, filled.run).reproduce
    assert part.commands == [
        "cogumi run --profile small.yaml --run rehearsal-1",
        "cogumi gate phase1 --run rehearsal-1 --json",
        "cogumi gate phase3 --run rehearsal-1 --json",
        "cogumi report --run rehearsal-1",
    ]
    assert part.software == [{"backend": "hf", "torch": "2.13"}, {"backend": "gguf", "torch": "2.13"}]
    names = [(data.kind, data.name) for data in part.data]
    assert ("file", "data/phase1/training_60k_complete.jsonl") in names
    assert [name for kind, name in names if kind == "benchmark"] == sorted(TASKS)
    assert "secret" not in str(part.profile)
    assert part.profile["teachers"]["paid"]["base_url"] == "https://example.test/v1"


def test_a_shipped_profile_is_named_and_an_accepted_target_is_told(maker: Maker) -> None:
    from cogumi.profile import load_profile

    maker.profile = load_profile("smollm2")
    maker.run = "it's"
    maker.start(accepted=["phase3/size"])
    report = build_report(maker.workspace, "it's")
    assert report.reproduce.commands[0] == (
        "cogumi run --profile smollm2 --run 'it'\"'\"'s' --accept-infeasible phase3/size"
    )
    assert any(told.startswith("phase3/size cannot be met") for told in report.caveats)


CAVEATS = [
    "The run stopped: gate phase3 says UNDECIDED",
    "Simulated reference: a local program",
    "Gate phase1 was judged on attempt 2",
    "$0.0360 is play money",
    "Calls without a known price, in no sum: 1",
    "Measured in part: base (attempt 1) on general (n = 40 of 120)",
    "Tokens per second are of one machine",
]


def test_caveats(filled: Maker) -> None:
    told = build_report(filled.workspace, filled.run).caveats
    assert [next((t for t in told if t.startswith(start)), None) is not None for start in CAVEATS] == [
        True
    ] * 7
    assert len(told) == len(CAVEATS)


def test_a_run_that_has_just_begun(maker: Maker) -> None:
    report = build_report(maker.workspace, maker.run)
    assert (report.artifacts, report.references, report.money.calls) == ([], [], [])
    assert [gate.verdict for gate in report.gates] == [None, None]
    assert {step.status for step in report.steps} == {"waiting"}
    assert report.caveats[0].startswith("The run has not ended")
    assert "No model was measured: this report has no quality and no speed." in report.caveats


def test_an_artifact_that_is_gone_keeps_its_row(filled: Maker) -> None:
    import shutil

    before = named(build_report(filled.workspace, filled.run), "q4")
    shutil.rmtree(filled.workspace.store.objects / before.digest.removeprefix("sha256:"))
    report = build_report(filled.workspace, filled.run)
    after = named(report, "q4")
    assert (after.kind, after.bytes_download, after.quality) == ("missing", None, before.quality)
    assert any("q4" in told and "no longer in the store" in told for told in report.caveats)


def test_a_gate_that_the_profile_does_not_have_is_told_too(filled: Maker) -> None:
    model = filled.artifact("gguf", 5)
    filled.verdict("phase9", model, criterion("people", "ERROR", None, 8.0))
    gate = build_report(filled.workspace, filled.run).gates[-1]
    assert (gate.gate, gate.step, gate.verdict, gate.decisions[0].artifact_name) == (
        "phase9",
        None,
        "ERROR",
        "",
    )


def test_an_unknown_run_names_the_nearest(filled: Maker) -> None:
    with pytest.raises(UsageError, match="did you mean 'rehearsal-1'"):
        build_report(filled.workspace, "rehersal-1")


def test_broken_evidence_is_one_line_that_names_the_file(filled: Maker) -> None:
    meta = next(filled.workspace.evidence.glob("*/*/*/meta.json"))
    meta.write_text("{}")
    with pytest.raises(RunError, match=r"meta\.json: broken evidence"):
        build_report(filled.workspace, filled.run)


def test_a_verdict_of_another_version_is_one_line(maker: Maker) -> None:
    document = {"gate": "phase1", "artifact": "sha256:1", "attempt": 1, "verdict": "PASS"}
    maker.workspace.ledger.record_verdict(maker.run, document)
    with pytest.raises(RunError, match="verdict of gate phase1 is not readable"):
        build_report(maker.workspace, maker.run)
