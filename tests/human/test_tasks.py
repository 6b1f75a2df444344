"""Tasks out of a file or out of recorded evidence: blinded, checked, and each fault told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cogumi.errors import RunError, UsageError
from cogumi.evidence import EvidenceFile, EvidenceKey, Record
from cogumi.workspace import Workspace
from evals.human.blinding import Blinder
from evals.human.tasks import NO_ANSWER, TaskSet, Wanted, tasks_from_evidence, tasks_from_jsonl


def row(number: int, **changed: Any) -> dict[str, Any]:
    return {
        "task_id": f"t{number}",
        "domain": "ab"[number % 2],
        "prompt": f"question {number}",
        "answers": {"ours": f"answer {number}", "gpt-4": f"other {number}"},
    } | changed


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., TaskSet]:
    def call(rows: list[dict[str, Any]], **wanted: Any) -> TaskSet:
        found: dict[str, Any] = {"items": 2, "subject": "ours"} | wanted
        return tasks_from_jsonl(written(tmp_path / "tasks.jsonl", rows), Wanted(**found))

    return call


def test_a_file_is_read_in_its_order(read: Callable[..., TaskSet]) -> None:
    found = read([row(1), row(0)], reference="gpt-4")
    assert [task.task_id for task in found.tasks] == ["t1", "t0"]
    assert (found.subject, dict(found.systems)) == ("ours", {"ours": 2, "gpt-4": 2})
    assert found.replaced == 0


def test_systems_that_nobody_sees_are_left_out(read: Callable[..., TaskSet]) -> None:
    assert all(set(task.answers) == {"ours"} for task in read([row(0), row(1)]).tasks)


def test_the_one_system_is_the_subject(read: Callable[..., TaskSet]) -> None:
    rows = [row(n, answers={"mine": "a", "gpt-4": "b"}) for n in range(2)]
    assert read(rows, subject=None, reference="gpt-4").subject == "mine"
    with pytest.raises(UsageError, match=r"mine, gpt-4: say with --subject"):
        read(rows, subject=None)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", r"line 2: not JSON"),
        (b"[1]", r"line 2: an object is expected with task_id, domain.* found list"),
        (b"\xff\xfe", r"line 2: not UTF-8"),
        (b"[" * 50_000, r"line 2: not JSON"),
        (json.dumps({"task_id": "t9", "domain": "a", "prompt": "p"}).encode(), r"line 2: .*answers"),
        (json.dumps(row(9, prompts="?")).encode(), r"line 2: .*prompts"),
        (json.dumps(row(0)).encode(), r"line 2: task_id 't0' stands on line 1"),
        (json.dumps(row(9, answers={"ours": " "})).encode(), r"line 2: .*answers"),
        (json.dumps(row(9, answers={"gpt-4": "b"})).encode(), r"line 2: no answer of 'ours'"),
        (json.dumps(row(9, prompt="a\x00b")).encode(), r"line 2: the character U\+0000"),
        (json.dumps(row(9, answers={"ours": "\ud800"})).encode(), r"line 2: the character U\+D800"),
        (json.dumps(row(9, task_id="practice-1")).encode(), r"line 2: .*practice"),
        (json.dumps(row(9, answers={"planted": "x", "ours": "y"})).encode(), r"line 2: .*planted"),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path: Path, line: bytes, told: str) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_bytes(json.dumps(row(0)).encode() + b"\n" + line + b"\n")
    with pytest.raises((UsageError, RunError), match=told) as caught:
        tasks_from_jsonl(file, Wanted(1, "ours"))
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_an_endless_line_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_bytes(b'{"prompt": "' + b"x" * (11 * 2**20))
    with pytest.raises(UsageError, match=r"line 1: longer than 10 MiB"):
        tasks_from_jsonl(file, Wanted(1, "ours"))


def test_marks_and_ends_of_other_systems_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    lines = [json.dumps(row(n)) for n in range(2)]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    assert len(tasks_from_jsonl(file, Wanted(2, "ours")).tasks) == 2


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"items": 3}, r"2 tasks, 3 are wanted"),
        ({"items": 1, "pool": 5}, r"2 tasks, 5 are wanted"),
        ({"items": 2, "pool": 1}, r"--pool 1: a rater sees 2"),
        ({"items": 1, "subject": "our"}, r"no answer of 'our'.*ours"),
        ({"items": 1, "reference": "gpt4"}, r"no answer of the reference 'gpt4'.*gpt-4"),
    ],
)
def test_too_little_is_told(read: Callable[..., TaskSet], wanted: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read([row(0), row(1)], **wanted)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        tasks_from_jsonl(tmp_path / "none.jsonl", Wanted(1))
    with pytest.raises(RunError, match="cannot be read"):
        tasks_from_jsonl(tmp_path, Wanted(1))


def test_a_pool_is_drawn_evenly_over_domains(read: Callable[..., TaskSet]) -> None:
    rows = [row(n, domain="rare" if n < 3 else "common") for n in range(40)]
    found = read(rows, pool=10, seed=4)
    assert sum(task.domain == "rare" for task in found.tasks) == 3
    assert found.tasks == read(rows, pool=10, seed=4).tasks
    assert found.tasks != read(rows, pool=10, seed=5).tasks


def test_a_pool_for_pairs_takes_what_both_answered(read: Callable[..., TaskSet]) -> None:
    rows = [row(n, answers={"ours": "a"} | ({"gpt-4": "b"} if n % 10 == 0 else {})) for n in range(40)]
    found = read(rows, pool=6, reference="gpt-4", pairs=2)
    assert found.systems["gpt-4"] >= 2


# Blinding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "blinded"),
    [
        ("I am ChatGPT, made by OpenAI.", "I am the assistant, made by the assistant."),
        ("As GPT-4o I say so", "As the assistant I say so"),
        ("gpt-3.5-turbo", "The assistant"),
        ("As an OpenAI model; the Qwen", "As the assistant model; the assistant"),
        ("**Llama-3.1-8B-Instruct**: yes", "**the assistant**: yes"),
        ("Well.\n\nClaude 3.5 agrees", "Well.\n\nThe assistant agrees"),
        ("SmolLM2-135M-Instruct", "The assistant"),
        ("Meta  AI and Mistral AI", "The assistant and the assistant"),
        ("my candidate-7 here", "my the assistant here"),
        # Words that only look alike stay as they are, and so does every blank.
        ("a llama spits;  gemini rise\t\n", "a llama spits;  gemini rise\t\n"),
        ("the egpts and gptx", "the egpts and gptx"),
        ("our subject is ours", "our subject is ours"),
    ],
)
def test_names_are_replaced_and_nothing_else(answer: str, blinded: str) -> None:
    blinder = Blinder(["candidate-7", "ours", "subject"])
    assert blinder.blind(answer) == blinded
    assert sum(blinder.replaced.values()) == blinded.lower().count("the assistant")


def test_what_was_replaced_is_counted_by_name(read: Callable[..., TaskSet]) -> None:
    rows = [row(n, answers={"ours": "GPT-4 or gpt-4 or OpenAI"}, bad_answer="Qwen") for n in range(2)]
    found = read(rows)
    assert dict(found.scrubbed) == {"gpt-4": 4, "openai": 2, "qwen": 2}
    assert found.tasks[0].bad_answer == "The assistant"


# Recorded answers ---------------------------------------------------------------------------------


def record(workspace: Workspace, artifact: str, outputs: list[str], prompt: str = "question") -> None:
    key = EvidenceKey(artifact=artifact, task="suite/a", protocol={"version": prompt, "n": len(outputs)})
    EvidenceFile(workspace.evidence, key).append(
        [
            Record(at, f"i{at}", "math", 1.0, "stop", 1, 1, 0.1, 0.0, f"{prompt} {at}", output, {})
            for at, output in enumerate(outputs)
        ],
        n_total=len(outputs),
        facts={},
    )


@pytest.fixture
def measured(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    workspace.create()
    return workspace


def test_recorded_answers_become_tasks(measured: Workspace) -> None:
    record(measured, "sha256:a", ["one", "", "I am GPT-4"])
    record(measured, "sha256:a", ["of a shorter record"])
    record(measured, "sha256:b", ["eins", "zwei", "drei"])
    systems = {"small": "sha256:a", "large": "sha256:b"}
    found = tasks_from_evidence(measured, systems, ["suite/a"], Wanted(3, "small", "large"))
    assert [task.task_id for task in found.tasks] == ["suite/a:i0", "suite/a:i1", "suite/a:i2"]
    assert [task.answers["small"] for task in found.tasks] == ["one", NO_ANSWER, "I am the assistant"]
    assert found.tasks[0].answers["large"] == "eins"
    assert (found.tasks[0].domain, found.tasks[0].prompt) == ("math", "question 0")


def test_an_answer_to_another_prompt_is_none_to_this(measured: Workspace) -> None:
    record(measured, "sha256:a", ["one", "two"])
    record(measured, "sha256:b", ["eins", "zwei"], prompt="another")
    systems = {"small": "sha256:a", "large": "sha256:b"}
    found = tasks_from_evidence(measured, systems, ["suite/a"], Wanted(2, "small", "large"))
    assert "large" not in found.systems


def test_too_few_recorded_answers_name_the_command(measured: Workspace) -> None:
    record(measured, "sha256:abcdef0123456789", ["one"])
    with pytest.raises(
        UsageError, match=r"1 answers of m to suite/a are recorded, 2 .*cogumi eval abcdef012345"
    ):
        tasks_from_evidence(measured, {"m": "sha256:abcdef0123456789"}, ["suite/a"], Wanted(2))
