"""The base's own answers, and what it accepts of a draft: on small models that were trained for a moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_stages import Updates, artifact, micro_data, run_stage

from cogumi.errors import RunError
from cogumi.stage import Settings, Stage
from cogumi.store import Artifact
from pipeline.training import decoding
from pipeline.training.acceptance import ACCEPTANCE, AcceptanceSettings
from pipeline.training.answer_loss import AnswerLoss
from pipeline.training.chat import ChatEncoder
from pipeline.training.data import is_held_out, read_examples, training_file
from pipeline.training.decoding import Journal
from pipeline.training.depth_cut import DEPTH_CUT, DepthCutSettings
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings
from pipeline.training.packing import pack
from pipeline.training.self_answers import OUTPUT, SELF_ANSWERS, SelfAnswersSettings

SHAPE = MicroModelSettings(
    hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=64, vocab_size=500, context=160
)
ANSWERS = SelfAnswersSettings(max_tokens=40, batch_size=8)
HALF = AcceptanceSettings(held_out_share=0.5, max_tokens=40, batch_size=8)
Found = dict[str, Artifact]


def train(folder: Path, out: Path, data: Artifact, steps: int) -> Artifact:
    """Save the model of ``folder`` after some steps on every row of ``data``."""
    from evals.backends.loading import load_model, quiet_transformers
    from evals.backends.tokenization import save_tokenizer

    loaded = load_model(folder)
    encoder = ChatEncoder(loaded.tokenizer, loaded.stop_ids, include_reasoning=False)
    batch = pack([encoder.encode(row) for row in read_examples(training_file(data))], torch.device("cpu"))
    loss = AnswerLoss(loaded.model)
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=6e-3)
    for _ in range(steps):
        total = loss(batch) / len(batch.targets)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
    with quiet_transformers():
        loaded.model.save_pretrained(out)
        save_tokenizer(loaded.tokenizer, out)
    return artifact(out, "model")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A data set; ``blank``: an untrained model; ``base``: it learnt the data; ``half``: it began to."""
    folder = tmp_path_factory.mktemp("draft")
    data = micro_data(folder / "data", per_cell=2)
    blank = run_stage(MICRO_MODEL, SHAPE, folder / "blank", {"data": data})[1]
    return {
        "data": data,
        "blank": blank,
        "base": train(blank.path, folder / "base", data, 30),
        "half": train(blank.path, folder / "half", data, 8),
    }


def rows_of(found: Artifact, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in found.file(name).read_text().splitlines()]


def stage(
    which: Stage[Any], settings: Settings, folder: Path, made: Found, **inputs: str
) -> tuple[Any, Artifact]:
    return run_stage(which, settings, folder, {name: made[made_as] for name, made_as in inputs.items()})


@pytest.fixture(scope="module")
def answered(made: Found, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Artifact]:
    folder = tmp_path_factory.mktemp("answered")
    return stage(SELF_ANSWERS, ANSWERS, folder, made, model="base", data="data")


@pytest.fixture(scope="module")
def measured(made: Found, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("measured")
    return stage(ACCEPTANCE, HALF, folder, made, draft="half", base="base", data="data")[1]


def greedy(model: Any, prompt: Sequence[int], ends: frozenset[int], room: int) -> list[int]:
    """Return a greedy answer token by token, without cache, batch or padding."""
    said: list[int] = []
    while len(said) < room and not (said and said[-1] in ends):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *said]]), use_cache=False).logits
        said.append(int(logits[0, -1].argmax()))
    return said


# The base's own answers ------------------------------------------------------------------------------


def test_answers_are_the_bases_greedy_ones(made: Found, answered: tuple[Any, Artifact]) -> None:
    from evals.backends.loading import load_model

    facts, rows = answered[0].facts, rows_of(answered[1], OUTPUT)
    base = load_model(made["base"].path)
    encoder = ChatEncoder(base.tokenizer, base.stop_ids, include_reasoning=False)
    wanted, cut = {}, 0
    for example in read_examples(training_file(made["data"])):
        encoded = encoder.encode(example)
        tokens = greedy(base.model, encoded.ids[: encoded.answer_start], base.stop_ids, 40)
        if tokens[-1] in base.stop_ids:
            wanted[example.question_id] = base.tokenizer.decode(tokens, skip_special_tokens=True)
        else:
            cut += 1
    assert {row["question_id"]: row["answer"] for row in rows} == wanted
    assert (facts["rows"], facts["cut_rows"], facts["dropped_rows"]) == (len(wanted), cut, 0)
    assert facts["cut_share"] == pytest.approx(cut / 32)
    assert len(rows) > 16


def test_answers_are_a_data_set_of_the_same_questions(made: Found, answered: tuple[Any, Artifact]) -> None:
    assert answered[0].kind == "dataset"
    asked = {row["question_id"]: row for row in rows_of(made["data"], "training_complete.jsonl")}
    rows = rows_of(answered[1], training_file(answered[1]).name)
    assert [row["question_id"] for row in rows] == [
        name for name in asked if name in {r["question_id"] for r in rows}
    ]
    for row in rows:
        # Not null: in the plan's form every hard question has reasoning, and the lint holds it to that.
        assert "reasoning" not in row
        for name in ("question", "domain", "difficulty"):
            assert row[name] == asked[row["question_id"]][name]
    assert len(read_examples(training_file(answered[1]))) == answered[0].facts["rows"]


class Killed(BaseException):
    """Stands for a kill: no handler of the stage may catch it."""


def count_batches(monkeypatch: pytest.MonkeyPatch, *, die_after: int | None = None) -> list[int]:
    """Count the batches that are decoded, and die before one of them."""
    real, seen = decoding._answer_batch, list[int]()

    def counted(loaded: Any, rows: Any, *rest: Any) -> Any:
        if len(seen) == die_after:
            raise Killed
        seen.append(len(rows))
        return real(loaded, rows, *rest)

    monkeypatch.setattr(decoding, "_answer_batch", counted)
    return seen


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(
    made: Found, answered: tuple[Any, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"model": made["base"], "data": made["data"]}
    with monkeypatch.context() as patch:
        count_batches(patch, die_after=2)
        with pytest.raises(Killed):
            run_stage(SELF_ANSWERS, ANSWERS, tmp_path, inputs)
    with (tmp_path / "scratch" / "answers.jsonl").open("a") as journal:
        journal.write('{"math_easy_0000":[[1,2')  # what a kill within a line leaves
    shutil.rmtree(tmp_path / "out")
    updates, seen = Updates(), count_batches(monkeypatch)
    result, again = run_stage(SELF_ANSWERS, ANSWERS, tmp_path, inputs, progress=updates)
    assert seen == [8, 8]
    assert [done for done, _, _ in updates.seen] == [16, 24, 32]
    assert again.digest == answered[1].digest
    assert result.facts == answered[0].facts


def test_a_temperature_samples_by_the_seed_alone(made: Found, tmp_path: Path) -> None:
    few = rows_of(made["data"], "training_complete.jsonl")[:6]
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    made = made | {"data": artifact(tmp_path / "few", "dataset")}
    digests = []
    for name, offset in (("a", 0), ("b", 0), ("c", 1)):
        settings = ANSWERS.model_copy(update={"temperature": 0.7, "seed_offset": offset, "most_cut": 0.9})
        out = stage(SELF_ANSWERS, settings, tmp_path / name, made, model="half", data="data")[1]
        digests.append(out.digest)
    assert digests[0] == digests[1] != digests[2]


def test_habits_of_the_models_own_generation_settings_do_not_count(
    made: Found, answered: tuple[Any, Artifact], tmp_path: Path
) -> None:
    shutil.copytree(made["base"].path, tmp_path / "base")
    path = tmp_path / "base" / "generation_config.json"
    habits = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 2.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | habits))
    inputs = {"model": artifact(tmp_path / "base", "model"), "data": made["data"]}
    again = run_stage(SELF_ANSWERS, ANSWERS, tmp_path / "again", inputs)[1]
    assert again.digest == answered[1].digest


def test_a_base_that_does_not_stop_is_refused_as_soon_as_it_is_certain(
    made: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = count_batches(monkeypatch)
    settings = ANSWERS.model_copy(update={"max_tokens": 6})
    wanted = r"the base does not stop: (\d+) of 24 answers ran into max_tokens 6, .* most_cut 0.5 of all"
    with pytest.raises(RunError, match=wanted):
        stage(SELF_ANSWERS, settings, tmp_path / "a", made, model="blank", data="data")
    assert seen == [8, 8, 8]
    patient = settings.model_copy(update={"most_cut": 1.0})
    with pytest.raises(RunError, match="none of 32 answers can be trained on: 32 were cut"):
        stage(SELF_ANSWERS, patient, tmp_path / "b", made, model="blank", data="data")


def test_questions_that_fill_the_context_are_left_out(
    made: Found, answered: tuple[Any, Artifact], tmp_path: Path
) -> None:
    rows = rows_of(made["data"], "training_complete.jsonl")
    rows[3]["question"] = "word " * 400
    (tmp_path / "data").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data" / "training.jsonl").write_text(text)
    inputs = {"model": made["base"], "data": artifact(tmp_path / "data", "dataset")}
    result, out = run_stage(SELF_ANSWERS, ANSWERS, tmp_path / "long", inputs)
    assert result.facts["dropped_rows"] == 1
    assert rows[3]["question_id"] not in {row["question_id"] for row in rows_of(out, OUTPUT)}
    (tmp_path / "data" / "training.jsonl").write_text(text + json.dumps(rows[0]) + "\n")
    inputs["data"] = artifact(tmp_path / "data", "dataset")
    with pytest.raises(RunError, match=f"{rows[0]['question_id']} comes twice"):
        run_stage(SELF_ANSWERS, ANSWERS, tmp_path / "twice", inputs)


def test_near_the_end_of_the_context_no_prompt_is_cut_for_another() -> None:
    prompts = {str(length): range(length) for length in (30, 10, 12, 50, 51, 51, 55)} | {"x": range(51)}
    how = decoding.Decoding(max_tokens=10, context=60, batch_size=3)
    batches = [(names, room) for names, room in decoding._batches(prompts, how)]
    assert batches == [(["10", "12", "30"], 10), (["50"], 10), (["51", "x"], 9), (["55"], 5)]


def test_a_journal_broken_in_its_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text('{"a":1}\n{"b"\n{"c":3}\n')
    with pytest.raises(RunError, match=r"journal, line 2: not readable .*delete the file"):
        Journal(tmp_path / "journal")


# Acceptance ------------------------------------------------------------------------------------------


def speculate(base: Any, draft: Any, prompt: Sequence[int], room: int, k: int) -> Mapping[str, int]:
    """Decode speculatively, step by step, with both models as they are: nothing is teacher-forced."""
    ends, text, starts, accepted = base.stop_ids, list[int](), list[int](), 0
    while len(text) < room and not (text and text[-1] in ends):
        starts.append(len(text))
        # The draft does not know that an end token ends: the last drafts of an answer are not counted below.
        proposed = greedy(draft.model, [*prompt, *text], frozenset(), k)
        for token in proposed:
            own = greedy(base.model, [*prompt, *text], ends, 1)[0]
            text.append(own)
            if own != token or own in ends or len(text) == room:
                accepted += own == token
                break
            accepted += 1
        else:
            text += greedy(base.model, [*prompt, *text], ends, 1)
    drafted = sum(min(k, len(text) - start) for start in starts)
    return {"tokens": len(text), "drafted": drafted, "accepted": accepted, "cycles": len(starts)}


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_rate_is_that_of_real_speculative_decoding(made: Found, tmp_path: Path, k: int) -> None:
    from evals.backends.loading import load_model

    settings = HALF.model_copy(update={"k": k, "prompts": 8})
    result, out = stage(ACCEPTANCE, settings, tmp_path, made, draft="half", base="base", data="data")
    base, draft = load_model(made["base"].path), load_model(made["half"].path)
    asked = {row.question_id: row for row in read_examples(training_file(made["data"]))}
    rows = rows_of(out, "prompts.jsonl")
    assert len(rows) == 8
    for row in rows:
        example = asked[row["question_id"]]
        prompt = decoding.encode_questions(base, {"it": example})["it"]
        found = speculate(base, draft, prompt, 40, k)
        assert found == {
            "tokens": len(row["matches"]),
            **{name: row[name] for name in ("drafted", "accepted", "cycles")},
        }
    rate = result.facts["metrics"]["acceptance_rate"]
    assert rate["value"] == pytest.approx(
        sum(row["accepted"] for row in rows) / sum(row["drafted"] for row in rows), abs=1e-6
    )
    assert 0.05 < rate["value"] < 0.95
    assert rate["lower"] < rate["value"] < rate["upper"]
    if k == 1:
        # One at a time, every other token at most is drafted: a rate over other tokens than the matches'.
        assert result.facts["tokens_per_cycle"] <= 2


def test_a_draft_that_is_its_base_is_always_accepted(made: Found, tmp_path: Path) -> None:
    result, out = stage(ACCEPTANCE, HALF, tmp_path, made, draft="base", base="base", data="data")
    facts = result.facts
    assert facts["metrics"]["acceptance_rate"]["value"] == facts["match_rate"]["value"] == 1.0
    assert facts["metrics"]["acceptance_rate"]["upper"] == 1.0
    assert facts["metrics"]["acceptance_rate"]["lower"] < 1.0
    assert facts["sampling_acceptance"]["value"] == pytest.approx(1.0, abs=1e-4)
    assert facts["replayed_otherwise"] == 0
    assert facts["metrics"]["draft_bytes_download"] == made["base"].bytes
    names = {row["question_id"] for row in rows_of(out, "prompts.jsonl")}
    asked = read_examples(training_file(made["data"]))
    assert names == {row.question_id for row in asked if is_held_out(row.question_id, 0.5)}
    assert json.loads(out.file("results.json").read_text()) == facts
    assert out.manifest["kind"] == "file"


def test_an_untrained_draft_is_hardly_ever_accepted(made: Found, tmp_path: Path) -> None:
    facts = stage(ACCEPTANCE, HALF, tmp_path, made, draft="blank", base="base", data="data")[0].facts
    assert facts["metrics"]["acceptance_rate"]["value"] < 0.05
    assert facts["sampling_acceptance"]["value"] < 0.1
    assert facts["tokens_per_cycle"] < 1.2


def test_sampling_acceptance_is_the_overlap_of_the_distributions(made: Found, measured: Artifact) -> None:
    from evals.backends.loading import load_model

    base, draft = load_model(made["base"].path), load_model(made["half"].path)
    row = rows_of(measured, "prompts.jsonl")[0]
    example = next(
        e for e in read_examples(training_file(made["data"])) if e.question_id == row["question_id"]
    )
    prompt = decoding.encode_questions(base, {"it": example})["it"]
    said = greedy(base.model, prompt, base.stop_ids, 40)
    total = 0.0
    for place in range(len(said)):
        ids = torch.tensor([[*prompt, *said[:place]]])
        with torch.inference_mode():
            p, q = (m.model(input_ids=ids).logits[0, -1].double().softmax(0) for m in (base, draft))
        total += float(torch.minimum(p, q).sum())
    assert row["overlap"] == pytest.approx(total, abs=1e-3)


def test_a_padded_vocabulary_changes_nothing(made: Found, tmp_path: Path) -> None:
    from evals.backends.loading import load_model

    padded = load_model(made["base"].path)
    padded.model.resize_token_embeddings(512, mean_resizing=False)
    padded.model.save_pretrained(tmp_path / "padded")
    padded.tokenizer.save_pretrained(tmp_path / "padded")
    inputs = made | {"padded": artifact(tmp_path / "padded", "model")}
    facts = stage(ACCEPTANCE, HALF, tmp_path / "run", inputs, draft="padded", base="base", data="data")[
        0
    ].facts
    assert facts["match_rate"]["value"] > 0.99


def test_another_tokenizer_is_not_measured_and_says_why(made: Found, tmp_path: Path) -> None:
    shape = SHAPE.model_copy(update={"vocab_size": 400})
    other = run_stage(MICRO_MODEL, shape, tmp_path / "other", {"data": made["data"]})[1]
    inputs = made | {"other": other}
    result, out = stage(ACCEPTANCE, HALF, tmp_path / "run", inputs, draft="other", base="base", data="data")
    assert result.facts["metrics"] == {"draft_bytes_download": other.bytes}
    assert "different tokenizers" in result.facts["unmeasured"]["acceptance_rate"]
    assert json.loads(out.file("results.json").read_text()) == result.facts


def test_a_depth_cut_draft_is_measured_and_an_adapter_beside_it_not_counted(
    made: Found, tmp_path: Path
) -> None:
    cut = run_stage(DEPTH_CUT, DepthCutSettings(layers=1), tmp_path / "cut", {"model": made["base"]})[1]
    (cut.path / "adapter").mkdir()
    (cut.path / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 100)
    inputs = made | {"cut": artifact(cut.path, "model")}
    facts = stage(ACCEPTANCE, HALF, tmp_path / "run", inputs, draft="cut", base="base", data="data")[0].facts
    assert 0 <= facts["metrics"]["acceptance_rate"]["value"] < 1
    assert facts["metrics"]["draft_bytes_download"] == cut.bytes


def test_measuring_goes_on_after_a_kill(
    made: Found, measured: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"draft": made["half"], "base": made["base"], "data": made["data"]}
    real, seen = decoding.next_token_logits, list[int]()

    def dying(*arguments: Any) -> Any:
        if len(seen) == 9:
            raise Killed
        seen.append(1)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "next_token_logits", dying)
        with pytest.raises(Killed):
            run_stage(ACCEPTANCE, HALF, tmp_path / "run", inputs)
    shutil.rmtree(tmp_path / "run" / "out")
    batches = count_batches(monkeypatch)
    again = run_stage(ACCEPTANCE, HALF, tmp_path / "run", inputs)[1]
    assert batches == []
    assert again.digest == measured.digest


def test_without_held_out_prompts_there_is_nothing_to_measure(made: Found, tmp_path: Path) -> None:
    settings = HALF.model_copy(update={"held_out_share": 1e-9})
    with pytest.raises(RunError, match=r"0 of 32 questions are held out at held_out_share 1e-09; raise it"):
        stage(ACCEPTANCE, settings, tmp_path, made, draft="half", base="base", data="data")
