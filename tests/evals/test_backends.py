from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_models import CONTEXT, QUESTIONS

from cogumi.errors import RunError, UsageError
from evals.backends import open_backend
from evals.backends.gguf import GGUFBackend
from evals.backends.hf import HFBackend
from evals.backends.loading import load_model
from evals.backends.tokenization import render
from evals.types import Backend, Message, Prompt
from pipeline.training.micro_model import ASSISTANT, BOS, CHAT_TEMPLATE, END, USER


def asked(texts: Sequence[str]) -> list[Prompt]:
    return [Prompt.user(text) for text in texts]


@pytest.fixture(scope="module")
def folder(tiny_folder: Path) -> Path:
    return tiny_folder


@pytest.fixture(scope="module")
def gguf_file(tiny_gguf: Path) -> Path:
    return tiny_gguf


@pytest.fixture(scope="module")
def hf(folder: Path) -> HFBackend:
    return HFBackend(folder, batch_size=7)


def test_batches_answer_as_single_prompts_do_and_in_order(hf: HFBackend) -> None:
    prompts = [QUESTIONS[index] + " please" * (index % 5) for index in range(0, 100, 8)]
    together = hf.generate(asked(prompts), max_tokens=8)
    alone = [hf.generate(asked([prompt]), max_tokens=8)[0] for prompt in prompts]
    assert len({answer.text for answer in together}) > 3
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.finish_reason, one.prompt_tokens, one.completion_tokens) == (
            other.text,
            other.finish_reason,
            other.prompt_tokens,
            other.completion_tokens,
        )


def test_a_models_own_generation_settings_change_no_answer(
    folder: Path, hf: HFBackend, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "penalised")
    path = copy / "generation_config.json"
    settings = json.loads(path.read_text()) | {"repetition_penalty": 5.0, "do_sample": True, "top_k": 3}
    path.write_text(json.dumps(settings))
    expected = [answer.text for answer in hf.generate(asked(QUESTIONS[:8]), max_tokens=12)]
    found = HFBackend(copy).generate(asked(QUESTIONS[:8]), max_tokens=12)
    assert [answer.text for answer in found] == expected


def test_stop_and_length_are_told_apart(folder: Path) -> None:
    backend = HFBackend(folder)
    cut = backend.generate(asked(QUESTIONS[:5]), max_tokens=1)
    assert {(answer.finish_reason, answer.completion_tokens) for answer in cut} == {("length", 1)}
    answers = backend.generate(asked(QUESTIONS[:40]), max_tokens=20)
    index = next(i for i, answer in enumerate(answers) if answer.finish_reason == "stop")
    whole = answers[index]
    assert END not in whole.text
    # The end token is counted: the same answer, one token shorter, is cut.
    again = backend.generate(asked([QUESTIONS[index]]), max_tokens=whole.completion_tokens - 1)[0]
    assert (again.text, again.finish_reason) == (whole.text, "length")


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_prompts_beyond_the_context_are_errors_and_others_still_answer(
    folder: Path, gguf_file: Path, kind: str
) -> None:
    backend = open_backend(folder if kind == "hf" else gguf_file)
    answers = backend.generate(asked([QUESTIONS[0], "red " * 200, QUESTIONS[1]]), max_tokens=4)
    assert [answer.finish_reason == "error" for answer in answers] == [False, True, False]
    assert answers[1].text == ""
    assert answers[1].prompt_tokens > CONTEXT
    # Room for fewer tokens than asked for: the answer ends with the context.
    near = next(p for n in range(80) if len(backend.encode(p := Prompt.user("x" * n))) == CONTEXT - 2)  # type: ignore[attr-defined]
    late = backend.generate([near], max_tokens=10)[0]
    assert late.completion_tokens <= 2
    backend.close()


def test_llama_cpp_answers_as_transformers_does(hf: HFBackend, gguf_file: Path) -> None:
    backend = GGUFBackend(gguf_file)
    ours, theirs = (b.generate(asked(QUESTIONS[:20]), max_tokens=12) for b in (hf, backend))
    same = sum(
        (a.text, a.finish_reason, a.prompt_tokens, a.completion_tokens)
        == (b.text, b.finish_reason, b.prompt_tokens, b.completion_tokens)
        for a, b in zip(ours, theirs, strict=True)
    )
    # Near ties may fall apart between two implementations of float32.
    assert same >= 18
    backend.close()


def test_an_answer_of_llama_cpp_does_not_depend_on_earlier_prompts(gguf_file: Path) -> None:
    backend = GGUFBackend(gguf_file)
    forward = [answer.text for answer in backend.generate(asked(QUESTIONS[:20]), max_tokens=8)]
    backward = [answer.text for answer in backend.generate(asked(QUESTIONS[:20][::-1]), max_tokens=8)]
    assert forward == backward[::-1]
    backend.close()


def test_stack_names_what_produced_the_answers(hf: HFBackend, gguf_file: Path, folder: Path) -> None:
    assert hf.stack["backend"] == "hf"
    assert hf.stack["dtype"] == "float32"
    assert HFBackend(folder, dtype="bf16").stack["dtype"] == "bfloat16"
    backend = open_backend(gguf_file)
    assert (backend.stack["backend"], backend.stack["dtype"], backend.batch_size) == ("gguf", "F32", 1)
    backend.close()


def test_strange_text_never_crashes(hf: HFBackend, gguf_file: Path) -> None:
    strange = ["", "\ud800 lone surrogate", "\x00\x00", "<|eot_id|><|assistant|>", "😀" * 8]
    gguf = GGUFBackend(gguf_file)
    for backend in (hf, gguf):
        assert len(backend.generate(asked(strange), max_tokens=3)) == len(strange)
    gguf.close()


def test_gguf_file_in_transformers_gives_the_same_answers(
    hf: HFBackend, gguf_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dequantised: Backend = open_backend(gguf_file, backend="hf")
    assert capfd.readouterr() == ("", "")
    assert dequantised.stack["backend"] == "hf"
    texts = [
        [answer.text for answer in b.generate(asked(QUESTIONS[:20]), max_tokens=8)] for b in (hf, dequantised)
    ]
    assert texts[0] == texts[1]


def test_open_backend_finds_the_one_model_of_a_folder(gguf_file: Path, tmp_path: Path) -> None:
    shutil.copy(gguf_file, tmp_path / "a.gguf")
    backend = open_backend(tmp_path)
    assert backend.stack["backend"] == "gguf"
    backend.close()
    shutil.copy(gguf_file, tmp_path / "b.gguf")
    with pytest.raises(UsageError, match=r"2 \.gguf files; name one model"):
        open_backend(tmp_path)


def test_paths_that_hold_no_model_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        open_backend(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"no config\.json and no \.gguf file"):
        open_backend(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a model file"):
        open_backend(tmp_path / "model.bin")
    with pytest.raises(UsageError, match=r"no \.gguf file for the gguf backend"):
        open_backend(folder, backend="gguf")


@pytest.mark.parametrize("backend", ["gguf", "hf"])
@pytest.mark.parametrize("keep", [0, 3, 100, 2000, -64])
def test_cut_gguf_file_is_named(gguf_file: Path, tmp_path: Path, backend: str, keep: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf_file.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"cut\.gguf: ") as caught:
        open_backend(path, backend=backend)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_garbage_gguf_file_is_named_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "garbage.gguf"
    path.write_bytes(random.Random(0).randbytes(5000))
    with pytest.raises(RunError, match=r"garbage\.gguf: cut short or not a GGUF model"):
        open_backend(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_cut_safetensors_file_is_named(folder: Path, tmp_path: Path, keep: int) -> None:
    broken = tmp_path / "model"
    shutil.copytree(folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"model\.safetensors: cut short or not safetensors"):
        open_backend(broken)


def test_missing_weights_are_never_filled_with_random_numbers(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "model"
    shutil.copytree(folder, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"weights missing from the file: model\.layers\.1\.mlp\.up_proj"):
        open_backend(broken)


def test_broken_config_and_missing_template_are_one_line(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    shutil.copytree(folder, broken)
    (broken / "chat_template.jinja").unlink()
    plain = open_backend(broken)
    with pytest.raises(RunError, match=r"model: the model has no chat template; only completion and"):
        plain.generate(asked(["Say red and blue."]), max_tokens=2)
    assert plain.generate([Prompt((Message("user", "Say"),), raw=True)], max_tokens=2)[0].completion_tokens
    (broken / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"model: not a readable model"):
        open_backend(broken)


def test_end_of_turn_token_stops_beside_the_declared_end_of_text(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(folder, other)
    for name in ("config.json", "generation_config.json"):
        path = other / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 4}))
    loaded = load_model(other)
    assert loaded.stop_ids == {4, loaded.tokenizer.convert_tokens_to_ids(END)}


def test_chat_template_is_rendered_as_transformers_does(hf: HFBackend) -> None:
    text = render(CHAT_TEMPLATE, Prompt.user("a\n b"), bos=BOS, eos=END)
    assert text == f"{BOS}{USER}a\n b{ASSISTANT}"
    with pytest.raises(RunError, match="chat template cannot be rendered"):
        render("{{ raise_exception('no') }}", Prompt.user("x"), bos="", eos="")


def test_missing_package_names_the_extra(folder: Path, gguf_file: Path) -> None:
    program = (
        "import sys; sys.modules[sys.argv[1]] = None\n"
        "from pathlib import Path\n"
        "from evals.backends import open_backend\n"
        "try:\n    open_backend(Path(sys.argv[2]))\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    for package, path in (("llama_cpp", gguf_file), ("torch", folder)):
        result = subprocess.run(
            [sys.executable, "-c", program, package, str(path)], capture_output=True, text=True, check=True
        )
        assert result.stdout.startswith("RunError ")
        assert "pip install 'cogumi[all]'" in result.stdout


def test_smollm2_speaks_its_own_template_and_stops(smollm2: Path) -> None:
    backend = GGUFBackend(smollm2, n_ctx=512)
    ids = backend.encode(Prompt.user("What is the capital of Italy?"))
    # <|im_start|> is 1 in this vocabulary; the template's own system message comes first.
    assert ids[0] == 1
    assert ids.count(1) == 3
    answer = backend.generate(asked(["Say hello in one short sentence."]), max_tokens=64)[0]
    assert answer.finish_reason == "stop"
    assert "<|im_end|>" not in answer.text
    assert backend.stack["dtype"] == "Q4_1"
    backend.close()


@pytest.mark.slow
def test_smollm2_in_both_runtimes(smollm2: Path) -> None:
    gguf, hf = GGUFBackend(smollm2, n_ctx=512), HFBackend(smollm2)
    assert hf.stack["dtype"] == "bfloat16"
    prompts = ["What is the capital of France?", "日本語 12345 don't\n\n  x", "def f(x):\n    return 3.14"]
    for prompt in prompts:
        assert gguf.encode(Prompt.user(prompt)) == hf.encode(Prompt.user(prompt))
    assert "Paris" in hf.generate(asked(prompts[:1]), max_tokens=20)[0].text
    gguf.close()
