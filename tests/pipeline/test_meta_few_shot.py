"""The few-shot stage on tiny models: adaptation, fairness, and the verdict of the gate on what it found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro_stages import Updates, artifact, micro_data, run_stage
from pydantic import ValidationError

from cogumi.errors import CogumiError, RunError, UsageError
from cogumi.profile import load_profile
from cogumi.stage import StageResult
from cogumi.store import Artifact
from cogumi.subjects import judged
from cogumi.workspace import Workspace
from evals.measure import Measurer
from gates.service import GateService
from pipeline.meta.few_shot import FEW_SHOT, FewShotSettings
from pipeline.meta.gain import paired_gain
from pipeline.training.data import encode_all, read_examples, training_file
from pipeline.training.meta_tasks import FamilySettings, trained_cells, without_held_out
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings

TINY = MicroModelSettings(hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=32, vocab_size=320)
FAMILIES = FamilySettings(held_out=("math/easy", "common_sense/easy", "instruction/hard"))
SETTINGS = FewShotSettings(families=FAMILIES, support=2, query=2, episodes=12, steps=2, learning_rates=(0.1,))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return micro_data(tmp_path_factory.mktemp("few-shot") / "data", per_cell=12)


@pytest.fixture(scope="module")
def blank(data: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run_stage(MICRO_MODEL, TINY, tmp_path_factory.mktemp("few-shot") / "blank", {"data": data})[1]


def train(data: Artifact, start: Artifact, folder: Path, *, meta: bool, lora: bool = False) -> Artifact:
    """Train a few steps with the real loop; the manifest as the stage of training writes it."""
    import torch

    from evals.backends.loading import load_model
    from evals.backends.tokenization import save_tokenizer
    from pipeline.training.answer_loss import AnswerLoss
    from pipeline.training.chat import ChatEncoder
    from pipeline.training.loop import LoopConfig, Trainer
    from pipeline.training.meta_objective import MetaObjective
    from pipeline.training.meta_tasks import MetaSettings
    from pipeline.training.packing import StepSizes
    from pipeline.training.sft_objective import SftObjective

    loaded = load_model(start.path, dtype="fp32")
    examples = without_held_out(read_examples(training_file(data)), FAMILIES)
    encoder = ChatEncoder(loaded.tokenizer, loaded.stop_ids, include_reasoning=False)
    encoded = encode_all(examples, encoder, max_length=loaded.context, held_out_share=0)
    model = loaded.model
    if lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    loss = AnswerLoss(model)
    meta_settings = MetaSettings(
        tasks=20, tasks_per_step=2, support=2, query=2, inner_learning_rate=0.1, families=FAMILIES
    )
    learnt: Any = (
        MetaObjective(loss, encoded, "fomaml", meta_settings, seed=0)
        if meta
        else SftObjective(loss, encoded.train, [], StepSizes(330, 330), seed=0, device=torch.device("cpu"))
    )
    config = LoopConfig(
        steps=12, learning_rate=1e-2, warmup_steps=2, weight_decay=0.0, clip=1.0, seed=0, eval_every=12,
        early_stop=None,
    )  # fmt: skip
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state = Trainer(trainable, learnt, config, scratch=folder / "scratch").run(Updates())
    out = folder / "out"
    if lora:
        model.save_pretrained(out / "adapter")
        path = out / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": start.digest}))
        model = model.merge_and_unload()
    model.save_pretrained(out)
    save_tokenizer(loaded.tokenizer, out)
    facts = {"tokens_seen": state.tokens, "trained_cells": trained_cells(examples)}
    facts |= learnt.facts(state.step) if meta else {"objective": "sft"}
    return with_manifest(artifact(out, "model"), facts=facts, made_by={"inputs": {"model": start.digest}})


def with_manifest(found: Artifact, **changes: Any) -> Artifact:
    return replace(found, manifest={**found.manifest, **changes})


@pytest.fixture(scope="module")
def inputs(data: Artifact, blank: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("few-shot")
    return {
        "model": train(data, blank, folder / "model", meta=True),
        "control": train(data, blank, folder / "control", meta=False),
        "data": data,
    }


def measured(
    inputs: dict[str, Artifact], folder: Path, **changes: Any
) -> tuple[StageResult, list[dict[str, Any]]]:
    settings = SETTINGS.model_copy(update={"allow_unequal": True, **changes})
    result, found = run_stage(FEW_SHOT, settings, folder, inputs)
    lines = found.file("episodes.jsonl").read_text().splitlines()
    assert json.loads(found.file("results.json").read_text()) == result.facts
    return result, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def result(
    inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageResult, list[dict[str, Any]]]:
    return measured(inputs, tmp_path_factory.mktemp("few-shot") / "first")


def test_the_gain_is_what_the_episodes_say(result: tuple[StageResult, list[dict[str, Any]]]) -> None:
    facts, episodes = result[0].facts, result[1]
    assert result[0].kind == "file"
    means = {role: np.mean([row[role] for row in episodes]) for role in ("model", "control")}
    found = facts["metrics"]["few_shot_gain"]
    assert found["value"] == pytest.approx(means["model"] / means["control"] - 1, abs=1e-5)
    assert found["lower"] <= found["value"] <= found["upper"]
    assert (found["n"], found["alpha"]) == (12, 0.05)
    assert facts["metrics"]["meta_iterations"] == 12
    assert facts["metrics"]["meta_tasks"] == 20
    assert facts["scores"]["control"]["after"] == pytest.approx(means["control"], abs=1e-5)
    before = np.mean([row["model_before"] for row in episodes])
    assert facts["scores"]["model"]["before"] == pytest.approx(before, abs=1e-5)
    # Two steps of descent on two rows of the same form help.
    assert facts["scores"]["model"]["after"] > facts["scores"]["model"]["before"]


def test_episodes_hold_unseen_families_alone(result: tuple[StageResult, list[dict[str, Any]]]) -> None:
    for row in result[1]:
        domain, level = row["family"].split("/")
        assert row["family"] in FAMILIES.held_out
        assert all(each.startswith(f"{domain}_{level}") for each in (*row["support"], *row["query"]))
        assert not set(row["support"]) & set(row["query"])
    assert set(result[0].facts["families"]) == set(FAMILIES.held_out)


def test_two_runs_give_the_same_bytes(
    inputs: dict[str, Artifact], result: tuple[StageResult, list[dict[str, Any]]], tmp_path: Path
) -> None:
    again = measured(inputs, tmp_path / "again")
    assert again[0].facts == result[0].facts
    assert again[1] == result[1]


class Killed(BaseException):
    """Stands for a kill: no handler of the stage may catch it."""


def test_a_killed_run_goes_on_where_it_was(
    inputs: dict[str, Artifact],
    result: tuple[StageResult, list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.meta.learner import Learner

    adapted, done = Learner.adapted, []

    def dying(self: Learner, *args: Any) -> Any:
        if len(done) == 15:
            done.append("killed")
            raise Killed
        done.append("adapted")
        return adapted(self, *args)

    monkeypatch.setattr(Learner, "adapted", dying)
    with pytest.raises(Killed):
        measured(inputs, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "out")
    again = measured(inputs, tmp_path / "run")
    assert again[0].facts == result[0].facts
    # 12 episodes for each of the two models, none twice.
    assert done.count("adapted") == 24


def test_answers_are_checked_by_the_micro_domains(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    facts, episodes = measured(inputs, tmp_path / "run", score="answers", episodes=4, max_tokens=6)
    assert {score for row in episodes for score in (*row["model"], *row["control_before"])} <= {0.0, 1.0}
    scores = facts.facts["scores"]
    if not scores["control"]["after"]:
        # Models this small get nothing right; then there is no share to speak of.
        assert "few_shot_gain" not in facts.facts["metrics"]
        assert "scores 0" in facts.facts["unmeasured"]["few_shot_gain"]


def test_a_model_that_knows_answers_gets_full_marks(data: Artifact, blank: Artifact) -> None:
    """The scorer on answers whose score is known: a row learnt by heart, and the same one never seen."""
    from pipeline.meta.learner import Learner, Row

    learner = Learner(blank.path, None, dtype="fp32", device="cpu", head_alone=False)
    encode = learner.encoder(include_reasoning=False).encode
    rows = [
        Row(row, encode(row)) for row in read_examples(training_file(data)) if row.domain == "common_sense"
    ][:1]
    learnt = learner.adapted(rows, 120, 0.5)
    assert learner.scores(learnt, rows, "answers", 12) == [1.0]
    assert learner.scores(learner.own, rows, "answers", 12) == [0.0]
    assert learner.scores(learnt, rows, "probability", 12)[0] > 0.9
    assert learner.scores(learner.own, rows, "probability", 12)[0] < 0.1
    # Scoring leaves the model as it was.
    assert learner.scores(learnt, rows, "answers", 12) == [1.0]


def test_each_model_takes_the_rate_that_suits_it(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.meta.episodes._TUNING_EPISODES", 5)
    result, episodes = measured(
        inputs, tmp_path / "run", support=1, query=1, learning_rates=(1e-6, 0.1, 1e4), episodes=6
    )
    assert set(result.facts["learning_rates"].values()) == {0.1}
    assert len(episodes) == 6


def test_adapters_adapt_on_their_base(data: Artifact, blank: Artifact, tmp_path: Path) -> None:
    pair = {
        role: train(data, blank, tmp_path / role, meta=role == "model", lora=True)
        for role in ("model", "control")
    }
    inputs = {**pair, "data": data}
    with pytest.raises(UsageError, match="give the input base"):
        measured(inputs, tmp_path / "without")
    result, _ = measured({**inputs, "base": blank}, tmp_path / "with", episodes=3)
    assert result.facts["scores"]["model"]["after"] > 0
    other = with_manifest(blank)
    with pytest.raises(RunError, match="not on the input base"):
        measured({**inputs, "base": replace(other, digest="sha256:other")}, tmp_path / "other")


# What is refused ------------------------------------------------------------------------------------


def facts_of(role: str, **facts: Any) -> Callable[[dict[str, Artifact]], dict[str, Artifact]]:
    def change(inputs: dict[str, Artifact]) -> dict[str, Artifact]:
        changed = {**inputs[role].facts, **facts}
        kept = {name: value for name, value in changed.items() if value is not None}
        return {**inputs, role: with_manifest(inputs[role], facts=kept)}

    return change


def other_start(inputs: dict[str, Artifact]) -> dict[str, Artifact]:
    made_by = {"inputs": {"model": "sha256:another"}}
    return {**inputs, "control": with_manifest(inputs["control"], made_by=made_by)}


@pytest.mark.parametrize(
    ("change", "error", "wanted"),
    [
        (facts_of("model", objective="sft"), UsageError, "was not meta-trained"),
        (other_start, UsageError, "not trained from the same start"),
        (facts_of("control", trained_cells=None), RunError, "does not say what it was trained on"),
        (
            facts_of("control", trained_cells=["coding/easy", "math/easy"]),
            UsageError,
            "input control was trained on math/easy, which must be unseen",
        ),
        (lambda inputs: {**inputs, "base": inputs["model"]}, UsageError, "leave the input base out"),
    ],
)
def test_an_unfair_comparison_is_refused(
    inputs: dict[str, Artifact],
    tmp_path: Path,
    change: Callable[[dict[str, Artifact]], dict[str, Artifact]],
    error: type[CogumiError],
    wanted: str,
) -> None:
    with pytest.raises(error, match=wanted):
        measured(change(inputs), tmp_path / "run")


def test_unequal_compute_is_refused_or_told(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    unequal = facts_of("control", tokens_seen=1000)(facts_of("model", tokens_seen=1200)(inputs))
    wanted = (
        r"no equal compute: the model saw 20% more tokens, 1,200 against 1,000; change the control's steps"
    )
    with pytest.raises(UsageError, match=wanted):
        run_stage(FEW_SHOT, SETTINGS, tmp_path / "refused", unequal)
    told = measured(unequal, tmp_path / "told", episodes=2)[0].facts["metrics"]["few_shot_gain"]["note"]
    assert told.endswith("the model saw 20% more tokens, 1,200 against 1,000")
    near = facts_of("control", tokens_seen=1000)(facts_of("model", tokens_seen=1049)(inputs))
    note = measured(near, tmp_path / "near", episodes=2, allow_unequal=False)[0].facts["metrics"]
    assert "more tokens" not in note["few_shot_gain"]["note"]


def test_data_without_a_check_has_no_checked_answers(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in training_file(inputs["data"]).read_text().splitlines()]
    for row in rows:
        row["question"] = f"Whatever, {row['question']}"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = {**inputs, "data": artifact(tmp_path / "data", "dataset")}
    with pytest.raises(UsageError, match="no micro-domain question; set score: probability"):
        measured(other, tmp_path / "run", score="answers")


@pytest.mark.parametrize("bad", [{"families": FamilySettings()}, {"learning_rates": (0.0,)}])
def test_settings_that_ask_for_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FewShotSettings(**{"families": FAMILIES, "learning_rates": (0.1,), **bad})


# The interval, and the gate -------------------------------------------------------------------------


def test_the_interval_holds_the_true_gain_and_narrows() -> None:
    rng = np.random.default_rng(0)
    missed, widths = 0, {}
    for run in range(60):
        for n in (100, 800):
            ease = rng.uniform(0.3, 0.9, n)
            control = rng.binomial(8, ease) / 8
            # The true mean is 1.05 times as high.
            model = rng.binomial(8, ease * 1.05) / 8
            found = paired_gain(list(model), list(control), 0.05)
            assert found is not None
            assert found.upper is not None
            missed += not found.lower <= 0.05 <= found.upper
            widths[n, run] = found.upper - found.lower
    assert missed <= 6
    assert np.mean([w for (n, _), w in widths.items() if n == 800]) < 0.12
    assert all(widths[800, run] < widths[100, run] for run in range(60))


def test_gains_at_the_edges() -> None:
    assert paired_gain([0.5, 1.0], [0.0, 0.0], 0.05) is None
    lost = paired_gain([0.0] * 400, [0.5] * 400, 0.05)
    assert lost is not None
    assert (lost.value, lost.lower) == (-1.0, -1.0)
    assert lost.upper is not None
    assert lost.upper < -0.9
    single = paired_gain([1.0], [0.5], 0.05)
    assert single is not None
    assert (single.value, single.upper) == (1.0, None)


def verdicts(facts: dict[str, Any], workspace: Workspace) -> dict[str, Any]:
    """Put measurements into the store as the runner does and ask the plan's gate of them."""
    staging = workspace.store.new_staging()
    (staging / "payload" / "results.json").write_text(json.dumps(facts))
    stored = workspace.store.commit(staging, kind="file", made_by={}, facts=facts, created="")
    service = GateService(Measurer(workspace, None), load_profile("rehearsal"), run=None)
    verdict = service.verdict("phase6", judged(stored, "few_shot"), None)
    return {each["id"]: each for each in verdict.to_json()["criteria"]} | {
        "": {"verdict": str(verdict.to_json()["verdict"])}
    }


def test_the_gate_judges_what_the_stage_measured(
    result: tuple[StageResult, list[dict[str, Any]]], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    facts = dict(result[0].facts)
    found = verdicts(facts, workspace)
    gain = facts["metrics"]["few_shot_gain"]
    assert (found["few_shot"]["value"], found["few_shot"]["n_used"]) == (gain["value"], 12)
    assert (found["few_shot"]["lower"], found["few_shot"]["upper"]) == (gain["lower"], gain["upper"])
    assert "3 unseen families" in found["few_shot"]["note"]
    assert (found["iterations"]["verdict"], found["iterations"]["value"]) == ("FAIL", 12)
    assert (found["meta_tasks"]["verdict"], found[""]["verdict"]) == ("FAIL", "FAIL")

    def asked(gain: dict[str, Any], **others: Any) -> dict[str, Any]:
        counts = {"meta_tasks": 10_000, "meta_iterations": 15_000}
        return verdicts({"metrics": {"few_shot_gain": gain, **counts, **others}}, workspace)

    narrow = {"value": 0.12, "lower": 0.11, "upper": 0.13, "n": 900, "alpha": 0.05, "note": "by answers"}
    assert asked(narrow)[""]["verdict"] == "PASS"
    assert asked({**narrow, "lower": 0.09})[""]["verdict"] == "UNDECIDED"
    assert asked({**narrow, "value": 0.03, "lower": 0.01, "upper": 0.05})["few_shot"]["verdict"] == "FAIL"
    assert asked({**narrow, "lower": 0.09, "upper": None})["few_shot"]["verdict"] == "UNDECIDED"


def test_nothing_measured_is_undecided_with_its_reason(tmp_path: Path) -> None:
    counts = {"meta_tasks": 10_000, "meta_iterations": 15_000}
    facts = {"metrics": counts, "unmeasured": {"few_shot_gain": "the control scores 0"}}
    found = verdicts(facts, Workspace(tmp_path / "workspace"))
    assert found["few_shot"]["verdict"] == found[""]["verdict"] == "UNDECIDED"
    assert found["few_shot"]["note"] == "not measured: the control scores 0"
    assert found["iterations"]["verdict"] == "PASS"
