"""What a client sees of a batch while it is worked on, and of a body that is no JSON."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from pipeline.local_teacher import LocalTeacher, TeacherOptions
from pipeline.local_teacher.answers import EndingError
from pipeline.local_teacher.batch_work import Worked, work
from pipeline.local_teacher.state import TeacherState

ENTRY = {"endpoint": "e", "model": "m", "batch": None, "input": 1, "output": 1, "prefix": None}


@pytest.fixture(autouse=True)
def _told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.local_teacher.batch_work._FLUSH_SECONDS", 0.0)


def answer(index: int, request: dict[str, Any]) -> Worked:
    return Worked("succeeded", {"n": request["n"]}, {"id": str(index), **ENTRY})


def requests(count: int) -> Any:
    return ({"n": number} for number in range(count))


def test_counts_grow_while_a_batch_is_worked_on(tmp_path: Path) -> None:
    told: list[int] = []

    def tell(counts: Counter[str]) -> bool:
        told.append(counts["succeeded"])
        return True

    outcome = work(TeacherState(tmp_path), "b", requests(4), answer, tell)
    assert told == [1, 2, 3, 4]
    assert outcome is not None
    assert outcome.content("succeeded") == outcome.content() == b'{"n": 0}\n{"n": 1}\n{"n": 2}\n{"n": 3}\n'
    assert [entry["id"] for entry in outcome.entries] == ["0", "1", "2", "3"]


def test_batch_that_was_cut_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    state = TeacherState(tmp_path)

    def cut_off(index: int, request: dict[str, Any]) -> Worked:
        if index == 2:
            raise EndingError
        return answer(index, request)

    with pytest.raises(EndingError):
        work(state, "b", requests(4), cut_off, lambda _: True)
    with state.partial("b").open("a") as handle:
        handle.write('["succeeded", {"n": 2')
    again: list[int] = []

    def later(index: int, request: dict[str, Any]) -> Worked:
        again.append(index)
        return answer(index, request)

    outcome = work(state, "b", requests(4), later, lambda _: True)
    assert again == [2, 3]
    assert outcome is not None
    assert [json.loads(line)["n"] for line in outcome.content().splitlines()] == [0, 1, 2, 3]
    assert len(outcome.entries) == 4


def test_cancelled_batch_is_left(tmp_path: Path) -> None:
    assert work(TeacherState(tmp_path), "b", requests(4), answer, lambda _: False) is None


def test_log_tells_when_each_answer_was_given(tmp_path: Path) -> None:
    before = time.time()
    TeacherState(tmp_path).answered([{"id": "a", **ENTRY}])
    counters = TeacherState(tmp_path).counters(ids=True)
    assert counters["ids"] == ["a"]
    assert before <= counters["at"][0] <= time.time()
    assert counters["by_batch"] == {}
    assert counters["input_tokens"] == 1


def test_garbage_is_a_whole_answer_that_is_no_json(tmp_path: Path) -> None:
    with LocalTeacher(TeacherOptions(tmp_path, faults={"garbage": 1.0})) as teacher:
        first = openai.OpenAI(base_url=teacher.base_url + "/v1", api_key="none", max_retries=0)
        second = anthropic.Anthropic(base_url=teacher.base_url, api_key="none", max_retries=0)
        turns: Any = [{"role": "user", "content": "What is 1 plus 1?"}]
        raw = first.chat.completions.with_raw_response
        with pytest.raises((openai.APIError, ValueError)):
            raw.create(model="m", messages=turns).parse()
        with pytest.raises((anthropic.APIError, ValueError)):
            second.messages.create(model="m", max_tokens=5, messages=turns)
        counters = teacher.counters()
        assert counters["answered"] == 0
        assert counters["faults"] == {"garbage": 2}
