"""A real GGUF model behind both wire formats, through the real SDKs and as a teacher of a profile."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from cogumi.cli.teachers import TeacherPool
from cogumi.errors import RunError, UsageError
from cogumi.ledger import Ledger, LedgerCalls
from cogumi.profile import Profile
from cogumi.teachers import AskOptions, Message, TeacherRequest, ask
from cogumi.workspace import Workspace
from pipeline.compression.gguf_export import export_gguf
from pipeline.local_teacher import LocalTeacher, TeacherOptions
from pipeline.local_teacher.answers import Ask
from pipeline.local_teacher.gguf_answerer import GgufAnswerer, find_gguf
from pipeline.training.micro_model import BOS, END, PAD, train_tokenizer

CONTEXT = 256
SYSTEM = "You answer in few words, and you check each of them twice before you say it. " * 2
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_gguf(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Write a model of 0.1 M random parameters; what it says is noise, but always the same noise."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(iter([SYSTEM, "What is 1 plus 1?"] * 4), 300),
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
    )
    if template is not None:
        tokenizer.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = folder / "model"
    LlamaForCausalLM(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    export_gguf(model, folder / "noise.gguf", dtype="f32")
    return folder / "noise.gguf"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("noise"))


@pytest.fixture(scope="module")
def teacher(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTeacher]:
    with LocalTeacher(TeacherOptions(tmp_path_factory.mktemp("state"), gguf=str(gguf))) as running:
        yield running


@pytest.fixture
def openai_client(teacher: LocalTeacher) -> openai.OpenAI:
    return openai.OpenAI(base_url=teacher.base_url + "/v1", api_key="none", max_retries=0)


@pytest.fixture
def anthropic_client(teacher: LocalTeacher) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=teacher.base_url, api_key="none", max_retries=0)


def turns(text: str) -> Any:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def complete(client: openai.OpenAI, text: str, **options: Any) -> Any:
    options = {"max_tokens": 12, "temperature": 0, **options}
    return client.chat.completions.create(model="noise", messages=turns(text), **options)


def test_same_request_same_answer_whatever_was_asked_between(gguf: Path) -> None:
    answerer = GgufAnswerer(gguf, CONTEXT)

    def reply(text: str, system: str = SYSTEM) -> str:
        request = Ask("m", system, (("user", text),), 24, digest="00", temperature=0.0)
        return answerer.reply(request).text

    texts = ["What is 1 plus 1?", "What", "7", "A"]
    fresh = []
    for text in texts:
        alone = GgufAnswerer(gguf, CONTEXT)
        fresh.append(alone.reply(Ask("m", SYSTEM, (("user", text),), 24, digest="00", temperature=0.0)).text)
        alone.close()
    first = [reply(text) for text in texts]
    reply("Something else", "")
    again = [reply(text) for text in reversed(texts)][::-1]
    assert fresh == first == again
    assert len(set(first)) > 1
    answerer.close()


def test_seed_repeats_a_sampled_answer_and_another_changes_it(openai_client: openai.OpenAI) -> None:
    one, same, other = (
        complete(openai_client, "Say 1", temperature=1.0, seed=seed).choices[0].message.content
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_length_stop_and_usage_are_the_models_own(openai_client: openai.OpenAI) -> None:
    cut = complete(openai_client, "Say 1", max_tokens=9)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 9
    assert cut.usage.total_tokens == cut.usage.prompt_tokens + 9
    text = cut.choices[0].message.content
    stopped = complete(openai_client, "Say 1", max_tokens=9, stop=[text[2:4]])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == text[: text.index(text[2:4])]
    longer = complete(openai_client, "Say 1 " + "and 1 " * 20)
    assert longer.usage.prompt_tokens > cut.usage.prompt_tokens + 20


def test_what_cannot_be_answered_is_refused_and_the_next_is_answered(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=f"maximum context length is {CONTEXT} tokens"):
        complete(openai_client, "and so on " * 300)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        complete(openai_client, "Say 1", temperature="hot")
    assert complete(openai_client, "Say 1").usage.completion_tokens > 0
    assert next(iter(openai_client.models.list())).id.endswith("noise.gguf")


def test_anthropic_format_counts_with_the_same_tokenizer(
    openai_client: openai.OpenAI, anthropic_client: anthropic.Anthropic
) -> None:
    message = anthropic_client.messages.create(
        model="noise",
        max_tokens=12,
        system=SYSTEM,
        messages=[{"role": "user", "content": "Say 2"}],
        extra_body={"temperature": 0},
    )
    completion = complete(openai_client, "Say 2")
    assert "".join(block.text for block in message.content if block.type == "text") == (
        completion.choices[0].message.content
    )
    assert message.stop_reason == "max_tokens"
    assert message.usage.input_tokens == completion.usage.prompt_tokens
    assert message.usage.output_tokens == completion.usage.completion_tokens


def test_batches_of_both_formats_answer_like_single_requests(
    openai_client: openai.OpenAI, anthropic_client: anthropic.Anthropic
) -> None:
    body = {"model": "noise", "messages": turns("Say 3"), "max_tokens": 12, "temperature": 0}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = openai_client.files.create(file=("r.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = openai_client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    params: Any = {**body, "system": SYSTEM, "messages": turns("Say 3")[1:]}
    other = anthropic_client.messages.batches.create(requests=[{"custom_id": "a", "params": params}])
    end = time.monotonic() + 30
    while (done := openai_client.batches.retrieve(batch.id)).status != "completed":
        assert time.monotonic() < end
        time.sleep(0.05)
    while anthropic_client.messages.batches.retrieve(other.id).processing_status != "ended":
        assert time.monotonic() < end
        time.sleep(0.05)
    wanted = complete(openai_client, "Say 3").choices[0].message.content
    row = json.loads(openai_client.files.content(done.output_file_id or "").text)
    assert row["response"]["body"]["choices"][0]["message"]["content"] == wanted
    result = next(iter(anthropic_client.messages.batches.results(other.id))).result
    assert result.type == "succeeded"
    assert "".join(block.text for block in result.message.content if block.type == "text") == wanted


def test_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model file"):
        find_gguf(str(tmp_path / "none.gguf"), Workspace(tmp_path))
    with pytest.raises(UsageError, match="smollm2-135m-instruct"):
        find_gguf("smollm2", Workspace(tmp_path))
    text = tmp_path / "text.gguf"
    text.write_text("This is no model.")
    with pytest.raises(RunError, match="not a GGUF file"):
        find_gguf(str(text), Workspace(tmp_path))
    command = [sys.executable, "-m", "pipeline.local_teacher", "--state", str(tmp_path), "--gguf", str(text)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert "not a GGUF file" in done.stderr


def test_model_without_a_chat_template_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="chat template"):
        GgufAnswerer(make_gguf(tmp_path, template=None), CONTEXT)


def test_made_up_faults_do_not_go_with_a_real_model() -> None:
    for options in ({"faults": {"empty": 0.1}}, {"varied": True}):
        with pytest.raises(UsageError, match="a real model answers"):
            TeacherOptions(Path(), gguf="x", **options)  # type: ignore[arg-type]
    assert TeacherOptions(Path(), gguf="x", faults={"429": 0.1}).gguf == "x"


def profile_of(*names: str) -> Profile:
    teachers = {f"t{at}": {"api": "openai", "model": "m", "gguf": name} for at, name in enumerate(names)}
    return Profile.model_validate({"profile": "p", "title": "t", "teachers": teachers})


def test_pool_starts_one_server_a_model_and_its_answers_are_recorded(gguf: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with TeacherPool(workspace, profile_of(str(gguf), str(gguf), str(tmp_path / "none.gguf"))) as pool:
        teachers = pool()
        assert teachers["t0"].base_url == teachers["t1"].base_url
        assert not teachers["t0"].simulated
        with pytest.raises(UsageError, match=r"none\.gguf"):
            teachers["t2"]
        assert answers_of(workspace, teachers["t0"], 3) == answers_of(workspace, teachers["t0"], 3)


def answers_of(workspace: Workspace, teacher: Any, count: int) -> list[str]:
    """Ask a teacher through the client and the ledger, as a stage does."""
    requests = [
        TeacherRequest((Message("user", f"What is {number} plus 1?"),), 16, temperature=0.0)
        for number in range(count)
    ]
    ledger = Ledger(workspace.root)
    ledger.start_run("run", "p", {}, [])
    calls = LedgerCalls(ledger, "run", "step", None)
    replies, stats = ask(calls, [(teacher, requests)], AskOptions(mode="live", concurrency=2))
    assert stats.asked + stats.from_ledger == count
    return [reply.text for reply in replies[0]]


@pytest.mark.slow
def test_smollm2_answers_as_a_teacher_of_a_profile(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with TeacherPool(workspace, profile_of("smollm2-135m-instruct")) as pool:
        texts = answers_of(workspace, pool()["t0"], 3)
    assert all(text.strip() for text in texts)
    assert "2" in texts[1]
