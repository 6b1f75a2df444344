"""Answers of compressed models: the same as the backend's, kept and found again, scored as gates would."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import tiny_llama
from tiny_models import QUESTIONS

from benchmarks import compression_answers
from benchmarks.compression_answers import answer, candidate, merge_gguf_adapter, opened
from benchmarks.compression_questions import (
    Question,
    questions_of,
    read_answers,
    read_questions,
    write_questions,
)
from benchmarks.compression_scores import score
from benchmarks.compression_tasks import main
from cogumi.errors import RunError
from evals.backends.hf import HFBackend
from evals.types import Generation, Prompt

SUITE = "micro/math"


@pytest.fixture(scope="module")
def backend(tiny_folder: Path) -> HFBackend:
    return HFBackend(tiny_folder, dtype="fp32", device="cpu", batch_size=64)


@pytest.fixture(scope="module")
def gguf(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.compression.gguf_export import export_gguf

    out = tmp_path_factory.mktemp("small") / "small.gguf"
    export_gguf(tiny_folder, out, dtype="f16")
    return out


def without_seconds(found: list[Generation]) -> list[Generation]:
    return [replace(each, seconds=0.0) for each in found]


@pytest.mark.parametrize("leg", [1, 3, 64])
def test_legs_say_what_the_backend_says(backend: HFBackend, leg: int) -> None:
    prompts = [Prompt.user(text) for text in QUESTIONS[::9]]
    # Stops that one token, several tokens and two legs hold; the end of the turn as a text.
    stops = [
        ("d",),
        ("ed r", "een"),
        ("d red", "\n"),
        ("zz",),
        ("ue b",),
        (backend._loaded.tokenizer.eos_token,),
    ]
    prompts += [replace(Prompt.user(text), stop=stop) for text, stop in zip(QUESTIONS, stops, strict=False)]
    # Rows that the context cuts, and one that it leaves no room.
    prompts += [Prompt.user("Say " + "red " * count + "and old.") for count in (40, 46, 80)]
    wanted = without_seconds(backend.generate(prompts, max_tokens=20))
    assert {each.finish_reason for each in wanted} == {"stop", "length", "error"}
    assert answer(backend, prompts, max_tokens=20, leg=leg) == wanted


def test_a_batch_without_memory_is_halved(backend: HFBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    real, sizes = compression_answers._say, []

    def say(backend: Any, rows: Any, tokens: int) -> None:
        sizes.append(len(rows))
        if len(rows) > most:
            raise torch.OutOfMemoryError("no memory")
        real(backend, rows, tokens)

    prompts = [Prompt.user(text) for text in QUESTIONS[:9]]
    wanted = answer(backend, prompts, max_tokens=8)
    most = 3
    monkeypatch.setattr(compression_answers, "_say", say)
    assert answer(backend, prompts, max_tokens=8) == wanted
    assert sizes == [9, 4, 2, 2, 5, 2, 3]
    most = 0
    with pytest.raises(RunError, match="out of memory on one row of"):
        answer(backend, prompts, max_tokens=8)


@pytest.mark.parametrize("scaling", [False, True])
def test_a_gguf_adapter_is_merged_as_peft_merges_it(tmp_path: Path, scaling: bool) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    from evals.backends.loading import load_model
    from pipeline.compression.dense import dense_from_gguf
    from pipeline.compression.gguf_adapter import export_adapter
    from pipeline.compression.gguf_export import export_gguf
    from pipeline.compression.gguf_write import llama_config

    base = tiny_llama(tmp_path / "base", tie_word_embeddings=False)
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=scaling, target_modules=["q_proj", "down_proj", "lm_head"]
    )
    model = get_peft_model(load_model(base, dtype="fp32").model, config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    with warnings.catch_warnings():
        # peft warns that it also saves the head that an adapter is on.
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "adapter")
    export_adapter(tmp_path / "adapter", llama_config(base), tmp_path / "adapter.gguf", dtype="f32")
    export_gguf(base, tmp_path / "model.gguf", dtype="f32")
    dense_from_gguf(tmp_path / "model.gguf", base, tmp_path / "dense")
    plain = load_file(tmp_path / "dense" / "model.safetensors")
    merge_gguf_adapter(tmp_path / "adapter.gguf", tmp_path / "dense")
    found = load_file(tmp_path / "dense" / "model.safetensors")
    wanted = model.merge_and_unload().state_dict()
    assert {name for name in found if not torch.equal(found[name], plain[name])} == {
        "lm_head.weight",
        *(
            f"model.layers.{n}.{each}.weight"
            for n in (0, 1)
            for each in ("self_attn.q_proj", "mlp.down_proj")
        ),
    }
    assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in found)
    # The candidate takes the adapter beside its file by itself.
    with opened(candidate(f"both={tmp_path}"), base, "fp32") as backend:
        assert torch.equal(backend._loaded.model.lm_head.weight, found["lm_head.weight"])
    with pytest.raises(RunError, match=r"no adapter.lora.alpha"):
        merge_gguf_adapter(tmp_path / "model.gguf", tmp_path / "dense")
    # One that says which file it was made for is taken for no other.
    out, other = tmp_path / "adapter.gguf", tmp_path / "dense" / "config.json"
    export_adapter(tmp_path / "adapter", llama_config(base), out, dtype="f32", beside=other)
    with (
        pytest.raises(RunError, match="made for another model"),
        opened(candidate(f"both={tmp_path}"), base, "fp32"),
    ):
        pass


def test_questions_come_back_as_they_were(tmp_path: Path) -> None:
    questions = questions_of(f"{SUITE},micro/reasoning", None, 5)
    assert len(questions) == 10
    write_questions(questions, tmp_path / "prompts.jsonl")
    assert read_questions(tmp_path / "prompts.jsonl", None) == questions
    assert read_questions(tmp_path / "prompts.jsonl", 2) == [*questions[:2], *questions[5:7]]
    assert len({question.asked for question in questions}) == 10
    changed = replace(questions[0], prompt=replace(questions[0].prompt, stop=("Q:",)))
    assert changed.asked != questions[0].asked != replace(questions[0], max_tokens=1).asked
    (tmp_path / "prompts.jsonl").write_text('{"task": "a"}\n')
    with pytest.raises(RunError, match=r"prompts.jsonl, line 1: no question"):
        read_questions(tmp_path / "prompts.jsonl", None)


def test_answers_are_kept_and_not_asked_for_again(
    tiny_folder: Path,
    gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "answers"
    assert main(["prompts", "--suite", SUITE, "--out", str(prompts), "--limit", "12"]) == 0
    # Where lm-eval is not installed.
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    named = ["--candidate", f"dense={tiny_folder}", "--candidate", f"Half precision={gguf}"]
    options = ["generate", "--model", str(tiny_folder), "--prompts", str(prompts), "--out", str(out)]
    assert main([*options, *named, "--limit", "7", "--batch", "3"]) == 0
    files = {path.name: path for path in out.iterdir()}
    assert set(files) == {"dense.jsonl", "half-precision.jsonl"}
    first = files["half-precision.jsonl"].read_bytes()
    # A kill within a line: that answer is asked for again, the others stay.
    files["half-precision.jsonl"].write_bytes(first[:-10])
    assert main([*options, *named]) == 0
    lines = read_answers(files["half-precision.jsonl"])
    assert len({line["item"] for line in lines}) == len(lines) == 12
    assert files["half-precision.jsonl"].read_bytes().startswith(first[: first[:-10].rfind(b"\n") + 1])
    # Nearly the same weights: float16 of float32.
    texts = [
        [line["text"] for line in sorted(read_answers(file), key=lambda line: line["item"])]
        for file in files.values()
    ]
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= 10
    capsys.readouterr()
    assert main([*options, *named]) == 0
    assert "all 12 answers are there" in capsys.readouterr().out
    # Another model under the same name, and another prompt for the same item.
    assert main([*options, "--candidate", f"dense={gguf}"]) == 2
    assert "answers of another model under the name dense" in capsys.readouterr().err
    prompts.write_text(prompts.read_text().replace('"max_tokens": 48', '"max_tokens": 40'))
    assert main([*options, "--candidate", f"dense={tiny_folder}"]) == 2
    assert "answers to another prompt" in capsys.readouterr().err


def test_finished_sides_are_candidates(tiny_folder: Path, gguf: Path, tmp_path: Path, capsys: Any) -> None:
    payload = tmp_path / "work" / "parts" / "gguf-1" / "payload"
    payload.mkdir(parents=True)
    (payload / "model.gguf").write_bytes(gguf.read_bytes())
    line = {"side": "ours 1 MB, recovered", "artifact": "parts/gguf-1/payload"}
    (tmp_path / "work" / "results.jsonl").write_text(json.dumps(line) + "\n")
    options = ["generate", "--model", str(tiny_folder), "--suite", SUITE, "--limit", "2"]
    options += ["--out", str(tmp_path / "answers"), "--frontier", str(tmp_path / "work")]
    assert main([*options, "--sides", "ours 1 MB, recovered"]) == 0
    assert len(read_answers(tmp_path / "answers" / "ours-1-mb-recovered.jsonl")) == 2
    capsys.readouterr()
    assert main([*options, "--sides", "ours 2 MB"]) == 2
    assert "no finished side 'ours 2 MB'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "no candidate"),
        (["--candidate", "dense"], "NAME=PATH is expected"),
        (["--candidate", "dense=/nowhere"], "no such file or folder: /nowhere"),
        (["--candidate", "a b=x", "--candidate", "A-b=y"], "take another name"),
        (["--candidate", "?=x"], "take another name"),
        (["--sides", "Q4_0"], "belong together"),
        (["--candidate", "dense=x", "--prompts", "y"], "either --prompts FILE or --suite"),
        (["--candidate", "dense=x", "--suite", "mmlu"], "likelihood task"),
        (["--candidate", "dense=x", "--suite", "gms8k"], "did you mean"),
    ],
)
def test_wrong_usage_is_one_line(
    tmp_path: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = [] if "--suite" in more else ["--suite", SUITE]
    options = ["generate", "--model", "x", "--out", str(tmp_path), "--limit", "1", *suite]
    assert main([*options, *more]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_a_candidate_that_cannot_be_run_does_not_end_the_others(
    tiny_folder: Path, gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:-100])
    options = ["generate", "--model", str(tiny_folder), "--suite", SUITE, "--limit", "1"]
    named = ["--candidate", f"broken={tmp_path / 'cut.gguf'}", "--candidate", f"dense={tiny_folder}"]
    assert main([*options, "--out", str(tmp_path / "answers"), *named]) == 1
    err = capsys.readouterr().err
    assert "broken: left out: " in err
    assert "cut short" in err
    assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "answers").iterdir()] == ["dense.jsonl"]


def crafted(out: Path, name: str, wrong: set[int], cut: set[int], count: int = 40) -> None:
    """Write right answers to the first items, but for the wrong ones and those that were cut."""
    from evals.items import ItemSet
    from evals.tasks import get_task

    task = get_task(SUITE)
    lines = []
    for at, item in enumerate(ItemSet.load(task, None).items[:count]):
        line = {"candidate": name, "model": name, "task": task.name, "item": item.id}
        line["asked"] = Question(task.name, item.id, task.ask(item), task.max_tokens).asked
        line["text"] = "no" if at in wrong else item.target["answer"]
        line["finish_reason"] = "length" if at in cut else "stop"
        lines.append(json.dumps(line | {"prompt_tokens": 9, "completion_tokens": 4}) + "\n")
    out.mkdir(exist_ok=True)
    (out / f"{name}.jsonl").write_text("".join(lines))


def test_scores_are_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = tmp_path / "answers"
    crafted(answers, "dense", wrong={0, 1, 2, 3}, cut=set())
    crafted(answers, "small", wrong={0, 1, 2, 10, 11}, cut={12, 13}, count=36)
    options = ["score", "--answers", str(answers), "--suite", SUITE, "--out", str(tmp_path / "results.jsonl")]
    assert main(options) == 0
    dense, small = (json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines())
    assert (dense["candidate"], dense["n"], dense["n_total"], dense["score"]) == ("dense", 40, 80, 0.9)
    assert (dense["retention"], dense["lost"], dense["won"]) == (1, 0, 0)
    # Of 36 items the baseline has 32: four are lost (two of them cut), one is won.
    assert (small["n"], small["score"], small["cut"], small["failed"]) == (36, pytest.approx(29 / 36), 2, 0)
    assert (small["lost"], small["won"], small["p_value"]) == (4, 1, 0.375)
    assert small["retention"] == pytest.approx(29 / 32)
    assert small["retention_lower"] < 29 / 32 < small["retention_upper"]
    assert dense["lower"] < 0.9 < dense["upper"]
    told = capsys.readouterr().out.splitlines()
    assert told[2].startswith("small")
    assert "0.9062" in told[2]


def test_scores_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    crafted(tmp_path, "small", wrong=set(), cut=set(), count=3)
    with pytest.raises(RunError, match="no answers of the baseline"):
        score(tmp_path, SUITE, None, "dense")
    crafted(tmp_path, "dense", wrong={0, 1, 2}, cut=set(), count=3)
    assert [(row.score, row.retention) for row in score(tmp_path, SUITE, None, "dense")] == [
        (0, None),
        (1, None),
    ]
    file = tmp_path / "small.jsonl"
    file.write_text(file.read_text().replace('"asked": "', '"asked": "0'))
    with pytest.raises(RunError, match="was asked otherwise"):
        score(tmp_path, SUITE, None, "dense")
