from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from micro_stages import Updates, artifact, micro_data, run_stage
from pydantic import ValidationError

from cogumi.digest import file_sha256
from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact
from pipeline.training.chat import ChatEncoder
from pipeline.training.data import (
    Example,
    is_held_out,
    read_examples,
    training_file,
)
from pipeline.training.distill import DistillSettings
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings
from pipeline.training.sft import SFT, LoraSettings, SftSettings

TINY = MicroModelSettings(hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=64, vocab_size=400)
SHORT = SftSettings(
    steps=12, batch_tokens=256, micro_batch_tokens=128, learning_rate=3e-3, held_out_share=0.1, eval_every=4
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return micro_data(tmp_path_factory.mktemp("training") / "data", per_cell=12)


@pytest.fixture(scope="module")
def model(data: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run_stage(MICRO_MODEL, TINY, tmp_path_factory.mktemp("training") / "model", {"data": data})[1]


@pytest.fixture(scope="module")
def trained(
    data: Artifact, model: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Artifact]:
    folder = tmp_path_factory.mktemp("training") / "trained"
    return run_stage(SFT, SHORT, folder, {"model": model, "data": data})


def weights(found: Artifact) -> str:
    return file_sha256(found.file("model.safetensors"))


def test_micro_model_is_the_same_again_and_another_with_another_seed(
    data: Artifact, model: Artifact, tmp_path: Path
) -> None:
    again = run_stage(MICRO_MODEL, TINY, tmp_path / "again", {"data": data})[1]
    other = TINY.model_copy(update={"seed_offset": 1})
    result, apart = run_stage(MICRO_MODEL, other, tmp_path / "other", {"data": data})
    assert again.digest == model.digest
    assert weights(apart) != weights(model)
    assert result.facts["vocab_size"] == 400
    assert "tokenizer.json" in apart.manifest["files"]


def test_draft_shares_the_tokenizer_of_its_base(data: Artifact, model: Artifact, tmp_path: Path) -> None:
    settings = TINY.model_copy(update={"layers": 1, "vocab_size": 999})
    inputs = {"data": data, "tokenizer_from": model}
    draft = run_stage(MICRO_MODEL, settings, tmp_path / "draft", inputs)[1]
    assert file_sha256(draft.file("tokenizer.json")) == file_sha256(model.file("tokenizer.json"))
    assert json.loads(draft.file("config.json").read_text())["vocab_size"] == 400
    # Neither says how it was loaded: the same files whatever the environment and the folder were.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert file_sha256(draft.file(name)) == file_sha256(model.file(name))
    assert not {"is_local", "local_files_only"} & set(
        json.loads(draft.file("tokenizer_config.json").read_text())
    )


@pytest.mark.parametrize("bad", [{"hidden_size": 100, "heads": 3}, {"heads": 4, "kv_heads": 3}])
def test_impossible_shape_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        MicroModelSettings(**bad)


def test_training_learns_and_says_what_it_saw(trained: tuple[Any, Artifact]) -> None:
    facts = trained[0].facts
    assert facts["last_train_loss"] < facts["first_train_loss"]
    assert [look["step"] for look in facts["looks"]] == [0, 4, 8, 12]
    assert facts["looks"][-1]["held_out_loss"] < facts["looks"][0]["held_out_loss"]
    assert 0.1 < facts["supervised_share"] < 0.6
    assert facts["padding_share"] == 0
    assert facts["too_long_rows"] == 0
    assert facts["rows"] + facts["held_out_rows"] == 8 * 2 * 12
    assert facts["trainable_parameters"] == facts["parameters"]
    assert {"seconds", "tokens_per_second"} <= set(trained[0].metrics)


def test_two_runs_give_the_same_bytes(
    data: Artifact, model: Artifact, trained: tuple[Any, Artifact], tmp_path: Path
) -> None:
    again = run_stage(SFT, SHORT, tmp_path / "again", {"model": model, "data": data})
    assert again[1].digest == trained[1].digest
    assert again[0].facts == trained[0].facts


class Killed(BaseException):
    """Stands for a kill: no handler of the stage may catch it."""


@pytest.mark.parametrize("when", [6, 8])
def test_resume_gives_the_bytes_of_an_undisturbed_run(
    data: Artifact,
    model: Artifact,
    trained: tuple[Any, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: int,
) -> None:
    from pipeline.training.loop import LoopState, Trainer

    step = Trainer._step
    done: list[int] = []
    deaths: list[int] = []

    def dying_step(self: Trainer, state: LoopState, batches: Any) -> None:
        if state.step == when and not deaths:
            deaths.append(when)
            raise Killed
        step(self, state, batches)
        done.append(state.step)

    monkeypatch.setattr(Trainer, "_step", dying_step)
    with pytest.raises(Killed):
        run_stage(SFT, SHORT, tmp_path / "run", {"model": model, "data": data})
    assert (tmp_path / "run" / "scratch").is_dir()
    (tmp_path / "run" / "out").rmdir()
    result, resumed = run_stage(SFT, SHORT, tmp_path / "run", {"model": model, "data": data})
    assert weights(resumed) == weights(trained[1])
    assert result.facts == trained[0].facts
    # Steps before the last checkpoint (every 4) are not done again.
    assert done == [*range(1, when + 1), *range(when // 4 * 4 + 1, 13)]


def test_broken_checkpoint_is_an_error_and_not_a_fresh_start(
    data: Artifact, model: Artifact, tmp_path: Path
) -> None:
    step = tmp_path / "run" / "scratch" / "step-00000004"
    step.mkdir(parents=True)
    (step / "weights.safetensors").write_bytes(b"cut")
    with pytest.raises(RunError, match="checkpoint unreadable"):
        run_stage(SFT, SHORT, tmp_path / "run", {"model": model, "data": data})


def test_early_stop_keeps_the_best_look(data: Artifact, model: Artifact, tmp_path: Path) -> None:
    # A rate this high makes the held-out loss rise after the first looks.
    settings = SHORT.model_copy(
        update={"steps": 60, "learning_rate": 0.1, "eval_every": 3, "early_stop": 2, "warmup": 0.5}
    )
    facts = run_stage(SFT, settings, tmp_path / "run", {"model": model, "data": data})[0].facts
    losses = [look["held_out_loss"] for look in facts["looks"]]
    assert facts["stopped_early"]
    assert losses.index(min(losses)) == len(losses) - 3


def test_lora_trains_adapters_alone_and_merges_them(data: Artifact, model: Artifact, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    from evals.backends.loading import load_model

    lora = LoraSettings(rank=4, alpha=8)
    settings = SHORT.model_copy(update={"method": "lora", "lora": lora})
    result, merged = run_stage(SFT, settings, tmp_path / "lora", {"model": model, "data": data})
    assert 0 < result.facts["trainable_parameters"] < result.facts["parameters"]
    config = json.loads(merged.file("adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model.digest
    base = load_model(model.path)
    ids = torch.tensor([base.tokenizer("What is 7 plus 5?").input_ids])
    with torch.inference_mode():
        dense = load_model(merged.path).model(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(base.model, merged.path / "adapter")(input_ids=ids).logits
    assert torch.allclose(dense, adapted, atol=1e-4)
    again = run_stage(SFT, settings, tmp_path / "again", {"model": model, "data": data})[1]
    assert again.digest == merged.digest


def test_diverging_training_stops_with_one_line(data: Artifact, model: Artifact, tmp_path: Path) -> None:
    settings = SHORT.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(RunError, match=r"training diverged: (loss|gradient norm) is \w+ at step \d+"):
        run_stage(SFT, settings, tmp_path / "run", {"model": model, "data": data})


def test_progress_tells_loss_and_rate(data: Artifact, model: Artifact, tmp_path: Path) -> None:
    updates = Updates()
    run_stage(SFT, SHORT, tmp_path / "run", {"model": model, "data": data}, progress=updates)
    done, total, facts = updates.seen[-1]
    assert (done, total) == (12, 12)
    assert set(facts) >= {"loss", "held_out_loss", "lr", "tok_s"}


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"steps": 1, "epochs": 1.0},
        {"steps": 1, "method": "lora"},
        {"steps": 1, "lora": {}},
        {"steps": 1, "early_stop": 2, "held_out_share": 0.0},
    ],
)
def test_contradictory_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SftSettings(learning_rate=1e-3, **bad)


def test_only_the_answer_and_its_end_are_supervised(model: Artifact) -> None:
    from evals.backends.loading import load_model

    loaded = load_model(model.path)
    encoder = ChatEncoder(loaded.tokenizer, loaded.stop_ids, include_reasoning=True)
    plain = encoder.encode(Example("a", "math", "What is 7 plus 5?", "12", None))
    decode = loaded.tokenizer.decode
    assert (
        decode(plain.ids[: plain.answer_start]) == "<|begin_of_text|><|user|>What is 7 plus 5?<|assistant|>"
    )
    assert decode(plain.ids[plain.answer_start :]) == "12<|eot_id|>"
    reasoned = encoder.encode(Example("a", "math", "What is 7 plus 5?", "12", "7 + 5 = 12"))
    assert decode(reasoned.ids[reasoned.answer_start :]) == (
        "<thinking>7 + 5 = 12</thinking><answer>12</answer><|eot_id|>"
    )


def test_rows_longer_than_the_context_are_left_out_and_counted(
    data: Artifact, model: Artifact, tmp_path: Path
) -> None:
    settings = SHORT.model_copy(update={"max_length": 60})
    facts = run_stage(SFT, settings, tmp_path / "run", {"model": model, "data": data})[0].facts
    assert 0 < facts["too_long_rows"] < facts["rows"]
    assert facts["rows"] + facts["held_out_rows"] + facts["too_long_rows"] == 8 * 2 * 12
    with pytest.raises(RunError, match="no rows to train on: 192 of 192 exceed 3 tokens"):
        run_stage(
            SFT,
            SHORT.model_copy(update={"max_length": 3}),
            tmp_path / "none",
            {"model": model, "data": data},
        )


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON object wanted"),
        ('{"question_id": "a", "domain": "math", "question": "?"}', "'answer' must be a text"),
        ('{"question_id": "a", "domain": "math", "question": "", "answer": "1"}', "'question' must be"),
        (
            '{"question_id": "a", "domain": "m", "question": "?", "answer": "1", "reasoning": 3}',
            "'reasoning'",
        ),
    ],
)
def test_broken_row_is_named_by_file_and_line(tmp_path: Path, line: str, wanted: str) -> None:
    good = json.dumps(
        {"question_id": "a", "domain": "math", "question": "?", "answer": "1", "reasoning": None}
    )
    path = tmp_path / "training.jsonl"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(RunError, match=rf"training.jsonl:2: .*{wanted}"):
        read_examples(path)


def test_files_that_hold_no_training_rows_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(RunError, match="no rows"):
        read_examples(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="not UTF-8"):
        read_examples(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(RunError, match="found 2"):
        training_file(artifact(tmp_path, "dataset"))


def test_held_out_split_follows_the_id_alone() -> None:
    share = sum(is_held_out(f"math_easy_{number:04d}", 0.1) for number in range(5000)) / 5000
    assert 0.08 < share < 0.12
    assert not any(is_held_out(f"{number}", 0.0) for number in range(100))


LEARN = {"tasks": 20, "tasks_per_step": 2, "support": 2, "query": 2, "inner_learning_rate": 0.05}
UNSEEN = {"by": "cell", "held_out": ["instruction/easy", "instruction/hard"]}


def test_a_student_learns_from_the_logits_of_a_teacher(
    data: Artifact, model: Artifact, trained: tuple[Any, Artifact], tmp_path: Path
) -> None:
    settings = SftSettings(**{**SHORT.model_dump(exclude={"distill"}), "distill": {"weight": 0.9}})
    inputs = {"model": model, "data": data, "teacher": trained[1]}
    result, student = run_stage(SFT, settings, tmp_path / "distilled", inputs)
    assert weights(student) != weights(trained[1])
    # Looks stay the cross-entropy of held-out answers: the first is that of the same untrained model.
    assert result.facts["looks"][0] == trained[0].facts["looks"][0]
    assert result.facts["looks"][-1]["held_out_loss"] < result.facts["looks"][0]["held_out_loss"]


def test_a_teacher_with_another_tokenizer_is_refused(data: Artifact, model: Artifact, tmp_path: Path) -> None:
    other = TINY.model_copy(update={"vocab_size": 420})
    teacher = run_stage(MICRO_MODEL, other, tmp_path / "other", {"data": data})[1]
    settings = SHORT.model_copy(update={"distill": DistillSettings()})
    with pytest.raises(RunError, match=r"tokenizer is not the student's; leave `distill`"):
        run_stage(SFT, settings, tmp_path / "run", {"model": model, "data": data, "teacher": teacher})
    with pytest.raises(UsageError, match="'teacher' goes with the block 'distill'"):
        run_stage(SFT, SHORT, tmp_path / "alone", {"model": model, "data": data, "teacher": teacher})


def test_meta_learning_and_its_control_through_the_stage(
    data: Artifact, model: Artifact, tmp_path: Path
) -> None:
    common = SHORT.model_dump(exclude={"objective", "meta", "steps", "exclude_families"})
    meta = SftSettings(**common, steps=4, objective="fomaml", meta=LEARN | {"families": UNSEEN})
    result, learnt = run_stage(SFT, meta, tmp_path / "meta", {"model": model, "data": data})
    assert result.facts["objective"] == "fomaml"
    assert (result.facts["meta_iterations"], result.facts["meta_tasks"]) == (4, 8)
    assert "instruction/easy" not in result.facts["trained_cells"]
    assert len(result.facts["trained_cells"]) == 14
    again = run_stage(SFT, meta, tmp_path / "again", {"model": model, "data": data})[1]
    assert again.digest == learnt.digest
    control = SftSettings(**common | {"equal_compute": True}, exclude_families=UNSEEN)
    inputs = {"model": model, "data": data, "compute_of": learnt}
    facts = run_stage(SFT, control, tmp_path / "control", inputs)[0].facts
    assert facts["tokens_seen"] == pytest.approx(result.facts["tokens_seen"], rel=0.15)
    assert facts["trained_cells"] == result.facts["trained_cells"]
    with pytest.raises(UsageError, match="'compute_of' goes with equal_compute"):
        run_stage(SFT, SHORT, tmp_path / "loose", inputs)


def test_out_of_memory_says_what_to_change(
    data: Artifact, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from pipeline.training.answer_loss import AnswerLoss

    def too_much(self: AnswerLoss, batch: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr(AnswerLoss, "forward", too_much)
    with pytest.raises(RunError, match=r"out of memory on cpu while training: lower micro_batch_tokens"):
        run_stage(SFT, SHORT, tmp_path / "run", {"model": model, "data": data})


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"objective": "maml"}, "block 'meta' goes with"),
        ({"meta": LEARN}, "block 'meta' goes with"),
        ({"steps": None, "epochs": 1.0, "objective": "anil", "meta": LEARN}, "set steps, its iterations"),
        ({"objective": "fomaml", "meta": LEARN, "exclude_families": UNSEEN}, "drop exclude_families"),
        ({"objective": "reptile", "meta": LEARN, "distill": {}}, "distill goes with objective: sft"),
        ({"equal_compute": True}, "exactly one of steps, epochs and equal_compute"),
    ],
)
def test_contradictions_between_objectives_are_refused(bad: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        SftSettings(**{"learning_rate": 1e-3, "steps": 2} | bad)
