"""The local teacher as the real SDKs see it, and as a process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from cogumi.errors import RunError, UsageError
from evals.micro import DOMAINS, verify, write_question
from pipeline.generation import prompts
from pipeline.generation.few_shot import HARD_SYSTEM
from pipeline.local_teacher import LocalTeacher, TeacherOptions, true_accuracy
from pipeline.local_teacher.answers import Answerer, Ask, Reply
from pipeline.local_teacher.options import parse_rates
from pipeline.local_teacher.state import TeacherState

MODEL = "gpt-4"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTeacher]:
    options = TeacherOptions(
        tmp_path_factory.mktemp("teacher"), error_rate=0.2, models=(MODEL, "claude", "b")
    )
    with LocalTeacher(options) as running:
        yield running


def openai_client(teacher: LocalTeacher, **options: Any) -> openai.OpenAI:
    given = {"api_key": "none", "max_retries": 0, **options}
    return openai.OpenAI(base_url=teacher.base_url + "/v1", **given)


def anthropic_client(teacher: LocalTeacher) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=teacher.base_url, api_key="none", max_retries=0)


def chat(client: openai.OpenAI, text: str, model: str = MODEL, system: str = "") -> Any:
    messages: Any = [{"role": "user", "content": text}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return client.chat.completions.create(model=model, messages=messages, max_tokens=2000)


def said(completion: Any) -> str:
    return str(completion.choices[0].message.content)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def questions(domain: str, count: int) -> list[str]:
    rng = random.Random(domain)
    return sorted({write_question(domain, rng.choice(("easy", "hard")), rng) for _ in range(count)})


# Roles -----------------------------------------------------------------------------------------------


def test_writer_writes_as_many_questions_as_asked_and_varies_with_the_call(teacher: LocalTeacher) -> None:
    client = openai_client(teacher)
    sets = []
    for call in (0, 1):
        prompt = prompts.writer_prompt("reading", "hard", 7, call, 1)
        sets.append(prompts.parse_questions(said(chat(client, prompt, system=prompts.WRITER_SYSTEM))))
    assert sets[0] is not None
    assert len(sets[0]) == 7
    assert sets[0] != sets[1]


def say(options: TeacherOptions, text: str, system: str = "", *later: tuple[str, str]) -> Reply:
    """Ask without HTTP: what is said does not depend on the wire."""
    ask = Ask(MODEL, system, (("user", text), *later), max_tokens=2000, digest=text)
    return Answerer(options).reply(ask)


def test_judge_rejects_about_the_set_share() -> None:
    options = TeacherOptions(Path(), judge_reject_rate=0.3, malformed_rate=0.0)
    asked = questions("math", 60)
    judged = [
        prompts.parse_scores(say(options, prompts.judge_prompt("math", "easy", question)).text)
        for question in asked
    ]
    kept = sum(scores is not None and min(scores.values()) >= 7 for scores in judged)
    assert None not in judged
    assert 0.5 * len(asked) <= kept <= 0.9 * len(asked)


@pytest.mark.parametrize("domain", ["math", "reading", "tool_use"])
def test_true_accuracy_is_what_the_verifier_finds(teacher: LocalTeacher, domain: str) -> None:
    client = openai_client(teacher)
    asked = questions(domain, 60)
    right = sum(verify(question, said(chat(client, question))) for question in asked)
    assert right == round(true_accuracy(teacher.options, MODEL, domain, asked) * len(asked))
    assert right < len(asked)


def test_same_question_same_answer_and_models_err_on_different_ones(teacher: LocalTeacher) -> None:
    client = openai_client(teacher)
    asked = questions("math", 40)
    first, again = ([said(chat(client, each)) for each in asked] for _ in range(2))
    other = [said(chat(client, each, model="b")) for each in asked]
    assert first == again
    assert first != other


def test_hard_answer_breaks_its_form_at_the_set_share_and_keeps_it_when_told() -> None:
    options = TeacherOptions(Path(), malformed_rate=0.5)
    asked = questions("math", 40)
    broken = 0
    for question in asked:
        answer = say(options, question, HARD_SYSTEM).text
        if prompts.parse_hard_answer(answer) is None:
            broken += 1
            told = (("assistant", answer), ("user", prompts.REPAIR_HARD))
            answer = say(options, question, HARD_SYSTEM, *told).text
        parsed = prompts.parse_hard_answer(answer)
        assert parsed is not None
        assert parsed.answer == say(options, question).text
    assert 0.2 * len(asked) <= broken <= 0.8 * len(asked)


def test_text_that_is_no_question_of_ours_gets_a_plain_answer(teacher: LocalTeacher) -> None:
    completion = chat(openai_client(teacher), "Who wrote Faust?")
    assert said(completion) == "I do not know."


# Wire formats ----------------------------------------------------------------------------------------


def test_prompt_cache_is_billed_once_as_written_and_then_as_read(teacher: LocalTeacher) -> None:
    client = anthropic_client(teacher)
    system: Any = [{"type": "text", "text": HARD_SYSTEM, "cache_control": {"type": "ephemeral"}}]
    bills = []
    for question in (*questions("math", 3)[:2], "What is 1 plus 1?"):
        turns: Any = [{"role": "user", "content": question}]
        bills.append(client.messages.create(model="b", max_tokens=900, system=system, messages=turns).usage)
    assert bills[0].cache_creation_input_tokens == bills[1].cache_read_input_tokens
    assert bills[2].cache_read_input_tokens == bills[1].cache_read_input_tokens
    assert bills[0].cache_read_input_tokens == bills[1].cache_creation_input_tokens == 0
    assert (bills[1].cache_read_input_tokens or 0) >= 1024


def test_answer_longer_than_allowed_is_cut_and_says_so(teacher: LocalTeacher) -> None:
    client = openai_client(teacher)
    turns: Any = [{"role": "user", "content": prompts.writer_prompt("math", "easy", 20, 0, 0)}]
    completion = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=10)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 10


def test_errors_have_each_providers_shape(teacher: LocalTeacher) -> None:
    bad: Any = [{"role": "user"}]
    with pytest.raises(openai.NotFoundError) as unknown:
        chat(openai_client(teacher), "hello", model="gpt-9")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        openai_client(teacher).chat.completions.create(model=MODEL, messages=bad)
    with pytest.raises(anthropic.NotFoundError) as missing:
        anthropic_client(teacher).messages.create(
            model="claude-9", max_tokens=5, messages=[{"role": "user", "content": "x"}]
        )
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError):
        anthropic_client(teacher).messages.create(model="claude", max_tokens=5, messages=bad)


def test_a_wrong_key_is_refused_by_both_formats(tmp_path: Path) -> None:
    with LocalTeacher(TeacherOptions(tmp_path, require_key="right")) as teacher:
        with pytest.raises(openai.AuthenticationError):
            chat(openai_client(teacher), "hello")
        with pytest.raises(anthropic.AuthenticationError):
            anthropic_client(teacher).messages.batches.list()
        assert said(chat(openai_client(teacher, api_key="right"), "hello")) == "I do not know."
        assert teacher.counters()["answered"] == 1


def test_openai_batch_from_upload_to_results(teacher: LocalTeacher) -> None:
    client = openai_client(teacher)
    asked = [*questions("reading", 5), "line\u2028separator \r\n--boundary"]
    batch = submit_openai(client, asked, {"purpose": "test"})
    wait_for(lambda: client.batches.retrieve(batch).status == "completed")
    done = client.batches.retrieve(batch)
    assert done.request_counts is not None
    assert done.request_counts.completed == len(asked)
    assert done.output_file_id is not None
    lines = client.files.content(done.output_file_id).text.split("\n")
    rows = {row["custom_id"]: row for row in map(json.loads, filter(None, lines))}
    for index, question in enumerate(asked):
        content = rows[f"q{index}"]["response"]["body"]["choices"][0]["message"]["content"]
        assert content == said(chat(client, question))
    assert next(each.metadata for each in client.batches.list(limit=1)) == {"purpose": "test"}
    assert teacher.counters()["by_batch"][batch] == len(asked)


def submit_openai(client: openai.OpenAI, asked: list[str], metadata: dict[str, str] | None = None) -> str:
    lines = [
        {
            "custom_id": f"q{index}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": [{"role": "user", "content": question}]},
        }
        for index, question in enumerate(asked)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    assert client.files.content(file.id).content == content
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
    )
    return batch.id


def test_broken_batch_file_is_refused_with_its_line(teacher: LocalTeacher) -> None:
    client = openai_client(teacher)
    file = client.files.create(file=("requests.jsonl", b'{"custom_id": "a"}\n'), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="Line 1"):
        client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


def test_anthropic_batch_from_creation_to_results(teacher: LocalTeacher) -> None:
    client = anthropic_client(teacher)
    turns: Any = [{"role": "user", "content": "What is 1 plus 1?"}]
    requests: Any = [
        {"custom_id": f"q{index}", "params": {"model": model, "max_tokens": 50, "messages": turns}}
        for index, model in enumerate(("claude", "claude-9"))
    ]
    batch = client.messages.batches.create(requests=requests)
    wait_for(lambda: client.messages.batches.retrieve(batch.id).processing_status == "ended")
    results = {row.custom_id: row.result for row in client.messages.batches.results(batch.id)}
    assert results["q0"].type == "succeeded"
    assert results["q1"].type == "errored"
    assert results["q1"].error.error.type == "not_found_error"
    assert next(iter(client.messages.batches.list(limit=1))).id == batch.id


def test_cancelled_batches_end_unanswered(tmp_path: Path) -> None:
    with LocalTeacher(TeacherOptions(tmp_path, batch_delay=60)) as teacher:
        first, second = openai_client(teacher), anthropic_client(teacher)
        assert first.batches.cancel(submit_openai(first, ["What is 1 plus 1?"])).status == "cancelled"
        params: Any = {"model": "c", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
        batch = second.messages.batches.create(requests=[{"custom_id": "a", "params": params}])
        assert second.messages.batches.cancel(batch.id).request_counts.canceled == 1
        assert teacher.counters()["answered"] == 0


# Faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("429", openai.RateLimitError),
        ("500", openai.InternalServerError),
        ("drop", openai.APIConnectionError),
        ("stall", openai.APITimeoutError),
    ],
)
def test_transport_faults_reach_the_sdk_and_are_not_counted_as_answers(
    tmp_path: Path, fault: str, expected: type[Exception]
) -> None:
    options = TeacherOptions(tmp_path, faults={fault: 1.0}, stall_seconds=30)
    with LocalTeacher(options) as teacher:
        with pytest.raises(expected) as raised:
            chat(openai_client(teacher, timeout=0.5), "What is 1 plus 1?")
        if isinstance(raised.value, openai.RateLimitError):
            assert raised.value.response.headers["retry-after"] == "1"
        counters = teacher.counters()
        assert counters["answered"] == 0
        assert counters["faults"] == {fault: 1}


def test_content_faults_spoil_the_answer_alone() -> None:
    prompt = prompts.writer_prompt("math", "hard", 10, 0, 0)

    def write(fault: str) -> Reply:
        return say(TeacherOptions(Path(), faults={fault: 1.0}), prompt)

    assert write("empty").text == ""
    assert write("refusal").finish == "refusal"
    assert write("truncated").finish == "length"
    assert prompts.parse_questions(write("truncated").text) is None
    assert len(json.loads(write("wrong_count").text)) in (7, 13)
    duplicated = json.loads(write("duplicate").text)
    assert duplicated[0] == duplicated[-1]


# Process ---------------------------------------------------------------------------------------------


def test_unfinished_batch_and_counts_survive_a_kill_of_the_teacher(tmp_path: Path) -> None:
    options = TeacherOptions(tmp_path, batch_delay=0.5)
    teacher = LocalTeacher(options)
    teacher.start()
    client = openai_client(teacher)
    chat(client, "What is 1 plus 1?")
    batch = submit_openai(client, ["What is 2 plus 2?", "What is 3 plus 3?"])
    teacher.kill()
    with LocalTeacher(options) as again:
        client = openai_client(again)
        wait_for(lambda: client.batches.retrieve(batch).status == "completed")
        counters = again.counters(ids=True)
        assert counters["answered"] == 3
        assert len(set(counters["ids"])) == 3


def test_log_that_a_kill_cut_short_is_mended(tmp_path: Path) -> None:
    entry = {"endpoint": "e", "model": "m", "batch": None, "input": 1, "output": 1, "prefix": None}
    TeacherState(tmp_path).answered([{"id": "first", **entry}])
    with (tmp_path / "answered.jsonl").open("a") as handle:
        handle.write('{"id": "cut sho')
    TeacherState(tmp_path).answered([{"id": "second", **entry}])
    assert TeacherState(tmp_path).counters(ids=True)["ids"] == ["first", "second"]


def test_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.local_teacher", "--state", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("local teacher ready at http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")


def test_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time\n"
        "from pipeline.local_teacher import LocalTeacher, TeacherOptions\n"
        "teacher = LocalTeacher(TeacherOptions(pathlib.Path(sys.argv[1])))\n"
        "teacher.start()\n"
        "print(teacher.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: _gone(child))


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A process that nobody has waited for yet is a zombie: it runs no more.
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_taken_port_and_wrong_options_are_one_line(teacher: LocalTeacher, tmp_path: Path) -> None:
    port = int(teacher.base_url.rpartition(":")[2])
    with pytest.raises(RunError, match="cannot listen"):
        LocalTeacher(TeacherOptions(tmp_path), port=port).start()
    command = [sys.executable, "-m", "pipeline.local_teacher", "--state", str(tmp_path), "--faults", "drip=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean 'drop'" in done.stderr


def test_rates_are_read_strictly() -> None:
    assert parse_rates("429=0.1,drop=1") == {"429": 0.1, "drop": 1.0}
    with pytest.raises(UsageError, match="name=rate"):
        parse_rates("429")
    with pytest.raises(UsageError, match="from 0 to 1"):
        TeacherOptions(Path(), error_rate=5)


def test_every_domain_of_the_plan_is_written_and_solved(teacher: LocalTeacher) -> None:
    client = openai_client(teacher)
    for domain in DOMAINS:
        for difficulty in ("easy", "hard"):
            prompt = prompts.writer_prompt(domain, difficulty, 3, 0, 0)
            written = prompts.parse_questions(said(chat(client, prompt)))
            assert written is not None
            assert all(said(chat(client, question)) != "I do not know." for question in written)
