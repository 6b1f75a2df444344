"""Which layers are left out: scores against their definitions, and the cuts that they lead to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_stages import Updates, artifact, micro_data, run_stage

from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact
from evals.backends.loading import load_model
from pipeline.compression import influence
from pipeline.compression.calibration_rows import calibration_answers
from pipeline.compression.influence import block_influence, losses_without, span_distances
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.depth_cut import DEPTH_CUT, DepthCutSettings
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings
from pipeline.training.packing import PackedBatch, filled, pack

DEPTH = 5
SHAPE = MicroModelSettings(
    hidden_size=64, layers=DEPTH, heads=2, kv_heads=1, intermediate_size=64, vocab_size=400
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return micro_data(tmp_path_factory.mktemp("influence") / "data", per_cell=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Artifact) -> Artifact:
    return run_stage(MICRO_MODEL, SHAPE, tmp_path_factory.mktemp("model"), {"data": data})[1]


def with_idle_layers(model: Artifact, folder: Path, *layers: int) -> Artifact:
    """A copy whose ``layers`` add nothing to what goes through them."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model.path, folder)
    tensors = load_file(folder / "model.safetensors")
    for layer in layers:
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"model.layers.{layer}.{name}.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return artifact(folder, "model")


def looked_at(model: Artifact, data: Artifact) -> tuple[AnswerLoss, list[PackedBatch], Any]:
    rows = calibration_answers(data, model.path, samples=12, max_length=80, seed=7)
    loss = AnswerLoss(load_model(model.path).model)
    # Several batches, so that nothing of one is left in the next.
    return loss, [pack(part, torch.device("cpu")) for part in filled(rows, 200)], rows


def hidden_states(model: Artifact, rows: Any) -> list[list[torch.Tensor]]:
    """Row by row, through transformers' own attention; the last entry is behind the final norm."""
    plain = load_model(model.path).model
    with torch.inference_mode():
        found = [plain(torch.tensor([row.ids]), output_hidden_states=True).hidden_states for row in rows]
    return [[state[0].double() for state in states] for states in found]


def test_scores_are_what_the_papers_define(model: Artifact, data: Artifact) -> None:
    loss, batches, rows = looked_at(model, data)
    assert len(batches) > 1
    states = hidden_states(model, rows)
    cosine = torch.nn.functional.cosine_similarity
    found = block_influence(loss, batches)
    for layer in range(DEPTH - 1):
        cosines = torch.cat([cosine(row[layer], row[layer + 1], dim=1) for row in states])
        assert found[layer] == pytest.approx(float(1 - cosines.mean()), abs=1e-6)
    spans = span_distances(loss, batches, 2)
    assert len(found) == DEPTH
    assert len(spans) == DEPTH - 1
    for layer in range(DEPTH - 2):
        angles = torch.cat([cosine(row[layer], row[layer + 2], dim=1).arccos() for row in states])
        assert spans[layer] == pytest.approx(float(angles.mean() / torch.pi), abs=1e-5)


def test_a_layer_left_out_in_memory_is_a_layer_cut_from_the_file(
    model: Artifact, data: Artifact, tmp_path: Path
) -> None:
    loss, batches, _ = looked_at(model, data)
    losses = losses_without(loss, batches)
    assert len(loss.base.model.layers) == DEPTH
    assert len(set(losses)) == DEPTH
    for layer in (0, 2, DEPTH - 1):
        keep = tuple(sorted(set(range(DEPTH)) - {layer}))
        cut = run_stage(DEPTH_CUT, DepthCutSettings(keep=keep), tmp_path / str(layer), {"model": model})[1]
        wanted = influence.answer_loss(AnswerLoss(load_model(cut.path).model), batches)
        assert losses[layer] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("choice", ["influence", "span"])
def test_layers_that_do_nothing_are_those_that_go(
    model: Artifact, data: Artifact, tmp_path: Path, choice: Any
) -> None:
    source = with_idle_layers(model, tmp_path / "source", 1, 2)
    settings = DepthCutSettings(layers=3, choice=choice, samples=12, max_length=80)
    inputs = {"model": source, "data": data}
    result, cut = run_stage(DEPTH_CUT, settings, tmp_path / "a", inputs)
    facts = dict(result.facts)
    assert (facts["kept"], facts["choice"], facts["calibration_rows"]) == ([0, 3, 4], choice, 12)
    ids = torch.arange(5, 40).unsqueeze(0)
    with torch.inference_mode():
        whole, less = (load_model(folder).model(ids).logits for folder in (source.path, cut.path))
    assert torch.equal(whole, less)
    again = run_stage(DEPTH_CUT, settings, tmp_path / "b", inputs)
    assert (dict(again[0].facts), again[1].digest) == (facts, cut.digest)
    if choice == "influence":
        assert facts["influence"][1:3] == [0.0, 0.0]
        assert min(facts["influence"][place] for place in (0, 3, 4)) > 0
    else:
        assert facts["span_distances"].index(0.0) == 1
        assert len(facts["span_distances"]) == 4


class KilledAfter(Updates):
    def __init__(self, removals: int) -> None:
        super().__init__()
        self.removals = removals

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        super().update(done, total, **facts)
        if done == self.removals:
            raise KeyboardInterrupt


def test_a_greedy_choice_takes_the_best_of_all_each_time_and_goes_on_after_a_kill(
    model: Artifact, data: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DepthCutSettings(layers=2, choice="greedy", samples=12, max_length=80)
    inputs = {"model": model, "data": data}
    whole, cut = run_stage(DEPTH_CUT, settings, tmp_path / "whole", inputs)
    left_out = whole.facts["left_out"]
    loss, batches, _ = looked_at(model, data)
    before = losses_without(loss, batches)
    assert left_out[0]["layer"] == before.index(min(before))
    assert left_out[0]["answer_loss"] == pytest.approx(min(before), abs=1e-6)
    assert sorted([entry["layer"] for entry in left_out] + list(whole.facts["kept"])) == list(range(DEPTH))
    last = influence.answer_loss(AnswerLoss(load_model(cut.path).model), batches)
    assert left_out[2]["answer_loss"] == pytest.approx(last, abs=1e-6)
    with pytest.raises(KeyboardInterrupt):
        run_stage(DEPTH_CUT, settings, tmp_path / "killed", inputs, progress=KilledAfter(2))
    (tmp_path / "killed" / "out").rmdir()
    measured: list[int] = []

    def counted(loss: AnswerLoss, batches: list[PackedBatch]) -> list[float]:
        found = losses_without(loss, batches)
        measured.append(len(found))
        return found

    monkeypatch.setattr(influence, "losses_without", counted)
    resumed, same = run_stage(DEPTH_CUT, settings, tmp_path / "killed", inputs)
    assert measured == [3]
    assert (dict(resumed.facts), same.digest) == (dict(whole.facts), cut.digest)


def test_what_cannot_be_measured_is_said_in_one_line(model: Artifact, data: Artifact, tmp_path: Path) -> None:
    both = {"model": model, "data": data}
    greedy = DepthCutSettings(layers=3, choice="greedy")
    cases: list[tuple[DepthCutSettings, dict[str, Artifact], type[Exception], str]] = [
        (greedy, {"model": model}, UsageError, "input 'data' goes with a choice that measures"),
        (DepthCutSettings(layers=3), both, UsageError, "input 'data' goes with"),
        (DepthCutSettings(layers=9, choice="span"), both, UsageError, "layers: 9 of 5 layers are no cut"),
        (DepthCutSettings(layers=3, choice="span", samples=900), both, RunError, "data too short: .* 900"),
        (
            DepthCutSettings(layers=3, choice="greedy", samples=4, max_length=2),
            both,
            RunError,
            "data too short: 0 answer tokens",
        ),
    ]
    for number, (settings, inputs, kind, wanted) in enumerate(cases):
        with pytest.raises(kind, match=wanted):
            run_stage(DEPTH_CUT, settings, tmp_path / str(number), inputs)
        assert list((tmp_path / str(number) / "out").iterdir()) == []


def test_a_mixture_of_experts_is_refused(model: Artifact, data: Artifact, tmp_path: Path) -> None:
    shutil.copytree(model.path, tmp_path / "experts")
    config = json.loads(model.file("config.json").read_text())
    (tmp_path / "experts" / "config.json").write_text(json.dumps({**config, "num_local_experts": 8}))
    experts = artifact(tmp_path / "experts", "model")
    with pytest.raises(RunError, match=r"config\.json: num_local_experts is set; a mixture of experts"):
        run_stage(
            DEPTH_CUT,
            DepthCutSettings(layers=3, choice="influence"),
            tmp_path / "cut",
            {"model": experts, "data": data},
        )


@pytest.mark.parametrize("choice", ["influence", "span", "greedy"])
def test_a_broken_model_chooses_nothing(model: Artifact, data: Artifact, tmp_path: Path, choice: Any) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model.path, tmp_path / "broken")
    held = load_file(tmp_path / "broken" / "model.safetensors")
    held["model.layers.2.mlp.down_proj.weight"][0] = float("nan")
    save_file(held, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    settings = DepthCutSettings(layers=3, choice=choice, samples=4, max_length=80)
    with pytest.raises(RunError, match="not finite"):
        run_stage(
            DEPTH_CUT,
            settings,
            tmp_path / "cut",
            {"model": artifact(tmp_path / "broken", "model"), "data": data},
        )
